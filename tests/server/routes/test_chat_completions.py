"""`/v1/chat/completions`, as OpenAI's clients know it."""

import openai
import pytest


@pytest.fixture(scope="module")
def server(serve):
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def chat(client, **fields):
    return client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], **fields})


def test_answer(client, server):
    body = chat(client, max_tokens=5).json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == server.service.model_id
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    prompt = len("<|user|>hi<|assistant|>")
    usage = {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5}
    assert body["usage"] == {**usage, "prompt_tokens_details": {"cached_tokens": 0}}


def test_the_model_name_is_echoed(client):
    assert chat(client, max_tokens=1, model="gpt-x").json()["model"] == "gpt-x"


def test_stream_ends_with_a_reason_usage_and_done(client, events):
    response = chat(client, max_tokens=3, stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = events(response)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["H", "e", "l"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert {chunk["id"] for chunk in chunks} == {usage["id"]}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


def test_stop_strings_are_cut_off_and_finish_with_stop(client, events):
    choice = chat(client, stop="lo w").json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hel", "stop")
    *chunks, _ = events(chat(client, stop=["lo w"], stream=True))
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "Hel"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_several_choices(client, events):
    body = chat(client, n=3, max_tokens=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 6
    *chunks, done = events(chat(client, n=2, max_tokens=2, stream=True))
    assert done == "[DONE]"
    ends = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1]


def test_logprobs(client, events):
    content = chat(client, logprobs=True, top_logprobs=2, max_tokens=2).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["H", "e"]
    assert content[0]["bytes"] == [72]
    assert len(content[0]["top_logprobs"]) == 2
    first = events(chat(client, logprobs=True, max_tokens=2, stream=True))[0]
    assert first["choices"][0]["logprobs"]["content"][0]["token"] == "H"


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0, "temperature": 0},
        {"logit_bias": {"5": -100}, "user": "x", "seed": -1},
        {"stop": None, "n": None, "stream": None, "tools": None, "response_format": {"type": "text"}},
        {"max_completion_tokens": 1, "stream_options": None, "parallel_tool_calls": True, "store": False},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    ],
)
def test_what_openai_clients_send_is_accepted(client, fields):
    assert chat(client, **{"max_tokens": 1, **fields}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 0}, "`n` must be > 0 and <= 128. Given: 0"),
        ({"n": 129}, "`n` must be > 0"),
        ({"top_logprobs": 6}, "`top_n_tokens` must be >= 0 and <= 5"),
        ({"top_p": 1.5}, "`top_p` must be"),
        ({"presence_penalty": 3}, "`presence_penalty` must be"),
        ({"logit_bias": {"9999999": 1}}, "`logit_bias` token ids must be >= 0 and < 258"),
        ({"logit_bias": {"-1": 1}}, "`logit_bias` keys must be token ids"),
        ({"logit_bias": {"1": 101}}, "`logit_bias` values must be"),
        ({"stop_token_ids": [258]}, "`stop_token_ids` must be >= 0 and < 258"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "not both"),
        ({"response_format": {"type": "json_object"}}, "grammar is not supported"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "`stop` supports up to 4"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "modality"),
    ],
)
def test_wrong_fields(client, fields, message):
    response = chat(client, **fields)
    assert response.status_code == 422
    assert message in response.json()["error"]["message"]
    stream = chat(client, stream=True, **fields)
    assert stream.status_code == 422, "nothing is streamed before the request is known to be right"


def test_tools_are_templated_unless_they_would_have_to_be_forced(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    plain = chat(client, max_tokens=1).json()["usage"]["prompt_tokens"]
    assert chat(client, max_tokens=1, tools=[tool]).json()["usage"]["prompt_tokens"] > plain
    assert chat(client, max_tokens=1, tools=[tool], tool_choice="none").json()["usage"]["prompt_tokens"] == plain
    response = chat(client, tools=[tool], tool_choice="required")
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "tool_error"


def test_a_last_message_of_the_assistant_is_continued(client):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}]
    body = client.post("/chat_tokenize", json={"messages": messages}).json()
    assert body["templated_text"] == "<|user|>a<|assistant|>b"


def test_template_errors(client):
    response = chat(client, chat_template_kwargs={"messages": []})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "template_error"


def test_openai_client(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="-", max_retries=0)
    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="m", messages=messages, max_tokens=5, top_p=1)
    assert answer.choices[0].message.content == "Hello"
    stream = client.chat.completions.create(model="m", messages=messages, max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in stream) == "Hello"
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        client.chat.completions.create(model="m", messages=messages, temperature=-1)
    assert client.models.list().data[0].id == server.service.model_id
    assert client.models.retrieve(server.service.model_id).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
