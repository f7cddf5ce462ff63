"""`/v1/completions`, as OpenAI's clients know it."""

import pytest


@pytest.fixture(scope="module")
def client(serve):
    with serve() as server, server.client() as client:
        yield client


def complete(client, prompt="hi", **fields):
    return client.post("/v1/completions", json={"prompt": prompt, **fields})


def test_answer(client):
    body = complete(client, max_tokens=5).json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "length"}]
    assert body["usage"]["total_tokens"] == 7


def test_several_prompts_keep_their_order(client):
    body = complete(client, ["a", "b", "c"], max_tokens=1, n=2).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert body["usage"]["prompt_tokens"] == 3


def test_prompts_of_token_ids(client, tokenizer):
    ids = tokenizer.encode("hello")
    assert complete(client, ids, max_tokens=1).json()["usage"]["prompt_tokens"] == len(ids)
    assert complete(client, [ids, ids], max_tokens=1).json()["usage"]["prompt_tokens"] == 2 * len(ids)


@pytest.mark.parametrize("ids", [[-1], [258], [2**31], [2**63], [2**70], [1.5], ["7", 1], [True], [[]], [None]])
def test_token_ids_out_of_range_are_refused(client, ids):
    assert complete(client, ids, max_tokens=1).status_code == 422


def test_echo_with_logprobs_scores_the_prompt(client):
    body = complete(client, "hi", echo=True, logprobs=1, max_tokens=0).json()
    [choice] = body["choices"]
    assert choice["text"] == "hi"
    assert choice["logprobs"]["tokens"] == ["h", "i"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1] < 0
    assert choice["logprobs"]["text_offset"] == [0, 1]
    assert body["usage"] == body["usage"] | {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2}


def test_logprobs_of_the_completion(client):
    logprobs = complete(client, logprobs=2, max_tokens=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["H", "e"]
    assert logprobs["top_logprobs"][0]["H"] == logprobs["token_logprobs"][0]


def test_stream(client, events):
    options = {"include_usage": True}
    *chunks, usage, done = events(complete(client, ["a", "b"], max_tokens=3, stream=True, stream_options=options))
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 6
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == "Hel"
        assert [choice["finish_reason"] for choice in mine] == [None, None, "length"]


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"suffix": "x"}, "unsupported_parameter", "Suffix is not supported and can be achieved by preprocessing"),
        ({"prompt": ["a"] * 5}, "batch_size_exceeded", "Number of prompts exceeds the maximum allowed batch size of 4"),
        ({"prompt": []}, None, "Empty array detected. Do not use an empty array for the prompt."),
        ({"prompt": ""}, None, "`inputs` cannot be empty"),
        ({"best_of": 3}, None, "`best_of` must equal `n`"),
        ({"max_tokens": 0}, None, "`max_tokens` must be strictly positive unless `echo` is set"),
    ],
)
def test_wrong_fields(client, fields, code, message):
    response = complete(client, **fields)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == code
    assert message in error["message"]


def test_a_refusal_names_the_field(client):
    assert complete(client, temperature=-1).json()["error"]["param"] == "temperature"
    assert complete(client, top_p=2).json()["error"]["param"] == "top_p"
