"""Are there Inferentia or Trainium devices that PyTorch can use?  Read from the Neuron driver's sysfs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tgi_core.plugins.libraries import installed_version
from tgi_core.plugins.pci import pci_devices
from tgi_core.plugins.specs import DeviceProbe
from tgi_neuron.families import OWN_MODELS

BACKEND = "tgi_neuron.backend:NeuronBackend"
PCI_VENDOR = "0x1d0f"  # Amazon
PCI_PRODUCTS = ("0x7064", "0x7164", "0x7264", "0x7364")  # Inferentia, Trainium, Inferentia2, Trainium2
ARCHITECTURE = "neuron_core0/info/architecture/device_name"
SDK = "install the AWS Neuron SDK"
ADVICE = {"optimum-neuron": "pip install tgi-neuron[optimum]"}
COMPILER = "neuronx-cc"  #: needed for models that were not compiled before
LIBRARIES = ("torch-neuronx", "neuronx-distributed", "optimum-neuron")
PLACEHOLDERS = {  # distribution -> versions on the public index that are empty
    "torch-neuronx": ("1.0",),
    "neuronx-distributed": ("0.1",),
    COMPILER: ("1.0", "1.0.post1"),
}


def probe(root: Path = Path("/"), version_of: Callable[[str], str] = installed_version) -> DeviceProbe:
    """The devices that can be used, or the first reason why none can."""
    names = tuple(devices(root))
    if not names:
        return _unavailable(_why_no_driver(root))
    for library in LIBRARIES:
        version = version_of(library)
        if not version:
            return _unavailable(f"{', '.join(names)}: {library} is not installed; {ADVICE.get(library, SDK)}")
        if version in PLACEHOLDERS.get(library, ()):
            advice = "install it from the AWS Neuron package repository"
            return _unavailable(f"{', '.join(names)}: {library} {version} is an empty placeholder; {advice}")
    return DeviceProbe(kind="neuron", backend=BACKEND, products=names, own_models=OWN_MODELS)


def devices(root: Path) -> list[str]:
    """The product name of each device node, in the driver's order."""
    numbers = [int(m[1]) for node in (root / "dev").glob("neuron*") if (m := re.fullmatch(r"neuron(\d+)", node.name))]
    sysfs = root / "sys/class/neuron_device"
    names = [_text(sysfs / f"neuron{number}" / ARCHITECTURE) for number in sorted(numbers)]
    return [f"AWS {name or 'Neuron device'}" for name in names]


def _why_no_driver(root: Path) -> str:
    if any(device.vendor == PCI_VENDOR and device.product in PCI_PRODUCTS for device in pci_devices(root)):
        return (
            "a Neuron device is there, but /dev/neuron0 is missing; install the aws-neuronx-dkms driver, "
            "or start the container with --device=/dev/neuron0"
        )
    return "no Inferentia or Trainium device in this machine"


def _text(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def _unavailable(reason: str) -> DeviceProbe:
    return DeviceProbe(kind="neuron", backend=BACKEND, reason=reason, own_models=OWN_MODELS)
