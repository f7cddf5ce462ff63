"""The device that is certified, and what its plugins offer for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tgi_core import builtin
from tgi_core.device.backend import DeviceBackend
from tgi_core.device.capabilities import MODEL_DTYPE, Capabilities
from tgi_core.device.select import select_device
from tgi_core.kernels.ops import KernelQuery
from tgi_core.kernels.registry import REFERENCE
from tgi_core.kernels.select import offered_kernels
from tgi_core.plugins.manager import Plugins, load_plugins
from tgi_core.plugins.specs import ANY_DEVICE, DeviceProbe, KernelSpec, resolve


@dataclass(frozen=True)
class Vendor:
    """Its plugins are loaded; its device is opened when a test needs it."""

    plugins: Plugins
    probe: DeviceProbe

    @cached_property
    def backend(self) -> DeviceBackend:
        """The device."""
        kind: type[DeviceBackend] = resolve(self.probe.backend)
        return kind()

    @property
    def capabilities(self) -> Capabilities:
        """As declared."""
        return self.backend.capabilities

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of weights and activations, best first."""
        kind: type[DeviceBackend] = resolve(self.probe.backend)
        return kind.capabilities.dtypes

    @property
    def kv_dtypes(self) -> tuple[str, ...]:
        """Of keys and values, beside the model's own dtype."""
        kind: type[DeviceBackend] = resolve(self.probe.backend)
        return tuple(name for name in kind.capabilities.kv_dtypes if name != MODEL_DTYPE)

    @cached_property
    def _offers(self) -> list[KernelSpec]:
        """Made for this device; where it has none of an op, the reference, which then runs on its tensors."""
        specs = [spec for _, spec in offered_kernels(self.plugins)]
        own = [spec for spec in specs if spec.device == self.probe.kind]
        covered = {spec.op for spec in own}
        general = [spec for spec in specs if spec.device == ANY_DEVICE and spec.op not in covered]
        return own + [spec for spec in general if spec.name == REFERENCE]

    @property
    def kernels(self) -> list[KernelSpec]:
        """All but attention."""
        return [spec for spec in self._offers if spec.op != "attention"]

    @property
    def attentions(self) -> list[KernelSpec]:
        """Attention backends."""
        return [spec for spec in self._offers if spec.op == "attention"]

    def query(self, dtype: str, head_size: int = 64, block_size: int | None = None) -> KernelQuery:
        """What kernels are asked to support; devices with a block for each sequence are asked for 64 tokens in it."""
        return KernelQuery(
            device=self.probe.kind,
            torch_device=str(self.backend.torch_device),
            dtype=dtype,
            head_size=head_size,
            block_size=block_size or self.capabilities.block_sizes[0] or 64,
        )

    def why_not(self, spec: KernelSpec, query: KernelQuery) -> str:
        """Why a kernel does not serve a query; "" if it does."""
        reason: str = resolve(spec.supports)(query) if spec.supports else ""
        return reason


def find_vendor(device: str) -> Vendor:
    """The device of this name, with all installed plugins.

    Raises:
        DeviceUnavailable: it cannot be used, with each vendor's reason.
    """
    plugins = load_plugins([builtin])
    probe, _ = select_device(plugins, device)
    return Vendor(plugins, probe)


def reference_of(plugins: Plugins, op: str) -> object:
    """What defines an op."""
    return next(resolve(spec.target) for _, spec in offered_kernels(plugins) if (spec.op, spec.name) == (op, REFERENCE))
