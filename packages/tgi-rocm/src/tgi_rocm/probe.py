"""Are there AMD GPUs that PyTorch can use?  Read from the kernel driver's topology."""

from __future__ import annotations

import os
from pathlib import Path

from tgi_core.plugins.libraries import TorchBuild, torch_build
from tgi_core.plugins.pci import pci_devices
from tgi_core.plugins.specs import DeviceProbe

BACKEND = "tgi_rocm.backend:RocmBackend"
DRIVER_NODE = "dev/kfd"
TOPOLOGY = "sys/class/kfd/kfd/topology/nodes"
PCI_VENDOR = "0x1002"
PRODUCTS = {
    "gfx908": "AMD Instinct MI100",
    "gfx90a": "AMD Instinct MI200 series",
    "gfx942": "AMD Instinct MI300 series",
    "gfx950": "AMD Instinct MI350 series",
    "gfx1030": "AMD Radeon RX 6000 series",
    "gfx1100": "AMD Radeon RX 7900 series",
    "gfx1201": "AMD Radeon RX 9070 series",
}


def probe(root: Path = Path("/"), build: TorchBuild | None = None) -> DeviceProbe:
    """The GPUs that can be used, or the first reason why none can."""
    node = root / DRIVER_NODE
    if not node.exists():
        return _unavailable(_why_no_driver(root))
    names = tuple(f"{PRODUCTS.get(gfx, 'AMD GPU')} ({gfx})" for gfx in architectures(root))
    if not names:
        return _unavailable("the amdgpu driver is loaded but sees no GPU")
    if not os.access(node, os.R_OK | os.W_OK):
        return _unavailable(f"{', '.join(names)}: no access to /dev/kfd; add this user to the group render")
    reason = _why_not_torch(build or torch_build())
    if reason:
        return _unavailable(f"{', '.join(names)}: {reason}")
    return DeviceProbe(kind="rocm", backend=BACKEND, products=names)


def architectures(root: Path) -> list[str]:
    """The gfx name of each GPU, in the driver's order: ["gfx90a", "gfx90a"]."""
    found = []
    nodes = [node for node in (root / TOPOLOGY).glob("*") if node.name.isdecimal()]
    for node in sorted(nodes, key=lambda node: int(node.name)):
        properties = node / "properties"
        try:
            lines = properties.read_text().splitlines()
        except OSError:  # nodes of other users' containers are listed but not readable
            continue
        facts = dict(line.split(maxsplit=1) for line in lines if " " in line)
        version = int(facts.get("gfx_target_version", "0"))
        if version:  # 0 is a processor
            found.append(gfx_name(version))
    return found


def gfx_name(version: int) -> str:
    """90010 -> "gfx90a": major, minor and stepping, two decimal digits each, the last two written in hex."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _why_no_driver(root: Path) -> str:
    if any(device.vendor == PCI_VENDOR and device.is_gpu for device in pci_devices(root)):
        return (
            "an AMD GPU is there, but /dev/kfd is missing; load the amdgpu driver, "
            "or start the container with --device=/dev/kfd --device=/dev/dri"
        )
    return "no AMD GPU in this machine"


def _why_not_torch(build: TorchBuild) -> str:
    if not build.version:
        return "PyTorch is not installed; install a ROCm build of it"
    if not build.hip:
        return f"PyTorch {build.version} is built without ROCm; install a ROCm build of it"
    return ""


def _unavailable(reason: str) -> DeviceProbe:
    return DeviceProbe(kind="rocm", backend=BACKEND, reason=reason)
