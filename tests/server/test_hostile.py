"""Requests that mean harm: each gets a typed 4xx at once, and the next client notices nothing.

Numbers in names are classes of attacks: S10 counts, S11 stop lists, S12 logprobs, S13 token ids, S14 grammars,
S15 templates, S17 quadratic work, S19 images, S22 texts, S23 sampling, S24 request ids, S30 heads, S32 sizes, S33 JSON,
S34 ranges, S35 keys and paths, S40 logs.
"""

import contextlib
import json
import re
import socket
import time

import httpx
import pytest

ANSWER_S = 10.0  # a million tokens take a moment where other tests run beside
LEAK = re.compile(rb"Traceback|site-packages|/root|/home/|/usr/|/tmp/|\.py\b|0x[0-9a-f]{8}|object at|pydantic|errors\.")
CANARY = {"inputs": "canary", "parameters": {"max_new_tokens": 8}}

G, S, COMPAT = "/generate", "/generate_stream", "/"
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
TOKENIZE, CHAT_TOKENIZE = "/tokenize", "/chat_tokenize"
USER = {"role": "user", "content": "a"}


def parameters(**values):
    return {"inputs": "a", "parameters": {"max_new_tokens": 1} | values}


def chat(**values):
    return {"messages": [USER], "max_tokens": 1} | values


def complete(**values):
    return {"prompt": "a", "max_tokens": 1} | values


def nested(depth, opening="[", closing="]"):
    return opening * depth + closing * depth


BAD_COUNTS = [0, -1, 129, 1e9, 1e300, "1", True, [1], {}, 2**32, 2**64, 2**70, 1.5]
BAD_IDS = [[-1], [258], [2**31], [2**63], [2**70], [1.5], ["7"], [None], [[1]], [True]]

