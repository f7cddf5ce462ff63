"""Which quantization is taken, and what is refused."""

import pytest

from tgi_core.errors import ConfigError, RegistrationConflict, UnsupportedModel
from tgi_core.plugins.specs import QuantizationSpec
from tgi_core.quantization.int8 import Int8
from tgi_core.quantization.select import select_quantization

GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4}}


class Gptq(Int8):
    """Stands for a reader of stored weights."""


def is_gptq(stored):
    return stored.get("quant_method") == "gptq"


def spec(name="gptq"):
    return QuantizationSpec(name=name, target="tests:Gptq", matches="tests:is_gptq")


@pytest.fixture(autouse=True)
def matches(monkeypatch):
    monkeypatch.setattr("tgi_core.quantization.select.resolve", {"tests:is_gptq": is_gptq}.__getitem__)


def test_plain_weights_stay_plain_unless_wished_otherwise(load):
    plugins = load()
    assert select_quantization(plugins, None, {}) is None
    assert select_quantization(plugins, "int8", {}).name == "int8"


def test_the_checkpoint_decides_where_it_is_quantised(load):
    plugins = load(vendor={"tgi_register_quantization": [spec()]})
    assert select_quantization(plugins, None, GPTQ).name == "gptq"
    assert select_quantization(plugins, "gptq", GPTQ).name == "gptq"


@pytest.mark.parametrize(
    ("wish", "config", "error", "message"),
    [
        (
            "int9",
            {},
            ConfigError,
            "--quantize int9 is not supported; the nearest one is int8. There are: gptq, int4, int8",
        ),
        ("awq", {}, ConfigError, "There are: gptq, int4, int8"),
        ("gptq", {}, ConfigError, "this one is not"),
        ("int8", GPTQ, ConfigError, r"quantised already \(gptq\)"),
        (None, {"quantization_config": {"quant_method": "fp8"}}, UnsupportedModel, r"quantised \(fp8\), which no"),
        (None, {"quantization_config": "fp8"}, UnsupportedModel, r"quantised \(fp8\), which no"),
    ],
)
def test_refusals_say_what_there_is(load, wish, config, error, message):
    plugins = load(vendor={"tgi_register_quantization": [spec()]})
    with pytest.raises(error, match=message):
        select_quantization(plugins, wish, config)


def test_two_plugins_with_the_same_are_a_conflict_unless_one_is_named(load):
    plugins = load(a={"tgi_register_quantization": [spec()]}, b={"tgi_register_quantization": [spec("gptq-fast")]})
    with pytest.raises(RegistrationConflict, match="gptq of a and gptq-fast of b; choose with --quantize"):
        select_quantization(plugins, None, GPTQ)
    assert select_quantization(plugins, "gptq-fast", GPTQ).name == "gptq-fast"
    plugins = load(a={"tgi_register_quantization": [spec()]}, b={"tgi_register_quantization": [spec()]})
    with pytest.raises(RegistrationConflict, match="offered by a and b"):
        select_quantization(plugins, "gptq", GPTQ)


def test_a_device_refuses_what_it_cannot_serve(load):
    plugins = load(vendor={"tgi_register_quantization": [spec()]})
    refused = {"gptq": "this device has no kernels for it; use another checkpoint"}
    with pytest.raises(UnsupportedModel, match=r"quantised \(gptq\): this device has no kernels for it; use another"):
        select_quantization(plugins, None, GPTQ, refused)
    with pytest.raises(ConfigError, match="--quantize gptq: this device has no kernels for it"):
        select_quantization(plugins, "gptq", {}, refused)
    assert select_quantization(plugins, "int8", {}, refused).name == "int8"
