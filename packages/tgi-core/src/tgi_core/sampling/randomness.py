"""Random numbers that depend on a request's seed and the number of the token, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: Sequence[int], counters: Sequence[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per (seed, counter): SplitMix64 (Steele et al., OOPSLA 2014) of a stream of its own."""
    with np.errstate(over="ignore"):
        streams = _mix(np.array(seeds, dtype=np.uint64) + _GOLDEN)
        mixed = _mix(streams + (np.array(counters, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
