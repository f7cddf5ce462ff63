"""Steps as they come, which no runner has padded; whole prompts and decodes are the contract's business."""

import numpy as np
import pytest
import torch

from tgi_core.attention.base import AttentionSpec, StepInput
from tgi_core.attention.reference import ReferenceAttention
from tgi_core.kernels.ops import KernelQuery
from tgi_gaudi.attention import PaddedAttention, pad_rows

QUERY = KernelQuery(device="gaudi", torch_device="cpu", dtype="float32", head_size=16, block_size=4)
BLOCKS, WIDTH = 24, 6
#: (new tokens, tokens before) of each sequence
STEPS = {
    "chunks": [[(5, 0), (3, 0)], [(9, 5), (1, 3)], [(2, 14), (7, 4)]],
    "prompts beside decodes": [[(6, 0)], [(1, 6), (11, 0)], [(1, 7), (1, 11), (4, 0)]],
}


def step_input(step):
    lengths, before = (np.array(column, dtype=np.int32) for column in zip(*step, strict=True))
    tables = np.random.default_rng(0).permutation(BLOCKS).astype(np.int32).reshape(-1, WIDTH)[: len(step)]
    used = np.arange(WIDTH) < -(-(lengths + before)[:, None] // QUERY.block_size)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return StepInput(starts, lengths + before, np.where(used, tables, -1).astype(np.int32))


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("window", [None, 3])
def test_rows_of_any_length_and_past_are_attended_to_as_by_the_reference(steps, window):
    spec = AttentionSpec(heads=4, kv_heads=2, head_size=16, scale=0.25, window=window)
    own, reference = PaddedAttention(QUERY), ReferenceAttention(QUERY)
    for backend in (own, reference):
        backend.add_layer(spec)
        backend.allocate(BLOCKS)
    generator = torch.Generator().manual_seed(0)
    for step in map(step_input, steps):
        q, k, v = torch.randn(step.num_tokens, 8, 16, generator=generator).split((4, 2, 2), dim=1)
        found, expected = (backend.forward(0, q, k, v, backend.prepare(step)) for backend in (own, reference))
        torch.testing.assert_close(found, expected)


def test_padding_repeats_the_last_token_of_its_row():
    rows = pad_rows(np.array([0, 3, 3, 5], dtype=np.int32), np.array([0, 7, 2], dtype=np.int32))
    assert rows.tokens.tolist() == [[0, 1, 2], [3, 3, 3], [3, 4, 4]]
    assert rows.positions.tolist() == [[0, 1, 2], [7, 7, 7], [2, 3, 3]]
    assert rows.is_token.tolist() == [[True] * 3, [False] * 3, [True, True, False]]
