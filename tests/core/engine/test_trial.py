"""The KV cache gets what weights and the largest step leave, where a device tells."""

from dataclasses import replace

import pytest
import torch

from tgi_core.attention.reference import ReferenceAttention
from tgi_core.config import EngineConfig
from tgi_core.cpu.backend import CpuBackend
from tgi_core.engine.engine import Engine
from tgi_core.errors import ConfigError
from tgi_core.kernels.compiling import is_ahead
from tgi_core.models.base import CausalLM
from tgi_core.models.llama import LlamaForCausalLM
from tgi_core.models.t5 import T5ForConditionalGeneration
from tgi_core.runner.rehearsal import FIRST_TOKENS
from tgi_core.sampling.state import TokenCounts
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint

FREE, STEP = 1 << 21, 1 << 20  #: bytes
GREEDY = SamplingParams(max_new_tokens=6, ignore_eos=True)
LIMITS = {"max_batch_size": 4, "max_batch_prefill_tokens": 48, "max_input_tokens": 60}


@pytest.fixture
def steps(monkeypatch):
    """The host tells memory: half of it goes with the first step.  The steps that were taken."""
    taken = []
    monkeypatch.setattr(
        CpuBackend,
        "capabilities",
        replace(CpuBackend.capabilities, tells_memory=True, host_memory=False, memory_fraction=0.5),
    )
    monkeypatch.setattr(CpuBackend, "free_bytes", lambda backend: FREE - STEP * bool(taken))
    for family in (LlamaForCausalLM, T5ForConditionalGeneration):
        forward = family.forward

        def forward_and_note(model, ids, context, forward=forward):
            taken.append((len(ids), context.encoder.lens if context.encoder else ()))
            return forward(model, ids, context)

        monkeypatch.setattr(family, "forward", forward_and_note)
    return taken


def engine(tmp_path, family, **wishes):
    folder = make_checkpoint(tmp_path / family, family)
    return Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32", **LIMITS, **wishes))


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_cache_takes_what_the_largest_step_left(tmp_path, steps, fraction):
    made = engine(tmp_path, "llama", memory_fraction=fraction)
    assert steps[0] == (48, ())  # three decodes and a prompt
    kept = made.runner.attention.block_bytes() * made.info.num_blocks
    counts = made.info.max_batch_size * TokenCounts.sequence_bytes(made.info.vocab_size)
    assert kept == pytest.approx((FREE - STEP) * 0.5 * fraction - counts, rel=0.1)  # whole blocks
    assert len(made.generate([[5, 6, 7]], GREEDY)[0].token_ids) == 6


def test_an_encoder_reads_a_source_as_long_as_it_may_be(tmp_path, steps):
    made = engine(tmp_path, "t5")
    assert steps[0] == (1, (made.info.max_batch_prefill_tokens,))
    assert len(made.generate([[5, 6, 7]], GREEDY)[0].token_ids) == 6


def test_kernels_are_compiled_ahead_of_the_step_and_of_the_first_one(tmp_path, steps, monkeypatch):
    """Where they can be left out, which those of this attention cannot."""
    ahead = []
    monkeypatch.setattr(ReferenceAttention, "can_be_ahead", True)
    forward = LlamaForCausalLM.forward
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *arguments: ahead.append(is_ahead()) or forward(*arguments))
    engine(tmp_path, "llama", kernels={"attention": "reference"})
    assert [tokens for tokens, _ in steps[:3]] == [48, FIRST_TOKENS, 48]
    assert ahead[:3] == [True, True, False]
    assert not any(ahead[3:])


def test_a_step_that_does_not_fit_says_what_to_lower(tmp_path, steps, monkeypatch):
    def fail(model, hidden):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(CausalLM, "logits", fail)
    with pytest.raises(ConfigError, match=r"step of 48 tokens.* lower --max-batch-prefill-tokens.*2 GiB"):
        engine(tmp_path, "llama")


def test_steps_get_fewer_tokens_until_they_fit(tmp_path, steps, monkeypatch):
    logits, released = CausalLM.logits, []

    def fail_if_many(model, hidden):
        if steps[-1][0] > 600:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return logits(model, hidden)

    monkeypatch.setattr(CpuBackend, "free_bytes", lambda backend: 1 << 26)
    monkeypatch.setattr(CpuBackend, "capabilities", replace(CpuBackend.capabilities, prefill_tokens=2400))
    monkeypatch.setattr(CpuBackend, "release", lambda backend: released.append(True))
    monkeypatch.setattr(CausalLM, "logits", fail_if_many)
    folder = make_checkpoint(tmp_path / "llama", "llama", max_position_embeddings=4096)
    made = Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32", max_batch_size=4))
    assert [tokens for tokens, _ in steps[:3]] == [2400, 1200, 600]
    assert (made.info.max_batch_prefill_tokens, len(released)) == (600, 2)
    reasons = {reason.setting: reason.why for reason in made.info.reasons}
    assert "twice as many" in reasons["max_batch_prefill_tokens"]


def test_weights_that_do_not_fit_say_what_to_do(tmp_path, monkeypatch):
    def fail(model, *rest):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(CausalLM, "load_weights", fail)
    with pytest.raises(ConfigError, match=r"no memory for the weights.*--num-shard.*--quantize"):
        engine(tmp_path, "llama")
