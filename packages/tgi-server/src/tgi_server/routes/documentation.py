"""`/api-doc/openapi.json` and `/docs`: the API's description of itself."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from tgi_server.exchange import Exchange
from tgi_server.routes.endpoint import Endpoint
from tgi_server.service import Service

OPENAPI_PATH = "/api-doc/openapi.json"

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body {{ font: 16px/1.5 system-ui; margin: 2em auto; max-width: 60em; padding: 0 1em }}
table {{ border-collapse: collapse }} td {{ border-top: 1px solid #ccc; padding: .3em 1em .3em 0 }}</style>
<h1>{title} {version}</h1>
<p>Bodies, answers and errors are described in <a href="{document}">{document}</a> (OpenAPI), which Swagger UI, Postman
and generators of clients read.</p>
<table>{rows}</table>
</html>
"""


async def openapi(service: Service, exchange: Exchange) -> None:
    """The OpenAPI document."""
    await exchange.reply(exchange.scope["app"].openapi())


async def docs(service: Service, exchange: Exchange) -> None:
    """A page of the routes.  It loads nothing from elsewhere, so it works without a network."""
    document = exchange.scope["app"].openapi()
    page = _PAGE.format(**document["info"], document=OPENAPI_PATH, rows="".join(_rows(document)))
    await exchange.reply_bytes(page.encode(), [(b"content-type", b"text/html; charset=utf-8")])


def _rows(document: dict[str, Any]) -> Iterator[str]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            route, summary = escape(f"{method.upper()} {path}"), escape(operation.get("summary", ""))
            yield f"<tr><td><code>{route}</code><td>{summary}"


ENDPOINTS = (
    Endpoint(
        method="GET",
        path=OPENAPI_PATH,
        handler=openapi,
        summary="This API as an OpenAPI document",
        is_open=True,
        is_documented=False,
    ),
    Endpoint(
        method="GET",
        path="/docs",
        handler=docs,
        summary="This API as a page",
        is_open=True,
        is_documented=False,
    ),
)
