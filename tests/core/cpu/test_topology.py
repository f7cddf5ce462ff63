"""Cores and memory nodes, on machines made of files."""

import subprocess
import sys

import pytest

from tgi_core.cpu import topology


@pytest.fixture(autouse=True)
def variant():
    """No kernels are needed here."""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 logical CPUs of which nothing else is known, and what makes files of it."""
    for name in ("CPUS", "NODES", "CPU_MAX"):
        monkeypatch.setattr(topology, name, tmp_path / name)
    monkeypatch.setattr(topology.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def pair_cpus(machine):
    """Make CPUs n and n + 4 one core."""
    for cpu in range(8):
        machine(f"CPUS/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")


@pytest.mark.parametrize(
    ("quota", "wish", "report"),
    [
        (None, None, "8, one for each core"),
        ("max 100000", None, "8, one for each core"),
        ("250000 100000", None, "2, the container's quota; 8 cores are visible"),
        ("10000 100000", None, "1, the container's quota; 8 cores are visible"),
        (None, "3", "3, as OMP_NUM_THREADS says; there are 8 cores"),
        (None, "64", "8, one for each core"),
        (None, "0", "1, as OMP_NUM_THREADS says; there are 8 cores"),
        ("nonsense", "4,2", "8, one for each core"),
    ],
)
def test_threads(machine, monkeypatch, quota, wish, report):
    if quota:
        machine("CPU_MAX", quota)
    if wish:
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
    assert topology.threads_report() == report
    assert topology.threads() == int(report.partition(",")[0])


def test_logical_cpus_of_one_core_share_a_thread(machine):
    pair_cpus(machine)
    assert topology.threads_report() == "4, one for each core (8 logical CPUs)"


def test_only_cores_that_the_process_may_use_count(machine, monkeypatch):
    pair_cpus(machine)
    monkeypatch.setattr(topology.os, "sched_getaffinity", lambda pid: {0, 4, 1}, raising=False)
    assert topology.threads_report() == "2, one for each core (3 logical CPUs)"


@pytest.mark.parametrize(
    ("has_memory", "cpulists", "nodes"),
    [
        ("0-1", ["0-3", "4-7"], [0, 1]),
        ("0-2", ["0-3", "4-7", "8-11"], [0, 1]),
        ("0,2", ["0-3", "4-7", ""], [0]),
        ("0", ["0-7"], [0]),
        ("?", ["0-7"], []),
        (None, [], []),
    ],
)
def test_memory_nodes(machine, has_memory, cpulists, nodes):
    if has_memory:
        machine("NODES/has_memory", has_memory + "\n")
    for node, cpulist in enumerate(cpulists):
        machine(f"NODES/node{node}/cpulist", cpulist + "\n")
    assert topology.memory_nodes() == nodes
    assert topology.nodes_report().startswith(f"{max(1, len(nodes))}")
    if len(nodes) < 2:
        assert topology.spread_memory() == "one memory node"


@pytest.mark.skipif(not topology.memory_nodes(), reason="the system does not tell of memory nodes")
def test_the_system_takes_the_policy():
    """In a process of its own, whose policy the kernel then shows."""
    code = (
        "from tgi_core.cpu import topology; import mmap;"
        "print(topology._interleave(topology.memory_nodes()));"
        "pages = mmap.mmap(-1, 1 << 20); pages[0] = 1;"
        "print(open('/proc/self/numa_maps').read().count('interleave'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    refused, count = done.stdout.splitlines()
    assert refused == ""
    assert int(count) > 0


def test_systems_without_the_call_are_named(machine, monkeypatch):
    monkeypatch.setattr(topology.platform, "machine", lambda: "riscv64")
    assert topology._interleave([0, 1]) == "not known how on riscv64"
