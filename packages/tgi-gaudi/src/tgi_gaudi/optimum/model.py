"""A model of optimum-habana's, with a static cache in slots.

All rows of a batch write their next key and value into the same column of the cache, so that sequences are padded on
the left: a sequence ends where the next column begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tgi_core.device.capabilities import ONE_BLOCK_PER_SEQUENCE, Capabilities
from tgi_core.errors import UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.model_config import ModelConfig
from tgi_core.models.base import LanguageModel
from tgi_core.weights.reader import WeightReader
from tgi_gaudi.settings import GaudiSettings
from tgi_gaudi.shapes import up_to_multiple

TRIED = 4  #: tokens
SLACK = 128  #: columns, where prompts are padded to the longest


class Part(NamedTuple):
    """What a layer keeps of a token as keys, or as values."""

    heads: int
    size: int  #: of each
    dtype: torch.dtype  #: float8 where the model quantises them


class SlotModel(LanguageModel):
    """What `AutoModelForCausalLM` makes once transformers is adapted.

    Args:
        own: on the device.

    Raises:
        UnsupportedModel: its cache is not of keys and values [B, Hkv, L, D].
    """

    runner = "tgi_gaudi.optimum.runner:SlotRunner"

    def __init__(self, config: ModelConfig, build: BuildContext, own: Any, settings: GaudiSettings) -> None:
        super().__init__(config, build)
        self.own, self.device, self.dtype = own, build.device, build.dtype
        self.settings = settings
        known = inspect.signature(own.forward).parameters
        wanted = {
            "use_cache": True,
            "return_dict": True,
            "trim_logits": True,
            "lazy_mode": settings.lazy_mode,
            "attn_softmax_bf16": settings.attn_softmax_bf16,
            "use_flash_attention": settings.use_flash_attention,
            "flash_attention_recompute": settings.flash_attention_recompute,
        }
        self._options = {name: value for name, value in wanted.items() if name in known}
        self._takes_positions = "position_ids" in known
        self._parts = self._tried()
        self.token_bytes = sum(part.heads * part.size * part.dtype.itemsize for part in self._parts)
        self.note = f"optimum-habana's {type(own).__name__}"

    def load_weights(self, reader: WeightReader, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """transformers has loaded them already."""
        progress(1.0)

    def narrow(self, capabilities: Capabilities) -> Capabilities:
        return replace(capabilities, block_sizes=(ONE_BLOCK_PER_SEQUENCE,))

    def logits(self, hidden: Tensor) -> Tensor:
        """The model gives logits [B, V] at once."""
        return hidden

    def allocate(self, slots: int, tokens: int) -> None:
        step = self.settings.pad_sequence_to_multiple_of or SLACK
        self.columns = up_to_multiple(tokens, step) + step  #: the more beyond the longest sequence, the rarer are rolls
        widen_tables(self.own, self.columns)
        #: of each layer, then of its keys and values: [slots + 1, Hkv, columns, D]; the last slot is spare
        self.cache = tuple(
            tuple(self._zeros(part, slots + 1) for part in pair)
            for pair in zip(self._parts[::2], self._parts[1::2], strict=True)
        )

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """Whole prompts.

        Args:
            ids: [B, L], padded on the left.
            mask: [B, L], 0 for padding.
            positions: [B, L]

        Returns:
            logits [B, 1 or L, V], and the keys and values of each layer.
        """
        end = torch.full((), ids.shape[1], dtype=torch.int64, device=ids.device)
        return self._call(ids, mask, positions, token_idx=end, past_key_values=None, **options)

    def step(self, ids: Tensor, mask: Tensor, positions: Tensor, end: Tensor) -> Tensor:
        """One more token of the sequences in the first B slots.

        Args:
            ids, positions: [B, 1]
            mask: [B, columns], 1 for what is seen, the tokens of this step included.
            end: [] the column after the one that is written.

        Returns:
            logits [B, V]
        """
        rows = len(ids)
        past = tuple(tuple(part[:rows] for part in layer) for layer in self.cache)
        return self._call(ids, mask, positions, token_idx=end, past_key_values=past)[0][:, -1]

    def _call(self, ids: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> tuple[Tensor, Any]:
        given = {**self._options, **options}
        if self._takes_positions:
            given["position_ids"] = positions
        output = self.own(input_ids=ids, attention_mask=mask, **given)
        return output.logits, output.past_key_values

    def _zeros(self, part: Part, slots: int) -> Tensor:
        return torch.zeros(slots, part.heads, self.columns, part.size, dtype=part.dtype, device=self.device)

    @torch.inference_mode()
    def _tried(self) -> list[Part]:
        """Of each layer's keys, and of its values, in turn."""
        ids = torch.ones(1, TRIED, dtype=torch.int64, device=self.device)
        positions = torch.arange(TRIED, device=self.device)[None]
        name = type(self.own).__name__
        try:
            _, past = self.read(ids, ids, positions)
            found = [part for layer in past for part in layer[:2]]
            parts = [Part(int(part.shape[1]), int(part.shape[3]), part.dtype) for part in found]
        except Exception as error:  # anything may go wrong in another package's code
            raise UnsupportedModel(f"optimum-habana's {name} does not run on a few tokens: {error}") from error
        expected = [(1, part.heads, TRIED, part.size) for part in parts]
        if [tuple(part.shape) for part in found] != expected:
            raise UnsupportedModel(f"optimum-habana's {name} keeps its past in another layout")
        return parts


def widen_tables(own: Any, columns: int) -> None:
    """Let what a model looks up by column reach over all of them: MPT's distances, GPT-2's causal masks.

    Both are made for as many columns as the model knows positions, and the cache has some more.
    """
    if getattr(own.config, "max_seq_len", columns) < columns:
        own.config.max_seq_len = columns
    mask = torch.ones(columns, columns, dtype=torch.bool).tril()[None, None].to(own.device)
    for module in own.modules():
        found = dict(module.named_buffers(recurse=False)).get("bias")
        if found is not None and found.dtype == torch.bool and found.shape[-1] < columns:
            module.bias = mask
