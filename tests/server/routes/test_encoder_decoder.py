"""What clients see of a model whose prompt an encoder reads."""

import pytest

START = {"decoder_start_ids": [0], "max_output_tokens": 20, "max_input_tokens": 30, "max_total_tokens": 60}


@pytest.fixture(scope="module")
def server(serve):
    with serve(START) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def generate(client, path="/generate", inputs="hi", **parameters):
    return client.post(path, json={"inputs": inputs, "parameters": parameters})


def test_decoder_input_is_the_start_token(client):
    details = generate(client, decoder_input_details=True, max_new_tokens=2).json()["details"]
    assert details["prefill"] == [{"id": 0, "text": "<s>", "logprob": None}]
    assert [token["text"] for token in details["tokens"]] == ["H", "e"]
    assert generate(client, details=True, max_new_tokens=2).json()["details"]["prefill"] == []


def test_decoder_input_needs_no_flag(serve):
    with serve(START, "--enable-prefill-logprobs", "false") as server, server.client() as client:
        details = generate(client, decoder_input_details=True, max_new_tokens=2).json()["details"]
        assert details["prefill"] == [{"id": 0, "text": "<s>", "logprob": None}]


def test_the_prompt_goes_before_the_answer_only_on_wish(client, events):
    assert generate(client, "/", max_new_tokens=2).json() == [{"generated_text": "He"}]
    assert generate(client, "/", max_new_tokens=2, return_full_text=True).json() == [{"generated_text": "hiHe"}]
    response = client.post("/", json={"inputs": "hi", "parameters": {"max_new_tokens": 2}, "stream": True})
    assert events(response)[-1]["generated_text"] == "He"


def test_prompt_tokens_are_those_of_the_source(client, events):
    usage = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 3}).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 3)
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 2, "details": True}}
    assert events(client.post("/generate_stream", json=body))[-1]["details"]["input_length"] == 5


def test_output_is_bounded_by_the_positions_of_the_decoder(client):
    assert generate(client, details=True).json()["details"]["generated_tokens"] == 20
    response = generate(client, max_new_tokens=21)
    assert response.status_code == 422
    assert response.json()["error"] == "Input validation error: `max_new_tokens` must be <= 20. Given: 21"
    assert generate(client, inputs="a" * 30, max_new_tokens=20).status_code == 200


def test_prompts_have_no_logprobs_to_echo(client):
    body = {"prompt": "hi", "max_tokens": 2, "echo": True}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "hiHe"
    response = client.post("/v1/completions", json=body | {"logprobs": 1})
    assert response.status_code == 422
    assert "goes into an encoder" in response.text
