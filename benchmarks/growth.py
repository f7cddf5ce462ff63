"""Measures how a decode step grows with the batch and with the context, and draws it.

    python benchmarks/growth.py --folder docs

Writes `cpu-growth.csv` and `cpu-growth.svg`.  The weights are random, of the embedded model's shape (`--shape 1b` for
a larger one).  A point is the best of the rounds' median steps.  A cliff is named where a step grows by more than its
batch or its context does.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from engine import Bench
from shapes import SHAPES, Shape

from tgi_core.cpu import topology

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 17, 24, 32, 33, 48, 64)
CONTEXTS = (128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
BATCH_SERIES_CONTEXTS = (128, 1024)
CONTEXT_SERIES_BATCHES = (1, 8)
STEPS = 16
TOTAL_TOKENS = 80_000  #: of KV cache: the largest point and what its sequences write before it is measured
CLIFF = 1.15  #: times what proportional growth would give

Point = tuple[int, int]  # batch, context
Series = dict[str, list[Point]]


def series() -> dict[str, Series]:
    """The lines of each panel, by what grows in it."""
    return {
        "batch": {f"context {c:,}": [(b, c) for b in BATCHES] for c in BATCH_SERIES_CONTEXTS},
        "context": {f"batch {b}": [(b, c) for c in CONTEXTS] for b in CONTEXT_SERIES_BATCHES},
    }


def all_points() -> Iterator[Point]:
    """Each once."""
    yield from dict.fromkeys(point for panel in series().values() for line in panel.values() for point in line)


def measure(bench: Bench, rounds: int) -> dict[Point, float]:
    """Seconds of a step at each point."""
    found: dict[Point, float] = {}
    for number in range(rounds):
        for batch, context in all_points():
            step_s = statistics.median(bench.decode_steps_s(batch, context, STEPS))
            found[batch, context] = min(step_s, found.get((batch, context), step_s))
            print(f"# round {number + 1}: batch {batch:3}, context {context:5}: {step_s * 1e3:8.2f} ms", flush=True)
    return found


def cliffs(found: dict[Point, float]) -> list[str]:
    """Where a step grows faster than what grows in it."""
    lines = []
    for axis, (what, panel) in enumerate(series().items()):
        for name, points in panel.items():
            for before, after in pairwise(points):
                growth, proportional = found[after] / found[before], after[axis] / before[axis]
                if growth > CLIFF * proportional:
                    lines.append(f"{name}: {what} {before[axis]} to {after[axis]} costs {growth:.2f} times as much")
    return lines


def draw(found: dict[Point, float], title: str, path: Path) -> None:
    """A panel for each of what grows."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tgi"  # the same numbers draw the same file
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (panel, (what, lines)) in enumerate(zip(panels, series().items(), strict=True)):
        for name, points in lines.items():
            panel.plot([p[axis] for p in points], [found[p] * 1e3 for p in points], marker=".", label=name)
        panel.set_xlabel({"batch": "sequences in the batch", "context": "tokens of context"}[what])
        panel.set_ylabel("decode step, ms")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend()
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, write, name the cliffs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the numbers and the picture go")
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--quantize", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shape = Shape(options.shape, max_position_embeddings=16384)
    with tempfile.TemporaryDirectory() as folder:
        model = str(shape.write(Path(folder), "cpu"))
        bench = Bench(model, quantize=options.quantize, prefix_caching=False, max_batch_total_tokens=TOTAL_TOKENS)
        found = measure(bench, options.rounds)
    options.folder.mkdir(parents=True, exist_ok=True)
    with (options.folder / "cpu-growth.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["batch", "context", "step_ms"])
        rows.writerows((*point, f"{step_s * 1e3:.3f}") for point, step_s in sorted(found.items()))
    weights = f"{shape.read_elements() / 1e6:,.0f} million weights in {options.quantize or 'bfloat16'}"
    title = f"{weights}, {bench.engine.info.product}, {topology.threads()} threads"
    draw(found, title, options.folder / "cpu-growth.svg")
    print("\n".join(cliffs(found)) or "no cliff")


if __name__ == "__main__":
    main()
