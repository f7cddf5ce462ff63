"""Bodies made from the OpenAPI document, right and wrong: every answer is one that the document describes."""

import json
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 150  # of each kind for each route
ANSWER_S = 2.0
LEAK = re.compile(r"Traceback|site-packages|\.py\b|0x[0-9a-f]{8}|object at|pydantic")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OPERATIONS = [
    ("/generate", "GenerateRequest"),
    ("/generate_stream", "GenerateRequest"),
    ("/", "CompatGenerateRequest"),
    ("/tokenize", "GenerateRequest"),
    ("/chat_tokenize", "ChatRequest"),
    ("/v1/chat/completions", "ChatRequest"),
    ("/v1/completions", "CompletionRequest"),
]


def fitting(schema, schemas):
    """A strategy of values that a JSON schema allows."""
    if "$ref" in schema:
        return st.deferred(lambda: fitting(schemas[schema["$ref"].rpartition("/")[2]], schemas))
    if "anyOf" in schema:
        return st.one_of([fitting(option, schemas) for option in schema["anyOf"]])
    if "const" in schema:
        return st.just(schema["const"])
    makers = {
        "null": st.none,
        "boolean": st.booleans,
        "string": lambda: TEXT,
        "integer": lambda: _integers(schema),
        "number": lambda: _numbers(schema),
        "array": lambda: st.lists(fitting(schema["items"], schemas), max_size=3),
        "object": lambda: _objects(schema, schemas),
    }
    return makers[schema["type"]]() if "type" in schema else ANYTHING


def _integers(schema):
    most = schema.get("exclusiveMaximum", 2**64)
    low, high = schema.get("minimum", -(2**63)), int(most) - 1
    return st.integers(max(low, -2), min(high, 9)) | st.integers(low, high)


def _numbers(schema):
    low, high = schema.get("minimum"), schema.get("maximum")
    return st.floats(-2.5, 2.5) | st.floats(low, high, allow_nan=False, allow_infinity=False)


def _objects(schema, schemas):
    if "properties" not in schema:
        values = schema.get("additionalProperties")
        return st.dictionaries(TEXT, fitting(values, schemas) if isinstance(values, dict) else ANYTHING, max_size=3)
    required = schema.get("required", ())
    fields = {name: fitting(facts, schemas) for name, facts in schema["properties"].items()}
    return st.fixed_dictionaries(
        {name: field for name, field in fields.items() if name in required},
        optional={name: field for name, field in fields.items() if name not in required},
    )


@st.composite
def damaged(draw, right):
    """A value with one part of it replaced by anything, or taken away."""
    root = [draw(right)]
    holder, key = root, 0
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 3)):
        holder = holder[key]
        key = draw(st.sampled_from(sorted(holder))) if isinstance(holder, dict) else 0
    if holder is root or draw(st.booleans()):
        holder[key] = draw(ANYTHING)
    else:
        del holder[key]
    return root[0]


@pytest.fixture(scope="module")
def server(serve):
    with serve({"max_total_tokens": 128}, "--max-n", "4") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def document(client):
    return client.get("/api-doc/openapi.json").json()


def check(client, document, path, body):
    """One request; the answer must be described, quick and discreet."""
    started_at = time.monotonic()
    response = client.post(path, json=body)
    assert time.monotonic() - started_at < ANSWER_S
    described = document["paths"][path]["post"]["responses"]
    assert str(response.status_code) in described
    assert response.status_code < 500
    content = described[str(response.status_code)].get("content", {})
    assert response.headers["content-type"].partition(";")[0] in content
    if response.status_code != 200:
        assert not LEAK.search(response.text)
    elif response.headers["content-type"] == "text/event-stream":
        events = [line for line in response.text.split("\n") if line.startswith("data: ")]
        last = events[-1]
        assert last == "data: [DONE]" or '"error":' in last or '"generated_text":"' in last
        assert '"error_type":"internal"' not in response.text
    return response.status_code


def fuzz(client, document, path, bodies):
    statuses = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(bodies)
    def run(body):
        statuses.add(check(client, document, path, body))

    run()
    assert client.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 2}}).json() == {
        "generated_text": "He"
    }
    return statuses


@pytest.mark.parametrize(("path", "name"), OPERATIONS)
def test_bodies_that_fit_the_document(client, document, server, path, name):
    bodies = fitting({"$ref": f"#/components/schemas/{name}"}, document["components"]["schemas"])
    assert 200 in fuzz(client, document, path, bodies)
    assert server.supervisor.restarts == 0


@pytest.mark.parametrize(("path", "name"), OPERATIONS)
def test_bodies_that_do_not_fit_the_document(client, document, server, path, name):
    bodies = fitting({"$ref": f"#/components/schemas/{name}"}, document["components"]["schemas"])
    assert 422 in fuzz(client, document, path, damaged(bodies))
    assert server.supervisor.restarts == 0


def test_examples_of_the_document_work(client, document):
    for path, name in OPERATIONS:
        for example in document["components"]["schemas"][name].get("examples", ()):
            assert check(client, document, path, json.loads(json.dumps(example))) == 200
