"""Recorded decodes, on a device that pretends to work by itself and repeats a recording by running it again."""

import dataclasses
import threading
import types
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.config import EngineConfig
from tgi_core.cpu.backend import CpuBackend
from tgi_core.device.backend import DeviceBackend
from tgi_core.engine.engine import Engine
from tgi_core.engine.process import EngineProcess
from tgi_core.kernels import compiling, registry
from tgi_core.models.t5 import T5ForConditionalGeneration
from tgi_core.request import Request
from tgi_core.runner.graph import SPARE_BYTES, GraphRunner
from tgi_core.runner.recorded import RecordedDecode, RecordedMixture, RecordedSources
from tgi_core.runner.rehearsal import step_of
from tgi_core.sampling_params import SamplingParams
from tgi_core.scheduler.scheduler import Scheduler
from tgi_core.testing.tiny import make_checkpoint
from tgi_core.triton.attention import TritonAttention
from tgi_core.triton.registry import triton_kernels

PROMPTS = [[(7 * i + j * j) % 384 for j in range(length)] for i, length in enumerate((1, 5, 33))]
WISHES = [
    SamplingParams(max_new_tokens=9, ignore_eos=True),
    SamplingParams(
        max_new_tokens=5, ignore_eos=True, do_sample=True, seed=7, temperature=0.7, top_p=0.9, top_n_tokens=2
    ),
    SamplingParams(max_new_tokens=12, ignore_eos=True, repetition_penalty=1.3),
]


@pytest.fixture
def pretend(monkeypatch, faster_interpreter):
    """Makes the CPU a device with graphs."""
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter has to be chosen before kernels are compiled for the GPU")
    capabilities = replace(CpuBackend.capabilities, asynchronous=True, batch_buckets=(1, 2, 4), token_buckets=(8, 40))
    monkeypatch.setattr(CpuBackend, "capabilities", capabilities)
    monkeypatch.setattr(CpuBackend, "capture", DeviceBackend.capture)
    monkeypatch.setattr(GraphRunner, "mixtures_met", 2)
    attention = [spec for spec in triton_kernels("cpu") if spec.op == "attention"]
    monkeypatch.setattr(registry, "KERNELS", (*registry.KERNELS, *attention))


def serve(folder, wishes, **settings):
    """(engine, tokens of each request); requests arrive a step after one another, all of them twice."""
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32", **settings))
    waiting = [
        Request(id=number, prompt_ids=prompt, params=params)
        for number, (prompt, params) in enumerate([*zip(PROMPTS[: len(wishes)], wishes, strict=True)] * 2, 1)
    ]
    found = {request.id: [] for request in waiting}
    while waiting or engine.has_work:
        if waiting:
            engine.add(waiting.pop(0))
        for output in engine.step():
            assert not output.error
            found[output.request_id].append((output.token_ids, [round(x, 3) for x in output.logprobs]))
    return engine, found


@pytest.mark.parametrize(
    ("family", "wishes"),
    [("llama", [WISHES[0]] * 3), ("llama", WISHES), ("t5", WISHES)],
    ids=["llama-greedy", "llama-mixed", "t5-mixed"],
)
def test_tokens_are_those_of_the_plain_runner(tmp_path, family, wishes, request):
    folder = make_checkpoint(tmp_path, family)
    _, expected = serve(folder, wishes)
    request.getfixturevalue("pretend")
    engine, found = serve(folder, wishes, kernels={"attention": "triton"})
    assert isinstance(engine.runner, GraphRunner)
    kinds = {RecordedDecode, RecordedSources if family == "t5" else RecordedMixture}
    assert {type(recording) for recording in engine.runner._recorded.values()} == kinds
    assert found == expected


def test_sources_that_are_not_recorded_are_read_before_a_recorded_decode(tmp_path, pretend, monkeypatch):
    folder, wishes = make_checkpoint(tmp_path, "t5"), [WISHES[0]] * 3
    monkeypatch.setattr(CpuBackend, "capabilities", replace(CpuBackend.capabilities, token_buckets=()))
    read, encode = [], T5ForConditionalGeneration.encode
    monkeypatch.setattr(T5ForConditionalGeneration, "encode", lambda *given: read.append(1) or encode(*given))
    _, found = serve(folder, wishes, kernels={"attention": "triton"})
    assert read
    monkeypatch.setattr(TritonAttention, "keeps_sources", False)
    read.clear()
    _, expected = serve(folder, wishes, kernels={"attention": "triton"})
    assert not read
    assert found == expected


