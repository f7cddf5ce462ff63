"""What a hardware vendor implements: facts about the device, and the few things only it can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tgi_core.device.capabilities import Capabilities
from tgi_core.distributed.group import Sums

Upload = Callable[[npt.NDArray[Any]], Tensor]  #: `DeviceBackend.upload`, into new memory


class UnrecordableStep(Exception):
    """What the host does in a step depends on what the device computes."""


@dataclass(frozen=True)
class Download:
    """Tensors on their way to the host; on devices that share its memory they are there."""

    tensors: tuple[Tensor, ...]  #: on the host, to be read after `wait`
    done: Callable[[], bool] = lambda: True
    wait: Callable[[], object] = lambda: None  #: a device fault is raised here
    sources: tuple[Tensor, ...] = ()  #: on the device, to be kept until then


class DeviceBackend(ABC):
    """One kind of device, in one engine process.

    Args:
        rank, size: of `size` processes on this machine that share a model, each with a device, or a share of the
            host, of its own.
    """

    capabilities: Capabilities
    torch_device: torch.device
    product: str  #: name of the device that is used
    runner: str = "tgi_core.runner.eager:EagerRunner"  #: target of the Runner subclass
    collectives: str = ""  #: what `torch.distributed` calls the library by which ranks meet; "" = it runs alone
    divides_itself: bool = False  #: one process serves a model that `--num-shard` divides, as the device does it
    artifact: str = ""  #: file that a folder has which holds a model compiled for this device; it needs no weights
    collectives_environment: Mapping[str, str] = {}  #: variables for that library, where they are not set

    def __init__(self, rank: int = 0, size: int = 1) -> None:  # noqa: B027 - see above
        pass

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory on this device that weights and KV cache may take."""

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Last change to a loaded model: graph wrapping, marks between layers, compilation."""
        return model

    def release(self) -> None:  # noqa: B027 - most keep nothing
        """Give memory back that the process keeps for later steps."""

    def synchronize(self) -> None:  # noqa: B027 - nothing to wait for where the device is the host
        """Wait until the device has done all that it was told."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record what `run` makes the device do, and return what repeats it on the same memory.

        The host's part of `run` is not repeated; `run` has been called before, so that nothing is compiled now.

        Raises:
            UnrecordableStep: it cannot be repeated.
        """
        return run

    def upload(self, array: npt.NDArray[Any], out: Tensor | None = None) -> Tensor:
        """An array on the device, in `out` if there is one, without waiting for the device; the array is left alone."""
        tensor = torch.from_numpy(array)
        return tensor.to(self.torch_device) if out is None else out.copy_(tensor)

    @property
    def sampling_device(self) -> torch.device:
        """Where tokens are chosen: the host's, where a device compiles anew for every number of rows."""
        return self.torch_device

    def upload_for_sampling(self, array: npt.NDArray[Any]) -> Tensor:
        """As `upload`, to `sampling_device`."""
        return self.upload(array)

    def download(self, tensors: Sequence[Tensor]) -> Download:
        """Tensors as they are after what the device was told so far.  Until that is `done`, nothing but the replay of a
        recording, which waits for it, may write to their memory."""
        return Download(tuple(tensor.to("cpu", copy=True) for tensor in tensors))

    def sums(self, group: dist.ProcessGroup) -> Sums | None:
        """Sums over these ranks; None where the collectives' library has the best."""
        return None

    def close(self) -> None:  # noqa: B027 - most take nothing
        """Give back what the constructor took of the process."""

    def copy_weight(self, out: Tensor, stored: Tensor) -> None:
        """Copy a few megabytes of a checkpoint into a model; see `WeightReader.copy`."""
        out.copy_(stored)
