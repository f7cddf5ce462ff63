"""The runner of devices that repeat a recorded step faster than Python can tell them what to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tgi_core.attention.base import AttentionBackend, FixedMetadata, ForwardContext, StepInput
from tgi_core.device.backend import DeviceBackend, UnrecordableStep
from tgi_core.models.base import CausalLM
from tgi_core.runner.eager import EagerRunner, Launched
from tgi_core.runner.slots import SlotTables
from tgi_core.sampling.sampler import Choice, Sampler
from tgi_core.step import Row

log = logging.getLogger(__name__)


class DecodeGraph:
    """One recorded decode of a fixed number of rows.

    Rows that a step does not have are padding: they read and write the padding slot, and no key or value.
    """

    replay: Callable[[], None]
    logits: Tensor  #: [rows, V]; overwritten by the next replay of any graph
    choice: Choice | None = None  #: if the graph chooses

    def __init__(self, rows: int, padding_slot: int, attention: FixedMetadata, device: torch.device) -> None:
        self.rows, self.padding_slot, self.attention = rows, padding_slot, attention
        self.inputs = torch.zeros((2, rows), dtype=torch.int64, device=device)  #: slots and positions
        self.inputs[0] = padding_slot
        attention.clear()

    def host_inputs(self, rows: tuple[Row, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """What goes into `inputs` for a step."""
        inputs = np.zeros((2, self.rows), dtype=np.int64)
        inputs[0, :] = self.padding_slot
        inputs[:, : len(rows)] = np.array([(row.slot, row.start) for row in rows], dtype=np.int64).T
        return inputs


class GraphRunner(EagerRunner):
    """Replays decodes, recorded when a number of rows is first met; steps with prompts are called layer by layer.

    A graph that chooses greedily keeps the tokens on the device; others end with logits.
    """

    def __init__(
        self,
        model: CausalLM,
        attention: AttentionBackend,
        sampler: Sampler,
        slots: SlotTables,
        backend: DeviceBackend,
    ) -> None:
        super().__init__(model, attention, sampler, slots, backend)
        self._graphs: dict[tuple[int, int, bool], DecodeGraph | None] = {}  # by rows, variant, whether it chooses

    def _launch(self, rows: tuple[Row, ...]) -> Launched:
        step = self.slots.step_input(rows)
        graph = self._graph_for(rows, step)
        return self._launch_eagerly(rows, step) if graph is None else self._launch_graph(graph, rows, step)

    def _graph_for(self, rows: tuple[Row, ...], step: StepInput) -> DecodeGraph | None:
        """The graph of this step; None where none can be."""
        bucket = next((size for size in self.backend.capabilities.batch_buckets if size >= len(rows)), None)
        begins = step.source is not None and bool(step.source.starts[-1])
        if bucket is None or begins or not all(row.length == 1 and row.wants_token for row in rows):
            return None
        variant = self.attention.variant(bucket, int(step.context_lens.max()))
        key = bucket, variant, self.sampler.is_plain([row.slot for row in rows])
        if key not in self._graphs:
            self._graphs[key] = self._record(*key)
        return self._graphs[key]

    def _launch_graph(self, graph: DecodeGraph, rows: tuple[Row, ...], step: StepInput) -> Launched:
        graph.attention.fill(step)
        self.backend.upload(graph.host_inputs(rows), graph.inputs)
        graph.replay()
        if graph.choice is None:
            choice = self._sample(rows, graph.logits[: len(rows)])
        else:
            choice = Choice(graph.choice.ids[: len(rows)], graph.choice.logprobs[: len(rows)])
            self.sampler.chosen([row.slot for row in rows], choice)
        return self._launched(rows, list(range(len(rows))), choice, {})

    def _record(self, rows: int, variant: int, chooses: bool) -> DecodeGraph | None:
        """Run once with padding alone, which also compiles what is not compiled yet, then record."""
        if any(getattr(module, "waits_for_device", False) for module in self.model.modules()):
            return None
        attention = self.attention.fixed(rows, self.slots.blocks_per_sequence, variant)
        if attention is None:
            return None
        started = time.perf_counter()
        graph = DecodeGraph(rows, self.slots.padding_slot, attention, self.backend.torch_device)

        def run() -> None:
            slots, positions = graph.inputs
            tokens = self.slots.last_tokens
            hidden = self.model(tokens.index_select(0, slots), ForwardContext(positions, attention.metadata))
            graph.logits = self.model.logits(hidden)
            if chooses:
                graph.choice = Choice(*self.sampler.kernels.greedy(graph.logits))
                tokens.index_copy_(0, slots, graph.choice.ids)

        run()
        try:
            graph.replay = self.backend.capture(run)
        except UnrecordableStep as reason:
            log.info("decodes of %d rows are called layer by layer: %s", rows, reason)
            return None
        log.info("recorded decodes of %d rows in %.2f s", rows, time.perf_counter() - started)
        return graph
