"""Starts the server in the order that gets it ready first: port, engine process, then everything that takes long."""

from __future__ import annotations

import errno
import os
import signal
import socket
from functools import partial
from types import FrameType

from tgi_server.engine_process import ENGINE_MODULE, EngineProcess
from tgi_server.settings import Loaded, Settings, engine_config

BACKLOG = 2048


class CannotListen(Exception):
    """The port cannot be bound; the message says what to do."""


def listen(settings: Settings) -> socket.socket:
    """Bind the port.

    Raises:
        CannotListen: it is taken or forbidden.
    """
    family = socket.AF_INET6 if ":" in settings.hostname else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.hostname, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        where = f"{settings.hostname}:{settings.port}"
        hints = {
            errno.EADDRINUSE: f"{where} is in use; stop what listens there or choose another --port (0: any free one)",
            errno.EACCES: f"{where} may not be bound by this user; choose a --port above 1023",
            errno.EADDRNOTAVAIL: f"this machine has no address {settings.hostname}; choose another --hostname",
        }
        raise CannotListen(hints.get(error.errno or 0, f"cannot listen on {where}: {error.strerror}")) from error
    listener.setblocking(False)
    return listener


def check_quantize(settings: Settings) -> None:
    """Refuse a quantization that no plugin offers before anything is started.

    Raises:
        TGIError: names those there are.
    """
    if settings.quantize is not None:
        from tgi_core import builtin
        from tgi_core.plugins.manager import load_plugins
        from tgi_core.quantization.select import find_quantization

        find_quantization(load_plugins([builtin], blocked=settings.disable_plugin), settings.quantize)


def launch(loaded: Loaded, *, engine_module: str = ENGINE_MODULE) -> None:
    """Serve until told to stop, then end the process with the exit status.

    Raises:
        CannotListen: the port cannot be bound.
        TGIError: a setting names what no plugin offers.
    """
    settings = loaded.settings
    check_quantize(settings)
    listener = listen(settings)
    engine = None

    def leave(number: int, frame: FrameType | None) -> None:
        """A signal before the event loop heeds them: nothing is being served, so leave."""
        if engine is not None:
            engine.abandon()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    spawn = partial(EngineProcess, engine_config(settings), engine_module)
    engine = spawn()
    try:
        from tgi_server.serving import run  # while this imports, the engine loads

        run(loaded, listener, engine, spawn)
    finally:
        engine.abandon()
