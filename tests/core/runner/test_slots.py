"""What lives per slot: block tables and last tokens."""

import torch

from tgi_core.cpu.backend import CpuBackend
from tgi_core.runner.slots import SlotTables, positions
from tgi_core.sampling_params import SamplingParams
from tgi_core.step import Admission, Row, StepPlan


def admit(slot, *tokens):
    return Admission(100 + slot, slot, SamplingParams(), 0, tokens, len(tokens))


def row(slot, start, length, tokens, new_blocks=()):
    return Row(100 + slot, slot, start, length, tokens, new_blocks, True)


def update(tables, *rows, admissions=()):
    tables.update(StepPlan(1, "mixed", rows, tuple(admissions)))
    return tables.step_input(rows)


def test_tables_grow_and_start_anew_with_each_admission():
    tables = SlotTables(4, 8, CpuBackend())
    step = update(tables, row(2, 0, 5, (1, 2, 3, 4, 5), (7, 3)), admissions=[admit(2, 1, 2, 3, 4, 5)])
    assert step.block_tables.tolist() == [[7, 3]]
    step = update(tables, row(2, 5, 1, None, (9,)), row(0, 0, 1, (6,), (4,)), admissions=[admit(0, 6)])
    assert step.block_tables[0].tolist() == [7, 3, 9]
    assert step.block_tables[1, 0] == 4
    assert step.query_starts.tolist() == [0, 1, 2]
    assert step.context_lens.tolist() == [6, 1]
    assert update(tables, row(2, 0, 1, (8,), (5,)), admissions=[admit(2, 8)]).block_tables.tolist() == [[5]]


def test_last_tokens_of_all_admissions_go_to_the_device_together(monkeypatch):
    backend, uploaded = CpuBackend(), []
    upload = backend.upload
    monkeypatch.setattr(backend, "upload", lambda array: uploaded.append(array.shape) or upload(array))
    tables = SlotTables(4, 8, backend)
    begins = [row(slot, 0, 2, tokens, (slot,)) for slot, tokens in ((2, (5, 6)), (0, (7, 8)))]
    update(tables, *begins, admissions=[admit(2, 5, 6), admit(0, 7, 8)])
    assert uploaded == [(2, 2)]
    assert tables.last_tokens.tolist() == [8, 0, 6, 0, 0]


def test_sources_are_encoded_by_the_first_row_of_their_sequence():
    tables = SlotTables(4, 8, CpuBackend())
    first = Admission(101, 1, SamplingParams(), 0, (0,), 1, source=(5, 6, 7), source_blocks=(6, 4))
    second = Admission(103, 3, SamplingParams(), 0, (0, 9), 1, source=(8, 8), source_blocks=(2,))
    begins = (row(3, 0, 2, (0, 9), (1,)), row(1, 0, 1, (0,), (3,)))
    step = update(tables, *begins, admissions=[first, second])
    assert step.source.starts.tolist() == [0, 2, 5]
    assert step.source.lens.tolist() == [2, 3]
    assert step.source.block_tables[0, 0] == 2
    assert step.source.block_tables[1].tolist() == [6, 4]
    encoder = tables.encoder_input(begins)
    assert encoder.ids.tolist() == [8, 8, 5, 6, 7]
    assert encoder.positions.tolist() == [0, 1, 0, 1, 2]
    assert encoder.lens == (2, 3)
    goes_on = row(1, 1, 1, None)
    step = update(tables, goes_on)
    assert (step.source.starts.tolist(), step.source.lens.tolist()) == ([0, 0], [3])
    assert tables.encoder_input((goes_on,)) is None
    assert update(tables, row(1, 0, 1, (4,), (5,)), admissions=[admit(1, 4)]).source is None


def test_positions_follow_each_sequence():
    tables = SlotTables(4, 8, CpuBackend())
    step = update(tables, row(0, 5, 3, (1, 2, 3), (0,)), row(1, 0, 2, (4, 5), (1,)), row(2, 9, 1, None, (2,)))
    assert positions(step).tolist() == [5, 6, 7, 0, 1, 9]


def test_tokens_still_on_the_device_are_taken_from_there():
    tables = SlotTables(4, 8, CpuBackend())
    tables.last_tokens[:] = torch.tensor([10, 11, 12, 13, 0])
    mixed = (row(3, 0, 2, (1, 2)), row(1, 4, 1, None), row(0, 7, 1, (9,)), row(2, 4, 1, None))
    assert tables.input_ids(mixed).tolist() == [1, 2, 11, 9, 12]
    assert tables.input_ids(mixed[1::2]).tolist() == [11, 12]
