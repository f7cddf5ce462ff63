"""What a device is told to do in one step, as modules that can be recorded: tensors in, tensors out.

Letters: B rows, L tokens of each prompt, S columns of the cache, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tgi_gaudi.optimum.model import SlotModel


class SlotPrefill(nn.Module):
    """Reads prompts, and puts their keys and values into slots, so that all of them end at the same column."""

    def __init__(self, model: SlotModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, slots: Tensor, columns: Tensor) -> Tensor:
        """Replaces all that the slots held.

        Args:
            ids, mask, positions: [B, L]
            slots: [B]
            columns: [S] which of the L tokens goes there; L where none does.

        Returns:
            logits [B, V]
        """
        logits, past = self.model.read(ids, mask, positions)
        for layer, read in zip(self.model.cache, past, strict=True):
            for cache, new in zip(layer, read[:2], strict=True):
                nothing = torch.zeros_like(new[:, :, :1])
                cache.index_copy_(0, slots, torch.cat([new, nothing], 2).index_select(2, columns))
        return logits[:, -1]


class SlotDecode(nn.Module):
    """One more token of the sequences in the first B slots."""

    def __init__(self, model: SlotModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, end: Tensor) -> Tensor:
        """As `SlotModel.step`."""
        return self.model.step(ids, mask, positions, end)


class SlotRoll(nn.Module):
    """Moves every column of the cache."""

    def __init__(self, model: SlotModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, columns: Tensor) -> None:
        """columns [S]: which one comes there."""
        for layer in self.model.cache:
            for part in layer:
                part.copy_(part.index_select(2, columns))


class PromptScores(nn.Module):
    """Log-probabilities [B, L] of the token that follows each one of prompts."""

    def __init__(self, model: SlotModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, following: Tensor) -> Tensor:
        """All are [B, L]."""
        logits, _ = self.model.read(ids, mask, positions, trim_logits=False)
        return logits.float().log_softmax(-1).gather(-1, following.unsqueeze(-1)).squeeze(-1)
