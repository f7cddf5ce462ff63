"""Are there NVIDIA GPUs that PyTorch can use?  Asked through the driver's management library, without a context."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tgi_core.plugins.libraries import TorchBuild, torch_build
from tgi_core.plugins.pci import pci_devices
from tgi_core.plugins.specs import DeviceProbe
from tgi_core.plugins.visible import visible

BACKEND = "tgi_cuda.backend:CudaBackend"
PCI_VENDOR = "0x10de"
NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the driver's management library says."""

    cuda: tuple[int, int]  #: the newest CUDA that the driver can run: (12, 8)
    gpus: tuple[tuple[str, str], ...]  #: (name, UUID) of each, in the driver's order


def probe(
    root: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
    ask_driver: Callable[[], Driver | str] | None = None,
    build: TorchBuild | None = None,
) -> DeviceProbe:
    """The GPUs that can be used, or the first reason why none can."""
    driver = (ask_driver or ask_nvml)()
    if isinstance(driver, str):
        return _unavailable(_why_no_driver(root, driver))
    names = tuple(name for name, _ in visible(driver.gpus, environment.get("CUDA_VISIBLE_DEVICES")))
    if not names:
        hidden = f"CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES')!r} hides all {len(driver.gpus)} GPUs"
        return _unavailable(hidden if driver.gpus else "the NVIDIA driver is loaded but sees no GPU")
    reason = _why_not_torch(build or torch_build(), driver.cuda)
    if reason:
        return _unavailable(f"{', '.join(names)}: {reason}")
    return DeviceProbe(kind="cuda", backend=BACKEND, products=names)


def ask_nvml() -> Driver | str:
    """What NVML says, or why it says nothing."""
    with _nvml() as nvml:
        if isinstance(nvml, str):
            return nvml
        version = ctypes.c_int()
        nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version))
        gpus = tuple(_name_and_uuid(nvml, gpu) for gpu in _gpus(nvml))
        return Driver(cuda=(version.value // 1000, version.value % 1000 // 10), gpus=gpus)


def compute_capability() -> tuple[int, int]:
    """The lowest one of this machine's GPUs, (8, 6) for 8.6; (0, 0) where there is none."""
    with _nvml() as nvml:
        if isinstance(nvml, str):
            return 0, 0
        return min((_capability(nvml, gpu) for gpu in _gpus(nvml)), default=(0, 0))


@contextmanager
def _nvml() -> Iterator[ctypes.CDLL | str]:
    """The driver's management library, or why it says nothing."""
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        yield f"{NVML} is missing"
        return
    status = nvml.nvmlInit_v2()
    if status != 0:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        yield f"NVML answers: {nvml.nvmlErrorString(status).decode()}"
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _gpus(nvml: ctypes.CDLL) -> range:
    """Their indices."""
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    return range(count.value)


def _handle(nvml: ctypes.CDLL, index: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    return handle


def _capability(nvml: ctypes.CDLL, index: int) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvml.nvmlDeviceGetCudaComputeCapability(_handle(nvml, index), ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _name_and_uuid(nvml: ctypes.CDLL, index: int) -> tuple[str, str]:
    handle, name, uuid = _handle(nvml, index), ctypes.create_string_buffer(96), ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetName(handle, name, len(name))
    nvml.nvmlDeviceGetUUID(handle, uuid, len(uuid))
    return name.value.decode() or f"NVIDIA GPU {index}", uuid.value.decode()


def _why_no_driver(root: Path, answer: str) -> str:
    if (root / "proc/driver/nvidia/version").exists():
        return f"the NVIDIA driver is loaded, but {answer}; in a container, start it with --gpus all"
    if any(device.vendor == PCI_VENDOR and device.is_gpu for device in pci_devices(root)):
        return "an NVIDIA GPU is there, but its driver is not loaded; install the NVIDIA driver"
    return "no NVIDIA GPU in this machine"


def _why_not_torch(build: TorchBuild, driver_cuda: tuple[int, int]) -> str:
    if not build.version:
        return "PyTorch is not installed; install a CUDA build of it"
    if not build.cuda:
        return f"PyTorch {build.version} is built without CUDA; install a CUDA build of it"
    if int(build.cuda.split(".")[0]) > driver_cuda[0]:
        can = ".".join(map(str, driver_cuda))
        return f"the driver runs CUDA {can} at most, PyTorch {build.version} needs {build.cuda}; update the driver"
    return ""


def _unavailable(reason: str) -> DeviceProbe:
    return DeviceProbe(kind="cuda", backend=BACKEND, reason=reason)
