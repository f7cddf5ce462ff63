"""What every route needs: the settings, the model, the engine, and the life of a generation."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import structlog

from tgi_core.engine.model_files import find_model, make_tokenizer
from tgi_core.plugins.manager import Plugins
from tgi_core.stats import EngineInfo
from tgi_core.tokenizer.tokenizer import Tokenizer
from tgi_core.weights.source import ModelFiles
from tgi_server.engine_client import EngineClient
from tgi_server.errors import ClientGone, NotHealthy, Overloaded, RequestError, Unavailable
from tgi_server.exchange import Exchange
from tgi_server.generation import Generation
from tgi_server.metrics import Metrics
from tgi_server.settings import Settings
from tgi_server.supervisor import Supervisor
from tgi_server.token_bytes import token_bytes
from tgi_server.validation import Limits, Validator, Wishes

log = structlog.get_logger("tgi.request")

KEEP_ALIVE_S = 15.0
SWEEP_S = 1.0
POOL_THREADS = 2


class Service:
    """One server: its model, its engine and the requests being answered."""

    def __init__(self, settings: Settings, supervisor: Supervisor, client: EngineClient) -> None:
        self.settings = settings
        self.supervisor = supervisor
        self.client = client
        self.metrics = Metrics()
        self.pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="tokenize")
        self.exchanges: set[Exchange] = set()
        self.files: ModelFiles | None = None
        self.is_draining = False
        self._tokenizer: Tokenizer | None = None
        self._validator: Validator | None = None
        self._permits = settings.max_concurrent_requests
        self._token_texts: dict[int, str] = {}
        self._token_bytes: dict[int, list[int]] = {}
        supervisor.on_ready = self._engine_ready
        supervisor.on_step = self.metrics.step_done

    # the model

    def load_tokenizer(self, plugins: Plugins) -> None:
        """Fetch and read the tokenizer; blocks, so run it in a thread.

        Raises:
            TGIError: the model or its tokenizer cannot be read.
        """
        settings = self.settings
        files = find_model(
            plugins,
            settings.model_id,
            revision=settings.revision,
            cache_dir=settings.huggingface_hub_cache,
            download_weights=False,
        )
        tokenizer = make_tokenizer(
            plugins,
            files,
            tokenizer_config_path=settings.tokenizer_config_path,
            trust_remote_code=settings.trust_remote_code,
        )
        self.use_tokenizer(tokenizer, files)

    def use_tokenizer(self, tokenizer: Tokenizer, files: ModelFiles | None = None) -> None:
        """Serve with this tokenizer."""
        self.files = files
        self._tokenizer = tokenizer
        self._token_texts.clear()
        self._token_bytes.clear()

    def _engine_ready(self, info: EngineInfo) -> None:
        self._validator = None
        self.metrics.engine_ready(info)

    @property
    def model_id(self) -> str:
        """The name that clients see."""
        named = self.settings.served_model_name or self.settings.model_id
        if named or self.supervisor.info is None:
            return named
        model_id = self.supervisor.info.model_id
        return Path(model_id).stem if model_id.endswith(".gguf") else model_id  # the embedded default, by its name

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine.

        Raises:
            Unavailable: it has never been ready.
        """
        if self.supervisor.info is None:
            raise Unavailable("it is loading", retry_after_s=5)
        return self.supervisor.info

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt, so that the decoder's text is no continuation of it."""
        return bool(self.info.decoder_start_ids)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model.

        Raises:
            Unavailable: it is not read yet.
        """
        if self._tokenizer is None:
            raise Unavailable("it is loading", retry_after_s=5)
        return self._tokenizer

    @property
    def validator(self) -> Validator:
        """Limits and tokenizer of the model that is served now."""
        if self._validator is None:
            info, settings = self.info, self.settings
            limits = Limits(
                max_best_of=settings.max_best_of,
                max_stop_sequences=settings.max_stop_sequences,
                max_top_n_tokens=settings.max_top_n_tokens,
                max_input_tokens=info.max_input_tokens,
                max_total_tokens=info.max_total_tokens,
                vocab_size=info.vocab_size,
                extra_parameters=info.extra_parameters,
                max_output_tokens=info.max_output_tokens,
                refused_parameters=info.refused_parameters,
                max_top_k=info.max_top_k,
            )
            self._validator = Validator(limits, self.tokenizer, self.pool)
        return self._validator

    @property
    def compute_type(self) -> bytes:
        """What the answer was computed on."""
        info = self.supervisor.info
        product = re.sub(r"[^a-z0-9.]+", "-", info.product.lower()).strip("-") if info else "unknown"
        return (self.settings.compute_type or f"1-{product}").encode("latin-1", "replace")

    def token_text(self, token_id: int) -> str:
        """The text of one token alone."""
        text = self._token_texts.get(token_id)
        if text is None:
            text = self._token_texts[token_id] = self.tokenizer.token_text(token_id)
        return text

    def token_bytes(self, token_id: int) -> list[int]:
        """The bytes of one token alone."""
        found = self._token_bytes.get(token_id)
        if found is None:
            tokenizer = self.tokenizer
            piece = tokenizer.backend.id_to_token(token_id) if tokenizer.is_fast else None
            found = self._token_bytes[token_id] = list(token_bytes(self.token_text(token_id), piece))
        return found

    # its health

    @property
    def state(self) -> str:
        """ "ready", or why not: "loading", "draining", or a state of the supervisor."""
        if self.is_draining:
            return "draining"
        if self._tokenizer is None:
            return "loading"
        return self.supervisor.state

    def require_ready(self) -> None:
        """Refuse work that would wait for nothing.

        Raises:
            Unavailable: the server drains, loads, or its engine is frozen or gone.
        """
        state = self.state
        if state not in ("ready", "stuck"):
            reason = {
                "draining": "the server is shutting down",
                "loading": "it is loading",
                "frozen": "the engine does not answer",
            }.get(state, "the engine is being restarted")
            raise Unavailable(reason, retry_after_s=5)

    # generations

    @contextmanager
    def permits(self, count: int) -> Iterator[None]:
        """Hold permits for so many generations.

        Raises:
            Overloaded: there are not that many left; nobody waits.
        """
        if count > self._permits:
            raise Overloaded(retry_after_s=1)
        self._permits -= count
        try:
            yield
        finally:
            self._permits += count

    async def start(self, wishes: Wishes, *, include_stop: bool) -> Generation:
        """Validate and submit one generation.

        Raises:
            InvalidInput, Unavailable: nothing was submitted.
        """
        arrived_at = time.monotonic()
        prepared = await self.validator.prepare(wishes)
        self.require_ready()
        generation = Generation(self.client, self.tokenizer, prepared, arrived_at, include_stop=include_stop)
        if self.metrics.input_length and self.metrics.max_new_tokens:
            self.metrics.input_length.observe(generation.input_length)
            self.metrics.max_new_tokens.observe(prepared.params.max_new_tokens)
        return generation

    async def start_all(self, all_wishes: Sequence[Wishes], *, include_stop: bool) -> list[Generation]:
        """Start several generations, or none of them."""
        generations: list[Generation] = []
        try:
            for wishes in all_wishes:
                generations.append(await self.start(wishes, include_stop=include_stop))
        except BaseException:
            for generation in generations:
                generation.close()
            raise
        return generations

    def succeeded(self, generation: Generation, path: str) -> None:
        """Count and log a generation that reached its end."""
        times, metrics = generation.timings, self.metrics
        per_token = times.inference_s / max(1, generation.generated_tokens)
        metrics.request_success.inc()
        metrics.request_duration.observe(times.total_s)
        metrics.validation_duration.observe(times.validation_s)
        metrics.queue_duration.observe(times.queue_s)
        metrics.inference_duration.observe(times.inference_s)
        metrics.time_per_token.observe(per_token)
        metrics.time_to_first_token.observe(times.first_token_at - times.arrived_at)
        if metrics.generated_tokens:
            metrics.generated_tokens.observe(generation.generated_tokens)
        log.info(
            "Success",
            path=path,
            total_time=_seconds(times.total_s),
            validation_time=_seconds(times.validation_s),
            queue_time=_seconds(times.queue_s),
            inference_time=_seconds(times.inference_s),
            time_per_token=_seconds(per_token),
            seed=generation.seed,
            input_tokens=generation.input_length,
            cached_tokens=generation.cached_tokens,
            generated_tokens=generation.generated_tokens,
            finish_reason=generation.finish_reason,
        )

    def failed(self, error: Exception, path: str) -> None:
        """Count and log a request that ended with an error."""
        if isinstance(error, ClientGone):
            self.metrics.request_failure.labels("dropped").inc()
            self.metrics.requests_aborted.labels("client").inc()
            log.info("Client left", path=path, status=499)
        elif isinstance(error, NotHealthy):
            log.debug("Not healthy", path=path, status=error.kind.status)  # an answer; probes ask again and again
        elif isinstance(error, RequestError):
            if error.kind.counted_as:
                self.metrics.request_failure.labels(error.kind.counted_as).inc()
            level = log.warning if error.kind.status < 500 else log.error
            level(
                "Refused" if error.kind.status < 500 else "Failed",
                path=path,
                status=error.kind.status,
                error=str(error),
            )

    # housekeeping

    async def sweep(self) -> None:
        """Every second: keep silent streams alive, cut clients that do not read, notice a late loop."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            self.metrics.loop_lag.set(max(0.0, now - before - SWEEP_S))
            self.metrics.heartbeat_age.set(self.supervisor.heartbeat_age_s)
            self.metrics.engine_restarts.set(self.supervisor.restarts)
            if not self.client.in_flight:
                self.metrics.engine_idle()
            for stream in self.client.streams():
                if stream.waiting_since and now - stream.waiting_since > KEEP_ALIVE_S:
                    stream.wake()
            for exchange in list(self.exchanges):
                if exchange.sending_since and now - exchange.sending_since > self.settings.client_write_timeout:
                    self.metrics.requests_aborted.labels("slow_client").inc()
                    exchange.cut()


def _seconds(value: float) -> str:
    return f"{value * 1000:.3f}ms" if value < 1 else f"{value:.3f}s"
