"""Speed of the engine on a GPU, with random weights of real shapes, beside what memory and matrix units allow.

    python benchmarks/gpu.py --shape 8b --rows decode,prefill,batch --profile 32
    python benchmarks/gpu.py --shape 8b --num-shard 2
    python benchmarks/gpu.py --shape 8b --rows decode,prefill --deterministic
    python benchmarks/gpu.py --shape 8b --rows decode,batch --kv-cache-dtype fp8_e4m3fn
    python benchmarks/gpu.py --shape 8b --rows decode,prefill --quantize int4

What --deterministic costs is the difference to the same rows without it.

With --num-shard, limits are those of one GPU divided by the number of GPUs, without what they say to each other.

Weights are written once, as safetensors, into --folder; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from shapes import SHAPES, Shape

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams

BATCHES = (1, 8, 32, 128, 256)
#: --quantize -> bytes of a weight, with steps and offsets; int4's head is int8, of the 8B shape 3 % of all
WEIGHT_BYTES = {None: 2.0, "int8": 1.0, "int4": 4.5 / 8}


class Chip(NamedTuple):
    """Measured, not quoted."""

    bytes_per_s: float
    flop_per_s: float

    def times(self, count: int) -> Chip:
        """So many of them as one."""
        return Chip(count * self.bytes_per_s, count * self.flop_per_s)


def measure_chip() -> Chip:
    """Copying 2 GiB, and a matrix product of 8192."""
    x, y = (torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    copy_s = _median(lambda: y.copy_(x))
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product_s = _median(lambda: a @ b)
    return Chip(2 * x.nbytes / copy_s, 2 * 8192**3 / product_s)


def _median(run: Callable[[], object], repeats: int = 10) -> float:
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class Bench:
    """One engine and its rows."""

    def __init__(self, shape: Shape, folder: Path, chip: Chip, repeats: int, wishes: EngineConfig) -> None:
        self.shape, self.chip, self.repeats, self.ids = shape, chip, repeats, 0
        self.weight_bytes = WEIGHT_BYTES[wishes.quantize]
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.engine = Engine(msgspec.structs.replace(wishes, model_id=str(folder)))
        gc.freeze()  # as the engine's process does
        self.row("load and first step", time.perf_counter() - started, 0, "s")
        self.row("KV capacity", self.engine.info.max_batch_total_tokens, 0, "tokens")
        kinds = sorted({f"{op}={name}" for op, name in self.engine.info.kernels.items() if name != "reference"})
        print(f"# {shape.name}: {', '.join(kinds)}", flush=True)

    def row(self, name: str, value: float, limit: float, unit: str) -> None:
        beside = f"{limit:12.2f}" if limit else " " * 12
        print(f"{self.shape.name:5} {name:44} {value:12.2f} {beside} {unit}", flush=True)

    def add(self, prompt: int, output: int, *, prefix: int | None = None, **params: float | bool | int) -> None:
        self.ids += 1
        generator = torch.Generator().manual_seed(prefix if prefix is not None else 1000 + self.ids)
        ids = torch.randint(3, 49000, (prompt,), generator=generator).tolist()
        wish = SamplingParams(max_new_tokens=output, ignore_eos=True, **params)
        self.engine.add(Request(id=self.ids, prompt_ids=ids, params=wish))

    def drain(self) -> int:
        """Run to the end; the number of tokens."""
        tokens = 0
        while self.engine.has_work:
            for output in self.engine.step():
                if output.error:
                    raise RuntimeError(output.error)
                tokens += len(output.token_ids)
        return tokens

    def timed(self, run: Callable[[], float]) -> float:
        """Median of the repeats, after a first one that counts for nothing and the moment without work behind it."""
        run()
        while self.engine.prepare():
            pass
        return statistics.median(run() for _ in range(self.repeats))

    def decode_steps(self, batch: int, first: int = 32, steps: int = 128) -> float:
        """Seconds of a decode step."""
        for _ in range(batch):
            self.add(first, steps + 16)
        while self.engine.scheduler.waiting or self.engine.stats.kind != "decode":
            self.engine.step()
        for _ in range(8):
            self.engine.step()
        started, count = time.perf_counter(), steps - 16
        for _ in range(count):
            self.engine.step()
        elapsed = time.perf_counter() - started
        self.drain()
        return elapsed / count

    def decode(self) -> None:
        weights = self.weight_bytes * self.shape.read_elements
        for batch in BATCHES:
            step = self.timed(lambda batch=batch: self.decode_steps(batch))
            limit = (weights + batch * 96 * self.shape.token_bytes) / self.chip.bytes_per_s
            self.row(f"decode step, batch {batch}, context 32-160", 1e3 * step, 1e3 * limit, "ms")
        step = self.timed(lambda: self.decode_steps(1, 8000, 64)) if self.engine.info.max_total_tokens > 8100 else 0
        limit = (weights + 8032 * self.shape.token_bytes) / self.chip.bytes_per_s
        self.row("decode step, batch 1, context 8000", 1e3 * step, 1e3 * limit, "ms")

    def first_token(self, prompt: int, *, prefix: int | None = None, tail: int = 0) -> float:
        if prefix is not None:
            self.add(prompt, 1, prefix=prefix)
            self.drain()
        self.add(prompt + tail, 1, prefix=prefix)
        started = time.perf_counter()
        self.drain()
        return time.perf_counter() - started

    def prefill(self) -> None:
        flop = 2 * self.shape.read_elements
        weights_s = self.weight_bytes * self.shape.read_elements / self.chip.bytes_per_s
        ttft = self.timed(lambda: self.first_token(128))
        self.row("time to first token, 128", 1e3 * ttft, 1e3 * max(weights_s, 128 * flop / self.chip.flop_per_s), "ms")
        long = min(8000, self.engine.info.max_input_tokens)
        limit = (long * flop + self.attention_flop(long)) / self.chip.flop_per_s
        self.row(f"time to first token, {long}", 1e3 * self.timed(lambda: self.first_token(long)), 1e3 * limit, "ms")

        def eight() -> float:
            for _ in range(8):
                self.add(4096, 1)
            started = time.perf_counter()
            self.drain()
            return 8 * 4096 / (time.perf_counter() - started)

        limit = self.chip.flop_per_s / (flop + self.attention_flop(4096) / 4096)
        self.row("prefill, 8 of 4096", self.timed(eight), limit, "tokens/s")

    def attention_flop(self, length: int) -> float:
        """Of one sequence's prefill."""
        return 4 * length * length / 2 * self.shape.config["hidden_size"] * self.shape.config["num_hidden_layers"]

    def batch(self) -> None:
        sampled = {"do_sample": True, "temperature": 0.8, "top_p": 0.9}
        for count, prompt, output, params, name in (
            (256, 512, 128, {}, "greedy"), (256, 512, 128, sampled, "top-p"), (512, 128, 128, {}, "greedy"),
            (64, 2048, 256, {}, "greedy"),
        ):  # fmt: skip

            def run(count: int = count, prompt: int = prompt, output: int = output, params: dict = params) -> float:
                for _ in range(count):
                    self.add(prompt, output, **params)
                started = time.perf_counter()
                tokens = self.drain()
                return tokens / (time.perf_counter() - started)

            self.row(f"{count} requests of {prompt} + {output}, {name}", self.timed(run), 0, "tokens/s out")

    def profile(self, batch: int) -> None:
        """Kernels of ten decode steps."""
        from torch.profiler import ProfilerActivity, profile

        for _ in range(batch):
            self.add(96, 80)
        while self.engine.scheduler.waiting or self.engine.stats.kind != "decode":
            self.engine.step()
        for _ in range(8):
            self.engine.step()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            for _ in range(10):
                self.engine.step()
            torch.cuda.synchronize()
        self.drain()
        print(f"# profile of 10 decodes of batch {batch}: share of kernels, microseconds a step, launches a step")
        kernels: dict[str, list[float]] = {}
        spans = []
        for event in found.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                kernels.setdefault(event.name[:70], []).append(event.time_range.elapsed_us())
                spans.append((event.time_range.start, event.time_range.end))
        spans.sort()
        busy = sum(sum(times) for times in kernels.values())
        wall = spans[-1][1] - spans[0][0]
        for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:14]:
            print(f"{100 * sum(times) / busy:5.1f} % {sum(times) / 10:9.1f} us {len(times) / 10:7.1f}  {name}")
        print(f"# kernels {busy / 10:.0f} us a step, from first to last {wall / 10:.0f} us a step", flush=True)


