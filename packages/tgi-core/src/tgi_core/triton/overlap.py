"""Programmatic dependent launch: a kernel is set up while the one before it runs.

Every kernel says at its begin that the next one may start, then waits until the one before is complete: whatever was
written before it is there, and what it reads is not overwritten (PTX ISA, griddepcontrol).  What no kernel writes, as
weights and what a step is told by the host, may be read before that.  From NVIDIA's Hopper on.
"""

from __future__ import annotations

from functools import cache

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FIRST_ARCHITECTURE = 90


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):
    """What a kernel begins with that reads something before `wait_for_previous`."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """From here on a kernel may read what others wrote."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def follow(OVERLAP: tl.constexpr):
    """What all others begin with."""
    let_next_begin(OVERLAP)
    wait_for_previous(OVERLAP)


@cache
def overlaps() -> bool:
    """Whether this chip can."""
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and int(target.arch) >= FIRST_ARCHITECTURE
