"""Bodies that are not what a route expects: plain text on TGI's routes, OpenAI's object on /v1."""

import pytest


@pytest.fixture(scope="module")
def client(serve):
    with serve() as server, server.client() as client:
        yield client


def post(client, path, content, content_type="application/json"):
    return client.post(path, content=content, headers={"content-type": content_type})


@pytest.mark.parametrize(
    ("content", "status", "text"),
    [
        (b'{"inputs": "a"', 400, "Failed to parse the request body as JSON: "),
        (b'{"inputs": NaN}', 400, "Failed to parse the request body as JSON: "),
        (b'{"inputs": 1e999}', 400, "Failed to parse the request body as JSON: "),
        (b'{"inputs": "\\ud800"}', 400, "Failed to parse the request body as JSON: "),
        (b'{"inputs": "\xff"}', 400, "Failed to parse the request body as JSON: "),
        (b"[" * 100_000, 400, "Failed to parse the request body as JSON: "),
        (b"", 400, "Failed to parse the request body as JSON: "),
        (b"{}", 422, "target type: missing field `inputs` at line 1 column 2"),
        (b"[]", 422, "Failed to deserialize the JSON body into the target type: "),
        (b'{"inputs": 1}', 422, "target type: inputs: "),
        (b'{"inputs": "a", "parameters": {"top_k": "5"}}', 422, "target type: parameters.top_k: "),
        (b'{"inputs": "a", "parameters": {"top_k": 5.5}}', 422, "target type: parameters.top_k: "),
        (b'{"inputs": "a", "parameters": {"seed": -1}}', 422, "target type: parameters.seed: "),
        (b'{"inputs": "a", "parameters": {"seed": 18446744073709551616}}', 422, "target type: parameters.seed: "),
        (b'{"inputs": "a", "parameters": {"do_sample": null}}', 422, "target type: parameters.do_sample: "),
        (b'{"inputs": "a", "parameters": {"max_new_tokens": true}}', 422, "target type: parameters.max_new_tokens: "),
        (b'{"inputs": "a", "parameters": null}', 422, "target type: parameters: "),
    ],
)
def test_malformed_bodies_get_plain_text(client, content, status, text):
    response = post(client, "/generate", content)
    assert response.status_code == status
    assert text in response.text
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


def test_content_type_must_be_json(client):
    response = post(client, "/generate", b'{"inputs": "a"}', "text/plain")
    assert response.status_code == 415
    assert response.text == "Expected request with `Content-Type: application/json`"
    body = b'{"inputs": "a", "parameters": {"max_new_tokens": 1}}'
    assert post(client, "/generate", body, "application/vnd.x+json; charset=utf-8").status_code == 200


def test_a_body_above_the_limit_is_a_413(client):
    response = post(client, "/generate", b" " * 2_000_001)
    assert response.status_code == 413
    assert response.text == "Failed to buffer the request body: length limit exceeded"
    chunked = client.post(
        "/generate", content=iter([b" " * 1_000_000] * 3), headers={"content-type": "application/json"}
    )
    assert chunked.status_code == 413


def test_integers_do_for_floats_and_unknown_fields_are_ignored(client):
    body = b'{"inputs": "a", "x": 1, "parameters": {"temperature": 1, "max_new_tokens": 1, "y": {}}}'
    assert post(client, "/generate", body).status_code == 200


@pytest.mark.parametrize(
    ("content", "status"), [(b"{", 400), (b"{}", 422), (b'{"messages": 1}', 422), (b" " * 2_000_001, 413)]
)
def test_openai_routes_get_openai_errors(client, content, status):
    response = post(client, "/v1/chat/completions", content)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_unknown_paths_and_methods(client):
    for path in ("/nope", "/generate/", "/v2"):
        response = client.get(path)
        assert (response.status_code, response.content) == (404, b"")
    response = client.get("/generate")
    assert (response.status_code, response.content, response.headers["allow"]) == (405, b"", "POST")
    assert client.get("/v1/nope").json()["error"]["code"] == "unknown_url"
    assert client.head("/health").status_code == 200
    assert client.head("/health").content == b""
