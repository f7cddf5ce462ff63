"""How many ranks an engine has."""

import pytest

from tgi_core.config import EngineConfig
from tgi_core.cpu.backend import CpuBackend
from tgi_core.device.backend import DeviceBackend
from tgi_core.engine.place import count_ranks, find_place
from tgi_core.errors import ConfigError
from tgi_core.plugins.specs import DeviceProbe

GPUS = DeviceProbe(kind="gpu", backend="", products=("A", "B"))
GPU = DeviceProbe(kind="gpu", backend="", products=("A",))
HOST = DeviceProbe(kind="cpu", backend="", products=("C",), divisible=True)


class Connected(DeviceBackend):
    collectives = "any"


class Lonely(DeviceBackend):
    pass


@pytest.mark.parametrize(
    ("probe", "wishes", "ranks"),
    [
        (GPUS, {}, 1),
        (GPUS, {"sharded": False}, 1),
        (GPUS, {"sharded": True}, 2),
        (GPUS, {"num_shard": 2}, 2),
        (GPUS, {"num_shard": 2, "sharded": False}, 2),  # as in text-generation-inference
        (GPU, {"num_shard": 1}, 1),
        (HOST, {"num_shard": 4}, 4),
    ],
)
def test_ranks_are_as_many_as_wished(probe, wishes, ranks):
    assert count_ranks(EngineConfig(**wishes), probe, Connected) == ranks


@pytest.mark.parametrize(
    ("probe", "wishes", "message"),
    [
        (GPUS, {"num_shard": 3}, r"--num-shard 3: only 2 gpu devices can be used \(A, B\)"),
        (GPUS, {"num_shard": 0}, "`num_shard` cannot be < 1"),
        (GPUS, {"num_shard": 1, "sharded": True}, "`sharded` is true but `num_shard` <= 1"),
        (GPU, {"sharded": True}, "not enough gpu devices: `sharded` is true but only found 1 gpu devices"),
        (HOST, {"sharded": True}, "say with --num-shard how many"),
    ],
)
def test_impossible_numbers_are_refused(probe, wishes, message):
    with pytest.raises(ConfigError, match=message):
        count_ranks(EngineConfig(**wishes), probe, Connected)


def test_a_device_that_cannot_meet_others_runs_alone():
    with pytest.raises(ConfigError, match="cannot be divided over gpu devices"):
        count_ranks(EngineConfig(num_shard=2), GPUS, Lonely)
    assert count_ranks(EngineConfig(num_shard=1), GPUS, Lonely) == 1


def test_the_cpu_is_a_place():
    place = find_place(EngineConfig(device="cpu", num_shard=2))
    assert (place.probe.kind, place.backend, place.ranks) == ("cpu", CpuBackend, 2)


def test_a_device_that_divides_models_itself_needs_one_process():
    class Dividing(DeviceBackend):
        divides_itself = True

    assert count_ranks(EngineConfig(num_shard=2), GPU, Dividing) == 1
