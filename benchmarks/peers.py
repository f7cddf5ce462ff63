"""The servers that are compared, each as the command that starts it."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A server with OpenAI's API.  `{model}` and `{port}` are filled in."""

    name: str
    command: tuple[str, ...]
    ready_path: str = "/health"


_TGI = (sys.executable, "-m", "tgi_server.cli", "serve")
_TRANSFORMERS = (sys.executable, "-m", "transformers.cli.transformers", "serve", "{model}", "--device", "cpu")

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "tgi",
            (*_TGI, "--device", "cpu", "--model-id", "{model}", "--hostname", "127.0.0.1", "--port", "{port}"),
            "/readyz",
        ),
        Peer("transformers", (*_TRANSFORMERS, "--port", "{port}")),
        Peer("transformers-batching", (*_TRANSFORMERS, "--port", "{port}", "--continuous-batching")),
    )
}