def main() -> None:
    """Print the rows that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all")
    parser.add_argument("--rows", default="decode,prefill,batch", help="which rows; default: all")
    parser.add_argument("--profile", type=int, action="append", default=[], metavar="BATCH")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-shard", type=int, default=1, metavar="GPUS", help="divide the model over so many")
    parser.add_argument("--deterministic", action="store_true", help="as `tgi serve` takes it")
    parser.add_argument("--kv-cache-dtype", help="as `tgi serve` takes it")
    parser.add_argument("--max-batch-prefill-tokens", type=int, help="as `tgi serve` takes it")
    parser.add_argument("--quantize", choices=[name for name in WEIGHT_BYTES if name], help="as `tgi serve` takes it")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tgi-bench")
    args = parser.parse_args()
    chip = measure_chip()
    torch.cuda.empty_cache()
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}: {chip.bytes_per_s / 1e12:.2f} TB/s copied, "
          f"{chip.flop_per_s / 1e12:.0f} TFLOP/s bfloat16")  # fmt: skip
    print(f"{'shape':5} {'row':44} {'ours':>12} {'limit':>12}")
    for name in args.shape or SHAPES:
        shape = Shape(name)
        wishes = EngineConfig(
            device="cuda", prefix_caching=True, num_shard=args.num_shard, deterministic=args.deterministic,
            kv_cache_dtype=args.kv_cache_dtype, quantize=args.quantize,
            max_batch_prefill_tokens=args.max_batch_prefill_tokens,
        )  # fmt: skip
        bench = Bench(shape, shape.write(args.folder, "cuda"), chip.times(args.num_shard), args.repeats, wishes)
        for row in filter(None, args.rows.split(",")):
            getattr(bench, row)()
        for batch in args.profile:
            bench.profile(batch)
        bench.engine.close()
        del bench
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
