"""What Prometheus reads from a pipeline."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sinks.event import EventType
from sinks.sink import PoisonError
from streamer.errors import StreamerError
from streamer.rules.places import IgnoredRegion
from streamer.web.metrics import PipelineMetrics, serve_metrics
from tests.support.fakes import Bench, FakeDetector, FakeSource, ListSink, camera


class Fussy(ListSink):
    """Takes nothing at the first attempt, and never the beginning of a track."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def send_batch(self, events):
        self.asked += 1
        if self.asked == 1:
            raise ConnectionError("not yet")
        bad = [event for event in events if event.type == EventType.TRACK_BEGIN]
        await super().send_batch([event for event in events if event not in bad])
        if bad:
            raise PoisonError("too large", {event.id: "too large" for event in bad})


def test_what_became_of_frames_and_events_is_served_over_http():
    async def go():
        async with Bench([camera(FakeSource("gate", count=12))], FakeDetector(), sink=Fussy()) as bench:
            server, thread = serve_metrics(bench.pipeline, 0, "127.0.0.1")
            try:
                await bench.run()
                url = f"http://127.0.0.1:{server.server_port}/metrics"
                text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
            finally:
                server.shutdown()
                server.server_close()
                thread.join()
        return bench, text

    bench, text = asyncio.run(go())
    reported = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert reported["groundstream_frames_received_total", "gate"] == 12
    assert reported["groundstream_frames_analysed_total", "gate"] == 12
    made = sum(value for key, value in reported.items() if key[0] == "groundstream_events_total")
    assert reported["groundstream_events_total", "gate", EventType.TRACK_BEGIN] == 1
    assert reported["groundstream_events_dropped_total", "dead_letter", "gate"] == 1
    (name,) = [sink.name for sink in bench.pipeline.sinks()]
    assert reported["groundstream_sink_delivered_total", name] == made - 1 == len(bench.sink.events)
    assert reported["groundstream_sink_dead_letters_total", name] == 1
    assert reported["groundstream_sink_failures_total", name] == 1
    assert reported["groundstream_sink_backlog", name] == 0
    assert reported["groundstream_sink_up", name] == 1
    batches = reported["groundstream_detector_batch_seconds_count",]
    assert batches == reported["groundstream_detector_batch_frames_bucket", "+Inf"] > 0
    assert reported["groundstream_detector_batch_frames_sum",] == 12
    assert reported["groundstream_queries", "gate"] == 1
    # A batch that the sink refused in part has its duration among the failures.
    assert ("groundstream_sink_send_seconds_count", name) in reported


def test_detections_under_a_mask_are_counted_by_stream():
    everywhere = IgnoredRegion("all", [(0, 0), (1, 0), (1, 1), (0, 1)])

    async def go():
        cameras = [camera(FakeSource("gate", count=12), masks=[everywhere]), camera(FakeSource("yard", count=12))]
        async with Bench(cameras, FakeDetector()) as bench:
            await bench.run()
            return bench.kinds("gate"), list(PipelineMetrics(bench.pipeline).collect())

    kinds, families = asyncio.run(go())
    [masked] = [family for family in families if family.name == "groundstream_masked_detections"]
    assert {sample.labels["stream"]: sample.value for sample in masked.samples} == {"gate": 12, "yard": 0}
    assert "track.begin" not in kinds


def test_a_port_that_is_taken_is_reported():
    async def go():
        async with Bench([camera(FakeSource(count=1))]) as bench:
            server, thread = serve_metrics(bench.pipeline, 0, "127.0.0.1")
            try:
                with pytest.raises(StreamerError, match="choose another port"):
                    serve_metrics(bench.pipeline, server.server_port, "127.0.0.1")
            finally:
                server.shutdown()
                server.server_close()
                thread.join()

    asyncio.run(go())


def test_health_and_readiness_have_addresses_of_their_own():
    def status_of(url: str) -> int:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    async def go():
        async with Bench([camera(FakeSource("gate", count=3))], FakeDetector()) as bench:
            server, thread = serve_metrics(bench.pipeline, 0, "127.0.0.1")
            try:
                await bench.run()
                base = f"http://127.0.0.1:{server.server_port}"
                paths = ("/metrics", "/healthz", "/readyz", "/", "/nothing")
                return [await asyncio.to_thread(status_of, base + path) for path in paths]
            finally:
                server.shutdown()
                server.server_close()
                thread.join()

    assert asyncio.run(go()) == [200, 200, 200, 404, 404]
