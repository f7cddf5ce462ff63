"""Requests in flight: hands each to the engine and each of its outputs back to the task that waits for it."""

from __future__ import annotations

import asyncio
import time

from tgi_core.messages import Abort, Add
from tgi_core.request import Request, RequestOutput
from tgi_core.sampling_params import SamplingParams
from tgi_server.engine_process import EngineProcess
from tgi_server.errors import GenerationFailed, Unavailable

MAX_PENDING_OUTPUTS = 256  # of one request; then outputs are merged, so a slow reader costs little memory


class OutputStream:
    """The outputs of one request in order.  Its last output has a finish reason, or reading raises."""

    __slots__ = ("_error", "_outputs", "_waiter", "request_id", "started", "waiting_since")

    def __init__(self, request_id: int) -> None:
        self.request_id = request_id
        self.started = False  #: whether any output has come
        self.waiting_since = 0.0  #: time.monotonic() since when a task waits here, 0 if none does
        self._outputs: list[RequestOutput] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, output: RequestOutput) -> None:
        """Add what a step brought; never waits."""
        self.started = True
        if len(self._outputs) < MAX_PENDING_OUTPUTS:
            self._outputs.append(output)
        else:
            _merge(self._outputs[-1], output)
        self.wake()

    def fail(self, error: Exception) -> None:
        """Make the reader raise, after it has read what came before; the first error stays."""
        self._error = self._error or error
        self.wake()

    def wake(self) -> None:
        """Let a waiting `take` return, empty-handed if nothing has come."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def take(self) -> list[RequestOutput]:
        """Everything that has come since the last call; waits for something.  Empty after a bare `wake`."""
        if not self._outputs and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            self.waiting_since = time.monotonic()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self.waiting_since = 0.0
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            return outputs
        if self._error is not None:
            raise self._error
        return []


def _merge(into: RequestOutput, output: RequestOutput) -> None:
    into.token_ids += output.token_ids
    into.logprobs += output.logprobs
    into.top_logprobs += output.top_logprobs
    into.finish_reason = output.finish_reason
    into.error = output.error


class EngineClient:
    """The requests that the engine process of the moment holds."""

    def __init__(self) -> None:
        self._streams: dict[int, OutputStream] = {}
        self._process: EngineProcess | None = None
        self._why_not = "it is loading"
        self._last_id = 0

    @property
    def in_flight(self) -> int:
        """How many have not ended."""
        return len(self._streams)

    def streams(self) -> list[OutputStream]:
        """Those not ended yet."""
        return list(self._streams.values())

    def attach(self, process: EngineProcess) -> None:
        """Requests go to this process from now on."""
        self._process = process

    def detach(self, why: str) -> None:
        """No process takes requests; those in flight fail, started or not, and none is replayed."""
        self._process = None
        self._why_not = why
        lost, self._streams = self._streams, {}
        for stream in lost.values():
            stream.fail(GenerationFailed(why) if stream.started else Unavailable(why, retry_after_s=5))

    def submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        cache_salt: str = "",
    ) -> OutputStream:
        """Send a request to the engine.

        Raises:
            Unavailable: there is no ready engine.
        """
        if self._process is None:
            raise Unavailable(self._why_not, retry_after_s=5)
        self._last_id += 1
        request = Request(
            id=self._last_id,
            prompt_ids=prompt_ids,
            params=params,
            cache_salt=cache_salt,
            arrived_at=time.monotonic(),
        )
        if not self._process.send(Add(request)):
            raise Unavailable("its process is gone", retry_after_s=5)
        stream = OutputStream(request.id)
        self._streams[request.id] = stream
        return stream

    def release(self, stream: OutputStream) -> None:
        """The reader is done; the engine is told to stop if it has not ended the request itself."""
        if self._streams.pop(stream.request_id, None) is not None and self._process is not None:
            self._process.send(Abort([stream.request_id]))

    def dispatch(self, outputs: list[RequestOutput]) -> None:
        """Hand the outputs of one step to their readers; those of aborted requests are dropped."""
        streams = self._streams
        for output in outputs:
            stream = streams.get(output.request_id)
            if stream is not None:
                stream.put(output)
                if output.finish_reason:
                    del streams[output.request_id]
