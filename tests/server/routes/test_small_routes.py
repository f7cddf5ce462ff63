"""`/tokenize`, `/chat_tokenize`, `/info`, `/metrics`, health, models."""

import re
from importlib.metadata import version

import pytest
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture(scope="module")
def server(serve):
    with serve({}, "--max-best-of", "3") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def test_tokenize_gives_byte_offsets(client, tokenizer):
    spans = client.post("/tokenize", json={"inputs": "hö"}).json()
    assert [span["id"] for span in spans] == tokenizer.encode("hö")
    assert spans[0] == {"id": spans[0]["id"], "text": "h", "start": 0, "stop": 1}


def test_chat_tokenize(client):
    body = client.post("/chat_tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    assert body["templated_text"] == "<|user|>a<|assistant|>"
    assert len(body["tokenize_response"]) == len(body["templated_text"])


def test_info_has_the_fields_of_tgi_in_their_order(client):
    info = client.get("/info").json()
    assert list(info) == [
        "model_id",
        "model_sha",
        "model_pipeline_tag",
        "max_concurrent_requests",
        "max_best_of",
        "max_stop_sequences",
        "max_input_tokens",
        "max_total_tokens",
        "validation_workers",
        "max_client_batch_size",
        "router",
        "version",
        "sha",
        "docker_label",
        "model_dtype",
        "model_device_type",
        "custom_kernels",
        "fallback",
        "num_shard",
        "deterministic",
        "kv_cache_dtype",
    ]
    assert info["max_best_of"] == 3
    assert info["num_shard"] == 1
    assert info["max_total_tokens"] == 1024
    assert info["version"].endswith(version("tgi-server"))
    assert info["version"].startswith("3.3.")


def test_models(client, server):
    model = client.get("/v1/models").json()["data"][0]
    assert model == {
        "id": server.service.model_id,
        "object": "model",
        "created": 0,
        "owned_by": server.service.model_id,
    }


def test_health(client):
    for path in ("/", "/health", "/ping", "/livez"):
        response = client.get(path)
        assert (response.status_code, response.content) == (200, b"")
    assert client.get("/readyz").json() == {"state": "ready"}


def test_metrics_have_the_names_of_tgi(client):
    client.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 2}})
    client.post("/generate", json={"inputs": ""})
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert re.search(r"^tgi_request_count \d", response.text, re.MULTILINE)
    samples = {  # this parser adds _total to counters
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["tgi_request_count_total", ()] >= 2
    assert samples["tgi_request_success_total", ()] >= 1
    assert samples["tgi_request_failure_total", (("err", "validation"),)] == 1
    assert samples["tgi_request_generated_tokens_sum", ()] >= 2
    assert samples["tgi_batch_inference_count_total", (("method", "prefill"),)] >= 1
    buckets = [dict(labels)["le"] for name, labels in samples if name == "tgi_request_duration_bucket"]
    assert len(buckets) == 36
    assert float(buckets[0]) == pytest.approx(0.00015)
    lengths = [dict(labels)["le"] for name, labels in samples if name == "tgi_request_input_length_bucket"]
    assert len(lengths) == 101
    assert "_total" not in response.text
    assert "_created" not in response.text
