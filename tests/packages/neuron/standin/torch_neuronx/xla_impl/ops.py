"""The operations that optimum-neuron writes in XLA's language, by what they mean."""

import torch


def _fill_prefix(tensor, update):
    return _dynamic_update_slice(tensor, update, *[torch.tensor(0)] * tensor.dim())


def _dynamic_update_slice(tensor, update, *start_indices):
    """https://openxla.org/xla/operation_semantics#dynamicupdateslice: starts are clamped so that all of it fits."""
    out = tensor.clone()
    starts = [
        min(max(int(start), 0), whole - size)
        for start, whole, size in zip(start_indices, tensor.shape, update.shape, strict=True)
    ]
    out[tuple(slice(start, start + size) for start, size in zip(starts, update.shape, strict=True))] = update
    return out


MEANINGS = {
    "fill_prefix": _fill_prefix,
    "xla_dynamic_update_slice": _dynamic_update_slice,
    "rand_like": torch.rand_like,
}


def xla_hlo_call(function):
    """What a function that writes XLA's language computes; those that no decoder needs cannot be called."""

    def unknown(*args):
        raise NotImplementedError(f"{function.__name__} has no stand-in")

    return MEANINGS.get(function.__name__, unknown)


def nki_jit():
    def decorate(kernel):
        return kernel

    return decorate


class RmsNorm:
    @staticmethod
    def apply(x, weight, eps, dim):
        if dim != x.dim() - 1:
            raise NotImplementedError("the norm is of the last dimension")
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
