"""What Prometheus reads: frames by fate, age, tracks, events and sinks, computed only when it asks."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamer.errors import StreamerError
from streamer.sources import SourceState

if TYPE_CHECKING:
    from streamer.pipeline import Pipeline


class PipelineMetrics(Collector):
    """Reads a pipeline's accounts each time they are asked for."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def collect(self) -> Iterable[Metric]:
        received = CounterMetricFamily("groundstream_frames_received", "Frames that came in.", labels=["stream"])
        analysed = CounterMetricFamily("groundstream_frames_analysed", "Frames the detector saw.", labels=["stream"])
        dropped = CounterMetricFamily(
            "groundstream_frames_dropped", "Frames nobody looked at.", labels=["stream", "reason"]
        )
        events = CounterMetricFamily("groundstream_events", "Events made.", labels=["stream", "type"])
        age = GaugeMetricFamily("groundstream_frame_age_seconds", "From capture to events.", labels=["stream"])
        tracks = GaugeMetricFamily("groundstream_tracks", "Tracks that live now.", labels=["stream"])
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
            for reason, count in self._pipeline.dropped_events(stream).items():
                lost.add_metric([stream, reason], count)
            if report.age_s is not None:
                age.add_metric([stream], report.age_s)
            tracks.add_metric([stream], report.tracks)
            online.add_metric([stream], float(report.state is SourceState.LIVE))
        backlog = GaugeMetricFamily("groundstream_sink_backlog", "Events a sink has not taken.", labels=["sink"])
        up = GaugeMetricFamily("groundstream_sink_up", "1 while a sink takes events.", labels=["sink"])
        delivered = CounterMetricFamily("groundstream_sink_delivered", "Events a sink has taken.", labels=["sink"])
        dead = CounterMetricFamily("groundstream_sink_dead_letters", "Events it will never take.", labels=["sink"])
        failures = CounterMetricFamily("groundstream_sink_failures", "Attempts that failed.", labels=["sink"])
        for sink in self._pipeline.sinks():
            delivered.add_metric([sink.name], sink.delivered)
            dead.add_metric([sink.name], sink.dead)
            failures.add_metric([sink.name], sink.failures)
            backlog.add_metric([sink.name], sink.backlog)
            up.add_metric([sink.name], float(sink.state == "up"))
        enriched = CounterMetricFamily(
            "groundstream_enrich_requests", "Requests for descriptions, by what became of them.", labels=["outcome"]
        )
        if (tally := self._pipeline.enrichment()) is not None:
            for outcome, count in {"answered": tally.answered, "cached": tally.cached, **tally.dropped}.items():
                enriched.add_metric([outcome], count)
        frames = [received, analysed, dropped, age, tracks, online]
        return [*frames, events, lost, delivered, dead, failures, backlog, up, enriched]


def serve_metrics(pipeline: Pipeline, port: int, host: str) -> tuple[WSGIServer, Thread]:
    """Serve the pipeline's metrics until the server is shut down. Raises `StreamerError` when the port is taken."""
    registry = CollectorRegistry()
    registry.register(PipelineMetrics(pipeline))
    try:
        return start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise StreamerError(f"cannot serve metrics on port {port}: {error.strerror}; choose another port") from error
