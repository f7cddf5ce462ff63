"""The running server: event loop, HTTP server, supervisor and the orderly way out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from tgi_core.errors import TGIError
from tgi_core.plugins.manager import Plugins, load_plugins
from tgi_server import hookspecs, logs
from tgi_server.app import create_app
from tgi_server.engine_client import EngineClient
from tgi_server.engine_process import EngineProcess
from tgi_server.http_protocol import guarded_protocol
from tgi_server.service import Service
from tgi_server.settings import Loaded, Settings
from tgi_server.supervisor import EXIT_CANNOT_START, Supervisor, SupervisorLimits

log = structlog.get_logger("tgi.server")

EXIT_SECOND_SIGNAL = 1
DRAIN_POLL_S = 0.05
CUT_GRACE_S = 1.0  # for the last events of streams that a shutdown cuts


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `Serving`."""
        yield


class Serving:
    """One server from start to exit."""

    def __init__(
        self,
        loaded: Loaded,
        listener: socket.socket,
        engine: EngineProcess,
        spawn: Callable[[], EngineProcess],
    ) -> None:
        settings = loaded.settings
        self._settings = settings
        self._listener = listener
        client = EngineClient()
        limits = SupervisorLimits(
            step_deadline_s=settings.step_deadline,
            step_timeout_s=settings.step_timeout,
            max_restarts=settings.engine_restarts,
        )
        self.supervisor = Supervisor(engine, spawn, client, limits)
        self.service = Service(settings, self.supervisor, client)
        self._plugins = load_plugins(blocked=settings.disable_plugin, more_hookspecs=[hookspecs])
        self._http = HttpServer(_http_config(settings, build_app(settings, self.service, self._plugins)))
        self._stop = asyncio.Event()
        self._stop_signals = 0

    async def run(self) -> int:
        """Serve until `stop`, or until there is no hope; the exit status."""
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        supervising = asyncio.create_task(self.supervisor.run())
        sweeping = asyncio.create_task(self.service.sweep())
        stopping = asyncio.create_task(self._stop.wait())
        tokenizer = asyncio.create_task(asyncio.to_thread(self.service.load_tokenizer, self._plugins))
        announcing = asyncio.create_task(self._announce(tokenizer))
        ends = {supervising, stopping, announcing}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if announcing.done() and announcing.result() == 0:
                await asyncio.wait({supervising, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                status = await self._drain()
            else:
                status = supervising.result() if supervising.done() else announcing.result()
        finally:
            self.supervisor.stop()
            self._http.should_exit = True
            await asyncio.wait({http}, timeout=CUT_GRACE_S)
            for task in (http, supervising, sweeping, stopping, announcing):
                task.cancel()
            await asyncio.gather(http, supervising, sweeping, stopping, announcing, return_exceptions=True)
            self.service.pool.shutdown(wait=False, cancel_futures=True)
        return status

    async def _announce(self, tokenizer: asyncio.Task[None]) -> int:
        """Wait until requests are welcome and say so; the exit status if they never will be."""
        try:
            await tokenizer
        except TGIError as error:
            log.error(str(error), kind=type(error).__name__)
            return EXIT_CANNOT_START
        while self.service.state != "ready":
            await asyncio.sleep(DRAIN_POLL_S)
        gc.freeze()  # what was made so far stays: no collection during requests need look at it
        info = self.service.info
        for reason in info.reasons:
            log.info("Chosen", setting=reason.setting, value=reason.value, why=reason.why)
        log.info(
            "Ready",
            url=_url(self._listener),
            model=self.service.model_id,
            device=info.device,
            dtype=info.dtype,
            deterministic=info.deterministic,
            kv_cache_dtype=info.kv_cache_dtype or info.dtype,
            num_shard=info.num_shard,
            max_input_tokens=info.max_input_tokens,
            max_total_tokens=info.max_total_tokens,
        )
        return 0

    def stop(self) -> None:
        """Begin the orderly way out."""
        self._stop.set()

    def heed_signals(self) -> None:
        """The first SIGTERM or SIGINT drains, the second ends the process at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        self._stop_signals += 1
        if self._stop_signals > 1:
            self.supervisor.abandon_engine()
            os._exit(EXIT_SECOND_SIGNAL)
        log.info("signal received, starting graceful shutdown", signal=signal.Signals(number).name)
        self.stop()

    async def _drain(self) -> int:
        """Readiness off, listen for `drain_delay`, then let running requests finish within the timeout."""
        service = self.service
        service.is_draining = True
        await asyncio.sleep(self._settings.drain_delay)
        deadline = time.monotonic() + self._settings.graceful_termination_timeout
        while service.exchanges and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)
        if service.exchanges:
            log.warning("shutdown timeout over; cutting requests", requests=len(service.exchanges))
            service.client.detach("the server is shutting down")
            give_up = time.monotonic() + CUT_GRACE_S
            while service.exchanges and time.monotonic() < give_up:
                await asyncio.sleep(DRAIN_POLL_S)
        return 0


def build_app(settings: Settings, service: Service, plugins: Plugins) -> ASGIApp:
    """The application with what plugins add to it."""
    routes = _collect(plugins, "tgi_register_routes", settings)
    middleware = _collect(plugins, "tgi_register_middleware", settings)
    app = create_app(settings, more_routes=routes, more_middleware=middleware)
    app.state.service = service
    return app


def _collect(plugins: Plugins, hook: str, settings: Settings) -> list[Any]:
    return [item for _, items in plugins.collect(hook, settings=settings) for item in items]


def _http_config(settings: Settings, app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=guarded_protocol(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_timeout),
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=settings.max_header_bytes + 4096,
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _leave(status: int) -> None:
    """End the process now: threads that still tokenize or download are not waited for."""
    logs.flush()
    os._exit(status)


def run(loaded: Loaded, listener: socket.socket, engine: EngineProcess, spawn: Callable[[], EngineProcess]) -> None:
    """Serve on a new event loop, and end the process with the exit status."""
    import uvloop

    logs.configure(json_output=loaded.settings.json_output, level=loaded.settings.log_level)
    for note in loaded.notes:
        log.warning(note)

    async def serve() -> None:
        serving = Serving(loaded, listener, engine, spawn)
        serving.heed_signals()
        log.info("Listening", url=_url(listener))
        _leave(await serving.run())

    uvloop.run(serve())
