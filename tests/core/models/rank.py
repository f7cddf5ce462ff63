"""One rank of a model that is divided over several processes: prints what each checkpoint generates.

python rank.py RANK SIZE ADDRESS FOLDER...
"""

import json
import sys

import torch

from tgi_core.config import EngineConfig
from tgi_core.distributed.group import ALONE, TorchGroup
from tgi_core.engine.engine import Engine
from tgi_core.errors import UnsupportedModel
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY

PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 5, 40))]


class Counting(TorchGroup):
    """Knows how many sums it took."""

    sums = 0

    def all_reduce(self, x):
        self.sums += 1
        return super().all_reduce(x)


def say(**facts):
    sys.stdout.write(json.dumps(facts) + "\n")


def main():
    rank, size, address, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    group = Counting(int(rank), int(size), address) if size != "1" else ALONE
    for folder in folders:
        config = EngineConfig(model_id=folder, device="cpu", dtype="float32", max_batch_prefill_tokens=32)
        try:
            engine = Engine(config, group=group)
        except UnsupportedModel as error:
            say(error=str(error))
            continue
        before = getattr(group, "sums", 0)
        completions = engine.generate(PROMPTS, SamplingParams(max_new_tokens=8, ignore_eos=True))
        weights = sum(p.packed.data.numel() for p in engine.runner.model.modules() if hasattr(p, "packed"))
        sums = getattr(group, "sums", 0) - before
        tokens, logprobs = [c.token_ids for c in completions], [c.logprobs for c in completions]
        say(tokens=tokens, logprobs=logprobs, weights=weights, sums=sums)
    if size != "1":
        group.leave()


main()
