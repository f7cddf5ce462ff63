"""Penalties in Triton against the reference."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels.ops import Penalties, TokenTables
from tgi_core.kernels.reference import sample as reference
from tgi_core.triton.penalties import penalize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("size", [1, 5, 1000, 4096, 20001])
def test_penalize(size):
    chance = torch.Generator().manual_seed(2)
    logits = (torch.randn(4, size, generator=chance) * 3).to(DEVICE)
    logits[0, 0] = float("-inf")
    tables = TokenTables(
        *(torch.randint(-20, 4, (6, size), generator=chance).clamp(min=0).int().to(DEVICE) for _ in range(2))
    )
    slots = torch.tensor([5, 0, 2, 3], device=DEVICE)
    parts = [1.0, 1.3, 0.5, 2.0], [0.0, 0.5, -1.0, 0.0], [1.5, 0.0, -0.5, 0.0]
    penalties = Penalties(*(torch.tensor(part, device=DEVICE) for part in parts))
    expected = reference.penalize(logits.clone(), tables, slots, penalties)
    torch.testing.assert_close(penalize(logits.clone(), tables, slots, penalties), expected)
    wide = torch.cat((logits, logits), 1)
    torch.testing.assert_close(penalize(wide[:, :size], tables, slots, penalties), expected)
    assert torch.equal(wide[:, size:], logits)
    assert penalize(logits[:0], tables, slots[:0], Penalties(*(x[:0] for x in penalties))).shape == (0, size)


def test_nan_stays():
    tables = TokenTables(*(torch.ones(1, 9, dtype=torch.int32, device=DEVICE) for _ in range(2)))
    penalties = Penalties(*(torch.full((1,), 1.5, device=DEVICE) for _ in range(3)))
    logits = torch.full((1, 9), float("nan"), device=DEVICE)
    assert penalize(logits, tables, torch.zeros(1, dtype=torch.int64, device=DEVICE), penalties).isnan().all()
