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
from tgi_core.kernels.reference import norm as reference
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY

PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 5, 40))]


class Counting(TorchGroup):
    """Knows how many sums it took; norms them at once, and leaves nothing of what a device may overwrite."""

    sums = 0

    def all_reduce(self, x):
        Counting.sums += 1
        return super().all_reduce(x)

    def sum_and_norm(self, x, residual, norm):
        weight, bias, eps, is_rms = norm
        residual += self.all_reduce(x)
        x.fill_(torch.nan)
        if is_rms:
            return reference.rms_norm(residual, weight, eps), residual
        return reference.layer_norm(residual, weight, bias, eps), residual


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
        before, passes = Counting.sums, []
        engine.runner.model.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        completions = engine.generate(PROMPTS, SamplingParams(max_new_tokens=8, ignore_eos=True))
        weights = sum(p.packed.data.numel() for p in engine.runner.model.modules() if hasattr(p, "packed"))
        sums = (Counting.sums - before) / len(passes)
        tokens, logprobs = [c.token_ids for c in completions], [c.logprobs for c in completions]
        say(tokens=tokens, logprobs=logprobs, weights=weights, sums=sums)
    if size != "1":
        group.leave()


main()