def test_some_sources_are_recorded_and_sequences_that_lost_their_keys_begin_again(tmp_path, pretend, monkeypatch):
    folder = make_checkpoint(tmp_path, "t5", num_layers=1, num_decoder_layers=1, num_heads=2)  # as there are many steps
    wishes = [SamplingParams(max_new_tokens=40, ignore_eos=True)] * 3
    few = {"token_buckets": (16,), "mixture_buckets": (1,)}  # of two sources at once, and of long ones, there is none
    monkeypatch.setattr(CpuBackend, "capabilities", replace(CpuBackend.capabilities, **few))
    small = {"max_total_tokens": 128, "max_batch_total_tokens": 256, "kernels": {"attention": "triton"}}
    preempted, preempt = [], Scheduler._preempt
    monkeypatch.setattr(Scheduler, "_preempt", lambda *given: preempted.append(1) or preempt(*given))
    engine, found = serve(folder, wishes, **small)
    assert RecordedSources in map(type, engine.runner._recorded.values())
    assert preempted
    monkeypatch.setattr(GraphRunner, "layer_by_layer", True)
    _, expected = serve(folder, wishes, **small)
    assert found == expected


@pytest.mark.parametrize("keeps", [True, False])
def test_encoder_decoders_record_sources_in_place_of_mixtures(tmp_path, pretend, monkeypatch, keeps):
    narrow = {"batch_buckets": (1,), "token_buckets": (24,), "mixture_buckets": (1, 4), "record_ahead": True}
    monkeypatch.setattr(CpuBackend, "capabilities", replace(CpuBackend.capabilities, **narrow))
    monkeypatch.setattr(TritonAttention, "keeps_sources", keeps)
    engine, _ = serve(make_checkpoint(tmp_path, "t5"), [], kernels={"attention": "triton"})
    while engine.prepare():
        pass
    sources = {size[:2]: type(step) for size, step in engine.runner._recorded.items() if size.tokens}
    assert sources == (
        {(1, 24): RecordedSources, (4, 24): RecordedSources} if keeps else {(1, 24): type(None), (4, 24): type(None)}
    )


def test_sizes_are_recorded_while_there_is_nothing_else_to_do(tmp_path, pretend):
    engine, _ = serve(make_checkpoint(tmp_path, "llama"), [], kernels={"attention": "triton"})
    assert not engine.runner._recorded
    assert engine.prepare()
    while engine.prepare():
        pass
    assert {(size.rows, size.tokens) for size in engine.runner._recorded} == {(1, None), (1, 40)}
    assert all(engine.runner._recorded.values())


def test_devices_that_record_ahead_do_so_for_all_sizes(tmp_path, pretend, monkeypatch):
    narrow = {"batch_buckets": (1, 2), "token_buckets": (24,), "mixture_buckets": (1, 4), "record_ahead": True}
    capabilities = dataclasses.replace(CpuBackend.capabilities, **narrow)
    monkeypatch.setattr(CpuBackend, "capabilities", capabilities)
    engine, _ = serve(make_checkpoint(tmp_path, "llama"), [], kernels={"attention": "triton"})
    while engine.prepare():
        pass
    recorded = engine.runner._recorded
    assert all(recorded.values())
    assert {size[:2] for size in recorded if size.chooses} == {(1, None), (2, None), (1, 24), (4, 24)}
    assert {size[:2] for size in recorded if not size.chooses} == {(1, None), (2, None)}
    assert len({size.variant for size in recorded}) > 1  # of short and long sequences
    before = dict(recorded)
    first, second = engine.generate(PROMPTS[:2], WISHES[0])
    assert len(first.token_ids) == len(second.token_ids) == 9
    assert recorded == before
    other, _ = serve(tmp_path, [], kernels={"attention": "triton"})
    monkeypatch.setattr(CpuBackend, "free_bytes", lambda backend: 0)
    while other.prepare():
        pass
    assert len(other.runner._recorded) < len(recorded)


@pytest.fixture
def ahead(pretend, monkeypatch):
    """Makes it a device that records decodes of one and two rows before there were requests."""
    narrow = {"batch_buckets": (1, 2), "token_buckets": (), "record_ahead": True}
    monkeypatch.setattr(CpuBackend, "capabilities", dataclasses.replace(CpuBackend.capabilities, **narrow))


@pytest.fixture
def held_back(monkeypatch):
    """Holds back a kernel of recordings of so many rows: (lets it be compiled, which of those launched it).

    Nothing is missing but this one.
    """
    may_end = threading.Event()

    def hold(*rows):
        run, launched, kernels = RecordedDecode.run, [], compiling.Compilations()

        def wait(step, *arguments):
            if step.rows in rows and kernels.may_launch(step.rows, lambda: may_end.wait(60)):
                launched.append(step)
            run(step, *arguments)

        monkeypatch.setattr(RecordedDecode, "run", wait)
        monkeypatch.setattr("tgi_core.runner.graph.TRIES_S", 60)
        return may_end.set, launched

    yield hold
    may_end.set()


def test_what_requests_are_going_to_want_is_recorded_before_the_first_one(tmp_path, ahead, monkeypatch):
    folder = make_checkpoint(tmp_path, "llama")
    process = EngineProcess(None, types.SimpleNamespace(send=lambda message: None), None)
    monkeypatch.setattr("tgi_core.engine.process.PREPARE_S", 60)
    monkeypatch.setattr("gc.freeze", lambda: None)
    process.load(EngineConfig(model_id=str(folder), device="cpu", dtype="float32", kernels={"attention": "triton"}))
    assert {size.rows for size in process.engine.runner._recorded} == {1, 2}
    assert not process.engine.prepare()


