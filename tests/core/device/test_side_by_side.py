"""Tensors that lie side by side are copied at once, and others as they are."""

import torch

from tgi_core.device.side_by_side import MOST_BYTES, pieces_of, tensor_in


def copied(tensors):
    """As they come out of copies of their pieces; and how many copies there are."""
    pieces, found = pieces_of(tensors), {}
    for source, firsts in pieces:
        copy = source.clone()
        found |= {number: tensor_in(copy, first, tensors[number]) for number, first in firsts.items()}
    for number, tensor in enumerate(tensors):
        assert found[number].dtype == tensor.dtype
        assert torch.equal(found[number], tensor)
        assert not tensor.numel() or found[number].data_ptr() != tensor.data_ptr()
    return len(pieces)


def chosen(rows):
    """Indices and numbers of so many rows, in one memory."""
    memory = torch.arange(2 * rows)
    return memory[:rows], memory[rows:].view(torch.float32)[:rows]


def test_what_lies_side_by_side_is_one_copy():
    ids, logprobs = chosen(12)
    assert copied([ids, logprobs]) == 1
    assert copied([ids[:3], logprobs[:3]]) == 1
    assert copied([logprobs[:3], ids[:3]]) == 1
    assert copied([ids[:0], logprobs[:0]]) == 1
    assert copied([ids.view(3, 4), logprobs.view(4, 3)]) == 1


def test_other_memory_is_copied_apart():
    ids, logprobs = chosen(5)
    others = torch.randn(3, 4), torch.ones(2, dtype=torch.bool)
    assert copied([ids, others[0], logprobs, others[1]]) == 3
    assert copied([others[0]]) == 1
    assert copied([]) == 0


def test_what_cannot_be_one_copy_is_several():
    apart = torch.zeros(MOST_BYTES)
    assert copied([apart[:1], apart[-1:]]) == 2
    strided = torch.arange(12).view(3, 4)
    assert copied([strided[:, 1], strided[0]]) == 2
    memory = torch.arange(16, dtype=torch.int32)
    assert copied([memory[:1], memory[1:5].view(torch.float32), memory[6:8].view(torch.int64)]) == 1
    assert copied([memory[1:2], memory[4:6].view(torch.int64)]) == 2  # 12 bytes on
