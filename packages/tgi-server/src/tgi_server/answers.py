"""How routes run generations: one to its end, or token by token into an event stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from tgi_server.errors import ClientGone, InternalError, RequestError
from tgi_server.exchange import KEEP_ALIVE, Exchange, Headers
from tgi_server.generation import Generation, Token
from tgi_server.service import Service

log = structlog.get_logger("tgi.request")


async def collect(service: Service, exchange: Exchange, generation: Generation) -> list[Token]:
    """Run a generation to its end; every token of it."""
    tokens: list[Token] = []
    try:
        while not generation.finish_reason:
            tokens += await generation.next()
    finally:
        generation.close()
    service.succeeded(generation, exchange.path)
    return tokens


async def collect_all(
    service: Service, exchange: Exchange, generations: Sequence[Generation]
) -> list[tuple[Generation, list[Token]]]:
    """Run generations side by side; when one fails all stop."""
    tasks = [asyncio.ensure_future(collect(service, exchange, generation)) for generation in generations]
    try:
        lists = await asyncio.gather(*tasks)
    finally:
        for generation, task in zip(generations, tasks, strict=True):
            generation.close()
            task.cancel()
    return list(zip(generations, lists, strict=True))


def leave_with(exchange: Exchange, generations: Sequence[Generation]) -> None:
    """End these generations at once when the client leaves."""

    def when_gone() -> None:
        for generation in generations:
            generation.stream.fail(ClientGone())

    exchange.watch(when_gone)


async def send_tokens(
    service: Service,
    exchange: Exchange,
    generation: Generation,
    render: Callable[[Token, bool], bytes],
) -> None:
    """Stream a generation: `render(token, is_last)` makes the events; those of one wake-up travel together."""
    try:
        while not generation.finish_reason:
            tokens = await generation.next()
            last = len(tokens) - 1 if generation.finish_reason else len(tokens)
            data = b"".join([render(token, i == last) for i, token in enumerate(tokens)])
            if data or not tokens:
                await exchange.send_events(data or KEEP_ALIVE)
    finally:
        generation.close()
    service.succeeded(generation, exchange.path)


async def stream_events(
    service: Service,
    exchange: Exchange,
    headers: Headers,
    send_all: Callable[[], Awaitable[None]],
    on_error: Callable[[RequestError], bytes],
    at_end: bytes = b"",
) -> None:
    """An event stream that ends exactly once: with what `send_all` sent, or with an error event, then `at_end`."""
    await exchange.start_events(headers)
    last = at_end
    try:
        await send_all()
    except ClientGone:
        raise
    except RequestError as error:
        service.failed(error, exchange.path)
        last = on_error(error) + at_end
    except Exception:
        log.exception("Defect", path=exchange.path)
        defect = InternalError()
        service.failed(defect, exchange.path)
        last = on_error(defect) + at_end
    await exchange.end_events(last)


def stream_headers(service: Service, characters: int) -> Headers:
    """The `x-` headers that go out before the first token."""
    return [(b"x-compute-type", service.compute_type), (b"x-compute-characters", b"%d" % characters)]


def timing_headers(service: Service, chosen: Sequence[Generation], *, compute_time: bool = True) -> Headers:
    """The `x-` headers of a complete answer; times are summed over the generations."""
    times = [generation.timings for generation in chosen]
    generated = sum(generation.generated_tokens for generation in chosen)
    inference_s = sum(t.inference_s for t in times)
    milliseconds = {
        b"x-total-time": sum(t.total_s for t in times),
        b"x-validation-time": sum(t.validation_s for t in times),
        b"x-queue-time": sum(t.queue_s for t in times),
        b"x-inference-time": inference_s,
        b"x-time-per-token": inference_s / max(1, generated),
    }
    headers = stream_headers(service, sum(generation.prepared.characters for generation in chosen))
    if compute_time:
        headers.append((b"x-compute-time", f"{sum(t.total_s for t in times):.6f}".encode()))
    headers += [(name, b"%d" % round(1000 * value)) for name, value in milliseconds.items()]
    headers.append((b"x-prompt-tokens", b"%d" % sum(generation.input_length for generation in chosen)))
    headers.append((b"x-generated-tokens", b"%d" % generated))
    return headers