def test_sizes_wait_for_their_kernels_and_others_take_their_turn(tmp_path, ahead, held_back):
    engine, _ = serve(make_checkpoint(tmp_path, "llama"), [], kernels={"attention": "triton"})
    compile, launched = held_back(2)
    for _ in range(20):
        assert engine.prepare()  # there is always something that waits
    assert {size.rows for size in engine.runner._recorded} == {1}
    assert engine.runner._compiling
    assert not launched
    compile()
    while engine.prepare():
        pass
    assert {size.rows for size in engine.runner._recorded} == {1, 2}
    assert len(launched) == sum(size.rows == 2 for size in engine.runner._recorded)
    assert all(engine.runner._recorded.values())


def test_sizes_that_waited_for_kernels_leave_the_memory_that_others_leave(tmp_path, ahead, held_back, monkeypatch):
    engine, _ = serve(make_checkpoint(tmp_path, "llama"), [], kernels={"attention": "triton"})
    (compile, _), runner = held_back(1, 2), engine.runner
    before, room = set(runner._recorded), 2
    monkeypatch.setattr(
        CpuBackend, "free_bytes", lambda backend: SPARE_BYTES * (len(runner._recorded) < len(before) + room)
    )
    engine.prepare()
    assert len(runner._compiling) > room
    compile()
    while engine.prepare():
        pass
    assert len(runner._recorded) == len(before) + room
    assert not runner._compiling


def test_steps_that_are_taken_for_their_kernels_store_nothing(tmp_path, ahead):
    engine, _ = serve(make_checkpoint(tmp_path, "llama"), [], kernels={"attention": "triton"})
    runner = engine.runner
    engine.generate(PROMPTS, WISHES[0])
    state = [runner.slots.last_tokens[:-1], *(x for pair in runner.attention._caches.values() for x in pair)]
    before = [x.clone() for x in state]
    assert any(x.any() for x in before[1:])
    with torch.inference_mode():
        runner._compile_for(step_of([1, 20], [5, 0], runner.attention.block_size))
        runner._compile_for(runner._sizes.of(2, None, 64, chooses=True))
    assert all(map(torch.equal, state, before))


def test_no_step_is_taken_ahead_where_kernels_would_run(tmp_path, ahead, monkeypatch):
    taken = []
    monkeypatch.setattr("tgi_core.runner.graph.rehearse", lambda *arguments: taken.append(arguments))
    monkeypatch.setattr(RecordedDecode, "run", lambda *arguments: taken.append(arguments))
    engine, _ = serve(make_checkpoint(tmp_path, "llama"), [], kernels={"attention": "reference"})
    while engine.prepare():
        pass
    assert engine.runner._recorded
    assert not any(engine.runner._recorded.values())
    assert not taken


def test_decodes_that_are_recorded_ahead_are_never_called_layer_by_layer(tmp_path, ahead, monkeypatch):
    eager, seen = GraphRunner._launch_eagerly, []

    def see(runner, rows, step):
        seen.append(max(row.length for row in rows))
        return eager(runner, rows, step)

    monkeypatch.setattr(GraphRunner, "_launch_eagerly", see)
    engine, found = serve(make_checkpoint(tmp_path, "llama"), [WISHES[0]], kernels={"attention": "triton"})
    assert len(found[1]) == 9
    assert seen
    assert 1 not in seen
    assert {size.rows for size in engine.runner._recorded} >= {1}


def test_a_recording_that_fails_leaves_the_plain_way(tmp_path, pretend, monkeypatch, caplog):
    def fail(backend, run):
        raise RuntimeError("provoked")

    monkeypatch.setattr(CpuBackend, "capture", fail)
    engine, _ = serve(make_checkpoint(tmp_path, "llama"), [], kernels={"attention": "triton"})
    while engine.prepare():
        pass
    assert "provoked" in caplog.text
    assert len(engine.generate([PROMPTS[1]], WISHES[0])[0].token_ids) == 9


def test_models_that_wait_for_the_device_are_called_layer_by_layer(tmp_path, pretend):
    wishes = {"attention": "triton", "experts": "reference"}
    engine, _ = serve(make_checkpoint(tmp_path, "mixtral"), [WISHES[0]] * 3, kernels=wishes)
    assert not engine.runner._recorded


def test_larger_batches_than_the_largest_bucket_run_without_a_graph(tmp_path, pretend, monkeypatch):
    capabilities = dataclasses.replace(CpuBackend.capabilities, batch_buckets=(2,), token_buckets=())
    monkeypatch.setattr(CpuBackend, "capabilities", capabilities)
    engine, found = serve(make_checkpoint(tmp_path, "llama"), [WISHES[0]] * 3, kernels={"attention": "triton"})
    assert {size.rows for size in engine.runner._recorded} == {2}
    assert all(len(tokens) == 9 for tokens in found.values())
