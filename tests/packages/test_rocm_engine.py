"""The engine on a pretended HIP device: PyTorch's calls of the vendor are stubbed, all above them is real.

Tensors of the device lie in the host's memory, Triton's kernels run in its interpreter, and a graph repeats the
operations and launches that were captured.
"""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import msgspec
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="Triton is not installed")
if torch.cuda.is_available():
    pytest.skip("a real GPU answers here", allow_module_level=True)
import numpy as np
from triton.runtime import interpreter

from tgi_core.config import EngineConfig
from tgi_core.engine import place
from tgi_core.engine.engine import Engine
from tgi_core.errors import ConfigError, DeviceUnavailable, UnsupportedKernel, UnsupportedModel
from tgi_core.layers.moe import SparseMoE
from tgi_core.plugins.libraries import TorchBuild
from tgi_core.plugins.manager import load_plugins
from tgi_core.runner.graph import GraphRunner
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.packed import quantise
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint
from tgi_core.triton.rounded import Rounded
from tgi_core.triton.rounded_experts import RoundedExperts
from tgi_rocm import plugin
from tgi_rocm.chips import REFUSED_QUANTIZATIONS
from tgi_rocm.probe import probe

NODES = "sys/class/kfd/kfd/topology/nodes"
VERSIONS = {"gfx90a": 90010, "gfx942": 90402}
PROMPTS = [[(7 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((1, 5, 40))]
GREEDY = SamplingParams(max_new_tokens=8, ignore_eos=True)
SAMPLED = SamplingParams(
    max_new_tokens=8, ignore_eos=True, do_sample=True, seed=3, top_k=40, top_p=0.9, repetition_penalty=1.2
)


class HostMemory(TorchFunctionMode):
    """Puts what is meant for the device, or for pinned memory, into the host's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        kwargs.pop("pin_memory", None)
        args, kwargs = [_to_host(x) for x in args], {name: _to_host(x) for name, x in kwargs.items()}
        return args[0].clone() if func is Tensor.pin_memory else func(*args, **kwargs)


def _to_host(x):
    is_device = (isinstance(x, torch.device) and x.type == "cuda") or (isinstance(x, str) and x.startswith("cuda"))
    return torch.device("cpu") if is_device else x


class Stream:
    """Does at once what it is told, and remembers the last event that it was to wait for."""

    waits_for = None

    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        assert isinstance(other, Stream)

    def wait_event(self, event):
        self.waits_for = event


CURRENT = Stream()


class Event:
    """Is not there yet when it is first asked for."""

    asked = 0
    last = None  #: that was recorded

    def record(self):
        self.asked, Event.last = 0, self

    def query(self):
        self.asked += 1
        return self.asked > 1

    def synchronize(self):
        self.asked += 1


class Graph(TorchDispatchMode):
    """Captures operations and launches, and does them again on the same memory."""

    capturing = None
    replays = 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False

    def capture_begin(self, pool, capture_error_mode):
        self._actions = []
        Graph.capturing = self
        self.__enter__()

    def capture_end(self):
        self.__exit__(None, None, None)
        Graph.capturing = None

    def replay(self):
        assert Graph.capturing is None
        assert CURRENT.waits_for is Event.last  # what the device brings to the host may be written over here
        Graph.replays += 1
        for action in self._actions:
            action()

    def add(self, action):
        self._actions.append(action)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.data_dependent_output in func.tags:
            raise RuntimeError(f"{func} is not permitted when a stream is capturing")
        operation = partial(func, *args, **(kwargs or {}))
        result = operation()
        if func._schema.is_mutable:
            self.add(operation)
        elif not (_storages(result) & _storages((args, kwargs))):  # no view
            self.add(partial(_again, tree_leaves(result), operation))
        return result


def _again(outputs, operation):
    for output, computed in zip(outputs, tree_leaves(operation()), strict=True):
        output.copy_(computed)


def _storages(tree):
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


@pytest.fixture
def hip(monkeypatch, tmp_path_factory):
    """hip("gfx90a"): a host with one such GPU, until the test ends."""
    modes = []

    def make(gfx, properties=None):
        root = tmp_path_factory.mktemp("host")
        for path, text in {"dev/kfd": "", f"{NODES}/1/properties": f"gfx_target_version {VERSIONS[gfx]}\n"}.items():
            (root / path).parent.mkdir(parents=True)
            (root / path).write_text(text)
        build = TorchBuild(version="2.13.0+rocm6.4", hip="6.4.43482")
        monkeypatch.setattr(plugin, "probe", lambda: probe(root, build, {}))
        monkeypatch.setattr(place, "load_plugins", lambda builtins, blocked: load_plugins([*builtins, plugin], []))
        monkeypatch.setattr(torch.version, "hip", build.hip)
        for name, function in _calls(properties or f"{gfx}:sramecc+:xnack-").items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(Graph, "replays", 0)
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", _launch(interpreter.GridExecutor.__call__))
        modes.append(HostMemory())
        modes[-1].__enter__()

    yield make
    for mode in modes:
        mode.__exit__(None, None, None)


def _calls(architecture):
    """What `TorchGpu` and `Chip` call of the vendor."""
    properties = SimpleNamespace(gcnArchName=architecture, multi_processor_count=104, warp_size=64)
    return {
        "current_device": lambda: 0,
        "get_device_name": lambda device: "AMD Instinct",
        "get_device_properties": lambda device: properties,
        "Stream": Stream,
        "current_stream": lambda device: CURRENT,
        "stream": nullcontext,
        "graph_pool_handle": lambda: (0, 1),
        "mem_get_info": lambda device: (1 << 28, 1 << 28),
        "synchronize": lambda device: None,
        "Event": Event,
        "CUDAGraph": Graph,
    }


def _launch(run):
    """A launch of a kernel, which a graph captures as a whole."""

    def launch(executor, *args, **kwargs):
        graph, again = Graph.capturing, partial(run, executor, *args, **kwargs)
        if graph is None:
            return again()
        graph.add(again)
        with torch.utils._python_dispatch._disable_current_modes():
            return again()

    return launch


@pytest.fixture(autouse=True)
def _infinite_numbers(faster_interpreter):
    with np.errstate(all="ignore"):
        yield


def open_engine(folder, device, **wishes):
    wishes = {"dtype": "float32", "max_batch_size": 4, "max_batch_prefill_tokens": 16, **wishes}
    return Engine(EngineConfig(model_id=str(folder), device=device, **wishes))


def tokens_of(engine, params):
    return [completion.token_ids for completion in engine.generate(PROMPTS, params)]


@pytest.mark.parametrize(("family", "gfx"), [("llama", "gfx90a"), ("mistral", "gfx942")])
def test_tokens_are_those_of_the_cpu(tmp_path, hip, family, gfx):
    folder = make_checkpoint(tmp_path, family)
    expected = [tokens_of(open_engine(folder, "cpu"), params) for params in (GREEDY, SAMPLED)]
    hip(gfx)
    engine = open_engine(folder, "rocm")
    assert (engine.info.device, engine.info.product) == ("rocm", "AMD Instinct")
    assert {engine.info.kernels[op] for op in ("attention", "add_rms_norm", "rotary", "sample")} == {"triton"}
    assert isinstance(engine.runner, GraphRunner)
    assert [tokens_of(engine, params) for params in (GREEDY, SAMPLED)] == expected
    assert Graph.replays > 8


def test_the_window_of_that_mistral_shows(tmp_path):
    narrow, wide = (make_checkpoint(tmp_path / str(size), "mistral", sliding_window=size) for size in (16, None))
    assert tokens_of(open_engine(narrow, "cpu"), GREEDY) != tokens_of(open_engine(wide, "cpu"), GREEDY)


def test_layer_norm_models_run_on_the_kernel_of_triton(tmp_path, hip):
    folder = make_checkpoint(tmp_path, "gpt_neox")
    expected = tokens_of(open_engine(folder, "cpu"), GREEDY)
    hip("gfx90a")
    engine = open_engine(folder, "rocm")
    assert engine.info.kernels["layer_norm"] == "triton"
    assert tokens_of(engine, GREEDY) == expected


def test_deterministic_steps_give_the_same_bits_alone_and_in_a_crowd(tmp_path, hip):
    folder = make_checkpoint(tmp_path, "llama")
    hip("gfx942")
    engine = open_engine(folder, "rocm", deterministic=True)
    assert engine.info.kernels["linear"] == engine.info.kernels["experts"] == "triton-fixed"
    assert engine.info.kernels["linear_int8"] == "none"
    for wishes in (GREEDY, SAMPLED):
        params = msgspec.structs.replace(wishes, max_new_tokens=4)
        crowd = engine.generate(PROMPTS, params)
        alone = [engine.generate([prompt], params)[0] for prompt in PROMPTS]
        assert [(c.token_ids, c.logprobs) for c in crowd] == [(c.token_ids, c.logprobs) for c in alone]
    with pytest.raises(UnsupportedKernel, match=r"no linear_int8 kernel here .* may depend on the rows beside it"):
        open_engine(folder, "rocm", deterministic=True, quantize="int8")


def test_gptq_keeps_its_bits_and_says_the_same(tmp_path, hip):
    packed, plain = quantise(make_checkpoint(tmp_path / "llama"), "gptq", any_order=True)
    hip("gfx90a")
    found = []
    for folder, kept in ((packed, True), (plain, False)):
        engine = open_engine(folder, "rocm", dtype="float16")
        weights = [module.packed for module in engine.runner.model.modules() if hasattr(module, "packed")]
        assert any(isinstance(weight, Rounded) for weight in weights) is kept
        outputs = engine.generate(PROMPTS, SamplingParams(max_new_tokens=2, ignore_eos=True))
        found.append([output.logprobs[0] for output in outputs])
    assert found[0] == pytest.approx(found[1], abs=0.02)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # rows that pad a batch hold what was in memory
@pytest.mark.parametrize(("family", "method"), [("qwen2_moe", "awq"), ("mixtral", "int4")])
def test_experts_keep_their_bits_are_recorded_and_say_the_same(tmp_path, hip, monkeypatch, family, method):
    monkeypatch.delitem(REFUSED_QUANTIZATIONS["gfx942"], "awq")  # NVIDIA's GPUs take it, on the same kernels
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = plain = make_checkpoint(tmp_path / family, family, dtype=torch.float16, **small)
    wishes = {"max_batch_prefill_tokens": 8}
    if method == "awq":
        folder, plain = quantise(folder, method)
    else:
        wishes["quantize"] = method
    slow = dict.fromkeys(("linear_int8", "linear_int4", "experts"), "reference")
    expected = first_logprobs(open_engine(plain, "cpu", **wishes, kernels=slow))
    hip("gfx942")
    engine = open_engine(folder, "rocm", dtype="float16", **wishes)
    layers = [module for module in engine.runner.model.modules() if isinstance(module, SparseMoE)]
    assert len(layers) == 1
    assert isinstance(layers[0].run_experts, RoundedExperts)
    assert first_logprobs(engine) == pytest.approx(expected, abs=0.02)
    assert Graph.replays > 0


def first_logprobs(engine):
    """Of the tokens of one prompt, decodes enough to record one."""
    return engine.generate(PROMPTS[1:2], SamplingParams(max_new_tokens=5, ignore_eos=True))[0].logprobs


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gfx", "method", "reason"),
    [
        ("gfx90a", "awq", "AMD GPUs have no kernels for it; use the original checkpoint"),
        ("gfx942", "awq", "AMD GPUs have no kernels for it; use the original checkpoint"),
        ("gfx90a", "fp8", "no float8; use the checkpoint in bfloat16, or a GPU of the MI300 series"),
        ("gfx942", "fp8", "no installed plugin reads"),
    ],
)
def test_quantised_checkpoints_are_refused_with_what_to_do(tmp_path, hip, gfx, method, reason):
    folder = make_checkpoint(tmp_path, quantization_config=None)
    config = folder / "config.json"
    config.write_text(
        config.read_text().rstrip().rstrip("}") + f', "quantization_config": {{"quant_method": "{method}"}}}}'
    )
    hip(gfx)
    with pytest.raises(UnsupportedModel, match=f"quantised \\({method}\\).*{reason}"):
        open_engine(folder, "rocm")


def test_a_wish_for_a_refused_quantization(tmp_path, hip):
    folder = make_checkpoint(tmp_path)
    hip("gfx90a")
    with pytest.raises(ConfigError, match="--quantize awq: AMD GPUs have no kernels for it"):
        open_engine(folder, "rocm", quantize="awq")


def test_a_gpu_that_pretends_to_be_another_one(tmp_path, hip):
    folder = make_checkpoint(tmp_path)
    hip("gfx90a", properties="gfx1100")
    with pytest.raises(DeviceUnavailable, match="not for gfx1100; choose another one with HIP_VISIBLE_DEVICES"):
        open_engine(folder, "rocm")


def test_pytorch_for_nvidia(tmp_path, hip, monkeypatch):
    folder = make_checkpoint(tmp_path)
    hip("gfx90a")
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(DeviceUnavailable, match="built without ROCm; install a ROCm build"):
        open_engine(folder, "rocm")
