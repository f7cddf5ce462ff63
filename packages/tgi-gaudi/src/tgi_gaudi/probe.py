"""Are there Gaudi cards that PyTorch can use?  Read from the habanalabs driver's sysfs and the installed packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tgi_core.plugins.libraries import installed_version
from tgi_core.plugins.pci import pci_devices
from tgi_core.plugins.specs import DeviceProbe

BACKEND = "tgi_gaudi.backend:GaudiBackend"
PCI_VENDOR = "0x1da3"
PRODUCTS = {"GAUDI": "Intel Gaudi", "GAUDI2": "Intel Gaudi 2", "GAUDI3": "Intel Gaudi 3"}
LIBRARIES = {  # distribution -> how to get it
    "habana-torch-plugin": "install Habana's PyTorch, it comes with the Gaudi software",
    "optimum-habana": "pip install 'tgi-gaudi[optimum]'",
}


def probe(root: Path = Path("/"), version_of: Callable[[str], str] = installed_version) -> DeviceProbe:
    """The cards that can be used, or the first reason why none can."""
    names = tuple(cards(root))
    if not names:
        return _unavailable(_why_no_driver(root))
    for library, how in LIBRARIES.items():
        if not version_of(library):
            return _unavailable(f"{', '.join(names)}: {library} is not installed; {how}")
    return DeviceProbe(kind="gaudi", backend=BACKEND, products=names)


def cards(root: Path) -> list[str]:
    """The product name of each card that has a device node, in the driver's order."""
    found = []
    for folder, nodes in (("sys/class/accel", "dev/accel"), ("sys/class/habanalabs", "dev")):  # new and old drivers
        for card in sorted((root / folder).glob("*")):
            if not (root / nodes / card.name).exists():
                continue
            kind = _text(card / "device/device_type") or _text(card / "device_type")
            if kind:  # other vendors' accelerators have no such file
                found.append(PRODUCTS.get(kind.split()[0], f"Intel Gaudi ({kind})"))
    return found


def _why_no_driver(root: Path) -> str:
    if any(device.vendor == PCI_VENDOR for device in pci_devices(root)):
        return (
            "a Gaudi card is there, but it has no device node; load the habanalabs driver, "
            "or start the container with --runtime=habana"
        )
    return "no Gaudi card in this machine"


def _text(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def _unavailable(reason: str) -> DeviceProbe:
    return DeviceProbe(kind="gaudi", backend=BACKEND, reason=reason)
