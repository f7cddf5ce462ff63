"""What tgi-gaudi registers.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tgi_core.plugins import hookimpl
from tgi_core.plugins.specs import DeviceProbe, KernelSpec, ModelSpec
from tgi_gaudi.probe import probe

KERNELS = (
    KernelSpec(op="attention", name="padded", target="tgi_gaudi.attention:PaddedAttention", device="gaudi"),
    KernelSpec(op="experts", name="every", target="tgi_gaudi.experts:EveryExpert", device="gaudi"),
)


@hookimpl
def tgi_probe_device() -> DeviceProbe:
    """Gaudi cards."""
    return probe()


@hookimpl
def tgi_register_kernels() -> Iterable[KernelSpec]:
    """Those whose shapes must not vary; the others are PyTorch's operators."""
    return KERNELS


@hookimpl
def tgi_register_models() -> Iterable[ModelSpec]:
    """Who runs each family: optimum-habana, or core."""
    from tgi_gaudi.families import gaudi_models

    return gaudi_models()
