"""Several generations of one request in one event stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tgi_server.answers import send_tokens
from tgi_server.exchange import Exchange
from tgi_server.generation import Generation, Token
from tgi_server.service import Service

Render = Callable[[Token, bool], bytes]


async def send_interleaved(
    service: Service,
    exchange: Exchange,
    generations: Sequence[Generation],
    renders: Sequence[Render],
) -> None:
    """Stream all of them, events as they come; when one fails all stop.

    Raises:
        RequestError: of the first one that failed.
    """
    if len(generations) == 1:
        await send_tokens(service, exchange, generations[0], renders[0])
        return
    tasks = [
        asyncio.create_task(send_tokens(service, exchange, generation, render))
        for generation, render in zip(generations, renders, strict=True)
    ]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for generation in generations:
            generation.close()
