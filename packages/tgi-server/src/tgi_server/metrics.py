"""Prometheus metrics, under text-generation-inference's names."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, disable_created_metrics
from prometheus_client.exposition import generate_latest

from tgi_core.stats import EngineInfo, StepStats

CONTENT_TYPE = b"text/plain; charset=utf-8"
DURATION_BUCKETS = tuple(0.0001 * 1.5**k for k in range(1, 36))
_TOTAL = re.compile(rb"^((?:# (?:HELP|TYPE) )?tgi_\w+?)_total\b", re.MULTILINE)

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All series of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.request_count = self._counter("tgi_request_count", "Requests received")
        self.request_success = self._counter("tgi_request_success", "Generations finished")
        self.request_failure = self._counter("tgi_request_failure", "Requests failed", "err")
        self.requests_aborted = self._counter("tgi_requests_aborted", "Generations stopped early", "reason")
        self.request_duration = self._seconds("tgi_request_duration", "Whole request")
        self.validation_duration = self._seconds("tgi_request_validation_duration", "Checking and tokenizing")
        self.queue_duration = self._seconds("tgi_request_queue_duration", "Waiting for the first step")
        self.inference_duration = self._seconds("tgi_request_inference_duration", "First step to last token")
        self.time_per_token = self._seconds(
            "tgi_request_mean_time_per_token_duration", "Inference time over generated tokens"
        )
        self.time_to_first_token = self._seconds("tgi_time_to_first_token", "Arrival to first token")
        self.skipped_tokens = Summary(
            "tgi_request_skipped_tokens", "Speculated tokens accepted", registry=self.registry
        )
        self.queue_size = self._gauge("tgi_queue_size", "Requests waiting")
        self.batch_size = self._gauge("tgi_batch_current_size", "Sequences running")
        self.batch_max_tokens = self._gauge("tgi_batch_current_max_tokens", "Tokens that the batch may grow to")
        self.batch_next_size = Histogram(
            "tgi_batch_next_size", "Sequences of a step", buckets=range(1, 1025), registry=self.registry
        )
        self.batch_count = self._counter("tgi_batch_inference_count", "Steps", "method")
        self.batch_success = self._counter("tgi_batch_inference_success", "Steps finished", "method")
        self.batch_duration = self._seconds("tgi_batch_inference_duration", "Whole step", "method")
        self.batch_forward = self._seconds("tgi_batch_forward_duration", "Forward pass", "method")
        self.batch_decode = self._seconds("tgi_batch_decode_duration", "Step without the forward pass", "method")
        self.blocks = self._gauge("tgi_kv_blocks", "KV blocks by state", "state")
        self.cache_usage = self._gauge("tgi_kv_cache_usage", "Share of KV blocks held")
        self.heartbeat_age = self._gauge("tgi_engine_heartbeat_age", "Seconds since the engine was heard")
        self.loop_lag = self._gauge("tgi_loop_lag", "Seconds that the event loop runs late")
        self.engine_restarts = self._gauge("tgi_engine_restarts", "Restarts of the engine process")
        self.preemptions = self._counter("tgi_preemptions", "Sequences preempted")
        self.prefix_hits = self._counter("tgi_prefix_cache_hits", "Prompt tokens answered by the prefix cache")
        self.prefix_queries = self._counter("tgi_prefix_cache_queries", "Prompt tokens looked up")
        self.input_length: Histogram | None = None
        self.max_new_tokens: Histogram | None = None
        self.generated_tokens: Histogram | None = None

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(name, doc, labels, registry=self.registry)

    def _gauge(self, name: str, doc: str, *labels: str) -> Gauge:
        return Gauge(name, doc, labels, registry=self.registry)

    def _seconds(self, name: str, doc: str, *labels: str) -> Histogram:
        return Histogram(name, f"{doc}, seconds", labels, buckets=DURATION_BUCKETS, registry=self.registry)

    def _tokens(self, name: str, doc: str, most: int) -> Histogram:
        buckets = [most / 100 * k for k in range(1, 101)]
        return Histogram(name, doc, buckets=buckets, registry=self.registry)

    def engine_ready(self, info: EngineInfo) -> None:
        """Create the histograms whose buckets depend on the model, once."""
        if self.input_length is not None:
            return
        self.input_length = self._tokens("tgi_request_input_length", "Prompt tokens", info.max_input_tokens)
        self.max_new_tokens = self._tokens("tgi_request_max_new_tokens", "Tokens allowed", info.max_total_tokens)
        self.generated_tokens = self._tokens("tgi_request_generated_tokens", "Tokens generated", info.max_total_tokens)

    def step_done(self, stats: StepStats) -> None:
        """Record one step of the engine."""
        method = "prefill" if stats.prefill_tokens else "decode"
        self.batch_count.labels(method).inc()
        self.batch_success.labels(method).inc()
        self.batch_duration.labels(method).observe(stats.duration_s)
        self.batch_forward.labels(method).observe(stats.forward_s)
        self.batch_decode.labels(method).observe(max(0.0, stats.duration_s - stats.forward_s))
        self.batch_next_size.observe(stats.running)
        self.skipped_tokens.observe(0)
        self.queue_size.set(stats.waiting)
        self.batch_size.set(stats.running)
        self.batch_max_tokens.set(stats.batch_max_tokens)
        for state, count in (
            ("free", stats.free_blocks),
            ("cached", stats.cached_blocks),
            ("used", stats.held_blocks),
        ):
            self.blocks.labels(state).set(count)
        total = stats.free_blocks + stats.cached_blocks + stats.held_blocks
        self.cache_usage.set(stats.held_blocks / total if total else 0.0)
        self.preemptions.inc(stats.preemptions)
        self.prefix_hits.inc(stats.prefix_hits)
        self.prefix_queries.inc(stats.prefix_queries)

    def engine_idle(self) -> None:
        """No step runs: nothing is queued or batched."""
        self.queue_size.set(0)
        self.batch_size.set(0)
        self.batch_max_tokens.set(0)

    def render(self) -> bytes:
        """The text exposition.  TGI's counters have no `_total`, which the library would add."""
        return _TOTAL.sub(rb"\1", generate_latest(self.registry))
