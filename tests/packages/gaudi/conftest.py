"""Devices that compile for fixed shapes, on the host: Habana's software is not needed for these."""

from dataclasses import replace

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.engine import place
from tgi_core.engine.engine import Engine
from tgi_core.plugins import hookimpl
from tgi_core.plugins.manager import load_plugins
from tgi_core.plugins.specs import DeviceProbe, resolve
from tgi_gaudi import plugin
from tgi_gaudi.backend import StaticBackend, capabilities_for
from tgi_gaudi.settings import read_settings

BACKEND = "HostBackend"
SMALL = {"BATCH_BUCKET_SIZE": "2", "PREFILL_BATCH_BUCKET_SIZE": "2", "PAD_SEQUENCE_TO_MULTIPLE_OF": "16"}


class HostBackend(StaticBackend):
    """Computes in the host's memory, and keeps the book of what would be compiled."""

    torch_device = torch.device("cpu")
    product = "a pretended card"
    environment = SMALL

    def __init__(self, rank=0, size=1):
        self.settings = read_settings(self.environment)
        self.capabilities = replace(capabilities_for(self.settings), block_sizes=(16,))
        self.calls = {}

    def free_bytes(self):
        return 1 << 28

    def wrap(self, module):
        def record(module, args, kwargs):
            shapes = (type(module).__name__, *((name, tuple(x.shape)) for name, x in kwargs.items()))
            shapes += tuple(tuple(x.shape) for x in args)
            self.calls[shapes] = self.calls.get(shapes, 0) + 1

        module.register_forward_pre_hook(record, with_kwargs=True)
        return module


class HostPlugin:
    """tgi-gaudi's, with another answer to what devices there are."""

    tgi_register_kernels = staticmethod(plugin.tgi_register_kernels)

    @staticmethod
    @hookimpl
    def tgi_probe_device():
        return DeviceProbe(kind="gaudi", backend=BACKEND, products=("a pretended card",))


@pytest.fixture
def static_engine(monkeypatch):
    """static_engine(folder, environment): an engine on that device."""
    monkeypatch.setattr(place, "resolve_target", lambda name: HostBackend if name == BACKEND else resolve(name))
    monkeypatch.setattr(place, "load_plugins", lambda builtins, blocked: load_plugins([*builtins, HostPlugin], []))

    def make(folder, environment=SMALL, **wishes):
        monkeypatch.setattr(HostBackend, "environment", environment)
        given = {"dtype": "float32", "max_batch_size": 4, "max_total_tokens": 96, **wishes}
        return Engine(EngineConfig(model_id=str(folder), device="gaudi", **given))

    return make
