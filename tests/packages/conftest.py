"""Hosts that tests make."""

import pytest


@pytest.fixture
def host(tmp_path):
    """Makes a root file system from path -> text."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


@pytest.fixture
def pci():
    """The files of one PCI device."""

    def make(vendor, kind="0x030200", device="0x0000"):
        folder = "sys/bus/pci/devices/0000:01:00.0"
        return {f"{folder}/vendor": f"{vendor}\n", f"{folder}/class": f"{kind}\n", f"{folder}/device": f"{device}\n"}

    return make
