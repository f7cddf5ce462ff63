"""Request fields that plugins' logits processors declare."""

import pytest

DECLARED = {"only": "array", "strength": "number", "strict": "boolean"}


@pytest.fixture(scope="module")
def client(serve):
    with serve({"extra_parameters": DECLARED}) as server, server.client() as client:
        yield client


def generate(client, **parameters):
    return client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 3, **parameters}})


def chat(client, **fields):
    messages = [{"role": "user", "content": "hi"}]
    return client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 3, **fields})


def test_declared_fields_reach_the_engine_on_every_route(client, tokenizer):
    ids = tokenizer.encode("ab", add_special_tokens=False)
    assert generate(client, only=ids, strength=1.5).json() == {"generated_text": "aba"}
    assert chat(client, only=ids).json()["choices"][0]["message"]["content"] == "aba"
    completion = client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 3, "only": ids})
    assert completion.json()["choices"][0]["text"] == "aba"


def test_unknown_fields_and_null_are_ignored(client):
    assert generate(client, unheard_of=1, only=None).json() == {"generated_text": "Hel"}


@pytest.mark.parametrize(("field", "value"), [("strength", "much"), ("strength", True), ("strict", 1), ("only", {})])
def test_the_wrong_type_is_refused_and_named(client, field, value):
    answer = generate(client, **{field: value})
    assert answer.status_code == 422
    assert answer.json()["error"] == f"Input validation error: `{field}` must be of JSON type {DECLARED[field]}"
    answer = chat(client, **{field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)


def test_without_a_declaration_they_mean_nothing(serve):
    with serve() as server, server.client() as client:
        assert generate(client, only=[1, 2]).json() == {"generated_text": "Hel"}
