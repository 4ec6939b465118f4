"""Takes what each request came to; gives it in the text format of Prometheus. The only module that knows it.

Several processes on one port share their numbers through files in $PROMETHEUS_MULTIPROC_DIR, which server.py
sets before it starts them; prometheus_client decides by it when it is imported.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = CONTENT_TYPE_LATEST
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# From a frame that lies in the page cache to an upload of many gigabytes.
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)

# Any word may come as a method, and each label takes memory.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"))


class Metrics:
    """The numbers of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "hilum_request_seconds",
            "Seconds from a request's headers to the last byte of its answer.",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._sent = Counter(
            "hilum_sent_bytes", "Bytes of the bodies of answers.", ("route",), registry=self._registry
        )
        self._received = Counter(
            "hilum_received_bytes", "Bytes of the bodies of requests.", ("route",), registry=self._registry
        )
        self.in_progress = Gauge(
            "hilum_requests_in_progress",
            "Requests that are being answered.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        # Looking a child up by its labels costs more than counting.
        self._seconds_of: dict[tuple[str, str, int], Histogram] = {}
        self._bytes_of: dict[str, tuple[Counter, Counter]] = {}

    def observe(self, method: str, route: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count one request. `route` is a template, never a path: labels must be few."""
        if method not in _METHODS:
            method = "other"
        key = method, route, status
        histogram = self._seconds_of.get(key)
        if histogram is None:
            histogram = self._seconds_of[key] = self._seconds.labels(method, route, str(status))
        histogram.observe(seconds)
        counters = self._bytes_of.get(route)
        if counters is None:
            counters = self._bytes_of[route] = self._received.labels(route), self._sent.labels(route)
        if received:
            counters[0].inc(received)
        if sent:
            counters[1].inc(sent)

    def text(self) -> bytes:
        """All numbers, of all processes on this port."""
        registry = self._registry
        if os.environ.get(FOLDER_VARIABLE):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def forget(pid: int) -> None:
    """Leave a worker that has ended out of what is counted at this moment; what it has done stays counted."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
