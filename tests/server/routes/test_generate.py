"""`/generate`, `/generate_stream` and `/`, as text-generation-inference's clients know them."""

import pytest

LONG = {"max_new_tokens": 14}


@pytest.fixture(scope="module")
def server(serve):
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def generate(client, path="/generate", inputs="hi", **parameters):
    return client.post(path, json={"inputs": inputs, "parameters": parameters})


def test_answer_is_an_object_without_details(client):
    response = generate(client, **LONG)
    assert response.status_code == 200
    assert response.json() == {"generated_text": "Hello wörld! "[:13]}


def test_details(client):
    details = generate(client, details=True, max_new_tokens=3).json()["details"]
    assert details["finish_reason"] == "length"
    assert details["generated_tokens"] == 3
    assert details["seed"] is None
    assert details["prefill"] == []
    assert "top_tokens" not in details
    assert "best_of_sequences" not in details
    assert [token["text"] for token in details["tokens"]] == ["H", "e", "l"]
    assert set(details["tokens"][0]) == {"id", "text", "logprob", "special"}


def test_prompt_tokens_are_returned_on_wish(client):
    details = generate(client, decoder_input_details=True, max_new_tokens=1).json()["details"]
    assert [token["text"] for token in details["prefill"]] == ["h", "i"]
    assert details["prefill"][0]["logprob"] is None
    assert details["prefill"][1]["logprob"] < 0


def test_top_tokens(client):
    details = generate(client, details=True, top_n_tokens=2, max_new_tokens=2).json()["details"]
    assert [len(top) for top in details["top_tokens"]] == [2, 2]


def test_absent_parameters_sample_and_empty_ones_do_not(serve, events):
    with serve({"eos_after": 2}) as server, server.client() as client:
        seeds = []
        for body in ({"inputs": "a"}, {"inputs": "a", "parameters": {}}):
            full = {**body, "parameters": {**body["parameters"], "details": True}} if "parameters" in body else body
            seeds.append(client.post("/generate", json=full).json())
        assert seeds[0] == {"generated_text": "He"}
        assert seeds[1]["details"]["seed"] is None
        assert seeds[1]["details"]["finish_reason"] == "eos_token"
        special = seeds[1]["details"]["tokens"][-1]
        assert special["special"] is True
        assert special["text"] == "</s>"


def test_timing_headers(client):
    response = generate(client, inputs="höi", max_new_tokens=2)
    assert response.headers["x-compute-characters"] == "3"
    assert response.headers["x-prompt-tokens"] == "4"
    assert response.headers["x-generated-tokens"] == "2"
    assert response.headers["x-compute-type"] == "1-script"
    float(response.headers["x-compute-time"])
    for name in ("total-time", "validation-time", "queue-time", "inference-time", "time-per-token"):
        int(response.headers["x-" + name])


def test_root_answers_with_a_list_and_the_full_text(client):
    assert generate(client, "/", max_new_tokens=2).json() == [{"generated_text": "hiHe"}]
    body = generate(client, "/", max_new_tokens=2, return_full_text=False).json()
    assert body == [{"generated_text": "He"}]


def test_root_streams_on_wish(client, events):
    response = client.post("/", json={"inputs": "hi", "parameters": {"max_new_tokens": 2}, "stream": True})
    assert response.headers["content-type"] == "text/event-stream"
    assert events(response)[-1]["generated_text"] == "hiHe"


def test_stream_has_an_event_per_token(client, events):
    response = generate(client, "/generate_stream", details=True, max_new_tokens=3)
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["cache-control"] == "no-cache"
    found = events(response)
    assert [event["index"] for event in found] == [1, 2, 3]
    assert [event["generated_text"] for event in found] == [None, None, "Hel"]
    assert found[0]["details"] is None
    assert found[-1]["details"] == {"finish_reason": "length", "generated_tokens": 3, "seed": None, "input_length": 2}


def test_characters_of_several_bytes_come_whole(client, events):
    found = events(generate(client, "/generate_stream", **LONG))
    assert [event["token"]["text"] for event in found][7:9] == ["", "ö"]
    assert "".join(event["token"]["text"] for event in found) == found[-1]["generated_text"]


def test_stop_strings_stay_in_the_text(client, events):
    answer = generate(client, details=True, stop=["lo w"]).json()
    assert answer["generated_text"] == "Hello w"
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["details"]["generated_tokens"] == 7
    found = events(generate(client, "/generate_stream", stop=["lo w"], details=True))
    assert found[-1]["generated_text"] == "Hello w"
    assert "".join(event["token"]["text"] for event in found) == "Hello w"


