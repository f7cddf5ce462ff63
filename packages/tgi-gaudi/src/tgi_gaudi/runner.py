"""Runs core's models in shapes that never vary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tgi_core.attention.base import EncoderInput, ForwardContext, Int32Array
from tgi_core.errors import ConfigError
from tgi_core.models.base import CausalLM
from tgi_core.runner.eager import EagerRunner, Launched
from tgi_core.stats import EngineInfo
from tgi_core.step import Admission, Row
from tgi_gaudi.attention import PaddedAttention, PaddedMetadata, Pages
from tgi_gaudi.backend import StaticBackend
from tgi_gaudi.shapes import at_least, doubles, shapes_for

log = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]
SCORED = 128  #: prompt tokens whose log-probabilities are computed at once


class PaddedDecode(nn.Module):
    """One token of each of B rows -> logits [B, V]."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        write: Tensor,
        tables: Tensor,
        source_tables: Tensor | None = None,
        source_lens: Tensor | None = None,
    ) -> Tensor:
        """ids, positions, write and source_lens [B], tables [B, W]"""
        source = Pages(write, source_tables) if source_tables is not None else None
        meta = PaddedMetadata(positions[:, None], Pages(write, tables), source, source_lens)
        return self.model.logits(self.model(ids, ForwardContext(positions, meta)))


class PaddedPrefill(nn.Module):
    """Whole prompts of B rows, Q tokens each -> logits [B, V] after the last token, hidden states [B Q, N]."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, positions: Tensor, write: Tensor, last: Tensor, **sources: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ids and positions [B, Q], write [B Q], last [B]; of the sources [B, S] likewise, and source_lens [B]"""
        source, encoder = None, None
        if sources:
            rows, length = sources["source_ids"].shape
            read = sources["source_ids"].flatten(), sources["source_positions"].flatten()
            encoder, source = EncoderInput(*read, (length,) * rows), Pages(sources["source_write"])
        meta = PaddedMetadata(positions, Pages(write), source, sources.get("source_lens"))
        hidden = self.model(ids.flatten(), ForwardContext(positions.flatten(), meta, encoder))
        return self.model.logits(hidden.index_select(0, last)), hidden


