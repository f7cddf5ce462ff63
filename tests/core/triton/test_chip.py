"""What is read from PyTorch's properties of a GPU, on chips whose warps have 32 lanes and 64."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tgi_core.triton import chip, tiles

H100 = SimpleNamespace(multi_processor_count=132, warp_size=32, shared_memory_per_block_optin=232448)
MI210 = SimpleNamespace(multi_processor_count=104, warp_size=64)


@pytest.fixture(params=[H100, MI210], ids=["warps of 32", "warps of 64"])
def properties(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: request.param)
    chip.row_warps.cache_clear()
    yield request.param
    chip.row_warps.cache_clear()


def test_a_row_of_logits_gets_as_many_lanes_on_every_chip(properties):
    device = torch.device("cuda", 0)
    assert chip.row_warps(device) * properties.warp_size == chip.ROW_LANES


def test_shared_memory_is_what_amd_has_where_properties_do_not_say(properties):
    found = chip.Chip(torch.device("cuda", 0))
    assert found.shared_bytes == getattr(properties, "shared_memory_per_block_optin", 65536)


@pytest.mark.parametrize(("major", "has"), [(7, False), (8, True), (9, True)])
def test_matrix_units_are_used_from_ampere_on(major, has, monkeypatch):
    properties = SimpleNamespace(**vars(H100), major=major)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert chip.Chip(torch.device("cuda", 0)).has_matrix_units is has


@pytest.mark.parametrize(
    ("like", "major", "is_hopper"), [(H100, 9, True), (H100, 8, False), (H100, 10, False), (MI210, 9, False)]
)
def test_hopper_is_told_from_others(like, major, is_hopper, monkeypatch):
    properties = SimpleNamespace(**vars(like), major=major)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert chip.Chip(torch.device("cuda", 0)).is_hopper is is_hopper


def test_no_decode_is_a_lone_warp_of_64_lanes():
    assert min(tile.warps for kind in tiles.kinds(64, copies=False).decodes for tile in kind.tiles) == 2


def test_prompts_in_float32_get_tiles_that_compile_quickly():
    halves = tiles.fitting(tiles.PREFILL, 64, 2, H100.shared_memory_per_block_optin)
    exact = tiles.fitting(tiles.PREFILL, 64, 4, H100.shared_memory_per_block_optin, tiles.FLOAT32_ROWS)
    assert (halves.rows, exact.rows) == (128, tiles.FLOAT32_ROWS)
