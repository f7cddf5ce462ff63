"""Every new key and value lies in its slot as it is kept, turned if it is to be, and nothing else was touched."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.attention.cache_dtype import put
from tgi_core.kernels.reference.rotary import rotary
from tgi_core.triton.store import store

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}
SHAPES = [
    (6, 2, 64), (3, 3, 40), (18, 1, 16), (18, 9, 16), (4, 2, 32), (4, 4, 32), (4, 2, 80), (2, 2, 96), (8, 2, 128),
    (2, 1, 256),
]  # fmt: skip
SLOTS = [13, 3, -1, 30, 0, 31, -1]  #: of tokens; those below zero are padding
FLOAT8 = [torch.float8_e5m2]
if DEVICE == "cpu" or torch.cuda.get_device_capability() >= (8, 9):
    FLOAT8.append(torch.float8_e4m3fn)


def bits(x):
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("kept", [None, *FLOAT8], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("rotated", [0, 12, 256])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), SHAPES)
def test_new_keys_and_values_lie_in_their_slots(heads, kv_heads, size, rotated, dtype, kept):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(len(SLOTS), heads + 2 * kv_heads, size, generator=generator).to(DEVICE, dtype)
    before, (q, k, v) = qkv.clone(), qkv.split((heads, kv_heads, kv_heads), dim=1)
    slots = torch.tensor(SLOTS, dtype=torch.int32, device=DEVICE)
    caches = [torch.full((6, 8, kv_heads, size), x, device=DEVICE).to(kept or dtype) for x in (7, 9)]
    expected = [cache.clone() for cache in caches]
    keys, values = (cache[1:5] for cache in caches)  # what lies around them is not theirs
    half = min(rotated, size) // 2
    angles = torch.rand(len(SLOTS), half, generator=generator).to(DEVICE) * 6

    store(q, k, v, (angles.cos(), angles.sin()) if half else None, keys, values, slots)

    old_q, old_k, old_v = before.split((heads, kv_heads, kv_heads), dim=1)
    assert torch.equal(v, old_v)
    for found, old in ((q, old_q), (k, old_k)):
        assert torch.equal(found[..., 2 * half :], old[..., 2 * half :])
    if half:
        wanted = rotary(old_q.clone(), old_k.clone(), angles.cos(), angles.sin())
        torch.testing.assert_close((q, k), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    there = slots >= 0
    for cache, found, x in zip(expected, caches, (k, v), strict=True):
        put(cache[1:5].flatten(0, 1), slots[there].long(), x[there])
        assert torch.equal(bits(found), bits(cache))
