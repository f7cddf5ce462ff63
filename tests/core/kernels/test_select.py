"""Choosing kernels: ranks, reasons, wishes and conflicts."""

import pytest
import torch

from tgi_core.errors import ConfigError, PluginFailed, RegistrationConflict
from tgi_core.kernels.ops import KernelQuery
from tgi_core.kernels.select import select_kernels
from tgi_core.plugins.specs import KernelSpec


def query(**changes):
    return KernelQuery(**{"device": "fake", "dtype": "float32", "head_size": 8, "block_size": 4, **changes})


def only_float32(asked):
    return "" if asked.dtype == "float32" else f"dtype {asked.dtype} is not supported"


def norm(name="fused", **changes):
    target = "tgi_core.kernels.reference.norm:rms_norm"
    return KernelSpec(**{"op": "rms_norm", "name": name, "target": target, "device": "fake", **changes})


@pytest.fixture
def supports(monkeypatch):
    """The target of `only_float32`."""
    monkeypatch.setattr(torch, "only_float32", only_float32, raising=False)
    return "torch:only_float32"


def test_a_device_kernel_beats_the_reference(load):
    _, choices = select_kernels(load(vendor={"tgi_register_kernels": [norm()]}), query())
    assert (choices["rms_norm"].spec.name, choices["rms_norm"].provider) == ("fused", "vendor")
    assert choices["rms_norm"].rejected == ("reference: fused is made for this device",)
    assert choices["silu_and_mul"].spec.name == "reference"


def test_a_kernel_that_cannot_is_rejected_with_its_reason(load, supports):
    plugins = load(vendor={"tgi_register_kernels": [norm(supports=supports)]})
    assert select_kernels(plugins, query())[1]["rms_norm"].spec.name == "fused"
    choice = select_kernels(plugins, query(dtype="float16"))[1]["rms_norm"]
    assert choice.spec.name == "reference"
    assert choice.rejected == ("fused: dtype float16 is not supported",)


def test_a_kernel_whose_supports_raises_is_rejected_with_the_error(load, monkeypatch):
    monkeypatch.setattr(torch, "broken_supports", lambda asked: asked.nonesuch, raising=False)
    _, choices = select_kernels(
        load(vendor={"tgi_register_kernels": [norm(supports="torch:broken_supports")]}), query()
    )
    assert choices["rms_norm"].spec.name == "reference"
    assert "fused: torch:broken_supports raised AttributeError: " in choices["rms_norm"].rejected[0]


def test_a_kernel_that_cannot_be_imported_stops_the_start(load):
    plugins = load(vendor={"tgi_register_kernels": [norm(target="no_such_vendor.kernels:rms_norm")]})
    with pytest.raises(PluginFailed, match=r"no_such_vendor.kernels:rms_norm cannot be imported: .*what it needs"):
        select_kernels(plugins, query())
    assert select_kernels(plugins, query(), {"rms_norm": "reference"})[1]["rms_norm"].spec.name == "reference"


def test_a_kernel_for_no_op_is_refused_with_the_nearest_one(load):
    plugins = load(vendor={"tgi_register_kernels": [norm(op="rmsnorm")]})
    with pytest.raises(
        PluginFailed,
        match=r"plugin vendor .* for the op rmsnorm, .*one is rms_norm\. .*--disable-plugin vendor",
    ):
        select_kernels(plugins, query())


def test_kernels_of_other_devices_are_not_offered(load):
    plugins = load(vendor={"tgi_register_kernels": [norm()]})
    assert select_kernels(plugins, query(device="other"))[1]["rms_norm"].rejected == ()


def test_the_higher_priority_wins_and_a_wish_beats_both(load):
    plugins = load(vendor={"tgi_register_kernels": [norm("a"), norm("b", priority=5)]})
    assert select_kernels(plugins, query())[1]["rms_norm"].spec.name == "b"
    assert select_kernels(plugins, query(), {"rms_norm": "a"})[1]["rms_norm"].spec.name == "a"


def test_reference_only_takes_no_others(load):
    plugins = load(vendor={"tgi_register_kernels": [norm()]})
    _, choices = select_kernels(plugins, query(), reference_only=True)
    assert {choice.spec.name for choice in choices.values()} == {"reference"}


def test_equal_rank_is_a_conflict_in_either_order(load):
    for order in (("a", "b"), ("b", "a")):
        plugins = load(**{plugin: {"tgi_register_kernels": [norm(plugin)]} for plugin in order})
        with pytest.raises(RegistrationConflict, match=r"a of a and b of b have the same rank.*--kernel rms_norm=NAME"):
            select_kernels(plugins, query())
        assert select_kernels(plugins, query(), {"rms_norm": "b"})[1]["rms_norm"].provider == "b"


def test_a_wish_that_nobody_offers_names_what_there_is(load):
    with pytest.raises(
        ConfigError, match=r"--kernel attention=nonesuch: there is no such kernel for .*; there are .*reference"
    ):
        select_kernels(load(), query(), {"attention": "nonesuch"})


def test_a_wish_for_an_unknown_op_lists_the_ops(load):
    with pytest.raises(ConfigError, match=r"no such op; the ops are rms_norm"):
        select_kernels(load(), query(), {"rmsnorm": "reference"})
