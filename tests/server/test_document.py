"""The OpenAPI document, the page beside it, and whether answers are what it says."""

import json
import re

import httpx
import pytest
from fastapi import Depends, HTTPException
from fastapi.routing import APIRoute

from tgi_server.app import create_app
from tgi_server.errors import KINDS
from tgi_server.routes import ENDPOINTS
from tgi_server.settings import Settings


@pytest.fixture(scope="module")
def server(serve):
    with serve({}, "--api-key", "s3cret", "--max-client-batch-size", "8") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client(headers={"authorization": "Bearer s3cret"}) as client:
        yield client


@pytest.fixture(scope="module")
def document(server):
    with server.client() as stranger:
        return stranger.get("/api-doc/openapi.json").json()


def operation(document, endpoint):
    path = endpoint.path.replace(":path}", "}")
    return document["paths"][path][endpoint.method.lower()]


def test_every_endpoint_is_described(document):
    documented = [endpoint for endpoint in ENDPOINTS if endpoint.is_documented]
    assert sum(len(operations) for operations in document["paths"].values()) == len(documented)
    for endpoint in documented:
        described = operation(document, endpoint)
        assert described["summary"] == endpoint.summary
        assert ("security" in described) is not endpoint.is_open
        assert ("requestBody" in described) is (endpoint.body is not None)


def test_references_lead_somewhere(document):
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert names <= document["components"]["schemas"].keys()
    assert {"StreamResponse", "ChatCompletionChunk", "CompletionChunk", "ErrorResponse"} <= names
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_errors_are_described_by_status_and_by_path(document):
    generate = document["paths"]["/generate"]["post"]["responses"]
    assert set(generate) == {"200", "400", "401", "408", "413", "415", "422", "424", "429", "431", "500", "503"}
    assert generate["429"]["content"]["application/json"]["examples"]["Overloaded"]["value"] == {
        "error": "Model is overloaded",
        "error_type": "overloaded",
    }
    assert set(generate["422"]["content"]) == {"application/json", "text/plain"}
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert (
        chat["429"]["content"]["application/json"]["examples"]["Overloaded"]["value"]["error"]["code"] == "overloaded"
    )


def test_the_page_is_open_and_loads_nothing_from_elsewhere(server):
    with server.client() as stranger:
        page = stranger.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "POST /v1/chat/completions" in page.text
    assert "://" not in page.text
    assert "<script" not in page.text


MESSAGES = [{"role": "user", "content": "a"}]
ASKED = [
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2}}),
    (
        "/generate",
        {
            "inputs": "a",
            "parameters": {
                "max_new_tokens": 2,
                "details": True,
                "decoder_input_details": True,
                "top_n_tokens": 2,
                "best_of": 2,
                "do_sample": True,
            },
        },
    ),
    ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 2, "details": True, "top_n_tokens": 2}}),
    ("/", {"inputs": "a", "parameters": {"max_new_tokens": 2}}),
    ("/", {"inputs": "a", "parameters": {"max_new_tokens": 2}, "stream": True}),
    ("/tokenize", {"inputs": "aé"}),
    ("/chat_tokenize", {"messages": MESSAGES}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2, "n": 2, "logprobs": True, "top_logprobs": 2}),
    (
        "/v1/chat/completions",
        {
            "messages": MESSAGES,
            "max_tokens": 2,
            "stream": True,
            "logprobs": True,
            "stream_options": {"include_usage": True},
        },
    ),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 2, "echo": True}),
    (
        "/v1/completions",
        {"prompt": "a", "max_tokens": 2, "stream": True, "logprobs": 2, "stream_options": {"include_usage": True}},
    ),
]


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_answers_are_what_the_document_says(client, events, path, body):
    endpoint = next(e for e in ENDPOINTS if (e.method, e.path) == ("POST", path))
    response = client.post(path, json=body)
    assert response.status_code == 200
    if response.headers["content-type"] == "text/event-stream":
        model, contents = endpoint.event, [e for e in events(response) if e != "[DONE]"]
    else:
        model, contents = endpoint.answer, [response.json()]
    assert contents
    for content in contents:
        assert model.model_validate(content).model_dump(exclude_unset=True) == content


@pytest.mark.parametrize("path", ["/info", "/readyz", "/v1/models"])
def test_facts_are_what_the_document_says(client, path):
    endpoint = next(e for e in ENDPOINTS if (e.method, e.path) == ("GET", path))
    content = client.get(path).json()
    assert endpoint.answer.model_validate(content).model_dump(exclude_unset=True) == content


def test_every_kind_of_error_is_described_somewhere(document):
    named = set(re.findall(r'"(\w+)": {"value"', json.dumps(document)))
    wordless = {kind.__name__ for kind, facts in KINDS.items() if facts.tgi == "empty"}
    everywhere = {"HTTPError"}  # of plugins
    assert {kind.__name__ for kind in KINDS} - named <= wordless | everywhere


async def test_routes_of_plugins_may_use_all_of_fastapi():
    def limit():
        yield 3

    def extra(count: int, most: int = Depends(limit)) -> dict[str, int]:
        if count > most:
            raise HTTPException(409, "too many")
        return {"count": count}

    app = create_app(Settings(), more_routes=[APIRoute("/extra", extra, methods=["GET"])])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        assert (await client.get("/extra?count=2")).json() == {"count": 2}
        refused = await client.get("/extra?count=4")
        assert (refused.status_code, refused.json()) == (409, {"error": "too many", "error_type": "refused"})
        assert (await client.get("/extra?count=x")).status_code == 422
        assert (await client.delete("/")).headers["allow"] == "GET, HEAD, POST"
    assert "/extra" in app.openapi()["paths"]
