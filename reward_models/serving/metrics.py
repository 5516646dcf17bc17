"""What the server counts, as Prometheus text."""

from __future__ import annotations

from collections.abc import Callable


class Metrics:
    """One registry an app, so that several can live in one process."""

    def __init__(self) -> None:
        import prometheus_client as prometheus

        self._text = prometheus.generate_latest
        self.content_type = prometheus.CONTENT_TYPE_LATEST
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)  # resident memory and the like
        self._requests = prometheus.Counter("reward_models_requests", "By path and status code", ["path", "code"], registry=registry)
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self._latency = prometheus.Histogram(
            "reward_models_request_seconds", "From the head of a request to its answer", ["path"], buckets=seconds, registry=registry
        )
        self._queue = prometheus.Gauge("reward_models_queue_rows", "Rows that wait for a forward", registry=registry)
        self._batches = prometheus.Histogram(
            "reward_models_batch_rows", "Rows of a forward", ["model"], buckets=[2**power for power in range(11)], registry=registry
        )
        self._forward = prometheus.Counter("reward_models_forward_seconds", "Spent in forwards", ["model"], registry=registry)
        self._tokens = prometheus.Counter("reward_models_tokens", "Tokens scored, without padding", ["model"], registry=registry)

    def watch_queue(self, rows: Callable[[], int]) -> None:
        self._queue.set_function(rows)

    def request(self, path: str, code: int, seconds: float) -> None:
        self._requests.labels(path, str(code)).inc()
        self._latency.labels(path).observe(seconds)

    def forward(self, model: str, rows: int, tokens: int, seconds: float) -> None:
        self._batches.labels(model).observe(rows)
        self._tokens.labels(model).inc(tokens)
        self._forward.labels(model).inc(seconds)

    def text(self) -> bytes:
        return self._text(self.registry)
