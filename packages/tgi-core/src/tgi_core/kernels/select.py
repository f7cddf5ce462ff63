"""Chooses one implementation of every op, once, and can say why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

from tgi_core.errors import ConfigError, PluginFailed, RegistrationConflict, UnsupportedKernel
from tgi_core.kernels.registry import REFERENCE
from tgi_core.plugins.manager import Plugins
from tgi_core.plugins.specs import ANY_DEVICE, KernelSpec, ModelSpec, resolve

if TYPE_CHECKING:
    from tgi_core.kernels.ops import KernelQuery, Kernels

ABSENT = "none"  #: what an op without a kernel is said to have
MAY_BE_ABSENT = ("linear_int8", "linear_int4", "linear_affine", "experts")


@dataclass(frozen=True)
class KernelChoice:
    """The implementation chosen for one op."""

    spec: KernelSpec
    provider: str  #: plugin that offers it
    rejected: tuple[str, ...]  #: "flashinfer: head size 80 is not a multiple of 64"
    absent: str = ""  #: why there is none


class Absent:
    """In place of a kernel that many models do without; those that do not stop when they are loaded."""

    keeps_levels = False  #: see `AffineLinearKernel`

    def __init__(self, why: str) -> None:
        self._why = why

    def __call__(self, *arguments: object) -> NoReturn:
        raise UnsupportedKernel(self._why)

    pack = rows = __call__


def offered_kernels(plugins: Plugins) -> Iterator[tuple[str, KernelSpec]]:
    """(plugin name, spec) of every registered kernel.  Imports no torch."""
    return plugins.registered("tgi_register_kernels", KernelSpec)


def select_kernels(
    plugins: Plugins,
    query: KernelQuery,
    wishes: Mapping[str, str] | None = None,
    *,
    reference_only: bool = False,
) -> tuple[Kernels, dict[str, KernelChoice]]:
    """The table of kernels for one model on one device.

    Args:
        wishes: op -> name of the implementation a person asked for.
        reference_only: `--disable-custom-kernels`.

    Raises:
        ConfigError: a wish names an op or an implementation that does not exist.
        UnsupportedKernel: no implementation of an op accepts the query.
        RegistrationConflict: two have the same rank.
        PluginFailed: a plugin offers a kernel for an op that does not exist, or one that cannot be imported.
    """
    from tgi_core.kernels.ops import Kernels

    ops = [field.name for field in fields(Kernels)]
    offers = [offer for offer in _known(offered_kernels(plugins), ops) if offer[1].device in (query.device, ANY_DEVICE)]
    wishes = dict.fromkeys(ops, REFERENCE) if reference_only else wishes or {}
    if unknown := wishes.keys() - set(ops):
        raise ConfigError(f"--kernel {min(unknown)}=...: there is no such op; the ops are {', '.join(ops)}")
    choices = {op: _choose(op, [o for o in offers if o[1].op == op], query, wishes.get(op)) for op in ops}
    return Kernels(**{op: _implementation(choice) for op, choice in choices.items()}), choices


def _implementation(choice: KernelChoice) -> Any:
    return Absent(choice.absent) if choice.absent else resolve(choice.spec.target)


def _known(offers: Iterator[tuple[str, KernelSpec]], ops: list[str]) -> Iterator[tuple[str, KernelSpec]]:
    for provider, spec in offers:
        if spec.op not in ops:
            near = get_close_matches(spec.op, ops, n=1)
            raise PluginFailed(
                f"plugin {provider} offers kernel {spec.name} for the op {spec.op}, which does not exist"
                + (f"; the nearest one is {near[0]}. " if near else "; ")
                + f"Install a release of it for this core, or start without it: --disable-plugin {provider}"
            )
        yield provider, spec


def _choose(op: str, offers: list[tuple[str, KernelSpec]], query: KernelQuery, wish: str | None) -> KernelChoice:
    names = sorted({spec.name for _, spec in offers})
    if wish and offers and wish not in names:
        raise ConfigError(
            f"--kernel {op}={wish}: there is no such kernel for {query.device}; there are {', '.join(names)}"
        )
    usable, rejected = [], []
    for provider, spec in offers:
        if reason := _why_not(spec, query, wish):
            rejected.append(f"{spec.name}: {reason}")
        else:
            usable.append((provider, spec))
    if not usable and op in MAY_BE_ABSENT:
        why = f"there is no {op} kernel here for {query}: " + "; ".join(rejected)
        return KernelChoice(KernelSpec(op=op, name=ABSENT, target=""), "", tuple(rejected), why)
    if not usable:
        raise UnsupportedKernel(f"no {op} kernel for {query}: " + ("; ".join(rejected) or "none is registered"))
    usable.sort(key=lambda offer: rank(offer[1]), reverse=True)
    if len(usable) > 1 and rank(usable[0][1]) == rank(usable[1][1]):
        (p1, s1), (p2, s2) = usable[:2]
        raise RegistrationConflict(
            f"{op}: {s1.name} of {p1} and {s2.name} of {p2} have the same rank; choose with --kernel {op}=NAME"
        )
    (provider, best), *others = usable
    rejected += [f"{spec.name}: {_why_later(best, spec)}" for _, spec in others]
    return KernelChoice(best, provider, tuple(rejected))


def _why_not(spec: KernelSpec, query: KernelQuery, wish: str | None) -> str:
    if wish and spec.name != wish:
        return f"{wish} was asked for"
    if query.deterministic and not spec.batch_invariant:
        return "a row's result may depend on the rows beside it"
    try:
        reason: str = resolve(spec.supports)(query) if spec.supports else ""
    except Exception as error:
        return f"{spec.supports} raised {type(error).__name__}: {error}"
    return reason


def _why_later(best: KernelSpec, spec: KernelSpec) -> str:
    if best.device != spec.device:
        return f"{best.name} is made for this device"
    return f"{best.name} has a higher priority ({best.priority} against {spec.priority})"


def rank(spec: KernelSpec | ModelSpec) -> tuple[bool, int]:
    """A device's own implementation beats a general one; then the higher priority wins."""
    return spec.device != ANY_DEVICE, spec.priority
