"""Choosing a device: the only accelerator, a wish, and never the CPU in silence."""

from importlib.metadata import EntryPoint

import pytest

from tgi_core import builtin
from tgi_core.device.select import select_device
from tgi_core.errors import DeviceUnavailable, RegistrationConflict
from tgi_core.plugins import ENTRY_POINT_GROUP
from tgi_core.plugins.manager import load_plugins
from tgi_core.plugins.specs import DeviceProbe


def vendor(kind, *products, reason=""):
    return {"tgi_probe_device": DeviceProbe(kind=kind, backend="x:y", products=products, reason=reason)}


def test_cpu_when_no_hardware_plugin_is_installed(load):
    probe, why = select_device(load())
    assert (probe.kind, why) == ("cpu", "no hardware plugin is installed")


def test_no_silent_fallback_to_cpu(load):
    plugins = load(fake=vendor("fake", reason="the card has been pulled out"))
    with pytest.raises(DeviceUnavailable, match=r"(?s)--device cpu runs on the host.*the card has been pulled out"):
        select_device(plugins)
    assert select_device(plugins, "cpu")[0].kind == "cpu"


def test_the_only_accelerator_is_chosen(load):
    plugins = load(fake=vendor("fake", "Fake 1"), other=vendor("other", reason="absent"))
    assert select_device(plugins)[0].products == ("Fake 1",)


def test_two_accelerators_need_a_choice(load):
    plugins = load(fake=vendor("fake", "Fake 1"), other=vendor("other", "Other 9"))
    with pytest.raises(DeviceUnavailable, match=r"(?s)choose with --device.*Fake 1.*Other 9"):
        select_device(plugins)
    assert select_device(plugins, "other")[0].kind == "other"


def test_a_wish_that_cannot_be_met_lists_every_device(load):
    with pytest.raises(DeviceUnavailable, match=r"(?s)device 'tpu' cannot be used.*fake: absent.*cpu: "):
        select_device(load(fake=vendor("fake", reason="absent")), "tpu")


def test_a_probe_that_raises_is_a_reason(load):
    def boom():
        raise OSError("libnvml.so not found")

    with pytest.raises(DeviceUnavailable, match=r"boom: its probe raised OSError: libnvml.so not found"):
        select_device(load(boom={"tgi_probe_device": boom}))


def test_a_probe_that_exits_or_answers_something_else_is_a_reason(load):
    def leave():
        raise SystemExit("no licence")

    with pytest.raises(DeviceUnavailable, match=r"(?s)gone: its probe raised SystemExit: no licence; install"):
        select_device(load(gone={"tgi_probe_device": leave}))
    with pytest.raises(DeviceUnavailable, match="its probe returned a NoneType where a DeviceProbe was expected"):
        select_device(load(empty={"tgi_probe_device": None}))


def test_a_probe_that_raises_leaves_the_others(load):
    plugins = load(boom={"tgi_probe_device": lambda: 1 / 0}, fake=vendor("fake", "Fake 1"))
    assert select_device(plugins)[0].kind == "fake"


def test_a_wish_for_what_nobody_offers_says_so(load):
    with pytest.raises(DeviceUnavailable, match=r"device 'tpu' cannot be used: no plugin offers it; choose another"):
        select_device(load(), "tpu")


def test_a_plugin_that_did_not_load_stops_the_start_and_says_what_to_do(make_plugin):
    broken = EntryPoint("broken", "no_such_module", ENTRY_POINT_GROUP)
    plugins = load_plugins([builtin], [broken])
    with pytest.raises(DeviceUnavailable, match=r"(?s)--disable-plugin broken, or --device cpu\n.*'no_such_module'"):
        select_device(plugins)
    assert select_device(plugins, "cpu")[0].kind == "cpu"
    assert select_device(load_plugins([builtin], [broken], ["broken"]))[0].kind == "cpu"


def test_a_plugin_that_did_not_load_is_no_hindrance_to_a_device_that_can_be_used(make_plugin, load):
    good = make_plugin("good", tgi_probe_device=lambda: DeviceProbe(kind="good", backend="x:y", products=("G",)))
    plugins = load_plugins([builtin], [EntryPoint("broken", "no_such_module", ENTRY_POINT_GROUP), good])
    assert select_device(plugins)[0].kind == "good"


def test_two_plugins_for_one_device_conflict(load):
    plugins = load(vendor_a=vendor("cuda", "H100"), vendor_b=vendor("cuda", "H100"))
    with pytest.raises(RegistrationConflict, match=r"vendor_a and vendor_b; .*--disable-plugin vendor_a or --disable"):
        select_device(plugins)
