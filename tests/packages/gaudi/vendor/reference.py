"""Makes the checkpoints, and says what transformers says of them: in a process that optimum-habana has not adapted.

python reference.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, logging
from workload import CHECKPOINTS, LENGTHS, PROMPTS

from tgi_core.testing.tiny import make_checkpoint

#: families whose other implementations leave something out: a scale by layer, a soft cap
ATTENTION = {"gpt2": "eager", "gemma2": "eager"}


def main(folder):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    found, logprobs = {}, {}
    for name, (family, config) in CHECKPOINTS.items():
        kind = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
        made = make_checkpoint(folder / name, family, **config)
        model = kind.from_pretrained(made, attn_implementation=ATTENTION.get(family)).eval()
        pairs = zip(PROMPTS, LENGTHS, strict=True)
        found[name] = [greedy(model, prompt, length) for prompt, length in pairs]
        if family != "t5":
            logprobs[name] = [logprobs_of(model, prompt) for prompt in PROMPTS]
    (folder / "expected.json").write_text(json.dumps(found))
    (folder / "logprobs.json").write_text(json.dumps(logprobs))


@torch.inference_mode()
def greedy(model, prompt, length):
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        min_new_tokens=length,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, -length:].tolist()


@torch.inference_mode()
def logprobs_of(model, prompt):
    """Of every token but the first."""
    logprobs = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    return logprobs[:-1].gather(-1, torch.tensor(prompt[1:]).unsqueeze(-1)).squeeze(-1).tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
