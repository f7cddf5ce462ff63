"""The sampler against transformers' own warpers, and its promise that a seed decides whatever the batch."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tgi_core.kernels.reference import sample as reference
from tgi_core.kernels.reference.sample import LIKELY
from tgi_core.sampling.processors.base import LogitsProcessor
from tgi_core.sampling.processors.bias import MinimumLength
from tgi_core.sampling.processors.filters import MinP, TopK, TopP, TypicalP
from tgi_core.sampling.processors.penalties import Penalties
from tgi_core.sampling.processors.registry import LOGITS_PROCESSORS
from tgi_core.sampling.processors.select import load_processors
from tgi_core.sampling.processors.temperature import Temperature
from tgi_core.sampling.processors.watermark import Watermark
from tgi_core.sampling.randomness import uniforms
from tgi_core.sampling.rules import TokenRules, token_rules
from tgi_core.sampling.sampler import Sampler
from tgi_core.sampling.state import SamplingContext, TokenCounts
from tgi_core.sampling_params import SamplingParams
from tgi_core.step import Admission

VOCAB = 2000
NO_RULES = TokenRules(eos=(2,))
CPU = torch.device("cpu")


def make_sampler(slots=8, rules=NO_RULES):
    context = SamplingContext(
        vocab_size=VOCAB,
        device=CPU,
        upload=torch.from_numpy,
        counts=TokenCounts(slots, VOCAB, CPU, torch.from_numpy),
        last_tokens=torch.zeros(slots, dtype=torch.int64),
        watermark_gamma=0.5,
        watermark_delta=2.0,
        rules=rules,
        kernels=reference,
    )
    return Sampler(context, load_processors(LOGITS_PROCESSORS))


def admit(sampler, slot, prompt=(5, 6, 7), output=(), seed=0, **params):
    params = SamplingParams(**params)
    sampler.admit(Admission(100 + slot, slot, params, seed, (*prompt, *output), len(prompt)))


def logits_of(rows, seed=0, spread=3.0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def process(processor, rows, logits, **params):
    sampler = make_sampler()
    for slot in range(rows):
        admit(sampler, slot, **params)
    states = [sampler.state(slot) for slot in range(rows)]
    assert processor.wanted(states[0].params, sampler.context)
    return processor(states, sampler.context)(logits.clone())


@pytest.mark.parametrize(
    ("processor", "params", "warper"),
    [
        (Temperature, {"temperature": 0.3}, TemperatureLogitsWarper(0.3)),
        (TopK, {"top_k": 17}, TopKLogitsWarper(17)),
        (TopK, {"top_k": 10 * VOCAB}, TopKLogitsWarper(10 * VOCAB)),
        (TopP, {"top_p": 0.7}, TopPLogitsWarper(0.7)),
        (TopP, {"top_p": 0.01}, TopPLogitsWarper(0.01)),
        (MinP, {"min_p": 0.1}, MinPLogitsWarper(0.1)),
        (TypicalP, {"typical_p": 0.6}, TypicalLogitsWarper(0.6)),
    ],
)
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_filters_equal_those_of_transformers(processor, params, warper, spread):
    logits = logits_of(4, spread=spread)
    ours = process(processor, 4, logits, do_sample=True, **params)
    torch.testing.assert_close(ours, warper(torch.tensor([[5, 6, 7]] * 4), logits.clone()))


def test_top_p_sorts_everything_when_the_likely_tokens_do_not_suffice():
    logits = logits_of(2, spread=0.01)  # nearly flat: 0.9 of the mass needs more than LIKELY tokens
    kept = (process(TopP, 2, logits, do_sample=True, top_p=0.9) > -math.inf).sum(-1)
    assert kept.min() > LIKELY


def test_repetition_penalty_equals_that_of_transformers():
    logits = logits_of(1)
    ours = process(Penalties, 1, logits, prompt=(5, 6, 5), output=(9,), repetition_penalty=1.7)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[5, 6, 5, 9]]), logits.clone())
    torch.testing.assert_close(ours, expected)


def test_frequency_and_presence_count_the_output_only():
    sampler = make_sampler()
    admit(sampler, 0, prompt=(5, 5), output=(9, 9, 8), frequency_penalty=0.5, presence_penalty=0.25, top_n_tokens=5)
    logits = torch.zeros(1, VOCAB)
    logits[0, [5, 8, 9]] = torch.tensor([10.0, 10.0, 10.0])
    top = sampler.sample(logits, [0]).top_logprobs[0]
    by_id = {entry.id: entry.logprob for entry in top}
    assert by_id[5] - by_id[8] == pytest.approx(0.75, abs=1e-5)
    assert by_id[5] - by_id[9] == pytest.approx(1.25, abs=1e-5)


def test_penalties_follow_the_tokens_as_they_are_sampled():
    sampler = make_sampler()
    admit(sampler, 0, presence_penalty=2.0)
    logits = torch.zeros(1, VOCAB)
    logits[0, [11, 12, 13]] = torch.tensor([3.0, 2.5, 2.0])
    assert [sampler.sample(logits.clone(), [0]).ids.item() for _ in range(3)] == [11, 12, 13]


def test_min_new_tokens_forbids_every_end():
    sampler = make_sampler()
    admit(sampler, 0, min_new_tokens=3, stop_token_ids=(4,), max_new_tokens=9)
    logits = torch.zeros(1, VOCAB)
    logits[0, [2, 4, 30]] = torch.tensor([9.0, 8.0, 7.0])
    assert [sampler.sample(logits.clone(), [0]).ids.item() for _ in range(5)] == [30, 30, 30, 2, 2]


@pytest.mark.parametrize("generated", range(5))
def test_min_new_tokens_means_what_it_means_in_transformers(generated):
    prompt, output = (5, 6, 7), (9,) * generated
    sampler = make_sampler()
    admit(sampler, 0, prompt, output, min_new_tokens=3, max_new_tokens=9)
    logits = logits_of(1)
    ours = MinimumLength([sampler.state(0)], sampler.context)(logits.clone())
    theirs = MinNewTokensLengthLogitsProcessor(len(prompt), 3, eos_token_id=2)
    torch.testing.assert_close(ours, theirs(torch.tensor([[*prompt, *output]]), logits.clone()))


def test_an_end_of_sequence_outside_the_vocabulary_is_no_token():
    sampler = make_sampler()
    sampler.context = replace(sampler.context, rules=TokenRules(eos=(-1, 2, VOCAB)))
    admit(sampler, 0, min_new_tokens=3, max_new_tokens=9)
    hidden = MinimumLength([sampler.state(0)], sampler.context)(torch.zeros(1, VOCAB)) == -math.inf
    assert hidden.nonzero()[:, 1].tolist() == [2]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1e-45},
        {"temperature": 1e30},
        {"temperature": 1e-45, "repetition_penalty": 1e-45},
        {"repetition_penalty": 1e30, "temperature": 1e-9, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5},
        {"top_k": 2**32 - 1},
        {"top_p": 1e-45, "typical_p": 1e-45, "min_p": 0.999},
    ],
)
def test_extreme_parameters_still_give_a_token(params):
    sampler = make_sampler()
    admit(sampler, 0, do_sample=True, frequency_penalty=-2.0, **params)
    for _ in range(3):
        choice = sampler.sample(logits_of(1), [0])
        assert math.isfinite(choice.logprobs[0])


def test_a_temperature_near_zero_is_greedy():
    sampler = make_sampler()
    admit(sampler, 0, do_sample=True, temperature=1e-45)
    assert sampler.sample(logits_of(1), [0]).ids.item() == logits_of(1).argmax().item()


def test_logit_bias_reaches_its_own_row_only():
    sampler = make_sampler()
    admit(sampler, 0, logit_bias={40: 100.0, 41: -100.0})
    admit(sampler, 1)
    logits = torch.zeros(2, VOCAB)
    logits[:, 41] = 5.0
    assert sampler.sample(logits, [0, 1]).ids.tolist() == [40, 41]


def test_order_is_that_of_tgi():
    names = [processor.__name__ for processor in make_sampler().processors]
    tgi = ["Watermark", "Penalties", "Temperature", "TopK", "TopP", "TypicalP"]
    assert [name for name in names if name in tgi] == tgi


def test_greedy_ignores_temperature_and_filters():
    sampler = make_sampler()
    admit(sampler, 0, temperature=5.0, top_p=0.1, top_k=3)
    logits = logits_of(1)
    choice = sampler.sample(logits, [0])
    assert choice.ids.item() == logits.argmax().item()
    assert choice.logprobs[0] == pytest.approx(logits.log_softmax(-1).max().item(), abs=1e-5)


def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch():
    logits = [logits_of(1, seed=step) for step in range(10)]
    alone = make_sampler()
    admit(alone, 0, seed=1234, do_sample=True, top_p=0.9)
    expected = [alone.sample(row.clone(), [0]).ids.item() for row in logits]

    crowd = make_sampler()
    for slot in range(5):
        admit(crowd, slot, seed=slot, do_sample=bool(slot % 2), temperature=0.5)
    admit(crowd, 6, seed=1234, do_sample=True, top_p=0.9)
    tokens = []
    for step, row in enumerate(logits):
        slots = [0, 1, 2, 6] if step % 2 else [6, 4]
        batch = torch.cat([row if slot == 6 else logits_of(1, seed=99 + slot) for slot in slots])
        tokens.append(crowd.sample(batch, slots).ids[slots.index(6)].item())
    assert tokens == expected


def test_a_readmitted_sequence_goes_on_with_its_random_numbers():
    logits = [logits_of(1, seed=step) for step in range(6)]
    sampler = make_sampler()
    admit(sampler, 0, seed=7, do_sample=True)
    expected = [sampler.sample(row.clone(), [0]).ids.item() for row in logits]
    again = make_sampler()
    admit(again, 3, output=tuple(expected[:4]), seed=7, do_sample=True)
    assert [again.sample(row.clone(), [3]).ids.item() for row in logits[4:]] == expected[4:]


def test_sampled_tokens_follow_the_distribution():
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, [3, 4, 5]] = torch.tensor([0.5, 0.3, 0.2]).log()
    sampler = make_sampler()
    admit(sampler, 0, seed=1, do_sample=True)
    drawn = torch.tensor([sampler.sample(logits.clone(), [0]).ids.item() for _ in range(4000)])
    shares = [(drawn == token).float().mean().item() for token in (3, 4, 5)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_filtered_tokens_are_no_alternatives():
    sampler = make_sampler()
    admit(sampler, 0, do_sample=True, top_k=2, top_n_tokens=5)
    assert len(sampler.sample(logits_of(1), [0]).top_logprobs[0]) == 2


def test_nan_logits_give_nan_for_their_row_only():
    sampler = make_sampler()
    admit(sampler, 0, do_sample=True)
    admit(sampler, 1, do_sample=True)
    logits = logits_of(2)
    logits[0, 9] = math.nan
    logprobs = sampler.sample(logits, [0, 1]).logprobs
    assert math.isnan(logprobs[0])
    assert not math.isnan(logprobs[1])


def test_watermark_favours_half_of_the_vocabulary_by_the_previous_token():
    first, second = (process(Watermark, 1, torch.zeros(1, VOCAB), watermark=True) for _ in range(2))
    assert torch.equal(first, second)
    assert (first == 2.0).sum() == VOCAB // 2
    sampler = make_sampler()
    admit(sampler, 0, watermark=True)
    sampler.context.last_tokens[0] = 17
    other = Watermark([sampler.state(0)], sampler.context)(torch.zeros(1, VOCAB))
    assert not torch.equal(first, other)


def test_uniforms_are_spread_evenly_and_differ_between_seeds():
    numbers = uniforms([3] * 10000, range(10000))
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.02)
    assert uniforms([0], [0]) != uniforms([1], [0])
    assert uniforms([2**64 - 1], [5]) == uniforms([2**64 - 1], [5])


def test_rules_are_read_from_the_first_config_that_has_them():
    generation = {"forced_eos_token_id": [2, 3], "suppress_tokens": [5, VOCAB, -1, "x"], "bad_words_ids": [[7], [8, 9]]}
    config = {"forced_eos_token_id": 4, "forced_bos_token_id": 0, "begin_suppress_tokens": [6]}
    assert token_rules((generation, config), (2,), VOCAB) == TokenRules((2,), 0, 2, (5, 7), (6,))
    assert token_rules(({}, {}), (), VOCAB) == TokenRules()


def test_forced_and_suppressed_tokens_are_those_of_transformers():
    rules = TokenRules(forced_bos=9, forced_eos=2, suppressed=(40,), suppressed_at_begin=(41,))
    theirs = [
        ForcedBOSTokenLogitsProcessor(9),
        ForcedEOSTokenLogitsProcessor(5, 2),
        SuppressTokensLogitsProcessor([40]),
        SuppressTokensAtBeginLogitsProcessor([41], 2),
    ]
    for generated in range(4):
        sampler = make_sampler(rules=rules)
        admit(sampler, 0, prompt=(5,), output=(7,) * generated, max_new_tokens=4)
        logits = logits_of(1, seed=generated)
        logits[0, 40], logits[0, 41] = 50.0, 49.0
        expected = logits.clone()
        for processor in theirs:
            expected = processor(torch.tensor([[5] + [7] * generated]), expected)
        choice = sampler.sample(logits, [0])
        assert choice.ids.tolist() == expected.argmax(-1).tolist()
        assert choice.logprobs[0] == pytest.approx(float(expected.log_softmax(-1).max()))


def test_ignore_eos_frees_the_last_token():
    sampler = make_sampler(rules=TokenRules(forced_eos=2))
    admit(sampler, 0, max_new_tokens=1, ignore_eos=True)
    admit(sampler, 1, max_new_tokens=1)
    logits = logits_of(1).repeat(2, 1)
    best = int(logits[0].argmax())
    assert sampler.sample(logits, [0, 1]).ids.tolist() == [best, 2]


class CountedUploads:
    def __init__(self):
        self.count = 0

    def __call__(self, array):
        self.count += 1
        return torch.from_numpy(array)


EVERYTHING = {
    "do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9,
    "repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": 0.5, "logit_bias": {40: 1.0},
    "min_new_tokens": 30, "max_new_tokens": 100,
}  # fmt: skip


def test_a_batch_that_stays_the_same_sends_only_random_numbers_to_the_device():
    sampler = make_sampler(rules=TokenRules(eos=(2,), forced_eos=2, suppressed=(40,), suppressed_at_begin=(41,)))
    uploads = CountedUploads()
    sampler.context = replace(sampler.context, upload=uploads)
    for slot in range(3):
        admit(sampler, slot, **(EVERYTHING if slot else {}))
    sampler.sample(logits_of(3), [0, 1, 2])
    uploads.count = 0
    for step in range(5):
        sampler.sample(logits_of(3, seed=step), [0, 1, 2])
    assert uploads.count == 5


def test_a_processor_hides_what_a_grammar_forbids():
    class EvenTokens(LogitsProcessor):
        @classmethod
        def wanted(cls, params, context):
            return params.max_new_tokens == 3

        def __call__(self, logits):
            every_other_bit = torch.full((len(logits), -(-VOCAB // 32)), 0x55555555, dtype=torch.int32)
            return self.context.kernels.apply_bitmask(logits, every_other_bit)

    sampler = Sampler(make_sampler().context, [EvenTokens])
    for slot, tokens in enumerate((3, 4, 3)):
        admit(sampler, slot, max_new_tokens=tokens)
    logits = logits_of(3)
    expected = [int(row[::2].argmax()) * 2 for row in logits]
    expected[1] = int(logits[1].argmax())
    assert sampler.sample(logits, [0, 1, 2]).ids.tolist() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_no_step_waits_for_a_gpu():
    from tgi_core.triton import filters, penalties, sample
    from tgi_cuda.backend import CudaBackend

    backend = CudaBackend()
    gpu = backend.torch_device
    sampler = make_sampler(rules=TokenRules(eos=(2,), forced_eos=2, suppressed=(40,), suppressed_at_begin=(41,)))
    kernels = SimpleNamespace(
        greedy=sample.greedy, sample=sample.sample, top_k=filters.top_k, top_p=filters.top_p,
        penalize=penalties.penalize,
    )  # fmt: skip
    counts = TokenCounts(8, VOCAB, gpu, backend.upload)
    last_tokens = sampler.context.last_tokens.to(gpu)
    sampler.context = replace(
        sampler.context, device=gpu, upload=backend.upload, counts=counts, last_tokens=last_tokens, kernels=kernels
    )
    sampler.kernels = kernels
    choices = []
    batches = [logits_of(4, seed=step).to(gpu) for step in range(6)]
    for step, logits in enumerate(batches):
        if step == 2:  # everything was compiled and allocated in the steps before
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            for slot in range(4):
                if step % 2 == 0:
                    admit(sampler, slot, output=(7,) * step, seed=step, **(EVERYTHING if slot else {}))
            choices.append(sampler.sample(logits, [0, 1, 2, 3]))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(choice.logprobs.isfinite().all() for choice in choices)
