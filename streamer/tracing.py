"""Traces of frames for OpenTelemetry: what happened to some frames of cameras, and when.

On where the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`), with the extra `otel`. The standard
variables hold: `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` give the share of the frames (default 0.01). Whether
a frame is traced is decided once, so that all other frames cost nothing. No words of queries and no addresses are in a
trace.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sinks.address import redact
from sinks.sink import Sink
from sinks.spool.delivery import BATCH_EVENTS
from streamer.errors import ConfigError, StreamerError

if TYPE_CHECKING:
    from sinks.event import Event
    from streamer.frame import Frame

DEFAULT_SHARE = 0.01
_MAX_WAITING = 1_000  # frames between detector and spool; older ones are ended as they are
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def sampled_share(environment: Mapping[str, str]) -> float:
    """Returns the share of the frames to trace, from 0 to 1, by the standard variables. Raises `ConfigError`."""
    name = environment.get("OTEL_TRACES_SAMPLER", "parentbased_traceidratio").removeprefix("parentbased_")
    if name in ("always_on", "always_off"):
        return float(name == "always_on")
    if name != "traceidratio":
        raise ConfigError(
            f"OTEL_TRACES_SAMPLER={name!r} is not known: expected always_on, always_off, traceidratio, or one of these "
            "after parentbased_"
        )
    text = environment.get("OTEL_TRACES_SAMPLER_ARG", str(DEFAULT_SHARE))
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"OTEL_TRACES_SAMPLER_ARG={text!r} must be a number from 0 to 1, the share of the frames")
    return share


def open_traces(environment: Mapping[str, str] = os.environ) -> FrameTraces | None:
    """Returns the traces of this process, None where no collector is named or the SDK is switched off.

    Raises `StreamerError` where the library is missing, `ConfigError` for a sampler that is not known.
    """
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or not any(environment.get(name) for name in _ENDPOINTS):
        return None
    share = sampled_share(environment)
    if share == 0.0:
        return None
    try:
        sdk = import_module("opentelemetry.sdk.trace")
        exporters = import_module("opentelemetry.sdk.trace.export")
        otlp = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources = import_module("opentelemetry.sdk.resources")
    except ImportError as error:
        raise StreamerError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but traces need a library that cannot be imported ({error}): "
            "pip install 'groundstream[otel]', or unset the variable"
        ) from error
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    resource = resources.Resource.create({"service.name": environment.get("OTEL_SERVICE_NAME", "groundstream")})
    provider = sdk.TracerProvider(sampler=ALWAYS_ON, resource=resource)
    provider.add_span_processor(exporters.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return FrameTraces(provider, share)


@asynccontextmanager
async def tracing(environment: Mapping[str, str] = os.environ) -> AsyncIterator[FrameTraces | None]:
    """The traces of `open_traces`, closed at the end."""
    traces = open_traces(environment)
    try:
        yield traces
    finally:
        if traces is not None:
            await asyncio.to_thread(traces.close)


def trace_sinks(sinks: Mapping[str, Sink], traces: FrameTraces | None) -> dict[str, Sink]:
    """Returns the sinks by name, with their deliveries traced if there are traces."""
    return dict(sinks) if traces is None else {name: TracedSink(name, sink, traces) for name, sink in sinks.items()}


class FrameTraces:
    """One trace for each chosen frame: `frame` with the children `wait`, `detect`, `track`, `rules` and `spool`.

    A batch of the detector has the span `batch`, and a delivery the span `send`, in traces of their own that link to
    the frames. `provider` is the SDK's; `share` of the frames of cameras are traced.
    """

    def __init__(self, provider: Any, share: float) -> None:
        from opentelemetry import trace

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("groundstream")
        self._share = share
        self._open: dict[tuple[str, int], Any] = {}

    def note_batch(self, frames: Sequence[Frame], began_ns: int, ended_ns: int) -> None:
        """Chooses some of the frames that the detector has had from `began_ns` to `ended_ns` (UTC)."""
        chosen = [frame for frame in frames if self._wants(frame)]
        if not chosen:
            return
        spans = [self._begin(frame, began_ns, ended_ns) for frame in chosen]
        links = [self._api.Link(span.get_span_context()) for span in spans]
        self._span("batch", began_ns, ended_ns, links=links, attributes={"groundstream.batch.frames": len(frames)})

    def is_traced(self, frame: Frame) -> bool:
        """Whether the frame was chosen and is not ended."""
        return (frame.stream, frame.index) in self._open

    def note_followed(self, frame: Frame, began_ns: int, tracked_ns: int, events: list[Event]) -> None:
        """Adds `track` and `rules` to a chosen frame, and its trace to its events, which are replaced in place."""
        root = self._open.get((frame.stream, frame.index))
        if root is None:
            return
        self._span("track", began_ns, tracked_ns, parent=root)
        self._span("rules", tracked_ns, time.time_ns(), parent=root)
        context = root.get_span_context()
        text = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        events[:] = [event.model_copy(update={"traceparent": text}) for event in events]

    def note_sent(self, frame: Frame, began_ns: int) -> None:
        """Ends a chosen frame: its events were handed to the spool from `began_ns` on."""
        root = self._open.pop((frame.stream, frame.index), None)
        if root is not None:
            now_ns = time.time_ns()
            self._span("spool", began_ns, now_ns, parent=root)
            root.set_attribute("groundstream.frame.age_ms", (now_ns - frame.time_ns) / 1e6)
            root.end(now_ns)

    def note_delivery(self, sink: str, events: Sequence[Event], began_ns: int, error: str = "") -> None:
        """Adds the delivery of a batch to a sink, by its name without secrets, when it holds events of a trace."""
        contexts = {event.traceparent for event in events if event.traceparent is not None}
        if not contexts:
            return
        links = [self._api.Link(self._read_context(text)) for text in sorted(contexts)]
        scheme = sink.partition(":")[0]
        attributes = {
            "messaging.system": "kafka" if scheme.startswith("kafka") else scheme,
            "messaging.operation.type": "send",
            "messaging.destination.name": redact(sink),
            "messaging.batch.message_count": len(events),
        }
        kind = self._api.SpanKind.PRODUCER
        span = self._tracer.start_span(
            f"send {scheme}", self._root(), kind=kind, attributes=attributes, links=links, start_time=began_ns
        )
        if error:
            span.set_status(self._api.Status(self._api.StatusCode.ERROR, error))
        span.end(time.time_ns())

    def close(self) -> None:
        """Ends what is open and waits until the collector has it, or the exporter's own time is over."""
        for root in self._open.values():
            root.end()
        self._open.clear()
        self._provider.shutdown()

    def _wants(self, frame: Frame) -> bool:
        # A recording's events must be the same in each run, so nothing random goes into them.
        return frame.clock.received_ns is not None and random.random() < self._share

    def _begin(self, frame: Frame, began_ns: int, ended_ns: int) -> Any:
        received_ns = frame.clock.received_ns or began_ns
        attributes = {
            "groundstream.stream": frame.stream,
            "groundstream.frame.index": frame.index,
            "groundstream.connection": frame.clock.connection,
        }
        root = self._tracer.start_span("frame", self._root(), attributes=attributes, start_time=frame.time_ns)
        self._span("wait", min(received_ns, began_ns), began_ns, parent=root)
        self._span("detect", began_ns, ended_ns, parent=root)
        while len(self._open) >= _MAX_WAITING:
            self._open.pop(next(iter(self._open))).end()
        self._open[frame.stream, frame.index] = root
        return root

    def _span(self, name: str, began_ns: int, ended_ns: int, *, parent: Any = None, **options: Any) -> None:
        context = self._root() if parent is None else self._api.set_span_in_context(parent)
        self._tracer.start_span(name, context, start_time=began_ns, **options).end(max(began_ns, ended_ns))

    def _root(self) -> Any:
        from opentelemetry.context import Context

        return Context()

    def _read_context(self, text: str) -> Any:
        _, trace_id, span_id, flags = text.split("-")
        return self._api.SpanContext(int(trace_id, 16), int(span_id, 16), True, self._api.TraceFlags(int(flags, 16)))


class TracedSink:
    """Passes events on to a sink and traces the deliveries of events that belong to a trace."""

    def __init__(self, name: str, sink: Sink, traces: FrameTraces) -> None:
        self._name = name
        self._sink = sink
        self._traces = traces
        self.batch_events: int = getattr(sink, "batch_events", BATCH_EVENTS)
        self.linger_s: float = getattr(sink, "linger_s", 0.0)
        self.durable: bool = getattr(sink, "durable", True)

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Sends the events; see `Sink.send_batch`."""
        began_ns = time.time_ns()
        try:
            await self._sink.send_batch(events)
        except Exception as error:
            self._traces.note_delivery(self._name, events, began_ns, redact(str(error)) or type(error).__name__)
            raise
        self._traces.note_delivery(self._name, events, began_ns)

    async def aclose(self) -> None:
        """Closes the sink."""
        await self._sink.aclose()
