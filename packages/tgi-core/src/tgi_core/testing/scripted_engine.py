"""An engine process without a model: speaks the wire protocol and emits token ids from a script.

    python -m tgi_core.testing.scripted_engine SOCKET_DIR

The script is JSON in the variable `TGI_SCRIPT`, fields of `Script`.  It is for tests of what stands in front of
an engine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import zmq

from tgi_core.config import EngineConfig
from tgi_core.messages import (
    Abort,
    Add,
    Failed,
    Heartbeat,
    Loading,
    Ready,
    Shutdown,
    StepDone,
    decode_to_engine,
    encode,
)
from tgi_core.request import Request, RequestOutput, TokenLogprob
from tgi_core.stats import EngineInfo, StepStats

HEARTBEAT_S = 0.5
LOGPROB = -0.5


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine does."""

    token_ids: list[int] = []  #: emitted in turn, over and over
    echo: bool = False  #: emit the prompt instead
    extra_parameters: dict[str, str] = {}  #: declared as a plugin's; an array among them is emitted instead
    eos_after: int | None = None  #: so many tokens, then `eos_id`
    eos_id: int = 0
    steps_per_s: float = 0.0  #: 0: as fast as possible
    load_s: float = 0.0
    fail_load: str = ""  #: report this error instead of getting ready
    die_at_step: int = 0  #: SIGKILL to itself in that step
    freeze_at_step: int = 0  #: SIGSTOP to itself in that step
    hang_at_step: int = 0  #: that step never ends; heartbeats go on
    fail_token: int | None = None  #: requests whose prompt holds this id end with an error
    vocab_size: int = 32_000
    max_input_tokens: int = 1_023
    max_total_tokens: int = 1_024
    max_output_tokens: int | None = None
    decoder_start_ids: list[int] = []  #: be an encoder-decoder
    refused_parameters: dict[str, str] = {}  #: be a device that cannot do all
    max_top_k: int | None = None


@dataclass
class _Running:
    request: Request
    tokens: list[int]
    done: int = 0


