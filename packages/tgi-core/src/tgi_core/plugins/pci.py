"""Which devices are on the PCI bus, whether or not a driver is loaded: lets a probe tell the two apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GPU_CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")  # VGA, 3D, other display, processing accelerator


@dataclass(frozen=True, kw_only=True)
class PciDevice:
    """One device as Linux names it, in hexadecimal: vendor "0x10de", product "0x2330", kind "0x030200"."""

    vendor: str
    product: str
    kind: str

    @property
    def is_gpu(self) -> bool:
        """Whether it computes or displays, rather than being a network card or a bridge."""
        return self.kind.startswith(GPU_CLASSES)


def pci_devices(root: Path = Path("/")) -> Iterator[PciDevice]:
    """Every device on the bus; none where sysfs is not mounted."""
    for folder in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, product, kind = ((folder / name).read_text().strip() for name in ("vendor", "device", "class"))
        except OSError:
            continue
        yield PciDevice(vendor=vendor, product=product, kind=kind)
