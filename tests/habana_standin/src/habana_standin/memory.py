"""A device "hpu" whose memory is the host's: tensors know where they are, and must not be mixed.

What an operation returns is where its arguments are; a tensor of the host among them is an error, as on a card, but
for single numbers.
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

BYTES = torch.uint8
HPU, HOST = torch.device("hpu"), torch.device("cpu")
#: may have tensors of both
CROSSING = {"to", "copy_", "cpu", "__set__", "__getitem__", "__setitem__", "_has_compatible_shallow_copy_type"}
LEAVING = {"cpu", "numpy", "tolist", "item"}
_TRUE_DEVICE = torch._C.TensorBase.device
_FLAG = "_is_on_hpu"


class MixedDevices(RuntimeError):
    """An operation has tensors of the host and of the card."""


class HostMemory(TorchFunctionMode):
    """Computes in the host's memory what is meant for the card."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func is torch.device or name == "_parse_to":
            return func(*args, **kwargs)
        tensors = _tensors((args, kwargs))
        if name not in CROSSING:
            _check(name, tensors)
        if name == "index_copy_" and args[0].dtype.itemsize == 1:  # of float8 too, which the host does not copy so
            args[0].view(BYTES).index_copy_(*args[1:3], args[3].view(BYTES))
            return args[0]
        result = func(*_hosted(args), **_hosted(kwargs))
        if name == "__set__":
            _flag(args[0], is_on_hpu(args[1]))
            return result
        asked = [str(x).split(":")[0] for x in (*args, *kwargs.values()) if isinstance(x, torch.device | str)]
        on_hpu = _place(name, tensors, asked)
        if name == "to" and on_hpu != is_on_hpu(args[0]) and result is args[0]:
            result = result.clone()  # another memory
        for tensor in _tensors(result):
            _flag(tensor, on_hpu)
        return result


def is_on_hpu(tensor):
    return getattr(tensor, _FLAG, False)


def _flag(tensor, on_hpu):
    if isinstance(tensor, Tensor):
        setattr(tensor, _FLAG, on_hpu)


def _check(name, tensors):
    if any(map(is_on_hpu, tensors)):
        here = [t for t in tensors if not is_on_hpu(t) and t.dim() and _TRUE_DEVICE.__get__(t).type == "cpu"]
        if here:
            shapes = [tuple(tensor.shape) for tensor in here]
            raise MixedDevices(f"{name}: tensors of shapes {shapes} are on the host, others on the card")


def _place(name, tensors, asked):
    """Whether what an operation returns is on the card."""
    if name in LEAVING or "cpu" in asked:
        return False
    if name in {"copy_", "__getitem__"}:
        return is_on_hpu(tensors[0])
    return "hpu" in asked or any(map(is_on_hpu, tensors))


def _tensors(x):
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, list | tuple):
        return [tensor for part in x for tensor in _tensors(part)]
    if isinstance(x, dict):
        return [tensor for part in x.values() for tensor in _tensors(part)]
    return []


def _hosted(x):
    """The same arguments, with the host for the card."""
    if isinstance(x, dict):
        return {name: _hosted_one(part) for name, part in x.items()}
    return [_hosted_one(part) for part in x]


def _hosted_one(x):
    return HOST if isinstance(x, torch.device | str) and str(x).split(":")[0] == "hpu" else x


def _device(tensor):
    true = _TRUE_DEVICE.__get__(tensor)
    return HPU if true.type == "cpu" and is_on_hpu(tensor) else true


_mode = HostMemory()


def take_over():
    """From now on in this thread, as once Habana's plugin is imported."""
    torch.Tensor.device = property(_device)
    _mode.__enter__()