def test_best_of_returns_the_others_too(client):
    details = generate(client, best_of=2, do_sample=True, details=True, max_new_tokens=2).json()["details"]
    assert len(details["best_of_sequences"]) == 1
    assert details["best_of_sequences"][0]["generated_text"] == "He"
    assert details["best_of_sequences"][0]["finish_reason"] == "length"


def test_sampling_returns_its_seed(client):
    assert generate(client, do_sample=True, details=True, max_new_tokens=1).json()["details"]["seed"] == 42
    assert generate(client, temperature=0.5, seed=7, details=True, max_new_tokens=1).json()["details"]["seed"] == 7


def test_unset_max_new_tokens_fills_the_context(client):
    assert generate(client, details=True).json()["details"]["generated_tokens"] == 1024 - 2


WRONG = [
    ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"seed": 1, "best_of": 2, "do_sample": True}, "`seed` must not be set when `best_of` > 1"),
    ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"inputs": ""}, "`inputs` cannot be empty"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 1023. Given: 0"),
    ({"truncate": 1024}, "`truncate` must be strictly positive and less than 1023. Given: 1024"),
    (
        {"max_new_tokens": 1023},
        "`inputs` tokens + `max_new_tokens` must be <= 1024. Given: 2 `inputs` tokens and 1023 `max_new_tokens`",
    ),
    (
        {"max_new_tokens": 5000},
        "`inputs` tokens + `max_new_tokens` must be <= 1024. Given: 2 `inputs` tokens and 1024 `max_new_tokens`",
    ),
    ({"inputs": "a" * 1024}, "`inputs` must have less than 1023 tokens. Given: 1024"),
    ({"grammar": {"type": "regex", "value": "a"}}, "grammar is not supported"),
    ({"temperature": -1, "top_k": -1}, "`temperature` must be strictly positive"),
]


@pytest.mark.parametrize(("parameters", "message"), WRONG)
def test_limits_in_the_words_of_tgi(client, events, parameters, message):
    expected = {"error": f"Input validation error: {message}", "error_type": "validation"}
    response = generate(client, **parameters)
    assert response.status_code == 422
    assert response.json() == expected
    if "best_of" not in parameters:
        stream = generate(client, "/generate_stream", **parameters)
        assert stream.status_code == 200
        assert events(stream) == [expected]


def test_streams_refuse_what_they_cannot_carry(client, events):
    for parameters, message in (
        ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
    ):
        [error] = events(generate(client, "/generate_stream", **parameters))
        assert error["error"] == f"Input validation error: {message}"


def test_truncate_keeps_the_end(client):
    details = generate(client, inputs="abcdef", truncate=2, decoder_input_details=True, max_new_tokens=1).json()
    assert [token["text"] for token in details["details"]["prefill"]] == ["e", "f"]


def test_a_failing_request_is_a_424_and_harms_no_other(serve, tokenizer, events):
    [bad] = tokenizer.encode("!", add_special_tokens=False)
    with serve({"fail_token": bad}) as server, server.client() as client:
        response = generate(client, inputs="boom!")
        assert response.status_code == 424
        expected = {"error": "Request failed during generation: the script says so", "error_type": "generation"}
        assert response.json() == expected
        assert events(generate(client, "/generate_stream", inputs="boom!")) == [expected]
        assert generate(client, max_new_tokens=2).json() == {"generated_text": "He"}


def test_overload_is_a_429_at_once(serve, wait_until):
    with serve({"steps_per_s": 5}, "--max-concurrent-requests", "1") as server, server.client() as client:
        with client.stream("POST", "/generate_stream", json={"inputs": "a"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            response = generate(client, temperature=-1)
            assert response.status_code == 429
            assert response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
            assert response.headers["retry-after"] == "1"
        wait_until(lambda: server.service.client.in_flight == 0)
        assert generate(client, max_new_tokens=1).status_code == 200


def test_an_adapter_that_is_not_loaded_is_refused(client):
    answer = generate(client, adapter_id="mine", max_new_tokens=1)
    assert answer.status_code == 422
    assert answer.json()["error"] == (
        "Input validation error: `adapter_id` names an adapter, and this server has none loaded"
    )
    assert generate(client, adapter_id="", max_new_tokens=1).status_code == 200
