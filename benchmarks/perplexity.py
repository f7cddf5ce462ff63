"""Measures what a quantization costs in accuracy: perplexity of English prose that comes with Python, on one model.

    python benchmarks/perplexity.py --quantize none int8 int4

The text is the documentation behind Python's `help()` (pydoc_data/topics.py), cut into pieces of 512 tokens; perplexity
is e to the mean negative log-probability of their tokens but the first ones.
"""

from __future__ import annotations

import argparse
import math
import time
from pydoc_data.topics import topics

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams

PIECE = 512


def logprobs(engine: Engine, pieces: list[list[int]]) -> list[float]:
    """Of every token of the pieces but their first."""
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=True)
    for number, piece in enumerate(pieces, 1):
        engine.add(Request(id=number, prompt_ids=piece, params=params))
    found: list[float] = []
    while engine.has_work:
        for output in engine.step():
            found += [logprob for logprob in output.prompt_logprobs or () if logprob is not None]
    return found


def main() -> None:
    """Print a row for each quantization."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder, .gguf file or hub id; default: the embedded model")
    parser.add_argument("--quantize", nargs="+", default=["none", "int8", "int4"], help="names for --quantize, or none")
    parser.add_argument("--dtype", default=None, help="of the weights that are not quantised")
    parser.add_argument("--pieces", type=int, default=40, help="of 512 tokens")
    options = parser.parse_args()
    text = "\n\n".join(topics[name] for name in sorted(topics))
    for name in options.quantize:
        started = time.perf_counter()
        engine = Engine(
            EngineConfig(
                model_id=options.model, device="cpu", dtype=options.dtype, quantize=None if name == "none" else name
            )
        )
        loaded = time.perf_counter() - started
        ids = engine.tokenizer.encode(text[: 8 * PIECE * options.pieces], add_special_tokens=False)
        pieces = [ids[start : start + PIECE] for start in range(0, len(ids) - PIECE, PIECE)][: options.pieces]
        found = logprobs(engine, pieces)
        perplexity = math.exp(-sum(found) / len(found))
        print(f"{name:8} perplexity {perplexity:8.4f} over {len(found)} tokens; loaded in {loaded:.1f} s")


if __name__ == "__main__":
    main()