class ScriptedEngine:
    """The main loop: take messages, emit one token per request and step."""

    def __init__(
        self, script: Script, config: EngineConfig, inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes]
    ) -> None:
        self.steps = 0
        self.step_started_at = 0.0
        self._script = script
        self._config = config
        self._inbox = inbox
        self._outbox = outbox
        self._running: dict[int, _Running] = {}

    def load(self) -> None:
        """Pretend to load, then report ready.

        Raises:
            RuntimeError: the script says that loading fails.
        """
        self._outbox.send(encode(Loading("weights", 0.0, "scripted")))
        time.sleep(self._script.load_s)
        if self._script.fail_load:
            raise RuntimeError(self._script.fail_load)
        self._outbox.send(encode(Ready(self._info())))

    def run(self) -> None:
        """Serve until told to shut down."""
        pause = 1 / self._script.steps_per_s if self._script.steps_per_s else 0.0
        next_step = time.monotonic()
        while True:
            wait = max(0.0, next_step - time.monotonic()) if self._running else None
            if not self._take_messages(wait):
                return
            if self._running and time.monotonic() >= next_step:
                self._step()
                next_step = max(next_step + pause, time.monotonic() - pause)

    def _take_messages(self, wait_s: float | None) -> bool:
        """Read everything that waits; block only while there is nothing to do.  False: shut down."""
        timeout = None if wait_s is None else round(1000 * wait_s)
        while self._inbox.poll(timeout):
            timeout = 0
            match decode_to_engine(self._inbox.recv()):
                case Add(request):
                    self._running[request.id] = _Running(request, self._tokens_of(request))
                case Abort(request_ids):
                    for request_id in request_ids:
                        self._running.pop(request_id, None)
                case Shutdown():
                    return False
        return True

    def _tokens_of(self, request: Request) -> list[int]:
        script, params = self._script, request.params
        source = request.prompt_ids if script.echo or not script.token_ids else script.token_ids
        source = next((value for value in params.extra.values() if isinstance(value, list)), source)
        count = params.max_new_tokens
        if script.eos_after is not None and script.eos_after < count and not params.ignore_eos:
            return [*_cycle(source, script.eos_after), script.eos_id]
        return _cycle(source, count)

    def _step(self) -> None:
        self.steps += 1
        self.step_started_at = time.monotonic()
        self._faults()
        prefill = sum(len(r.request.prompt_ids) for r in self._running.values() if r.done == 0)
        outputs = [self._advance(running) for running in list(self._running.values())]
        for output in outputs:
            if output.finish_reason:
                del self._running[output.request_id]
        stats = self._stats(prefill, len(outputs), time.monotonic() - self.step_started_at)
        self.step_started_at = 0.0
        self._outbox.send(encode(StepDone(outputs, stats)))

    def _faults(self) -> None:
        script = self._script
        if self.steps == script.die_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.steps == script.freeze_at_step:
            os.kill(os.getpid(), signal.SIGSTOP)
        while self.steps == script.hang_at_step:
            time.sleep(HEARTBEAT_S)

    def _advance(self, running: _Running) -> RequestOutput:
        request, params = running.request, running.request.params
        first = running.done == 0
        if self._script.fail_token in request.prompt_ids:
            return RequestOutput(request_id=request.id, finish_reason="error", error="the script says so")
        token = running.tokens[running.done]
        running.done += 1
        output = RequestOutput(request_id=request.id, token_ids=[token], logprobs=[LOGPROB])
        if params.top_n_tokens:
            ranks = range(params.top_n_tokens)
            output.top_logprobs = [[TokenLogprob((token + i) % self._script.vocab_size, LOGPROB - i) for i in ranks]]
        if first:
            output.scheduled_at = self.step_started_at
            output.seed = (params.seed or 42) if params.do_sample else None
            if params.prompt_logprobs:
                decoder_prompt = self._script.decoder_start_ids or request.prompt_ids
                output.prompt_logprobs = [None, *(LOGPROB for _ in decoder_prompt[1:])]
        if running.done == len(running.tokens):
            ended = self._script.eos_after is not None and token == self._script.eos_id
            output.finish_reason = "eos_token" if ended else "length"
        return output

    def _stats(self, prefill: int, rows: int, duration_s: float) -> StepStats:
        return StepStats(
            kind="mixed" if prefill else "decode",
            duration_s=duration_s,
            forward_s=duration_s,
            prefill_tokens=prefill,
            decode_tokens=rows,
            running=len(self._running),
            waiting=0,
            free_blocks=1000,
            cached_blocks=0,
            held_blocks=0,
            batch_max_tokens=sum(len(r.request.prompt_ids) + len(r.tokens) for r in self._running.values()),
            preemptions=0,
            prefix_hits=0,
            prefix_queries=0,
        )

    def _info(self) -> EngineInfo:
        script = self._script
        return EngineInfo(
            model_id=self._config.model_id or "scripted",
            model_type="scripted",
            architecture="ScriptedForCausalLM",
            device="cpu",
            product="script",
            dtype="float32",
            vocab_size=script.vocab_size,
            max_input_tokens=self._config.max_input_tokens or script.max_input_tokens,
            max_total_tokens=self._config.max_total_tokens or script.max_total_tokens,
            max_batch_prefill_tokens=4096,
            max_batch_total_tokens=16_000,
            max_batch_size=256,
            block_size=16,
            num_blocks=1000,
            kernels={},
            reasons=[],
            load_s=script.load_s,
            extra_parameters=script.extra_parameters,
            max_output_tokens=script.max_output_tokens,
            decoder_start_ids=script.decoder_start_ids,
            refused_parameters=script.refused_parameters,
            max_top_k=script.max_top_k,
        )


def _cycle(ids: list[int], count: int) -> list[int]:
    return (ids * (count // len(ids) + 1))[:count]


def _connect(context: zmq.Context[zmq.Socket[bytes]], kind: int, path: str) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(f"ipc://{path}")
    return socket


def _in_background(task: Callable[[], None]) -> None:
    threading.Thread(target=task, daemon=True).start()


def main(socket_dir: str) -> int:
    """Run the engine; the exit status."""
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineConfig)
    script = msgspec.json.decode(os.environ.get("TGI_SCRIPT", "{}"), type=Script)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox = _connect(context, zmq.PULL, f"{socket_dir}/inbox")
    outbox = _connect(context, zmq.PUSH, f"{socket_dir}/outbox")
    engine = ScriptedEngine(script, config, inbox, outbox)

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        shutil.rmtree(socket_dir, ignore_errors=True)
        os._exit(0)

    def beat() -> None:
        socket = _connect(context, zmq.PUSH, f"{socket_dir}/outbox")
        while True:
            with contextlib.suppress(zmq.ZMQError):
                socket.send(encode(Heartbeat(engine.steps, engine.step_started_at)))
            time.sleep(HEARTBEAT_S)

    _in_background(end_with_parent)
    try:
        engine.load()
    except RuntimeError as error:
        outbox.send(encode(Failed(str(error), type(error).__name__)))
        context.destroy(linger=1000)
        return 1
    _in_background(beat)
    engine.run()
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))  # without waiting for the threads
