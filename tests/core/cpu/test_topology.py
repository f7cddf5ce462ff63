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


@pytest.fixture
def affinity(monkeypatch):
    """The logical CPUs that this process may use, which it can change: [now]."""
    now = [set(range(8))]
    monkeypatch.setattr(topology.os, "sched_getaffinity", lambda pid: now[0], raising=False)
    monkeypatch.setattr(topology.os, "sched_setaffinity", lambda pid, cpus: now.__setitem__(0, cpus), raising=False)
    return now


@pytest.mark.parametrize(
    ("rank", "size", "cpus", "threads"),
    [
        (0, 2, {0, 2, 4, 6}, 2),
        (1, 2, {1, 3, 5, 7}, 2),
        (0, 3, {0, 4}, 1),
        (1, 3, {2, 6}, 1),
        (4, 5, set(range(8)), 1),  # more processes than cores share all of them
    ],
)
def test_processes_share_cores_of_one_node_side_by_side(machine, affinity, rank, size, cpus, threads):
    pair_cpus(machine)
    machine("NODES/has_memory", "0-1\n")
    machine("NODES/node0/cpulist", "0,2,4,6\n")
    machine("NODES/node1/cpulist", "1,3,5,7\n")
    undo = topology.take_share(rank, size)
    assert (affinity[0], topology.threads()) == (cpus, threads)
    assert topology.memory_nodes() == sorted({cpu % 2 for cpu in cpus})
    undo()
    assert (affinity[0], topology.threads()) == (set(range(8)), 4)


@pytest.mark.parametrize(("quota", "wish", "threads"), [("600000 100000", None, 3), (None, "1", 1), (None, "64", 4)])
def test_processes_share_a_quota_but_not_a_wish(machine, affinity, monkeypatch, quota, wish, threads):
    if quota:
        machine("CPU_MAX", quota)
    if wish:
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
    undo = topology.take_share(1, 2)
    assert topology.threads() == threads
    undo()
    assert topology.os.environ.get("OMP_NUM_THREADS") == wish


def test_the_loopback_is_an_interface():
    assert topology.loopback() in {name for _, name in topology.socket.if_nameindex()}
