"""Every Prometheus instrument, on a registry that is passed in: the only file that imports prometheus-client."""

import functools
import os
from collections.abc import Collection, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.slowest import RequestRecord

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (
    0.000125, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0,
    16.0, 32.0, 64.0,
)  # fmt: skip  # each twice the last: a stage takes from well under a millisecond to the whole deadline
ENTRIES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)
CPU, STARTED = "process_cpu_seconds", "process_start_time_seconds"
RATIOS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


class Metrics:
    """The server's instruments."""

    def __init__(self, processes: Collection[int] = ()) -> None:
        """Measure the processes with these ids, a collection that may change; if it is empty, this process."""
        self.registry = registry = CollectorRegistry()  # not the global one
        self.requests = Counter(
            "vilt_requests", "Task requests answered, by status and error code.", ["task", "model", "status", "code"],
            registry=registry,
        )  # fmt: skip
        self.model_info = Gauge(
            "vilt_model_info", "1 for each model: which artifact it is, and the server's version.",
            ["model", "precision", "provider", "artifact", "version"], registry=registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "vilt_request_seconds",
            "From the request's head to its answer.",
            ["task", "model"],
            registry=registry,
            buckets=SECONDS,
        )
        self.stage_seconds = Histogram(
            "vilt_stage_seconds", "Time in each stage of answered requests.", ["stage"],
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self.batch_entries = Histogram(
            "vilt_batch_entries", "Entries run together.", ["model"], registry=registry, buckets=ENTRIES
        )
        self.padding_ratio = Histogram(
            "vilt_batch_padding_ratio", "Share of a batch's tokens that are padding.", ["model"],
            registry=registry, buckets=RATIOS,
        )  # fmt: skip
        self.queue_entries = Gauge("vilt_queue_entries", "Entries waiting for the engine.", registry=registry)
        self.work_seconds = Gauge(
            "vilt_work_seconds", "Engine time that the entries in flight are estimated to take.", registry=registry
        )
        self.body_bytes = Gauge("vilt_body_bytes", "Bytes of request bodies in flight.", registry=registry)
        self.drift = Gauge(
            "vilt_latency_drift",
            "How many times as long runs take now as when they were measured.",
            ["model"],
            registry=registry,
        )
        self.cache_hits = Counter(
            "vilt_cache_hits", "Work not done twice: decoded, in_flight or logits.", ["cache"], registry=registry
        )
        self.in_flight = Gauge("vilt_in_flight_entries", "Entries admitted and not yet answered.", registry=registry)
        self.dropped = Counter(
            "vilt_dropped_entries", "Entries dropped when a batch was formed, by reason.", ["reason"], registry=registry
        )
        self.engine_seconds = Counter(
            "vilt_engine_seconds",
            "Engine time by use: answered, or late or abandoned, when nobody waited for it any more.",
            ["use"],
            registry=registry,
        )
        registry.register(Processes(processes or {os.getpid()}))
        self.ready = Gauge("vilt_ready", "1 while the server may be sent requests.", registry=registry)
        # Looking a child up costs as much as counting in it.
        self._requests_of = functools.cache(self.requests.labels)
        self._request_seconds_of = functools.cache(self.request_seconds.labels)
        self._stage_seconds_of = functools.cache(self.stage_seconds.labels)

    def record(self, request: RequestRecord) -> None:
        """Count a request whose response was sent, and the stages of one that was answered."""
        self._requests_of(request.task, request.model, str(request.status), request.code).inc()
        self._request_seconds_of(request.task, request.model).observe(request.total_ms / 1000)
        if request.code == "ok":
            for stage, value_ms in request.timing_ms.items():
                self._stage_seconds_of(stage).observe(value_ms / 1000)

    def render(self) -> bytes:
        """Write the exposition text."""
        return generate_latest(self.registry)


class Processes(Collector):
    """Memory, open files and processor time of several processes together; only on systems with /proc."""

    def __init__(self, processes: Collection[int]) -> None:
        """Take the process ids, a collection that may change; this process has to be in it."""
        self._processes = processes
        self._cpu_s: dict[int, float] = {}  # ended processes stay in it, or the sum would fall

    def collect(self) -> Iterator[Metric]:
        """Sum each metric over all processes, except the start time, which is this process's."""
        each = {pid: _measured(pid) for pid in tuple(self._processes)}
        self._cpu_s |= {pid: found[CPU].samples[0].value for pid, found in each.items() if CPU in found}
        for name, metric in each[os.getpid()].items():
            values = [found[name].samples[0].value for found in each.values() if name in found]
            if name != STARTED:
                total = sum(self._cpu_s.values() if name == CPU else values)
                metric.samples = [metric.samples[0]._replace(value=total)]
            yield metric


def _measured(pid: int) -> dict[str, Metric]:
    return {metric.name: metric for metric in ProcessCollector(pid=lambda: pid, registry=None).collect()}
