"""Tensors that say they are on "hpu" and lie in the host's memory.

What is on the device and what is on the host cannot be told apart: both say "hpu".
"""

import torch
from torch.overrides import TorchFunctionMode

HPU, HOST = torch.device("hpu"), torch.device("cpu")
_TRUE_DEVICE = torch._C.TensorBase.device


def _of(tensor):
    device = _TRUE_DEVICE.__get__(tensor)
    return HPU if device.type == "cpu" else device


def _to_host(x):
    is_device = (isinstance(x, torch.device) and x.type == "hpu") or (isinstance(x, str) and x.split(":")[0] == "hpu")
    return HOST if is_device else x


class HostMemory(TorchFunctionMode):
    """Puts what is meant for the device into the host's memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        given = {name: _to_host(x) if name in ("device", "map_location") else x for name, x in (kwargs or {}).items()}
        return func(*[_to_host(x) for x in args], **given)


_mode = HostMemory()


def take_over():
    """From now on in this thread, as once Habana's plugin is imported."""
    torch.Tensor.device = property(_of)
    _mode.__enter__()
