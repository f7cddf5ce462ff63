"""A tiny T5 behind `tgi serve`, against transformers."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from tgi_core.testing.tiny import make_checkpoint

TEXTS = ("translate: The capital of France is Paris.", "1, 2, 3", "Does the sun rise in the east? " * 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"), "t5")


@pytest.fixture(scope="module")
def client(serve, folder):
    with serve("--model-id", str(folder)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def generate(client, text, **parameters):
    body = {"inputs": text, "parameters": {"max_new_tokens": 20, "details": True, "do_sample": False, **parameters}}
    response = client.post("/generate", json=body)
    response.raise_for_status()
    return response.json()


def test_concurrent_requests_say_what_transformers_says(client, folder):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda text: generate(client, text), TEXTS * 4))
    with torch.inference_mode():
        for text, answer in zip(TEXTS * 4, answers, strict=True):
            ids = tokenizer(text, return_tensors="pt").input_ids
            expected = model.generate(ids, max_new_tokens=20, do_sample=False)[0, 1:].tolist()
            assert [token["id"] for token in answer["details"]["tokens"]] == expected


def test_details_begin_with_the_start_token(client):
    details = generate(client, TEXTS[0], decoder_input_details=True)["details"]
    assert details["finish_reason"] in ("length", "eos_token")
    assert details["prefill"] == [{"id": 0, "text": "<pad>", "logprob": None}]


def test_sources_end_as_the_tokenizer_says_and_count_as_the_prompt(client):
    tokens = client.post("/tokenize", json={"inputs": TEXTS[1]}).json()
    assert tokens[-1]["id"] == 1
    usage = client.post("/v1/completions", json={"model": "any", "prompt": TEXTS[1], "max_tokens": 2}).json()["usage"]
    assert usage["prompt_tokens"] == len(tokens)


def test_chat_needs_a_template(client):
    body = {"model": "any", "messages": [{"role": "user", "content": "hi"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 422
    assert "no chat template" in response.json()["error"]["message"]


def test_info_and_metrics(client):
    info = client.get("/info").json()
    assert info["max_input_tokens"] == 512
    assert info["max_total_tokens"] == 1024
    assert info["fallback"] is None
    assert "tgi_request_count" in client.get("/metrics").text
