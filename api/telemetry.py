"""What Prometheus sees: requests of all API processes, and jobs as the database has them at that moment."""

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy.exc import SQLAlchemyError

from storage.database import Database
from storage.figures import job_durations, queue_figures
from storage.lifecycle import Status

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
JOB_SECONDS = (1, 5, 15, 60, 300, 900, 3_600, 4 * 3_600, 24 * 3_600)
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "distillery_http_requests", "Requests answered.", ["method", "route", "status"], registry=REGISTRY
)  # fmt: skip
DURATIONS = Histogram(
    "distillery_http_request_duration_seconds",
    "Time from a request's first byte to its answer's last; streams and waits included.",
    ["method", "route"],
    buckets=REQUEST_SECONDS,
    registry=REGISTRY,
)


def observe(method: str, route: str, status: int, seconds: float) -> None:
    """Count one request. `route` is the template: an id in a label would make a series of its own."""
    method = method if method in METHODS else "other"
    REQUESTS.labels(method, route, str(status)).inc()
    DURATIONS.labels(method, route).observe(seconds)


def exposition(database: Database) -> bytes:
    """The metrics in Prometheus's text format. Blocks: reads the database."""
    registry = CollectorRegistry()
    registry.register(_Jobs(database))
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest(REGISTRY) + generate_latest(registry)


class _Jobs:
    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        try:
            with self._database.read() as session:
                figures = queue_figures(session)
                durations = job_durations(session, JOB_SECONDS)
        except SQLAlchemyError:  # requests are still worth counting
            yield GaugeMetricFamily("distillery_database_up", "Whether the database answered.", value=0)
            return
        yield GaugeMetricFamily("distillery_database_up", "Whether the database answered.", value=1)
        jobs = GaugeMetricFamily("distillery_jobs", "Jobs by status.", labels=["status"])
        for status in Status:
            jobs.add_metric([status.value], figures["jobs"].get(status.value, 0))
        yield jobs
        yield GaugeMetricFamily(
            "distillery_queue_oldest_seconds",
            "How long the oldest queued job has waited.",
            value=figures["oldest_queued_seconds"],
        )
        yield GaugeMetricFamily(
            "distillery_training_samples_per_second",
            "Training speed of all running jobs together.",
            value=figures["samples_per_second"],
        )
        seconds = HistogramMetricFamily(
            "distillery_job_duration_seconds",
            "From the first start of a finished job to its end; deleted jobs no longer count.",
            labels=["status"],
        )
        for status_name, found in sorted(durations.items()):
            buckets = [(str(float(bound)), float(n)) for bound, n in zip(JOB_SECONDS, found.within, strict=True)]
            seconds.add_metric([status_name], [*buckets, ("+Inf", float(found.count))], sum_value=found.total_seconds)
        yield seconds
