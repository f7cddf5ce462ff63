"""Measures the engine on a Llama of Llama-3.2-1B's shape beside what the machine can do, all in one process.

    python benchmarks/llama_1b.py --quantize none int8 int4

The weights are random and made on the machine.  decode: the time in which memory is read (huge pages) as often as a
step reads weights and keys and values, over the step's time; weights count as they are stored: 2 bytes, 1 byte, or
4.5 bits with the head in a byte.
prefill: the time of the layers' products at oneDNN's own rate for them, packed and in bfloat16, over the time to the
first token; attention is not counted as work.  The best of several rounds each, which take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from engine import Bench
from machine import BUFFER_BYTES, product_rate, read_rate
from shapes import Shape

from tgi_core.cpu import topology
from tgi_core.errors import TGIError

CONTEXT, STEPS = 128, 32
PROMPTS = (128, 1024)
WEIGHT_BYTES = {"none": (2.0, 2.0), "int8": (1.0, 1.0), "int4": (4.5 / 8, 1.0)}  #: of layers, of the head


class Found:
    """The best values so far."""

    def __init__(self) -> None:
        self.read_rate = 0.0  #: bytes/s
        self.small_page_rate = 0.0
        self.step_s = float("inf")
        self.product_rates = dict.fromkeys(PROMPTS, 0.0)  #: FLOP/s
        self.prefill_s = dict.fromkeys(PROMPTS, float("inf"))

    def add_round(self, bench: Bench, shape: Shape) -> None:
        """Machine, decode, prefill."""
        self.read_rate = max(self.read_rate, read_rate(BUFFER_BYTES, huge_pages=True))
        self.small_page_rate = max(self.small_page_rate, read_rate(BUFFER_BYTES, huge_pages=False))
        self.step_s = min(self.step_s, statistics.median(bench.decode_steps_s(1, CONTEXT, STEPS)))
        for tokens in PROMPTS:
            with torch.inference_mode():
                rate = product_rate(shape.layer_products, tokens)
            self.product_rates[tokens] = max(self.product_rates[tokens], rate)
            self.prefill_s[tokens] = min(self.prefill_s[tokens], bench.first_token_ms(bench.prompt(tokens)) / 1e3)


def report(quantize: str, found: Found, shape: Shape) -> None:
    """Print the lines of one format."""
    layer_bytes, head_bytes = WEIGHT_BYTES[quantize]
    head = shape.config["vocab_size"] * shape.config["hidden_size"]
    weight_bytes = layer_bytes * (shape.read_elements() - head) + head_bytes * head
    read_bytes = weight_bytes + CONTEXT * shape.token_bytes
    floor_s = read_bytes / found.read_rate
    print(f"{quantize}: memory {found.read_rate / 1e9:.1f} GB/s ({found.small_page_rate / 1e9:.1f} with small pages)")
    print(f"  decode step {found.step_s * 1e3:8.2f} ms, floor {floor_s * 1e3:8.2f} ms: {floor_s / found.step_s:.0%}")
    for tokens in PROMPTS:
        layers = shape.config["num_hidden_layers"]
        flop = 2 * tokens * layers * sum(outputs * inputs for outputs, inputs in shape.layer_products)
        rate, seconds = found.product_rates[tokens], found.prefill_s[tokens]
        print(
            f"  prefill {tokens:5} tokens {seconds * 1e3:8.1f} ms, products at oneDNN's {rate / 1e12:.3f} TFLOP/s "
            f"{flop / rate * 1e3:8.1f} ms: {flop / rate / seconds:.0%}",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantize", nargs="+", choices=WEIGHT_BYTES, default=list(WEIGHT_BYTES))
    parser.add_argument("--vocabulary", type=int, default=49152, help="Llama 3.2's own is 128256")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shape = Shape("1b", vocab_size=options.vocabulary)
    print(f"{shape.read_elements() / 1e9:.2f} billion weights, {topology.threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        model = shape.write(Path(folder), "cpu")
        for quantize in options.quantize:
            try:
                wish = None if quantize == "none" else quantize
                bench = Bench(str(model), quantize=wish, max_total_tokens=2048, memory_fraction=0.5)
            except TGIError as error:
                print(f"{quantize}: {error}")
                continue
            found = Found()
            for _ in range(options.rounds):
                found.add_round(bench, shape)
            report(quantize, found, shape)
            del bench


if __name__ == "__main__":
    main()