BODIES = [
    *[("S10 n", CHAT, chat(n=n)) for n in BAD_COUNTS],
    *[("S10 n", COMPLETE, complete(n=n)) for n in BAD_COUNTS],
    *[("S10 best_of", G, parameters(best_of=n)) for n in BAD_COUNTS if n != 0],
    *[("S10 best_of", COMPLETE, complete(best_of=n)) for n in (0, -1, 2, 2**40, "1", 1.0)],
    *[("S10 max_new_tokens", G, parameters(max_new_tokens=n)) for n in (0, -1, 2**32, 1e3, "9", True, [])],
    *[("S10 max_tokens", CHAT, chat(max_tokens=n)) for n in (0, -1, 2**32, 1.5, "9", True, {}, 10**6)],
    ("S10 two maxima", CHAT, chat(max_tokens=1, max_completion_tokens=2)),
    ("S10 many prompts", COMPLETE, complete(prompt=["a"] * 100_000)),
    ("S11 stop", G, parameters(stop=["x"] * 100_000)),
    ("S11 stop", S, parameters(stop="x")),
    ("S11 stop", CHAT, chat(stop=["x"] * 100_000)),
    ("S11 stop", COMPLETE, complete(stop=[f"{i}" for i in range(5)])),
    ("S11 long stop", G, parameters(stop=["x" * 1025])),
    ("S11 long stop", CHAT, chat(stop="é" * 513)),
    ("S11 stop of other types", CHAT, chat(stop=[1])),
    ("S11 stop_token_ids", CHAT, chat(stop_token_ids=list(range(129)))),
    ("S11 stop_token_ids", CHAT, chat(stop_token_ids=[1] * 100_000)),
    *[("S12 top_n_tokens", G, parameters(top_n_tokens=n)) for n in (6, 258, 2**32 - 1, 2**32, -1, "5", 1.0)],
    *[("S12 top_logprobs", CHAT, chat(logprobs=True, top_logprobs=n)) for n in (6, 10**9, -1, "5", True)],
    *[("S12 logprobs", COMPLETE, complete(logprobs=n, echo=True)) for n in (6, 10**9, -1, "5", True)],
    *[("S13 prompt ids", COMPLETE, complete(prompt=ids)) for ids in BAD_IDS if ids not in ([[1]], ["7"])],
    *[("S13 prompts of ids", COMPLETE, complete(prompt=[[1], ids])) for ids in BAD_IDS],
    *[("S13 stop_token_ids", CHAT, chat(stop_token_ids=ids)) for ids in BAD_IDS],
    *[("S13 logit_bias", CHAT, chat(logit_bias={key: 1})) for key in ("-1", "258", str(2**70), "1.5", "", "x", "٣٣٣٣")],
    *[("S13 logit_bias", COMPLETE, complete(logit_bias={"1": value})) for value in (101, -101, 1e39, "1", None, [])],
    ("S13 logit_bias", CHAT, chat(logit_bias={str(i): 1 for i in range(1025)})),
    ("S13 logit_bias", CHAT, chat(logit_bias=[1.0])),
    ("S13 mixed prompt", COMPLETE, complete(prompt=[1, "a"])),
    ("S13 empty prompts", COMPLETE, complete(prompt=[])),
    ("S13 empty prompt of ids", COMPLETE, complete(prompt=[[]])),
    ("S14 grammar", G, parameters(grammar={"type": "regex", "value": "((a+)+)+$"})),
    ("S14 grammar", G, parameters(grammar={"type": "json", "value": {}})),
    ("S14 response_format", CHAT, chat(response_format={"type": "json_schema", "json_schema": {"schema": {}}})),
    *[
        ("S15 template variables", CHAT, chat(chat_template_kwargs={name: "x"}))
        for name in ("messages", "tools", "add_generation_prompt", "template_name")
    ],
    ("S15 template variables", CHAT_TOKENIZE, chat(chat_template_kwargs={"messages": []})),
    ("S15 template variables", CHAT, chat(chat_template_kwargs=[])),
    ("S15 tools", CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}] * 129)),
    ("S15 forced tool", CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required")),
    ("S15 messages", CHAT, chat(messages=[USER] * 4097)),
    ("S15 messages", CHAT, chat(messages="a")),
    ("S15 messages", CHAT, chat(messages=[{"content": "a"}])),
    ("S15 messages", CHAT, chat(messages=[{"role": 1, "content": "a"}])),
    (
        "S19 image",
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    ),
    ("S19 part", CHAT, chat(messages=[{"role": "user", "content": [{"type": "video"}]}])),
    ("S17 a long prompt", G, {"inputs": "a " * 500_000}),
    ("S17 a long prompt", COMPLETE, {"prompt": [1] * 300_000}),
    ("S17 a long chat", CHAT, chat(messages=[{"role": "user", "content": "a " * 500_000}])),
    ("S22 empty", G, {"inputs": ""}),
    ("S22 empty", TOKENIZE, {"inputs": ""}),
    ("S22 empty", COMPLETE, {"prompt": ""}),
    *[("S22 inputs", G, {"inputs": value}) for value in (None, 1, [], {}, True, ["a"])],
    *[("S22 prompt", COMPLETE, {"prompt": value}) for value in (None, 1, {}, True, [None], [["a"]])],
    *[("S23 truncate", G, parameters(truncate=value)) for value in (0, -1, 2**40, 2**64, "1", 1.5)],
    *[("S23 temperature", G, parameters(temperature=value)) for value in (0, -1, 1e39, "1", [], True)],
    *[("S23 temperature", CHAT, chat(temperature=value)) for value in (-1, 1e39, "1", [], {})],
    *[("S23 top_p", G, parameters(top_p=value)) for value in (0, 1, -0.1, 1.1, 1e39, "0.5")],
    *[("S23 typical_p", G, parameters(typical_p=value)) for value in (0, 1, -0.1, "0.5")],
    *[("S23 top_k", G, parameters(top_k=value)) for value in (0, -1, 2**31, 1.5, "1")],
    *[("S23 min_p", CHAT, chat(min_p=value)) for value in (1, -0.1, "0")],
    *[("S23 penalty", G, parameters(repetition_penalty=value)) for value in (0, -1, 1e39, "1")],
    *[("S23 penalty", CHAT, chat(frequency_penalty=value)) for value in (2.1, -2.1, 1e300, "1")],
    *[("S23 penalty", COMPLETE, complete(presence_penalty=value)) for value in (2.1, -2.1, "1")],
    *[("S23 seed", G, parameters(seed=value)) for value in (-1, 2**64, 1.5, "1", True)],
    *[("S23 seed", CHAT, chat(seed=value)) for value in (-(2**31) - 1, 2**64, 1.5, "1")],
    ("S23 seed of best_of", G, parameters(best_of=2, do_sample=True, seed=1)),
    ("S23 cache_salt", CHAT, chat(cache_salt="x" * 257)),
    ("S23 cache_salt", CHAT, chat(cache_salt=1)),
    ("S23 suffix", COMPLETE, complete(suffix="x")),
    *[("S23 nulls", G, parameters(**{name: None})) for name in ("do_sample", "stop", "details", "watermark")],
    *[
        ("S33 not an object", path, body)
        for path in (G, S, COMPAT, CHAT, COMPLETE, TOKENIZE)
        for body in ([], 1, None, "a")
    ],
    ("S33 not an object", G, {"inputs": "a", "parameters": []}),
    ("S33 another adapter", G, parameters(adapter_id=1)),
]

