"""Measures families side by side with transformers' own generate, in one run, on random weights.

    python benchmarks/families.py [NAME...]

Rows: one model each.  Columns: output tokens/s, prompts included, of one request alone, and of 16 requests of different
lengths that come at once: batched by the engine; one after the other and as one padded batch in transformers.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.cpu import topology
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint

NEW_TOKENS, REQUESTS = 64, 16
THREADS = topology.threads()

_125M = {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, "vocab_size": 50272}
_TINY = (
    *("bloom", "cohere", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gptj", "gpt_neox"),
    *("granite", "llama", "mistral", "mixtral", "mpt", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3"),
    *("qwen3_moe", "stablelm", "starcoder2", "t5", "mt5", "umt5"),
)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{family}, tiny": (family, {}) for family in _TINY},
    "gpt_neox, 135M": ("gpt_neox", {**_125M, "intermediate_size": 3072}),
    "opt, 135M": ("opt", {**_125M, "ffn_dim": 3072, "word_embed_proj_dim": 768}),
}

Rate = Callable[[list[list[int]]], float]


def rate_of(run: Callable[[list[list[int]]], None], threads: int) -> Rate:
    """Output tokens/s of a function that generates NEW_TOKENS for each prompt, with so many threads of PyTorch's."""

    def rate(prompts: list[list[int]]) -> float:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        run(prompts)
        return len(prompts) * NEW_TOKENS / (time.perf_counter() - started)

    return rate


def engine_rate(folder: Path) -> Rate:
    """The engine on the CPU."""
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="bfloat16", prefix_caching=False))
    params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    return rate_of(lambda prompts: list(map(str, engine.generate(prompts, params))) and None, torch.get_num_threads())


def transformers_rate(folder: Path, *, batched: bool) -> Rate:
    """transformers' generate: all prompts padded to one batch, or one after the other."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    has_encoder = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]]) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out.shape == (len(prompts), (1 if has_encoder else longest) + NEW_TOKENS)

    def one_by_one(prompts: list[list[int]]) -> None:
        for prompt in prompts:
            generate([prompt])

    return rate_of(generate if batched else one_by_one, THREADS)


def measure(name: str, rounds: int) -> None:
    """Print a model's row."""
    family, config = MODELS[name]
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, family, dtype=torch.bfloat16, **config)
        rates = {
            "engine": engine_rate(Path(folder)),
            "generate": transformers_rate(Path(folder), batched=False),
            "padded batch": transformers_rate(Path(folder), batched=True),
        }
        prompts = [[generator.randrange(5, 300) for _ in range(generator.randrange(16, 128))] for _ in range(REQUESTS)]
        found: dict[tuple[str, int], float] = {}
        for _ in range(rounds):
            for who, rate in rates.items():
                for count in (1, REQUESTS):
                    found[who, count] = max(found.get((who, count), 0.0), rate(prompts[:count]))
    one, many = found["engine", 1], found["engine", REQUESTS]
    alone, batch = found["generate", REQUESTS], found["padded batch", REQUESTS]
    print(
        f"{name:16} {one:8.1f} {found['generate', 1]:9.1f} {one / found['generate', 1]:6.1f}x   "
        f"{many:8.1f} {alone:9.1f} {many / alone:6.1f}x {batch:9.1f} {many / batch:6.1f}x",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many is printed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'':16} {'1 request':^26}   {f'{REQUESTS} requests':^45}")
    print(f"{'':16} {'engine':>8} {'generate':>9} {'':7}   {'engine':>8} {'generate':>9} {'':7} {'padded':>9}")
    for name in options.names or MODELS:
        measure(name, options.rounds)


if __name__ == "__main__":
    main()
