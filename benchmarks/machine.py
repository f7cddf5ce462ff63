"""What this machine can do: the rate at which memory is read, and the rate of matrix products.

    python benchmarks/machine.py

A decode step reads every weight once, so the bytes of the weights over the first rate are its floor; a prefill
multiplies, so its floor is its multiplications over the second.
"""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from tgi_core.cpu import topology

BUFFER_BYTES = 3 << 30  #: more than any cache
PIECE_BYTES = 256 << 20  #: some ten milliseconds, as a decode step
ROW = 4096  #: columns of the matrix that is read


def seconds(run: Callable[[], object]) -> float:
    """That it takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@contextmanager
def all_threads() -> Iterator[None]:
    """PyTorch has as many threads as the engine, which leaves it one where its own compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(topology.threads())
    yield
    torch.set_num_threads(before)


@all_threads()
def read_rate(size_bytes: int, *, huge_pages: bool, passes: int = 2) -> float:
    """Bytes/s at which PyTorch's threads read a buffer: the better of two ways, and of each the median of its pieces.

    A product of a float32 matrix and a vector, and a sum: both compute far less than what the memory takes to bring.
    """
    pages = mmap.mmap(-1, size_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
    matrix = torch.frombuffer(pages, dtype=torch.float32).view(-1, ROW)
    matrix.fill_(1.0)
    vector, pieces = torch.ones(ROW), matrix.chunk(max(1, size_bytes // PIECE_BYTES)) * passes
    products_s = statistics.median(seconds(lambda piece=piece: torch.mv(piece, vector)) for piece in pieces)
    sums_s = statistics.median(seconds(piece.sum) for piece in pieces)
    return pieces[0].nbytes / min(products_s, sums_s)


@all_threads()
def product_rate(shapes: Iterable[tuple[int, int]], rows: int, rounds: int = 3) -> float:
    """Multiply-adds/s times two of oneDNN's own products in bfloat16 with packed weights.

    Args:
        shapes: (outputs, inputs) of the weights, each multiplied with `rows` rows, one after the other.
    """
    products = [(_pack(torch.randn(n, k, dtype=torch.bfloat16)), torch.randn(rows, k).bfloat16()) for n, k in shapes]
    flop = sum(2 * rows * n * k for n, k in shapes)

    def run() -> None:
        for weight, x in products:
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    run()
    return flop / statistics.median(seconds(run) for _ in range(rounds))


def _pack(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def main() -> None:
    """Print them."""
    print(f"{topology.threads()} threads")
    for name, size in (("3 GiB", BUFFER_BYTES), ("256 MiB, as the embedded model, again and again", 256 << 20)):
        for pages in (False, True):
            rate = read_rate(size, huge_pages=pages, passes=8)
            print(f"read {name}, {'huge' if pages else 'small'} pages: {rate / 1e9:6.1f} GB/s", flush=True)
    for rows in (128, 1024):
        rate = product_rate([(2048, 2048), (8192, 2048), (2048, 8192)], rows)
        print(f"oneDNN bfloat16, {rows} rows: {rate / 1e12:6.3f} TFLOP/s", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