RAW = [
    *[("S33 syntax", path, b"{") for path in (G, S, COMPAT, CHAT, COMPLETE, TOKENIZE, CHAT_TOKENIZE)],
    ("S33 deep", G, nested(100_000).encode()),
    ("S33 deep", G, b'{"inputs": "a", "parameters": ' + nested(2_000).encode() + b"}"),
    ("S33 deep", CHAT, b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    ("S33 deep, unknown field", CHAT, b'{"x": ' + nested(5_000).encode() + b"}"),
    ("S33 digits", G, b'{"inputs": "a", "parameters": {"seed": ' + b"9" * 5_000 + b"}}"),
    ("S33 exponent", G, b'{"inputs": "a", "parameters": {"temperature": 1e400}}'),
    *[
        ("S33 no number", G, b'{"inputs": "a", "parameters": {"temperature": %s}}' % n)
        for n in (b"NaN", b"Infinity", b"-Infinity", b"0x10", b"01", b"+1", b".5")
    ],
    ("S33 duplicate keys", G, b'{"inputs": "a", "inputs": 1}'),
    ("S33 duplicate keys", CHAT, b'{"messages": [{"role": "user", "content": "a"}], "n": 1, "n": 1000000}'),
    ("S33 trailing", G, b'{"inputs": "a"} {"inputs": "b"}'),
    ("S33 comment", G, b'{"inputs": "a" /* x */}'),
    ("S33 single quotes", G, b"{'inputs': 'a'}"),
    ("S33 byte order mark", G, b"\xef\xbb\xbf" + b'{"inputs": 1}'),
    ("S33 utf-16", G, '{"inputs": "a"}'.encode("utf-16")),
    ("S22 surrogate", G, b'{"inputs": "\\ud800"}'),
    ("S22 surrogate", CHAT, b'{"messages": [{"role": "user", "content": "\\udfff"}]}'),
    ("S22 surrogate", COMPLETE, b'{"prompt": "a", "stop": "\\ud83d"}'),
    ("S22 no utf-8", G, b'{"inputs": "\xff\xfe"}'),
    ("S22 overlong", G, b'{"inputs": "\xc0\xaf"}'),
    ("S22 control character", G, b'{"inputs": "\x00"}'),
    ("S32 size", G, b'{"inputs": "' + b"a" * 2_000_000 + b'"}'),
    ("S32 size", CHAT, b" " * 2_000_001),
    ("S33 nothing", G, b""),
    ("S33 nothing", CHAT, b""),
    ("S33 many fields", G, json.dumps({f"x{i}": i for i in range(50_000)}).encode()),
]

HEADERS = [
    ("S33 media type", {"content-type": "text/plain"}, 415),
    ("S33 media type", {"content-type": "application/x-www-form-urlencoded"}, 415),
    ("S33 media type", {"content-type": "multipart/form-data; boundary=x"}, 415),
    ("S33 media type", {"content-type": ""}, 415),
    ("S30 one large field", {"x": "a" * 33_000}, 431),
    ("S30 many fields", {f"x{i}": "a" for i in range(101)}, 431),
    ("S34 ranges", {"range": "bytes=" + ",".join("0-1" for _ in range(5_000))}, 200),
    ("S24 request id", {"x-request-id": "a\tb" * 10}, 200),
    ("S40 escape codes", {"user-agent": "\x1b[31mred", "x-forwarded-for": "1.2.3.4"}, None),
    ("S35 host", {"host": "evil.example"}, 200),
    ("S35 rewrites", {"x-original-url": "/metrics", "x-rewrite-url": "/metrics"}, 200),
]

POST = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = json.dumps(CANARY).encode()
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
SOCKETS = [
    ("two lengths", POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}" + SMUGGLED),
    ("length list", POST + b"content-length: 5, 6\r\n\r\n{}" + SMUGGLED),
    (
        "length and chunks",
        POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n" + SMUGGLED,
    ),
    ("negative length", POST + b"content-length: -1\r\n\r\n{}"),
    ("signed length", POST + b"content-length: +2\r\n\r\n{}"),
    ("hexadecimal length", POST + b"content-length: 0x2\r\n\r\n{}"),
    ("huge length", POST + b"content-length: " + b"9" * 400 + b"\r\n\r\n{}"),
    ("chunk size", POST + b"transfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n"),
    ("chunk size", POST + b"transfer-encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n"),
    ("chunk without end", POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n"),
    ("unknown coding", POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("obscured coding", POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("space before colon", POST + b"content-length : 2\r\n\r\n{}"),
    ("folded field", POST + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}"),
    ("bare carriage return", POST + b"x: a\rb\r\ncontent-length: 2\r\n\r\n{}"),
    ("zero byte", POST + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}"),
    ("no host", b"POST /generate HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"),
    ("two hosts", b"GET /livez HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n"),
    ("method", b"\x00GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("lower case", b"get / http/1.1\r\n\r\n"),
    ("no version", b"GET /livez\r\n\r\n"),
    ("another version", b"GET /livez HTTP/9.9\r\nhost: x\r\n\r\n"),
    ("http/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n"),
    ("long line", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("space in path", b"GET /livez x HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("absolute form", b"GET http://169.254.169.254/latest HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("connect", b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("trace", b"TRACE /generate HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("expectation", POST + b"expect: 200-maybe\r\ncontent-length: 2\r\n\r\n{}"),
    (
        "upgrade",
        b"POST /generate HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n",
    ),
    ("half a request", POST + b"content-length: 100\r\n\r\n{"),
    ("half a chunk", POST + b"transfer-encoding: chunked\r\n\r\n5\r\n{"),
    ("half a head", POST),
]

PATHS = [
    "//generate",
    "/generate/",
    "/./generate",
    "/x/../generate",
    "/%2e/generate",
    "/generate%00",
    "/GENERATE",
    "/generate;x",
    "/%67enerate/",
    "/generate%2f",
    "/generate%20",
    "/.%2fgenerate",
    "/v1//chat/completions",
    "/v1/chat/completions/",
    "/v1/./chat/completions",
    "/v1/models/../chat/completions",
    "/v1/models/..%2fcompletions",
    "/metrics/../generate",
    "/info/generate",
    "/docs/../generate",
    "/health/..%2f..%2fgenerate",
    "/\\generate",
    "/generate\\",
    "/v1/completions%0a",
]


def case_ids(cases):
    return [f"{i} {case[0]}" for i, case in enumerate(cases)]


@pytest.fixture(scope="module")
def server(serve):
    flags = ["--header-timeout", "0.5", "--body-timeout", "0.5", "--keep-alive-timeout", "1"]
    with serve({"max_total_tokens": 512}, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def expected(client):
    return client.post("/generate", json=CANARY).json()


@pytest.fixture(autouse=True)
def canary(client, expected, server):
    """After each case the same request has the same answer, at once, from the same engine."""
    yield
    started_at = time.monotonic()
    assert client.post("/generate", json=CANARY).json() == expected
    assert time.monotonic() - started_at < ANSWER_S
    assert server.supervisor.restarts == 0


def assert_typed(response, path):
    assert 400 <= response.status_code < 500, response.text[:300]
    assert not LEAK.search(response.content), response.text[:300]
    assert len(response.content) < 2_000
    if path.startswith("/v1"):
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    elif response.headers.get("content-type") == "application/json":
        assert set(response.json()) == {"error", "error_type"}
    else:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.text


def post(client, path, content, headers=None):
    started_at = time.monotonic()
    response = client.post(path, content=content, headers={"content-type": "application/json"} | (headers or {}))
    assert time.monotonic() - started_at < ANSWER_S
    return response


@pytest.mark.parametrize(("name", "path", "body"), BODIES, ids=case_ids(BODIES))
def test_bodies(client, name, path, body):
    response = post(client, path, json.dumps(body).encode())
    if response.headers.get("content-type") == "text/event-stream":  # TGI answers 200, and the error is an event
        assert response.text.startswith('data: {"error":')
        assert response.text.count("data: ") == 1
    else:
        assert_typed(response, path)


@pytest.mark.parametrize(("name", "path", "content"), RAW, ids=case_ids(RAW))
def test_bytes(client, name, path, content):
    assert_typed(post(client, path, content), path)


@pytest.mark.parametrize(("name", "headers", "status"), HEADERS, ids=case_ids(HEADERS))
def test_headers(client, name, headers, status):
    response = post(client, "/generate", BODY, headers)
    assert status is None or response.status_code == status
    assert response.status_code < 500
    assert not LEAK.search(response.content)


def exchange(port, data):
    """What the server sends until it closes, within the deadline of a head or a body."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(2 * ANSWER_S)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR) if data.endswith(b"}") else None
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
        return received


@pytest.mark.parametrize(("name", "data"), SOCKETS, ids=case_ids(SOCKETS))
def test_sockets(server, name, data):
    started_at = time.monotonic()
    received = exchange(server.port, data)
    assert time.monotonic() - started_at < ANSWER_S
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]
    assert len(statuses) <= 1, "a second request was smuggled in"
    assert all(400 <= status < 500 for status in statuses), received[:300]
    assert not LEAK.search(received)


@pytest.mark.parametrize("path", PATHS)
def test_no_spelling_of_a_path_passes_without_the_key(serve_locked, path):
    for method in (b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS"):
        head = b"%s %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n" % (
            method,
            path.encode(),
        )
        received = exchange(serve_locked.port, head + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        status = int(received.split(b" ", 2)[1])
        assert status in (400, 401, 404, 405), (method, received[:200])
        assert b"generated_text" not in received


@pytest.fixture(scope="module")
def serve_locked(serve):
    with serve({}, "--api-key", "s3cret-Key") as server:
        yield server


KEYS = [
    None,
    "",
    "Bearer",
    "s3cret-Key",
    "Basic s3cret-Key",
    "Bearer s3cret-key",
    "Bearer s3cret-Ke",
    "Bearer s3cret-Keyy",
    "Bearer s3cret-Key, Bearer x",
    "Bearer x s3cret-Key",
    "bearer: s3cret-Key",
    "Bearer\ts3cret-Key",
    "Bearer " + "a" * 30_000,
    "Bearer \u00e9",
    "Bearer *",
    "Bearer null",
    'Bearer "s3cret-Key"',
]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_only_the_key_opens(serve_locked, key):
    headers = {} if key is None else {"authorization": key.encode()}
    response = httpx.post(serve_locked.url + "/generate", json=CANARY, headers=headers)
    assert (response.status_code, response.content) == (401, b"")


def test_two_keys_open_nothing(serve_locked):
    headers = [("authorization", "Bearer s3cret-Key"), ("authorization", "Bearer x")]
    assert httpx.post(serve_locked.url + "/generate", json=CANARY, headers=headers).status_code == 401


def test_every_route_is_open_or_locked_as_the_table_says(serve_locked):
    from tgi_server.routes import ENDPOINTS

    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{model_id:path}", "x")
        response = httpx.request(endpoint.method, serve_locked.url + path)
        assert (response.status_code == 401) is not endpoint.is_open, endpoint.path


TEXTS = [
    "<s>",
    "</s>",
    "<|im_end|>",
    "<|image_pad|>",
    "{{ messages }}",
    "{% for x in y %}",
    "![](http://127.0.0.1:9/)",
    "\u202e",
    "\ufffe",
    "\0",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_mean_something_elsewhere_are_texts(client, text):
    assert post(client, "/generate", json.dumps(CANARY | {"inputs": text}).encode()).status_code == 200
    message = json.dumps(chat(messages=[{"role": "user", "content": text}])).encode()
    assert post(client, "/v1/chat/completions", message).status_code == 200


@pytest.mark.parametrize("path", [TOKENIZE, G, COMPLETE])
def test_work_grows_with_the_size_of_a_body_and_not_faster(client, path):
    def seconds(size):
        started_at = time.perf_counter()
        text = "é<s>" * (size // 5)
        client.post(path, json={"inputs": text, "prompt": text})
        return time.perf_counter() - started_at

    seconds(10_000)
    assert min(seconds(400_000) for _ in range(2)) < 0.2 + 8 * min(seconds(100_000) for _ in range(2))
