"""Programmatic dependent launch: a kernel is set up while those before it run.

Kernels say at their begin that the next one may start, but for those that say so later, as those behind the next one
would take room that they need (docs/decisions/0025-kernels-that-wait-take-room.md).  Every kernel waits until the one
before, and so all before that, are complete: whatever they wrote is there, and what they read is not overwritten (PTX
ISA, griddepcontrol).  Earlier it may read what nothing writes since the host last copied something or began a recorded
step, for both wait for all kernels: weights, what the host says of a step, keys of earlier steps.  From NVIDIA's Hopper
on.
"""

from __future__ import annotations

from functools import cache

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FIRST_ARCHITECTURE = 90


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):
    """Said once; before `wait_for_previous` by kernels that read something before it."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """From here on a kernel may read what others wrote."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def follow(OVERLAP: tl.constexpr):
    """What kernels begin with that read nothing earlier and let the next one begin at once."""
    let_next_begin(OVERLAP)
    wait_for_previous(OVERLAP)


@cache
def overlaps() -> bool:
    """Whether this chip can."""
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and int(target.arch) >= FIRST_ARCHITECTURE
