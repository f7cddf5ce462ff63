"""Which quantization is taken, and what is refused."""

import pytest

from tgi_core.errors import ConfigError, RegistrationConflict, UnsupportedModel
from tgi_core.plugins.specs import QuantizationSpec, resolve
from tgi_core.quantization.int8 import Int8
from tgi_core.quantization.select import select_quantization

EXL2 = {"quantization_config": {"quant_method": "exl2", "bits": 4}}


class Exl2(Int8):
    """Stands for a reader of stored weights."""


def is_exl2(stored):
    return stored.get("quant_method") == "exl2"


def spec(name="exl2"):
    return QuantizationSpec(name=name, target="tests:Exl2", matches="tests:is_exl2")


@pytest.fixture(autouse=True)
def matches(monkeypatch):
    own = {"tests:is_exl2": is_exl2}
    monkeypatch.setattr("tgi_core.quantization.select.resolve", lambda target: own.get(target) or resolve(target))


def test_plain_weights_stay_plain_unless_wished_otherwise(load):
    plugins = load()
    assert select_quantization(plugins, None, {}) is None
    assert select_quantization(plugins, "int8", {}).name == "int8"


def test_the_checkpoint_decides_where_it_is_quantised(load):
    plugins = load(vendor={"tgi_register_quantization": [spec()]})
    assert select_quantization(plugins, None, EXL2).name == "exl2"
    assert select_quantization(plugins, "exl2", EXL2).name == "exl2"


@pytest.mark.parametrize(
    ("wish", "config", "error", "message"),
    [
        (
            "int9",
            {},
            ConfigError,
            "--quantize int9 is not supported; the nearest one is int8. There are: awq, exl2, gptq, int4, int8",
        ),
        ("eetq", {}, ConfigError, "There are: awq, exl2, gptq, int4, int8"),
        ("exl2", {}, ConfigError, "this one is not"),
        ("int8", EXL2, ConfigError, r"quantised already \(exl2\)"),
        (None, {"quantization_config": {"quant_method": "fp8"}}, UnsupportedModel, r"quantised \(fp8\), which no"),
        (None, {"quantization_config": "fp8"}, UnsupportedModel, r"quantised \(fp8\), which no"),
    ],
)
def test_refusals_say_what_there_is(load, wish, config, error, message):
    plugins = load(vendor={"tgi_register_quantization": [spec()]})
    with pytest.raises(error, match=message):
        select_quantization(plugins, wish, config)


def test_two_plugins_with_the_same_are_a_conflict_unless_one_is_named(load):
    plugins = load(a={"tgi_register_quantization": [spec()]}, b={"tgi_register_quantization": [spec("exl2-fast")]})
    with pytest.raises(RegistrationConflict, match="exl2 of a and exl2-fast of b; choose with --quantize"):
        select_quantization(plugins, None, EXL2)
    assert select_quantization(plugins, "exl2-fast", EXL2).name == "exl2-fast"
    plugins = load(a={"tgi_register_quantization": [spec()]}, b={"tgi_register_quantization": [spec()]})
    with pytest.raises(RegistrationConflict, match="offered by a and b"):
        select_quantization(plugins, "exl2", EXL2)


def test_a_device_refuses_what_it_cannot_serve(load):
    plugins = load(vendor={"tgi_register_quantization": [spec()]})
    refused = {"exl2": "this device has no kernels for it; use another checkpoint"}
    with pytest.raises(UnsupportedModel, match=r"quantised \(exl2\): this device has no kernels for it; use another"):
        select_quantization(plugins, None, EXL2, refused)
    with pytest.raises(ConfigError, match="--quantize exl2: this device has no kernels for it"):
        select_quantization(plugins, "exl2", {}, refused)
    assert select_quantization(plugins, "int8", {}, refused).name == "int8"


def test_a_plugin_that_reads_the_same_as_core_is_preferred(load):
    own = QuantizationSpec(name="gptq", target="tests:Exl2", matches="tests:is_exl2")
    assert select_quantization(load(vendor={"tgi_register_quantization": [own]}), "gptq", EXL2) is own
    stored = {"quantization_config": {"quant_method": "gptq"}}
    assert select_quantization(load(), None, stored).target == "tgi_core.quantization.gptq:Gptq"
