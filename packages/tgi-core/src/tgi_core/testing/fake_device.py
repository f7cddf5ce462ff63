"""Devices without arithmetic that obey, and enforce, the rules of real ones.

Their language model continues a sequence by a checksum of every token that is *found in its KV cache*, so a wrong
block, slot, position or order changes the output.  `expected_output` says what a sequence must become.  An encoder
is a reader of sources into blocks of the same cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from zlib import crc32

from tgi_core.device.capabilities import ONE_BLOCK_PER_SEQUENCE, Capabilities
from tgi_core.runner.base import FinishedHandle, Handle, Runner
from tgi_core.step import Admission, Row, RowResult, StepPlan, StepResult

VOCABULARY = 1000
GARBAGE = -1


def next_token(context: list[int]) -> int:
    """The fake language model."""
    return crc32(repr(context).encode()) % VOCABULARY


def expected_output(prompt: list[int], length: int, source: Sequence[int] = ()) -> list[int]:
    """The tokens that any correct device generates."""
    tokens = [*source, *prompt]
    for _ in range(length):
        tokens.append(next_token(tokens))
    return tokens[len(source) + len(prompt) :]


class FakePagedRunner(Runner):
    """A paged device: any mix of rows, chunks and shared blocks."""

    capabilities = Capabilities(block_sizes=(4,))

    def __init__(self, num_blocks: int, block_size: int, max_sequences: int) -> None:
        self.block_size = block_size
        self.cache = [[GARBAGE] * block_size for _ in range(num_blocks)]
        self.tables: list[list[int]] = [[] for _ in range(max_sequences)]
        self.sources: dict[int, Admission] = {}  # by slot
        self.last_token = [GARBAGE] * max_sequences

    def submit(self, plan: StepPlan) -> Handle:
        return FinishedHandle(self.run(plan))

    def run(self, plan: StepPlan) -> StepResult:
        """Store the tokens of all rows, then read back every context."""
        for admission in plan.admissions:
            self.tables[admission.slot] = []
            self.sources[admission.slot] = admission
        for row in plan.rows:
            self._store(row)
        return StepResult([self._sample(row) for row in plan.rows])

    def _encode(self, row: Row) -> None:
        """Read the whole source of a sequence that begins."""
        admission = self.sources[row.slot]
        for position, token in enumerate(admission.source if row.start == 0 else ()):
            block = admission.source_blocks[position // self.block_size]
            self.cache[block][position % self.block_size] = token

    def _store(self, row: Row) -> None:
        self._encode(row)
        self.tables[row.slot].extend(row.new_blocks)
        tokens = (self.last_token[row.slot],) if row.tokens is None else row.tokens
        if len(tokens) != row.length:
            raise ValueError(f"row of length {row.length} has {len(tokens)} tokens")
        for position, token in enumerate(tokens, row.start):
            block = self.tables[row.slot][position // self.block_size]
            self.cache[block][position % self.block_size] = token

    def _sample(self, row: Row) -> RowResult:
        if not row.wants_token:
            return RowResult(row.sequence_id)
        end = row.start + row.length
        admission = self.sources[row.slot]
        source = self._read(admission.source_blocks, len(admission.source))
        context = source + self._read(self.tables[row.slot], end)
        self.last_token[row.slot] = token = next_token(context)
        return RowResult(row.sequence_id, token)

    def _read(self, blocks: Sequence[int], length: int) -> list[int]:
        return [token for block in blocks for token in self.cache[block]][:length]


class _LateHandle(Handle):
    """Runs its step only when somebody waits for it, after all earlier ones."""

    def __init__(self, runner: FakeAsynchronousRunner, plan: StepPlan) -> None:
        self._runner, self.plan = runner, plan
        self.outcome: StepResult | None = None

    def done(self) -> bool:
        return self.outcome is not None

    def result(self) -> StepResult:
        while self.outcome is None:
            self._runner.advance()
        return self.outcome


class FakeAsynchronousRunner(FakePagedRunner):
    """A paged device that works only when waited for: what is submitted in between must not depend on results."""

    capabilities = Capabilities(block_sizes=(4,), asynchronous=True)

    def __init__(self, num_blocks: int, block_size: int, max_sequences: int) -> None:
        super().__init__(num_blocks, block_size, max_sequences)
        self.submitted: deque[_LateHandle] = deque()
        self.most_submitted = 0

    def submit(self, plan: StepPlan) -> Handle:
        handle = _LateHandle(self, plan)
        self.submitted.append(handle)
        self.most_submitted = max(self.most_submitted, len(self.submitted))
        return handle

    def advance(self) -> None:
        """Do the oldest step."""
        handle = self.submitted.popleft()
        handle.outcome = self.run(handle.plan)


class FakeStaticRunner(FakePagedRunner):
    """A compiled device: slots of one block each, one whole prompt per prefill, decodes of all live slots.

    A live slot that is left out of a decode is overwritten, as on Neuron.
    """

    capabilities = Capabilities(
        block_sizes=(ONE_BLOCK_PER_SEQUENCE,),
        static_shapes=True,
        batch_buckets=(4,),
        max_sequences=4,
        prefill_rows=1,
        chunked_prefill=False,
        prefix_caching=False,
        mixed_batches=False,
        decode_all_live=True,
    )

    def __init__(self, num_blocks: int, block_size: int, max_sequences: int) -> None:
        super().__init__(num_blocks, block_size, max_sequences)
        self.shapes: set[tuple[str, int]] = set()

    def run(self, plan: StepPlan) -> StepResult:
        if plan.kind == "prefill":
            self._check_prefill(plan)
        elif plan.kind == "decode":
            self._check_decode(plan)
        else:
            raise ValueError("a static device has no graph for mixed steps")
        return super().run(plan)

    def _check_prefill(self, plan: StepPlan) -> None:
        if len(plan.rows) != 1 or plan.rows[0].start != 0 or not plan.rows[0].wants_token:
            raise ValueError("a static device prefills one whole prompt at a time")
        self.shapes.add(("prefill", 1))

    def _check_decode(self, plan: StepPlan) -> None:
        if any(row.length != 1 or row.start == 0 for row in plan.rows):
            raise ValueError("a decode continues every row by one token")
        self.shapes.add(("decode", len(self.tables)))
        present = {row.slot for row in plan.rows}
        for slot, table in enumerate(self.tables):
            if table and slot not in present:
                self.cache[table[0]] = [GARBAGE] * self.block_size