class PaddedScores(nn.Module):
    """Log-probabilities [C] of the tokens that follow some of the hidden states [T, N]."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: Tensor, at: Tensor, following: Tensor) -> Tensor:
        """at and following [C]"""
        logprobs = self.model.logits(hidden.index_select(0, at)).float().log_softmax(-1)
        return logprobs.gather(-1, following.unsqueeze(-1)).squeeze(-1)


class PaddedRunner(EagerRunner):
    """Pads every step to one of a few shapes; tokens are chosen on the host, where shapes may vary.

    A plan has either whole prompts or decodes.
    """

    model: CausalLM
    attention: PaddedAttention
    backend: StaticBackend

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        settings = self.backend.settings
        if settings.quant_config is not None:
            raise ConfigError("QUANT_CONFIG: float8 is for optimum-habana's models, and this is none; leave it out")
        self._decode: nn.Module = self.backend.wrap(PaddedDecode(self.model))
        wrap = (lambda module: module) if settings.limit_hpu_graph else self.backend.wrap
        self._prefill, self._scores = wrap(PaddedPrefill(self.model)), wrap(PaddedScores(self.model))
        self._sources: dict[int, tuple[int, ...]] = {}  # slot -> what an encoder reads
        self._last_token: dict[int, int] = {}  # slot -> the token that it sampled last
        self._has_source = self.model.config.is_encoder_decoder

    def warm_up(self, info: EngineInfo, progress: Callable[[float, str], None]) -> None:
        can_run_short = info.num_blocks < info.max_batch_size * self.slots.blocks_per_sequence
        longest = info.max_total_tokens if can_run_short and not self._has_source else info.max_input_tokens
        self.shapes = shapes_for(self.backend.settings, batch_size=info.max_batch_size, longest=longest)
        width = self.slots.blocks_per_sequence
        self._widths = (width,) if self._has_source else doubles(width)
        self._lengths = self.shapes.prompt_lengths
        if self._has_source:  # a decoder begins with its start tokens, or with all that it had before a preemption
            self._lengths = (len(info.decoder_start_ids),)
            if can_run_short:
                self._lengths += (info.max_total_tokens,)
        if self.backend.settings.warmup_enabled:
            self._warm_up(progress)

    @torch.inference_mode()
    def _warm_up(self, progress: Callable[[float, str], None]) -> None:
        """Run every shape once, on padding alone."""
        sources = self.shapes.prompt_lengths if self._has_source else (None,)
        prefills = [(length, source) for length in self._lengths for source in sources]
        decodes = [(rows, width) for rows in self.shapes.decode_rows for width in self._widths]
        total, done = len(prefills) + len(decodes), 0
        for length, source in prefills:
            named = f"{self.shapes.prefill_rows} prompts of {source or length} tokens"
            progress(done / total, f"{named}, {done + 1} of {total} shapes")
            _, hidden = self._prefill(**self._upload(self._prompt_input((), length, source)))
            if not self._has_source:
                self._score(hidden, 0, (), length)
            done += 1
        for rows, width in decodes:
            progress(done / total, f"decodes of {rows} rows and {width} blocks, {done + 1} of {total} shapes")
            self._decode(**self._upload(self._decode_input((), rows, width)))
            done += 1
        self.backend.synchronize()
        log.info("warmed up %d shapes", total)

    def _admit(self, admission: Admission) -> str:
        self._sources[admission.slot] = admission.source
        return super()._admit(admission)

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _launch(self, rows: tuple[Row, ...]) -> Launched:
        if all(row.start == 0 for row in rows):
            logits, scores = self._read(rows)
        else:
            width = at_least(max(self._blocks(row) for row in rows), self._widths)
            given = self._decode_input(rows, self.shapes.decode_rows_for(len(rows)), width)
            logits, scores = self._decode(**self._upload(given)), {}
        host = logits.to(self.backend.sampling_device)[: len(rows)]
        launched = self._launched(rows, list(range(len(rows))), self._sample(rows, host), scores)
        for row, result in zip(rows, launched.collect(), strict=True):
            if result.token_id is not None:
                self._last_token[row.slot] = result.token_id
        return launched

    def _read(self, rows: tuple[Row, ...]) -> tuple[Tensor, dict[int, list[Tensor]]]:
        length = at_least(max(row.length for row in rows), self._lengths)
        source = None
        if self._has_source:
            source = self.shapes.prompt_length_for(max(len(self._sources[row.slot]) for row in rows))
        logits, hidden = self._prefill(**self._upload(self._prompt_input(rows, length, source)))
        scores = {}
        for index, row in enumerate(rows):
            if self._wants_prompt_logprobs(row):
                following = self.sampler.state(row.slot).prompt[row.start + 1 : row.start + 1 + row.length]
                scores[index] = self._score(hidden, index * length, following, length)
        return logits, scores

    def _score(self, hidden: Tensor, first: int, following: Sequence[int], length: int) -> list[Tensor]:
        """Log-probabilities of the tokens that follow the row whose hidden states begin at `first`, in parts."""
        size, parts = min(SCORED, length), []
        for start in range(0, max(len(following), 1), size):
            tokens = _padded(following[start : start + size], size)
            at = np.minimum(first + start + np.arange(size), first + length - 1)
            found = self._scores(hidden, self.backend.upload(at), self.backend.upload(tokens))
            parts.append(found.to(self.backend.sampling_device, copy=True)[: len(following) - start])
        return parts

    def _upload(self, given: dict[str, Int64Array]) -> dict[str, Tensor]:
        return {name: self.backend.upload(array) for name, array in given.items()}

    # ---- inputs ---------------------------------------------------------------------------------------------------

    def _blocks(self, row: Row) -> int:
        return -(-(row.start + row.length) // self.attention.block_size)

    def _decode_input(self, rows: tuple[Row, ...], batch: int, width: int) -> dict[str, Int64Array]:
        ids, positions = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        write, tables = self._spare(batch), np.zeros((batch, width), np.int64)
        given = {"ids": ids, "positions": positions, "write": write, "tables": tables}
        if self._has_source:
            given |= {"source_tables": np.zeros((batch, width), np.int64), "source_lens": np.ones(batch, np.int64)}
        if not rows:
            return given
        step = self.slots.step_input(rows)
        for index, row in enumerate(rows):
            ids[index] = self._last_token[row.slot] if row.tokens is None else row.tokens[0]
            positions[index] = row.start
            tables[index, : self._blocks(row)] = step.block_tables[index, : self._blocks(row)]
            write[index] = self._places(step.block_tables[index], positions[index : index + 1])[0]
            if step.source is not None:
                blocks = -(-int(step.source.lens[index]) // self.attention.block_size)
                given["source_tables"][index, :blocks] = step.source.block_tables[index, :blocks]
                given["source_lens"][index] = step.source.lens[index]
        return given

    def _prompt_input(self, rows: tuple[Row, ...], length: int, source: int | None) -> dict[str, Int64Array]:
        batch = self.shapes.prefill_rows
        step = self.slots.step_input(rows) if rows else None
        tokens = [row.tokens or () for row in rows]
        given = self._texts(tokens, step.block_tables if step else None, batch, length)
        given["last"] = np.arange(batch) * length + _padded([len(text) - 1 for text in tokens], batch)
        if source is not None:
            tables = step.source.block_tables if step and step.source else None
            texts = [self._sources[row.slot] for row in rows]
            read = self._texts(texts, tables, batch, source)
            given |= {f"source_{name}": array for name, array in read.items()}
            given["source_lens"] = _padded([len(text) for text in texts], batch, 1)
        return given

    def _texts(
        self, texts: Sequence[Sequence[int]], tables: Int32Array | None, batch: int, length: int
    ) -> dict[str, Int64Array]:
        """Texts from position 0 on, padded on the right, where the padding's position is that of the last token."""
        ids, positions = np.zeros((batch, length), np.int64), np.zeros((batch, length), np.int64)
        write = self._spare(batch * length)
        for index, text in enumerate(texts):
            ids[index, : len(text)] = text
            positions[index] = np.minimum(np.arange(length), len(text) - 1)
            if tables is not None:
                first = index * length
                write[first : first + len(text)] = self._places(tables[index], np.arange(len(text)))
        return {"ids": ids, "positions": positions, "write": write}

    def _places(self, table: Int32Array, positions: Int64Array) -> Int64Array:
        """Where tokens of a sequence at these positions are kept."""
        size = self.attention.block_size
        return table[positions // size].astype(np.int64) * size + positions % size

    def _spare(self, count: int) -> Int64Array:
        """Places for what nobody reads, all different as long as there are some."""
        return self.attention.spare + np.arange(count) % self.attention.block_size


def _padded(values: Sequence[int], size: int, padding: int = 0) -> Int64Array:
    array = np.full(size, padding, dtype=np.int64)
    array[: len(values)] = values
    return array
