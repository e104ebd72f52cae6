"""Traces of frames: off without a collector, whole with one, and the same trace in the events."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinks.event import Event
from streamer.build import open_pipeline
from streamer.config import Config
from streamer.errors import ConfigError
from streamer.tracing import FrameTraces, open_traces, sampled_share

pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra otel")

CHILDREN = {"wait", "detect", "track", "rules", "spool"}


class Collector:
    """Takes spans by OTLP over HTTP, as the published messages say."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import gzip

                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                for part in request.resource_spans:
                    for scope in part.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def watch(tmp_path: Path, source: str) -> list[Event]:
    async def go() -> None:
        config = Config.model_validate(
            {
                "streams": [{"name": "gate", "source": source}],
                "queries": ["anything that moves"],
                "sinks": [f"jsonl:{tmp_path / 'events.jsonl'}"],
            }
        )
        enough, seen = asyncio.Event(), list[str]()

        def count_frame(stream: str) -> None:
            seen.append(stream)
            if len(seen) >= 25:
                enough.set()

        async with open_pipeline(config, on_frame=count_frame) as pipeline:
            running = asyncio.create_task(pipeline.run())
            if "live" in source:
                await enough.wait()
                await pipeline.stop()
            await running

    asyncio.run(go())
    return [Event.from_json(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]


@pytest.mark.timeout(120)
def test_frames_of_a_camera_are_whole_traces_that_their_events_name(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    events = watch(tmp_path, "synthetic:street?seed=3&fps=10&size=320x192&live=1")
    traces: dict[bytes, list[Any]] = defaultdict(list)
    for span in collector.spans:
        traces[span.trace_id].append(span)
    frames = {key: spans for key, spans in traces.items() if any(span.name == "frame" for span in spans)}
    assert len(frames) >= 20
    for spans in frames.values():
        (root,) = [span for span in spans if span.name == "frame"]
        children = [span for span in spans if span is not root]
        assert {span.name for span in children} == CHILDREN
        assert all(span.parent_span_id == root.span_id for span in children)
        assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)
    of_frames = [event for event in events if event.traceparent]
    assert {event.kind for event in of_frames} & {"track.begin", "match.begin"}
    assert {bytes.fromhex(event.traceparent.split("-")[1]) for event in of_frames if event.traceparent} <= frames.keys()
    (batch, *_) = [span for span in collector.spans if span.name == "batch"]
    assert {link.trace_id for link in batch.links} <= frames.keys()
    sent = [span for span in collector.spans if span.name == "send jsonl"]
    assert {link.trace_id for span in sent for link in span.links} <= frames.keys()
    assert sent
    assert "moves" not in str(collector.spans), "no words of queries"


@pytest.mark.timeout(120)
def test_recordings_have_no_traces_for_their_events_repeat(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    events = watch(tmp_path, "synthetic:street?seed=3&fps=10&size=320x192&duration=3")
    assert events
    assert not any(event.traceparent for event in events)
    assert collector.spans == []


@pytest.mark.timeout(120)
def test_a_collector_that_is_away_costs_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    events = watch(tmp_path, "synthetic:street?seed=3&fps=10&size=320x192&live=1")
    assert events[-1].kind == "stream.offline"


def test_nothing_is_traced_without_a_collector() -> None:
    assert open_traces({}) is None
    assert open_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}) is None
    assert open_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_SAMPLER": "always_off"}) is None


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, 0.01),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25),
    ],
)
def test_the_share_follows_the_standard_variables(environment: dict[str, str], share: float) -> None:
    assert sampled_share(environment) == share


@pytest.mark.parametrize("value", ["2", "-0.1", "nan", "half"])
def test_a_share_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="must be a number from 0 to 1"):
        sampled_share({"OTEL_TRACES_SAMPLER_ARG": value})
    with pytest.raises(ConfigError, match="is not known"):
        sampled_share({"OTEL_TRACES_SAMPLER": "jaeger_remote"})


def test_frames_that_never_reach_the_spool_are_bounded() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    from streamer.frame import Frame, FrameClock

    traces = FrameTraces(TracerProvider(), 1.0)
    image = np.zeros((2, 2, 3), np.uint8)
    for index in range(1200):
        traces._begin(Frame("gate", index, 1, FrameClock("arrival", 1.0, 1), image, (2, 2)), 1, 2)
    assert len(traces._open) == 1000
    traces.close()
    assert not traces._open
