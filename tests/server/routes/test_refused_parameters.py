"""What the device cannot do is refused before it reaches the engine."""

import pytest

REASON = "it gives tokens only"


@pytest.fixture(scope="module")
def client(serve):
    script = {"refused_parameters": {"logprobs": REASON, "frequency_penalty": REASON}, "max_top_k": 50}
    with serve(script) as server, server.client() as client:
        yield client


def chat(client, **fields):
    messages = [{"role": "user", "content": "hi"}]
    return client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 3, **fields})


def generate(client, **parameters):
    return client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 3, **parameters}})


def complete(client, **fields):
    return client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 3, **fields})


@pytest.mark.parametrize(
    ("ask", "fields", "message"),
    [
        (chat, {"logprobs": True}, f"`logprobs` is not supported here: {REASON}"),
        (complete, {"logprobs": 0}, f"`logprobs` is not supported here: {REASON}"),
        (generate, {"best_of": 2, "do_sample": True}, f"`logprobs` is not supported here: {REASON}"),
        (chat, {"frequency_penalty": 0.5}, f"`frequency_penalty` is not supported here: {REASON}"),
        (generate, {"top_k": 51}, "`top_k` must be <= 50 on this device. Given: 51"),
    ],
)
def test_refusals_have_their_reason(client, ask, fields, message):
    answer = ask(client, **fields)
    assert answer.status_code == 422
    assert message in answer.text


@pytest.mark.parametrize(
    ("ask", "fields"),
    [
        (chat, {"logprobs": False, "frequency_penalty": 0.0}),
        (complete, {}),
        (generate, {"details": True, "top_k": 50}),
    ],
)
def test_other_requests_are_served(client, ask, fields):
    assert ask(client, **fields).status_code == 200
