"""What a model is compiled to, without anything of the vendor."""

import pytest

from tgi_core.config import EngineConfig
from tgi_core.errors import ConfigError
from tgi_neuron.environment import read
from tgi_neuron.shapes import Shapes, Wish, best_cached, check_artifact, to_compile, wishes

CONFIG = {"batch_size": 4, "sequence_length": 4096, "tp_degree": 2, "torch_dtype": "bfloat16"}


def shapes(**changes):
    given = {"batch_size": 4, "sequence_length": 4096, "max_context_length": 4096, "cores": 2, "dtype": "bfloat16"}
    return Shapes(**{**given, "sampling": "host", **changes})


def asked(environ=None, **flags):
    return wishes(EngineConfig(**flags), read(environ or {}))


def compiled_for(wished=(), **facts):
    return to_compile(wished, **{"cores": 2, "dtype": "bfloat16", "longest": 8192, **facts})


def test_what_neuron_config_says():
    found = Shapes.from_config({**CONFIG, "continuous_batching": True, "on_device_sampling": True, "max_topk": 64})
    assert found == shapes(sampling="device", max_top_k=64)
    assert str(found) == "4 sequences of 4096 tokens, bfloat16, 2 cores, sampling on the device"


def test_an_older_neuron_config():
    found = Shapes.from_config({**CONFIG, "torch_dtype": None, "dtype": "torch.bfloat16", "max_context_length": 1024})
    assert found == shapes(max_context_length=1024, continuous_batching=False)


def test_a_neuron_config_of_something_else():
    with pytest.raises(ConfigError, match=r"has no tp_degree; export the model again with optimum-neuron 0\.4"):
        Shapes.from_config({"batch_size": 1, "sequence_length": 128})


def test_flags_and_variables_say_the_same_things():
    environ = {"HF_NUM_CORES": "2", "HF_AUTO_CAST_TYPE": "bf16", "TGI_NEURON_SAMPLING": "device"}
    found = asked(environ, max_batch_size=8, max_total_tokens=512, dtype="bfloat16", num_shard=2)
    assert {wish.field: (wish.source, wish.value) for wish in found} == {
        "batch_size": ("--max-batch-size", 8),
        "sequence_length": ("--max-total-tokens", 512),
        "cores": ("--num-shard", 2),
        "dtype": ("--dtype", "bfloat16"),
        "sampling": ("TGI_NEURON_SAMPLING", "device"),
    }
    with pytest.raises(ConfigError, match="--num-shard 1 and HF_NUM_CORES=2 contradict each other; give one of them"):
        asked(environ, num_shard=1)


def test_without_wishes():
    found, reasons = compiled_for()
    assert found == shapes()
    assert [reason.setting.removeprefix("neuron ") for reason in reasons] == [
        "batch_size", "sequence_length", "cores", "dtype", "sampling",
    ]  # fmt: skip


def test_with_wishes_nothing_is_left_to_explain():
    environ = {"HF_NUM_CORES": "1", "TGI_NEURON_SAMPLING": "device"}
    found, reasons = compiled_for(asked(environ, max_batch_size=1, max_total_tokens=8192, dtype="float16"))
    assert found == shapes(
        batch_size=1, sequence_length=8192, max_context_length=8192, cores=1, dtype="float16", sampling="device",
        continuous_batching=False,
    )  # fmt: skip
    assert reasons == []


def test_a_short_model():
    assert compiled_for(longest=2048)[0].sequence_length == 2048
    with pytest.raises(ConfigError, match="--max-total-tokens 4096: the model computes 2048 tokens here"):
        compiled_for(asked(max_total_tokens=4096), longest=2048)


def test_too_many_cores():
    with pytest.raises(ConfigError, match="HF_NUM_CORES 24: there are 2 cores; ask for at most that many"):
        compiled_for(asked({"HF_NUM_CORES": "24"}))


def test_the_best_that_is_cached():
    cached = [
        shapes(cores=1, batch_size=32),
        shapes(batch_size=8, sequence_length=1024),
        shapes(batch_size=8, sequence_length=2048, sampling="device"),
        shapes(batch_size=16, cores=8),
        shapes(batch_size=16, continuous_batching=False),
        shapes(batch_size=16, dtype="float16"),
    ]
    assert best_cached(cached, (), cores=2, dtype="bfloat16") is cached[2]
    assert best_cached(cached, asked({"TGI_NEURON_SAMPLING": "host"}), cores=2, dtype="bfloat16") is cached[1]
    assert best_cached(cached, asked({"HF_NUM_CORES": "1"}), cores=2, dtype="bfloat16") is cached[0]
    assert best_cached(cached, asked(max_batch_size=64), cores=2, dtype="bfloat16") is None


def test_an_artifact_that_differs_says_everything_that_does():
    check_artifact(shapes(), asked(max_batch_size=4, max_total_tokens=4096))
    with pytest.raises(ConfigError) as refused:
        check_artifact(shapes(), asked({"HF_AUTO_CAST_TYPE": "fp16"}, max_batch_size=8))
    assert str(refused.value) == (
        "the model was compiled for 4 sequences of 4096 tokens, bfloat16, 2 cores, sampling on the host: "
        "--max-batch-size asks for 8 but the model has 4, HF_AUTO_CAST_TYPE asks for float16 but the model has "
        "bfloat16; leave them out, or name the original checkpoint to have it compiled anew"
    )


def test_an_artifact_that_none_can_join():
    with pytest.raises(ConfigError, match="export it with continuous_batching=True, or with a batch size of 1"):
        check_artifact(shapes(continuous_batching=False), ())
    check_artifact(shapes(continuous_batching=False, batch_size=1), [Wish(field="cores", source="x", value=2)])
