import contextlib

import torch

from . import graphs, random  # noqa: F401
from .graphs import HPUGraph, ModuleCacher, disable_replay_hpu_graph, wrap_in_hpu_graph  # noqa: F401

MEMORY = 1 << 28  # bytes: little, so that sizes show


def is_available():
    return True


def device_count():
    return 1


def current_device():
    return 0


def get_device_name(device=None):
    return "GAUDI2"


def synchronize(device=None):
    pass


def is_initialized():
    return True


def init():
    pass


def is_autocast_hpu_enabled():
    return False


def get_autocast_hpu_dtype():
    return torch.bfloat16


def set_autocast_hpu_enabled(enabled):
    pass


def enable_dynamic_shape():
    pass


def disable_dynamic_shape():
    pass


def enable_inference_mode():
    pass


def disable_inference_mode():
    pass


@contextlib.contextmanager
def sdp_kernel(enable_recompute=False):
    yield


def mem_get_info(device=None):
    return MEMORY, MEMORY


def memory_stats(device=None):
    return {"InUse": 0, "MaxInUse": 0, "Limit": MEMORY}


def memory_allocated(device=None):
    return 0


def max_memory_allocated(device=None):
    return 0


def reset_peak_memory_stats(device=None):
    pass


class Stream:
    def __init__(self, *args, **kwargs):
        pass

    def synchronize(self):
        pass


class Event(Stream):
    def record(self, *args):
        pass


def current_stream(device=None):
    return Stream()


default_stream = current_stream


@contextlib.contextmanager
def stream(stream):
    yield
