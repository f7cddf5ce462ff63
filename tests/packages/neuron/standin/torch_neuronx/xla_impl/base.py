from torch_neuronx.xla_impl.ops import xla_hlo_call

__all__ = ["xla_hlo_call"]
