"""Are there AMD GPUs that PyTorch can use?  Read from the kernel driver's topology."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tgi_core.plugins.libraries import TorchBuild, torch_build
from tgi_core.plugins.pci import pci_devices
from tgi_core.plugins.specs import DeviceProbe
from tgi_core.plugins.visible import visible
from tgi_rocm.chips import why_not

BACKEND = "tgi_rocm.backend:RocmBackend"
DRIVER_NODE = "dev/kfd"
TOPOLOGY = "sys/class/kfd/kfd/topology/nodes"
PCI_VENDOR = "0x1002"
HIDING = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
PRODUCTS = {
    "gfx908": "AMD Instinct MI100",
    "gfx90a": "AMD Instinct MI200 series",
    "gfx942": "AMD Instinct MI300 series",
    "gfx950": "AMD Instinct MI350 series",
    "gfx1030": "AMD Radeon RX 6000 series",
    "gfx1100": "AMD Radeon RX 7900 series",
    "gfx1201": "AMD Radeon RX 9070 series",
}


def probe(
    root: Path = Path("/"), build: TorchBuild | None = None, environment: Mapping[str, str] = os.environ
) -> DeviceProbe:
    """The GPUs that can be used, or the first reason why none can."""
    node = root / DRIVER_NODE
    if not node.exists():
        return _unavailable(_why_no_driver(root))
    present = gpus(root)
    if not present:
        return _unavailable("the amdgpu driver is loaded but sees no GPU")
    runtime = visible(present, environment.get("ROCR_VISIBLE_DEVICES"))
    left = visible(runtime, environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES")))
    if not left:
        return _unavailable(_why_hidden(len(present), environment))
    names = tuple(f"{PRODUCTS.get(gfx, 'AMD GPU')} ({gfx})" for gfx, _ in left)
    reason = (
        _why_no_access(node)
        or _why_not_these(runtime, [gfx for gfx, _ in left])
        or _why_not_torch(build or torch_build())
    )
    if reason:
        return _unavailable(f"{', '.join(names)}: {reason}")
    return DeviceProbe(kind="rocm", backend=BACKEND, products=names)


def gpus(root: Path) -> list[tuple[str, str]]:
    """(gfx name, UUID) of each GPU, in the driver's order: [("gfx90a", "GPU-78afe0e2c8d1f8b3"), ...]."""
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
            found.append((gfx_name(version), f"GPU-{int(facts.get('unique_id', '0')):016x}"))
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


def _why_hidden(count: int, environment: Mapping[str, str]) -> str:
    set_ones = ", ".join(f"{name}={environment[name]!r}" for name in HIDING if name in environment)
    return f"{set_ones} hides all {count} GPUs"


def _why_no_access(node: Path) -> str:
    if os.access(node, os.R_OK | os.W_OK):
        return ""
    return "no access to /dev/kfd; add this user to the group render"


def _why_not_these(runtime: list[tuple[str, str]], left: list[str]) -> str:
    """A rank takes the GPU of its number, so all that are left must do."""
    unfit = [gfx for gfx in left if why_not(gfx)]
    if not unfit:
        return ""
    fit = [str(index) for index, (gfx, _) in enumerate(runtime) if not why_not(gfx)]
    hint = f"leave it out with HIP_VISIBLE_DEVICES={','.join(fit)}" if fit else "use --device cpu"
    return f"{why_not(unfit[0])}; {hint}"


def _why_not_torch(build: TorchBuild) -> str:
    if not build.version:
        return "PyTorch is not installed; install a ROCm build of it"
    if not build.hip:
        return f"PyTorch {build.version} is built without ROCm; install a ROCm build of it"
    return ""


def _unavailable(reason: str) -> DeviceProbe:
    return DeviceProbe(kind="rocm", backend=BACKEND, reason=reason)
