"""Stands in for what compiles a model's graphs, and for the compiled model.

A compiled model takes inputs of the shapes and dtypes of its examples only, and chooses the graph by the shapes, as the
real one does.  All its graphs share one KV cache.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch import nn

MAGIC = "stands in for a compiled model"
_torch_load = torch.jit.load


class BaseModelInstance:
    pass


class ModelBuilder:
    compiled = 0  #: models, in this process

    def __init__(self, *, tp_degree, world_size, checkpoint_loader=None, **compiling):
        if tp_degree != 1 or world_size != 1:
            raise NotImplementedError("a model over several cores has no stand-in")
        self.checkpoint_loader, self.graphs = checkpoint_loader, {}

    def add(self, key, model_instance, example_inputs, compiler_args=None, priority_model_idx=None):
        (inputs,) = example_inputs
        self.graphs[key] = (model_instance, [(tuple(tensor.shape), tensor.dtype) for tensor in inputs])

    def trace(self, initialize_model_weights=True):
        if initialize_model_weights:
            raise NotImplementedError("weights are initialised later")
        ModelBuilder.compiled += 1
        return CompiledModel({key: Graph(instance, inputs) for key, (instance, inputs) in self.graphs.items()})

    def shard_checkpoint(self, serialize_path=None):
        weights = self.checkpoint_loader()
        instance, _ = next(iter(self.graphs.values()))
        instance.load_module()
        _preshard(instance.module, weights, "")
        kept = {name: weights[name].contiguous() for name in instance.module.state_dict() if name in weights}
        if serialize_path:
            Path(serialize_path).mkdir(parents=True, exist_ok=True)
            save_file(kept, Path(serialize_path) / "tp0_sharded_checkpoint.safetensors")
        return [kept]


def _preshard(module, weights, prefix):
    if hasattr(module, "preshard_hook") and module.preshard_hook(weights, prefix + "weight"):
        return
    for name, child in module.named_children():
        _preshard(child, weights, f"{prefix}{name}.")


class Graph:
    """One graph: a module, and the only inputs that it takes."""

    def __init__(self, instance, inputs):
        self.instance, self.inputs = instance, inputs

    def describe(self):
        instance = self.instance
        neuron_config = instance.neuron_config
        return {
            "model": f"{instance.model_cls.__module__}:{instance.model_cls.__qualname__}",
            "config": [type(instance.config).__module__, type(instance.config).__qualname__],
            "settings": json.loads(instance.config.to_json_string(use_diff=False)),
            "neuron_config": json.loads(neuron_config.to_json_string()),
            "positions": instance.n_positions,
            "inputs": [[list(shape), str(dtype).removeprefix("torch.")] for shape, dtype in self.inputs],
        }

    @classmethod
    def from_description(cls, description):
        decoder_builders = import_module("optimum.neuron.models.inference.backend.modules.decoder.decoder_builders")
        configs = import_module("optimum.neuron.models.inference.backend.config")
        module, _, name = description["model"].partition(":")
        config_module, config_name = description["config"]
        neuron = {k: v for k, v in description["neuron_config"].items() if not k.startswith("_")}
        neuron_config = configs.NxDNeuronConfig(**{k: v for k, v in neuron.items() if k in _arguments(configs)})
        config = getattr(import_module(config_module), config_name)(**description["settings"])
        config.torch_dtype = neuron_config.torch_dtype
        instance = decoder_builders.DecoderModelInstanceForCausalLM(
            getattr(import_module(module), name), config, neuron_config, description["positions"]
        )
        return cls(instance, [(tuple(shape), getattr(torch, dtype)) for shape, dtype in description["inputs"]])

    def takes(self, inputs):
        return [(tuple(tensor.shape), tensor.dtype) for tensor in inputs] == self.inputs


def _arguments(configs):
    code = configs.NxDNeuronConfig.__init__.__code__
    return code.co_varnames[1 : code.co_argcount]


class CompiledModel(nn.Module):
    """Where the real one is a `torch.jit.ScriptModule`."""

    calls: ClassVar = []  #: (graph, the first column of each input) of every call in this process

    def __init__(self, graphs):
        super().__init__()
        self.graphs = graphs
        self.nxd_model = self
        self.cache = None

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value) if name == "nxd_model" else super().__setattr__(name, value)

    def save(self, path, **_):
        graphs = {key: graph.describe() for key, graph in self.graphs.items()}
        Path(path).write_text(json.dumps({MAGIC: graphs}))

    @torch.no_grad()
    def initialize(self, weights, start_rank):
        for graph in self.graphs.values():
            graph.instance.load_module()
            module = graph.instance.module
            result = module.load_state_dict(weights[0], strict=False)
            missing = [name for name in result.missing_keys if "kv_mgr" not in name and "rank_util" not in name]
            if missing or result.unexpected_keys:
                raise ValueError(f"weights do not fit the graph: no {missing}, too much: {result.unexpected_keys}")
            if self.cache is None:
                self.cache = module.kv_mgr.past_key_values
                for tensor in self.cache:
                    tensor.copy_(torch.full_like(tensor, 1e3))  # what memory may hold: whatever it must not be read
            module.kv_mgr.past_key_values = self.cache

    @torch.no_grad()
    def forward(self, *inputs):
        if self.cache is None:
            raise RuntimeError("the model has no weights yet")
        key, graph = next(((k, g) for k, g in self.graphs.items() if g.takes(inputs)), (None, None))
        if graph is None:
            given = [(tuple(tensor.shape), tensor.dtype) for tensor in inputs]
            raise RuntimeError(f"no graph was compiled for {given}")
        CompiledModel.calls.append((key, inputs[2].tolist()))
        result, *cache = graph.instance.module(*inputs)
        for kept, new in zip(self.cache, cache, strict=True):
            kept.copy_(new)
        return result


def _load(path, *args, **kwargs):
    text = Path(path).read_bytes()
    if MAGIC.encode() not in text[:64]:
        return _torch_load(path, *args, **kwargs)
    described = json.loads(text)[MAGIC]
    return CompiledModel({key: Graph.from_description(graph) for key, graph in described.items()})


torch.jit.load = _load
