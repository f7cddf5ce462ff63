"""Cores and memory nodes of this machine, as Linux lists them in /sys, and what is made of them.  Imports no torch."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
from collections.abc import Callable
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
NODES = Path("/sys/devices/system/node")
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")

THREADS_WISH = "OMP_NUM_THREADS"  #: of one process

SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}  #: number of the system call
MPOL_INTERLEAVE = 3


def logical_cpus() -> set[int]:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def cores() -> int:
    """Cores among those; the logical CPUs of one core share its execution units."""
    return len({_core(cpu) for cpu in logical_cpus()})


def threads() -> int:
    """How many threads compute: see `threads_report`."""
    return _threads()[0]


def threads_report() -> str:
    """How many threads compute, and what decided it."""
    count, why = _threads()
    return f"{count}, {why}"


def take_share(rank: int, size: int) -> Callable[[], None]:
    """Keep this process, one of `size` that compute at the same time, to its share of cores, side by side, and threads.

    Returns:
        What undoes it.
    """
    cpus, wish = logical_cpus(), os.environ.get(THREADS_WISH)
    count, _ = _threads(size)
    _compute_on(_share_of_cores(rank, size) or cpus)
    os.environ[THREADS_WISH] = str(count)

    def undo() -> None:
        _compute_on(cpus)
        os.environ.pop(THREADS_WISH)
        if wish is not None:
            os.environ[THREADS_WISH] = wish

    return undo


def _compute_on(cpus: set[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def _share_of_cores(rank: int, size: int) -> set[int]:
    """The logical CPUs of as many cores as every rank can have, of as few memory nodes as can be; empty if none."""
    places = {cpu: node for node in memory_nodes() for cpu in _numbers(_read(NODES / f"node{node}/cpulist"))}
    cores: dict[tuple[int, str], set[int]] = {}
    for cpu in sorted(logical_cpus()):
        cores.setdefault((places.get(cpu, -1), _core(cpu)), set()).add(cpu)
    count = len(cores) // size
    ordered = sorted(cores.values(), key=lambda cpus: (places.get(min(cpus), -1), min(cpus)))
    return set().union(*ordered[rank * count : (rank + 1) * count])


def _core(cpu: int) -> str:
    return _read(CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def loopback() -> str:
    """The network interface that leads to this very machine."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def memory_nodes() -> list[int]:
    """NUMA nodes with memory whose cores this process may use; empty where Linux does not tell."""
    usable = logical_cpus()
    with_memory = _numbers(_read(NODES / "has_memory"))
    return sorted(node for node in with_memory if _numbers(_read(NODES / f"node{node}/cpulist")) & usable)


def spread_memory() -> str:
    """Take pages that this process writes from now on from all its nodes in turn, as all its threads read all of them.

    Returns:
        Why that was not done; "" if it was.
    """
    nodes = memory_nodes()
    if len(nodes) < 2:
        return "one memory node"
    return _interleave(nodes)


def _interleave(nodes: list[int]) -> str:
    number = SET_MEMPOLICY.get(platform.machine().lower())
    if number is None:
        return f"not known how on {platform.machine()}"
    mask = ctypes.c_ulong(sum(1 << node for node in nodes))
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.syscall(number, MPOL_INTERLEAVE, ctypes.byref(mask), ctypes.c_ulong(8 * ctypes.sizeof(mask)))
    return f"the system refused: {os.strerror(ctypes.get_errno())}" if failed else ""


def nodes_report() -> str:
    """How memory is placed."""
    nodes = memory_nodes()
    if len(nodes) < 2:
        return "1"
    return f"{len(nodes)}: weights and KV cache are spread over them; numactl --cpunodebind keeps to one"


def _threads(processes: int = 1) -> tuple[int, str]:
    """For each of so many processes."""
    found, usable = cores(), len(logical_cpus())
    choices = [(found // processes, "one for each core" + (f" ({usable} logical CPUs)" if usable > found else ""))]
    quota = _quota()
    if quota is not None:
        choices.append((quota // processes, f"the container's quota; {found} cores are visible"))
    wish = os.environ.get(THREADS_WISH, "")
    if wish.isdecimal():
        choices.append((int(wish), f"as {THREADS_WISH} says; there are {found} cores"))
    count, why = min(choices, key=lambda choice: choice[0])
    return max(1, count), why


def _quota() -> int | None:
    """Whole cores of a cgroup's CPU quota (cgroup v2's cpu.max)."""
    quota, _, period = (_read(CPU_MAX) or "max").partition(" ")
    return int(quota) // int(period) if quota.isdecimal() and period.isdecimal() else None


def _numbers(listed: str) -> set[int]:
    """What Linux means by "0-3,8"; empty for anything else."""
    found: set[int] = set()
    for part in filter(None, listed.split(",")):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            return set()
        found.update(range(int(first), int(last or first) + 1))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
