"""Inferentia and Trainium: everything that a step does is compiled before, for shapes that never change."""

from __future__ import annotations

import torch

from tgi_core.device.backend import DeviceBackend
from tgi_core.device.capabilities import ONE_BLOCK_PER_SEQUENCE, Capabilities
from tgi_core.errors import DeviceUnavailable
from tgi_neuron import vendor
from tgi_neuron.compiled import SHAPES

HOST = torch.device("cpu")


class NeuronBackend(DeviceBackend):
    """Tensors that core handles lie on the host; compiled graphs take and give those.

    Raises:
        DeviceUnavailable: no Neuron core is left for this process.
    """

    capabilities = Capabilities(
        block_sizes=(ONE_BLOCK_PER_SEQUENCE,),
        dtypes=("bfloat16", "float16", "float32"),
        static_shapes=True,
        prefill_rows=1,
        chunked_prefill=False,
        prefix_caching=False,
        mixed_batches=False,
        decode_all_live=True,
    )
    runner = "tgi_neuron.runner:NeuronRunner"
    divides_itself = True
    artifact = SHAPES

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.torch_device, self.cores = HOST, vendor.cores()
        if not self.cores:
            raise DeviceUnavailable("no Neuron core is left; look at NEURON_RT_NUM_CORES and NEURON_RT_VISIBLE_CORES")
        self.product = f"AWS Neuron ({vendor.platform()})"

    def free_bytes(self) -> int:
        """Not asked for anything: weights and KV cache are the compiled model's, which fits or does not load."""
        return 0
