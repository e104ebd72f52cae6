"""Metrics of a pipeline for Prometheus: frames, tracks, events, spool and sinks, computed when they are read."""

from __future__ import annotations

from collections.abc import Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sinks.supervision import start_thread
from streamer.errors import StreamerError
from streamer.sources import SourceState

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from streamer.pipeline import Pipeline


class PipelineMetrics(Collector):
    """Reads the counts of a pipeline whenever Prometheus asks."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def collect(self) -> Iterable[Metric]:
        received = CounterMetricFamily("groundstream_frames_received", "Frames received.", labels=["stream"])
        analysed = CounterMetricFamily(
            "groundstream_frames_analysed", "Frames analysed by the detector.", labels=["stream"]
        )
        dropped = CounterMetricFamily(
            "groundstream_frames_dropped", "Frames that were not analysed.", labels=["stream", "reason"]
        )
        events = CounterMetricFamily("groundstream_events", "Events written.", labels=["stream", "type"])
        age = GaugeMetricFamily(
            "groundstream_frame_age_seconds", "Seconds from capture to events of the newest frame.", labels=["stream"]
        )
        tracks = GaugeMetricFamily("groundstream_tracks", "Open tracks.", labels=["stream"])
        online = GaugeMetricFamily("groundstream_stream_live", "1 while the stream gives frames.", labels=["stream"])
        lost = CounterMetricFamily(
            "groundstream_events_dropped", "Events that were given up.", labels=["stream", "reason"]
        )
        for report in self._pipeline.report():
            stream = report.stream
            received.add_metric([stream], report.tally.received)
            analysed.add_metric([stream], report.tally.analysed)
            for reason, count in report.tally.dropped.items():
                dropped.add_metric([stream, reason], count)
            for kind, count in self._pipeline.event_counts[stream].items():
                events.add_metric([stream, kind], count)
            if report.age_s is not None:
                age.add_metric([stream], report.age_s)
            tracks.add_metric([stream], report.tracks)
            online.add_metric([stream], float(report.state is SourceState.LIVE))
        # the stream "" has the events whose stream is not known
        for stream in [*(report.stream for report in self._pipeline.report()), ""]:
            for reason, count in self._pipeline.dropped_events(stream).items():
                lost.add_metric([stream, reason], count)
        storage = self._pipeline.storage()
        stored = GaugeMetricFamily("groundstream_storage_up", "1 while events can be stored.")
        stored.add_metric([], float(not storage.error))
        spooled = GaugeMetricFamily("groundstream_spool_bytes", "Bytes of events that wait for a sink.")
        spooled.add_metric([], storage.used_bytes)
        limit = GaugeMetricFamily("groundstream_spool_limit_bytes", "Bytes of events that may wait.")
        limit.add_metric([], storage.max_bytes)
        forgotten = GaugeMetricFamily(
            "groundstream_spool_forgotten_events", "Events that wait for sinks that are no longer configured."
        )
        forgotten.add_metric([], storage.forgotten)
        backlog = GaugeMetricFamily("groundstream_sink_backlog", "Events that wait for the sink.", labels=["sink"])
        up = GaugeMetricFamily("groundstream_sink_up", "1 while the sink accepts events.", labels=["sink"])
        delivered = CounterMetricFamily(
            "groundstream_sink_delivered", "Events that the sink has acknowledged.", labels=["sink"]
        )
        dead = CounterMetricFamily(
            "groundstream_sink_dead_letters", "Events that the sink refused for good.", labels=["sink"]
        )
        failures = CounterMetricFamily("groundstream_sink_failures", "Attempts that failed.", labels=["sink"])
        send_seconds = HistogramMetricFamily(
            "groundstream_sink_send_seconds", "Seconds until the sink took a batch of events.", labels=["sink"]
        )
        for sink in self._pipeline.sinks():
            send_seconds.add_metric([sink.name], sink.send_seconds.cumulative(), sink.send_seconds.total)
            delivered.add_metric([sink.name], sink.delivered)
            dead.add_metric([sink.name], sink.dead)
            failures.add_metric([sink.name], sink.failures)
            backlog.add_metric([sink.name], sink.backlog)
            up.add_metric([sink.name], float(sink.state == "up"))
        enriched = CounterMetricFamily(
            "groundstream_enrich_requests", "Requests for descriptions, by outcome.", labels=["outcome"]
        )
        if (tally := self._pipeline.enrichment()) is not None:
            for outcome, count in {"answered": tally.answered, "cached": tally.cached, **tally.dropped}.items():
                enriched.add_metric([outcome], count)
        pictures = CounterMetricFamily(
            "groundstream_snapshots", "Events for which pictures are wanted, by outcome.", labels=["outcome"]
        )
        if (shots := self._pipeline.snapshots()) is not None:
            for outcome, count in {"written": shots.written, **shots.dropped}.items():
                pictures.add_metric([outcome], count)
        clips = CounterMetricFamily(
            "groundstream_clips", "Events for which clips are wanted, by outcome.", labels=["outcome"]
        )
        if (shots := self._pipeline.clips()) is not None:
            for outcome, count in {"written": shots.written, **shots.dropped}.items():
                clips.add_metric([outcome], count)
        lag = GaugeMetricFamily(
            "groundstream_loop_lag_seconds",
            "How late the event loop ran what was due, by quantile over the last minute.",
            labels=["quantile"],
        )
        for quantile in ("0.5", "0.95", "0.99", "1"):
            lag.add_metric([quantile], self._pipeline.loop_lag.quantile(float(quantile)))
        leases = self._collect_terms()
        frames = [received, analysed, dropped, age, tracks, online, lag, *self._collect_timings()]
        spool = [stored, spooled, limit, forgotten]
        sinks = [delivered, dead, failures, backlog, up, send_seconds]
        return [*frames, events, lost, *spool, *sinks, enriched, pictures, clips, *leases, self._collect_build()]

    def _collect_timings(self) -> list[Metric]:
        timings = self._pipeline.timings
        latency = HistogramMetricFamily(
            "groundstream_frame_latency_seconds",
            "Seconds from capture to events of each frame of a camera.",
            labels=["stream"],
        )
        for stream, histogram in timings.frame_seconds.items():
            latency.add_metric([stream], histogram.cumulative(), histogram.total)
        seconds = HistogramMetricFamily("groundstream_detector_batch_seconds", "Seconds of a batch in the detector.")
        seconds.add_metric([], timings.batch_seconds.cumulative(), timings.batch_seconds.total)
        size = HistogramMetricFamily("groundstream_detector_batch_frames", "Frames of a batch of the detector.")
        size.add_metric([], timings.batch_frames.cumulative(), timings.batch_frames.total)
        queries = GaugeMetricFamily("groundstream_queries", "Queries that are watched for.", labels=["stream"])
        ignored = CounterMetricFamily(
            "groundstream_masked_detections", "Detections left out because a mask covers them.", labels=["stream"]
        )
        for watched in self._pipeline.streams:
            queries.add_metric([watched.name], len(watched.analysis.queries.at()))
            ignored.add_metric([watched.name], watched.analysis.masked_detections)
        return [latency, seconds, size, queries, ignored]

    def _collect_terms(self) -> list[Metric]:
        """The leases of a node that shares cameras with others."""
        cameras = GaugeMetricFamily("groundstream_lease_cameras", "Cameras whose lease this node holds.")
        age = GaugeMetricFamily("groundstream_lease_age_seconds", "Seconds since the last renewal of the leases.")
        renewals = CounterMetricFamily(
            "groundstream_lease_renewals", "Renewals of the leases, by outcome.", labels=["outcome"]
        )
        grants = CounterMetricFamily("groundstream_lease_grants", "Leases of cameras that this node was granted.")
        if (tally := self._pipeline.terms()) is not None:
            cameras.add_metric([], tally.streams)
            if tally.renewed_s is not None:
                age.add_metric([], tally.renewed_s)
            renewals.add_metric(["granted"], tally.renewals)
            renewals.add_metric(["failed"], tally.failures)
            grants.add_metric([], tally.granted)
        return [cameras, age, renewals, grants]

    def _collect_build(self) -> Metric:
        build = GaugeMetricFamily(
            "groundstream_build_info", "1, with what runs.", labels=["version", "detector", "tracker"]
        )
        if (producer := self._pipeline.producer) is not None:
            build.add_metric([producer.version, producer.detector, producer.tracker], 1.0)
        return build


def serve_metrics(pipeline: Pipeline, port: int, host: str) -> tuple[WSGIServer, Thread]:
    """Serves `/metrics`, `/healthz` and `/readyz` of a pipeline until the server is shut down.

    Raises `StreamerError` when the port cannot be used.
    """
    registry = CollectorRegistry()
    registry.register(PipelineMetrics(pipeline))
    metrics = make_wsgi_app(registry)

    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "/")
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environment, start)
            return found
        ready = path == "/readyz" and pipeline.is_ready
        status, text = {
            "/healthz": ("200 OK", "ok"),
            "/readyz": ("200 OK", "ok") if ready else ("503 Service Unavailable", "not ready"),
        }.get(path, ("404 Not Found", "not found: there are /metrics, /healthz and /readyz"))
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    try:
        server = make_server(host, port, answer, server_class=_ThreadedServer, handler_class=_SilentHandler)
    except OSError as error:
        raise StreamerError(f"cannot serve metrics on port {port}: {error.strerror}; choose another port") from error
    return server, start_thread(server.serve_forever, name="metrics")


class _ThreadedServer(ThreadingMixIn, WSGIServer):
    """One thread for each request, so that a slow reader delays no health check."""

    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Keeps requests out of standard error."""
