import dataclasses

import pytest

from tgi_core.plugins.specs import DeviceProbe, KernelSpec, resolve


def test_a_target_is_resolved_on_use():
    assert resolve("json:loads")("[1]") == [1]


def test_a_wrong_target_names_what_is_missing():
    with pytest.raises(AttributeError, match="nonesuch"):
        resolve("json:nonesuch")


def test_records_are_frozen_and_keyword_only():
    spec = KernelSpec(op="gelu", name="mine", target="x:y")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.priority = 5
    with pytest.raises(TypeError):
        KernelSpec("gelu", "mine", "x:y")


def test_a_probe_is_available_when_it_names_a_product():
    assert DeviceProbe(kind="cuda", backend="x:y", products=("H100",)).available
    assert not DeviceProbe(kind="cuda", backend="x:y", reason="no driver").available
