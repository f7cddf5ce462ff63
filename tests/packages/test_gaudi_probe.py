from tgi_gaudi.probe import probe

GAUDI2 = {"dev/accel/accel0": "", "sys/class/accel/accel0/device/device_type": "GAUDI2\n"}
VERSIONS = {"habana-torch-plugin": "1.24.0", "optimum-habana": "1.21.2"}


def ask(root, **without):
    return probe(root, lambda name: "" if name in without.values() else VERSIONS[name])


def test_a_usable_card_is_named(host):
    assert ask(host(GAUDI2)).products == ("Intel Gaudi 2",)


def test_an_old_driver_is_understood(host):
    assert ask(host({"dev/hl0": "", "sys/class/habanalabs/hl0/device_type": "GAUDI SEC\n"})).products == (
        "Intel Gaudi",
    )


def test_an_unknown_card_keeps_its_own_name(host):
    root = host({"dev/accel/accel0": "", "sys/class/accel/accel0/device/device_type": "GAUDI9X\n"})
    assert ask(root).products == ("Intel Gaudi (GAUDI9X)",)


def test_another_vendors_accelerator_is_not_ours(host):
    root = host({"dev/accel/accel0": "", "sys/class/accel/accel0/device/vendor": "0x8086\n"})
    assert ask(root).reason == "no Gaudi card in this machine"


def test_a_card_without_a_driver(host, pci):
    assert "load the habanalabs driver" in ask(host(pci("0x1da3"))).reason


def test_a_missing_library_is_named(host):
    root = host(GAUDI2)
    assert "habana-torch-plugin is not installed" in ask(root, a="habana-torch-plugin").reason
    assert "pip install 'tgi-gaudi[optimum]'" in ask(root, a="optimum-habana").reason
