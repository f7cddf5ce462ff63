"""Products with weights of 4 and 8 bits, in Triton's interpreter."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.kernels.reference import affine
from tgi_core.kernels.reference import linear as reference
from tgi_core.triton import rounded
from tgi_core.triton.chip import Chip

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = (1, 5, 40)
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def error(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


def stored(outputs, inputs, group, *, levels=16, any_order=False):
    """Codes [outputs, inputs] of random levels in groups."""
    generator = torch.Generator().manual_seed(outputs)
    groups = torch.arange(inputs) // group
    if any_order:
        groups = groups[torch.randperm(inputs, generator=generator)]
    count = int(groups.max()) + 1
    zeros = torch.randint(1, levels, (outputs, count), generator=generator).int()[:, groups]
    scales = (torch.rand(outputs, count, generator=generator) * 0.01).half()[:, groups]
    found = torch.randint(0, levels, (outputs, inputs), generator=generator).int()
    return affine.encode(found, zeros, scales).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["linear_int8", "linear_int4"])
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 64), (33, 1000), (64, 1536)])
def test_multiplies_what_the_reference_rounded(name, outputs, inputs, dtype):
    kernel, defined = getattr(rounded, name), getattr(reference, name)
    weight, bias = drawn(outputs, inputs, dtype=dtype) * inputs**-0.5, drawn(outputs, dtype=dtype)
    packed, expected = kernel.pack(weight), defined.pack(weight)
    for rows in (*ROWS, rounded.MOST_ROWS + 1):
        x = drawn(rows, inputs, dtype=dtype)
        for added in (None, bias):
            found = kernel(x, packed, added)
            assert found.dtype == dtype
            assert error(found, defined(x.float(), expected, added)) < TOLERANCE[dtype]


@pytest.mark.parametrize("any_order", [False, True])
@pytest.mark.parametrize("levels", [4, 16, 256])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 512])
def test_multiplies_what_a_checkpoint_stores(group, levels, any_order):
    codes, dtype = stored(48, 512, group, levels=levels, any_order=any_order), torch.float16
    packed = rounded.linear_affine.pack(codes)
    assert packed.block == min(group, rounded.BLOCKS[0])
    assert packed.halves == (levels <= 16)
    assert (packed.order is not None) == (any_order and group < 512)
    assert torch.equal(packed.expand(dtype), affine.expand(codes, dtype))
    for rows in ROWS:
        x = drawn(rows, 512, dtype=dtype)
        expected = F.linear(x.float(), affine.expand(codes, torch.float32))
        assert error(rounded.linear_affine(x, packed, None), expected) < TOLERANCE[dtype]


def test_weights_take_as_many_bits_as_they_have():
    for codes, bits in ((stored(64, 1024, 128), 4), (stored(64, 1024, 128, levels=256), 8)):
        packed = rounded.linear_affine.pack(codes)
        assert packed.levels.nbytes * 8 == bits * codes.numel()


@pytest.mark.parametrize(("inputs", "group"), [(120, 24), (1000, 128), (512, 7)])
def test_groups_of_any_size_keep_their_levels(inputs, group):
    codes = stored(33, inputs, group, any_order=True)
    packed = rounded.linear_affine.pack(codes)
    assert packed.block == 16
    assert sorted(packed.order[packed.order >= 0].tolist()) == list(range(inputs))
    assert torch.equal(packed.expand(torch.float16), affine.expand(codes, torch.float16))
    for rows in (1, 3):
        x = drawn(rows, inputs, dtype=torch.float16)
        expected = F.linear(x.float(), affine.expand(codes, torch.float32))
        assert error(rounded.linear_affine(x, packed, None), expected) < 1e-3


@pytest.mark.parametrize("rows", [2, 128])
def test_inputs_are_divided_where_outputs_are_few(rows):
    tile = rounded.tile_of(rows, 512, 86, 128, 132, 1 << 17)
    assert 1 < tile.splits <= rounded.MOST_SPLITS
    assert rounded.tile_of(rows, 1 << 17, 86, 128, 132, 1 << 17).splits == 1


@pytest.mark.parametrize(("has", "tiles"), [(True, 1), (False, 0)])
def test_tiles_are_left_to_chips_whose_matrix_units_triton_uses(has, tiles, monkeypatch):
    launched = []
    chip = SimpleNamespace(**{**vars(Chip(torch.device(DEVICE))), "has_matrix_units": has})
    monkeypatch.setattr(rounded, "chip_of", lambda device: chip)
    monkeypatch.setattr(rounded.MULTIPLY, "launch", lambda *given: launched.append(given))
    packed = rounded.linear_int8.pack(drawn(40, 64, dtype=torch.float16))
    for rows in (1, 5):
        rounded.linear_int8(drawn(rows, 64, dtype=torch.float16), packed, None)
    assert len(launched) == tiles


def test_rows_of_int8_are_found():
    weight = drawn(50, 200)
    packed, expected = rounded.linear_int8.pack(weight), reference.linear_int8.pack(weight)
    ids = torch.tensor([3, 49, 3], device=DEVICE)
    found = rounded.linear_int8.rows(packed, ids, torch.float16)
    assert torch.equal(found, reference.linear_int8.rows(expected, ids, torch.float16))


def test_strided_inputs_are_read_where_they_lie():
    weight, x = drawn(40, 256, dtype=torch.float16), drawn(6, 512, dtype=torch.float16)
    packed = rounded.linear_int8.pack(weight)
    for part in (x[:, :256], x[:1, 256:], x[::2, 1:257]):
        assert torch.equal(
            rounded.linear_int8(part, packed, None), rounded.linear_int8(part.contiguous(), packed, None)
        )


def test_no_rows_give_no_rows():
    packed = rounded.linear_int8.pack(drawn(40, 64, dtype=torch.float16))
    assert rounded.linear_int8(drawn(0, 64, dtype=torch.float16), packed, None).shape == (0, 40)
