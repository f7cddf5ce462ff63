"""Measures models for float8, as optimum-habana's examples do before they are served, and says what they say in it.

    python float8_reference.py CHECKPOINTS FOLDER

FOLDER gets a folder for each of FLOAT8: measure.json, quantize.json, what was measured, and expected.json, which has
greedy tokens of each prompt, read anew for each token, and how far the logits of prompts are from those in bfloat16.
"""

import json
import sys
from pathlib import Path

import torch
from neural_compressor.torch.quantization import FP8Config, convert, finalize_calibration, prepare
from transformers import AutoModelForCausalLM

from tgi_gaudi.loading import adapt_transformers

sys.path.insert(0, str(Path(__file__).parent))
from workload import FLOAT8, FLOAT8_TOKENS, PROMPTS


@torch.inference_mode()
def main(checkpoints, folder):
    torch.set_num_threads(1)
    adapt_transformers()
    for name in FLOAT8:
        (folder / name).mkdir()
        compare(checkpoints / name, folder / name)


def compare(model, folder):
    everything = {"types": [], "names": []}
    common = {"observer": "maxabs", "allowlist": everything, "dump_stats_path": str(folder / "stats/of")}
    but_head = {"types": [], "names": ["lm_head", "embed_out"]}
    quantize = {"mode": "QUANTIZE", "scale_method": "maxabs_hw", "blocklist": but_head, **common}
    measuring = prepare(load(model), written(folder / "measure.json", mode="MEASURE", blocklist=everything, **common))
    plain = load(model)
    exact = [logits(plain, prompt) for prompt in PROMPTS]
    assert all(torch.equal(logits(measuring, prompt), same) for prompt, same in zip(PROMPTS, exact, strict=True))
    finalize_calibration(measuring)
    quantised = convert(load(model), written(folder / "quantize.json", **quantize))
    tokens = [greedy(quantised, prompt) for prompt in PROMPTS]
    found = [logits(quantised, prompt) for prompt in PROMPTS]
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
    (folder / "expected.json").write_text(json.dumps({"tokens": tokens, "errors": errors}))


def written(file, **config):
    file.write_text(json.dumps(config))
    return FP8Config.from_json_file(str(file))


def load(model):
    return AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.bfloat16).eval().to("hpu")


def logits(model, prompt):
    return model(input_ids=torch.tensor([prompt]).to("hpu")).logits[0].float().cpu()


def greedy(model, prompt):
    text = list(prompt)
    for _ in range(FLOAT8_TOKENS):
        text.append(int(logits(model, text)[-1].argmax()))
    return text[len(prompt) :]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
