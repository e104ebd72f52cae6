"""Control room of a running pipeline: what the web server reads of it and the one way in which it changes it.

The pipeline lives in its own event loop; every access hops there, so that nothing is read while it changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from sinks.address import redact
from sinks.event import rfc3339
from streamer.analysis.queries import query_slug
from streamer.config import (
    Config,
    CountConfig,
    LineConfig,
    MaskConfig,
    QueryConfig,
    StreamConfig,
    ZoneConfig,
)
from streamer.errors import ConfigError
from streamer.pipeline.pipeline import Pipeline
from streamer.web.config_document import ConfigDocument, NodeEdit, NodePath
from streamer.web.live_frames import LiveFrames
from streamer.web.models import ClockStatus, QueryStatus, SinkState, StreamStatus
from streamer.web.problems import Problem, validation_sentence
from streamer.web.track_history import score_histogram, suggest_threshold

log = logging.getLogger("groundstream")

R = TypeVar("R")

SOURCE_SCHEMES = ("rtsp", "rtsps", "http", "https", "webcam", "synthetic")
"""What operators may add as a camera: no paths and no files of this machine."""
_RATE_S = 2.0


@dataclass(frozen=True, slots=True)
class SectionState:
    """A section of one stream's configuration: its value, its entity tag and where it comes from."""

    value: list[dict[str, Any]]
    etag: str
    shared: bool
    overridden: bool


class ControlRoom:
    """Reads and changes one running pipeline for the web server."""

    def __init__(
        self,
        pipeline: Pipeline,
        loop: asyncio.AbstractEventLoop,
        document: ConfigDocument,
        frames: LiveFrames,
        *,
        allowed_sources: Sequence[str] | None = None,
        refusal: str = "",
    ) -> None:
        """`loop` is the one in which the pipeline runs; `refusal` says why nothing can be changed here, if so."""
        self._pipeline = pipeline
        self._loop = loop
        self._document = document
        self._frames = frames
        self._allowed_sources = allowed_sources
        self._refusal = refusal
        self._rates = _StreamRates()
        self._lock = asyncio.Lock()

    @property
    def document(self) -> ConfigDocument:
        """The configuration file with the changes of the page."""
        return self._document

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._pipeline.config

    async def is_ready(self) -> bool:
        """Returns whether events can be stored and sent, and not all streams have failed."""
        return await self._call(lambda: self._pipeline.is_ready)

    async def list_streams(self) -> list[StreamStatus]:
        """Returns the state of every stream."""
        return await self._call(self._describe_streams)

    async def list_sinks(self) -> list[SinkState]:
        """Returns the state of every sink."""
        return [
            SinkState(
                name=redact(status.name),
                state=status.state,
                since=rfc3339(status.since_ns),
                error=redact(status.error),
                delivered=status.delivered,
                dead=status.dead,
                failures=status.failures,
                backlog=status.backlog,
            )
            for status in await self._call(self._pipeline.sinks)
        ]

    async def list_queries(self, stream: str) -> tuple[list[QueryStatus], SectionState]:
        """Returns a stream's queries with their state. Raises `Problem` 404 for an unknown stream."""
        section = await self.read_section(stream, "queries")
        details = await self._call(lambda: self._describe_queries(stream))
        history = self._frames.history(stream)
        found = []
        for value in section.value:
            number, revision, threshold, tracks = details.get(value["id"], (0, 1, value["threshold"] or 0.0, 0))
            scores = [] if history is None else history.best_scores(value["id"])
            found.append(
                QueryStatus.model_construct(
                    **value,
                    number=number,
                    revision=revision,
                    effective_threshold=threshold,
                    tracks=tracks,
                    histogram=score_histogram(scores),
                    suggested_threshold=suggest_threshold(scores),
                )
            )
        return found, section

    async def read_section(self, stream: str, section: str) -> SectionState:
        """Returns `queries`, `zones`, `lines`, `ignore` (masks) or `counts` of a stream. Raises `Problem` 404."""
        position, config = await self._find_stream(stream)
        return self._section_state(position, config, section)

    async def section_tags(self) -> dict[tuple[str, str], str]:
        """Returns the entity tag of every section of every stream, by stream and section."""
        sections = await self._call(lambda: [(stream.name, stream.section) for stream in self._pipeline.streams])
        tags = {}
        for name, config in sections:
            if config in self.config.streams:
                position = self.config.streams.index(config)
                for section in _SECTIONS:
                    tags[name, section] = self._section_state(position, config, section).etag
        return tags

    async def write_section(
        self, stream: str, section: str, value: Sequence[Mapping[str, Any]], if_match: str | None
    ) -> SectionState:
        """Replaces a section of a stream and stores it.

        Raises `Problem` 428 without `if_match`, 412 when the value has changed since, `ConfigError` for a value that
        cannot be used; nothing is changed then.
        """
        async with self._lock:
            position, config = await self._find_stream(stream)
            current = self._section_state(position, config, section)
            check_match(current.etag, if_match, current.value)
            edit = NodeEdit(("streams", position, section), [_without_defaults(item, section) for item in value])
            await self._apply([edit], f"{section} of {stream}")
            position, config = await self._find_stream(stream)
            return self._section_state(position, config, section)

    async def read_stream(self, stream: str) -> tuple[StreamStatus, str]:
        """Returns one stream's state and the entity tag of its settings."""
        _, config = await self._find_stream(stream)
        for status in await self.list_streams():
            if status.name == stream:
                return status, _stream_etag(config)
        raise unknown_stream(stream)

    async def add_stream(self, value: Mapping[str, Any]) -> tuple[StreamStatus, str]:
        """Adds a camera. Raises `Problem` 409 for a name that is taken, 422 for a source that is not allowed."""
        self._check_source(value["source"])
        async with self._lock:
            if value["name"] in {_section_key(stream) for stream in self.config.streams}:
                raise Problem(409, f"a stream named {value['name']!r} exists: choose another name")
            await self._apply([NodeEdit(("streams",), dict(value), "append")], f"stream {value['name']} added")
        return await self.read_stream(value["name"])

    async def change_stream(
        self, stream: str, changes: Mapping[str, Any], if_match: str | None
    ) -> tuple[StreamStatus, str]:
        """Changes settings of a camera: `source`, `transport`, `sample`, `paused`."""
        if "source" in changes:
            self._check_source(changes["source"])
        async with self._lock:
            position, config = await self._find_stream(stream)
            check_match(_stream_etag(config), if_match, None)
            place: NodePath = ("streams", position)
            edits = [NodeEdit((*place, key), value) for key, value in changes.items()]
            if config.name is None:
                edits.append(NodeEdit((*place, "name"), stream))  # the name made of the source must not change with it
            await self._apply(edits, f"stream {stream}")
        return await self.read_stream(stream)

    async def remove_stream(self, stream: str, if_match: str | None) -> None:
        """Removes a camera; its open tracks end."""
        async with self._lock:
            position, config = await self._find_stream(stream)
            check_match(_stream_etag(config), if_match, None)
            if len(self.config.streams) == 1:
                raise Problem(409, f"{stream!r} is the only stream: add another one before, or pause it")
            await self._apply([NodeEdit(("streams", position), kind="remove")], f"stream {stream} removed")

    async def write_sinks(self, addresses: Callable[[list[str]], list[str]]) -> list[SinkState]:
        """Replaces the list of sinks by what `addresses` makes of the present one."""
        async with self._lock:
            present = self._document.find_node(("sinks",))
            await self._apply([NodeEdit(("sinks",), addresses(list(present or [])))], "sinks")
        return await self.list_sinks()

    async def run_detector(self, images: Sequence[Any], texts: tuple[str, ...], threshold: float) -> list[Any]:
        """Detects `texts` in BGR images in the detector's own thread, between two batches of live frames."""
        return await self._await(lambda: self._pipeline.detect_images(images, texts, threshold))

    def _describe_streams(self) -> list[StreamStatus]:
        reports = {report.stream: report for report in self._pipeline.report()}
        found = []
        for stream in self._pipeline.streams:
            report = reports[stream.name]
            last = stream.last
            tally = report.tally
            received, analysed = self._rates.measure(stream.name, tally.received, tally.analysed)
            is_dark = stream.dark_since_ns is not None or report.state.value not in {"live", "closed", "paused"}
            live = self._frames.newest(stream.name)
            age_ms = None
            if report.live and live is not None:
                age_ms = round((time.time_ns() - live.frame.time_ns) / 1e6, 1)
            found.append(
                StreamStatus(
                    name=stream.name,
                    live=report.live,
                    state=report.state.value,
                    cause=redact(report.error or (stream.dark_cause if is_dark else "")),
                    source=redact(stream.section.source if stream.section is not None else stream.name),
                    width=None if live is None else live.frame.width,
                    height=None if live is None else live.frame.height,
                    received=tally.received,
                    analysed=tally.analysed,
                    dropped=dict(tally.dropped),
                    fps_received=received,
                    fps_analysed=analysed,
                    age_ms=age_ms,
                    tracks=report.tracks,
                    clock=None
                    if last is None
                    else ClockStatus(basis=last.clock.basis, uncertainty_ms=last.clock.uncertainty_ms),
                    last_frame=None if last is None else rfc3339(last.time_ns),
                )
            )
        return found

    def _describe_queries(self, name: str) -> dict[str, tuple[int, int, float, int]]:
        """Number, revision, threshold and open matching tracks of a stream's active queries, by id."""
        found: dict[str, tuple[int, int, float, int]] = {}
        for stream in self._pipeline.streams:
            if stream.name == name:
                matched = stream.analysis.matches.matched
                default = stream.analysis.default_threshold
                for query in stream.analysis.queries.at():
                    tracks = sum(query.number in numbers for numbers in matched.values())
                    found[query.id] = (query.number, query.revision, query.least_score(default), tracks)
        return found

    async def _find_stream(self, name: str) -> tuple[int, StreamConfig]:
        """The position of a stream in the configuration, with its section. Raises `Problem` 404."""
        sections = await self._call(lambda: {stream.name: stream.section for stream in self._pipeline.streams})
        wanted = sections.get(name)
        for position, section in enumerate(self.config.streams):
            if section == wanted:
                return position, section
        raise unknown_stream(name)

    def _section_state(self, position: int, stream: StreamConfig, section: str) -> SectionState:
        config = self.config
        shared = section == "queries" and stream.queries is None
        items: Sequence[Any] = config.queries if shared else getattr(stream, section)
        value = [item.model_dump(mode="json") for item in items]
        if section == "queries":
            value = [{**item, "id": item["id"] or query_slug(item["text"])} for item in value]
        paths = {override.path for override in self._document.overrides}
        place: NodePath = ("streams", position, section)
        overridden = any(place[: len(path)] == path or path[:3] == place for path in paths)
        return SectionState(value, entity_tag(value), shared, overridden)

    def _check_source(self, address: str) -> None:
        """Refuses sources through which the page would reach this machine or services beside the cameras."""
        scheme, separator, _ = address.partition(":")
        if not separator or scheme.lower() not in SOURCE_SCHEMES:
            allowed = ", ".join(f"{scheme}:" for scheme in SOURCE_SCHEMES)
            raise Problem(422, f"source {redact(address)!r} is not allowed here: use one of {allowed}")
        if scheme.lower() in {"webcam", "synthetic"}:
            return
        try:
            host = urlsplit(address).hostname or ""
        except ValueError:
            host = ""
        if not host or not is_allowed_host(host, self._allowed_sources):
            raise Problem(422, f"the host {host!r} is not allowed as a camera: the operator of this server lists hosts "
                               "and networks in web.sources")  # fmt: skip

    async def _apply(self, edits: Sequence[NodeEdit], subject: str) -> None:
        """Checks, applies and stores edits; when the pipeline refuses, nothing has changed."""
        if self._refusal:
            raise Problem(409, self._refusal)
        draft = await asyncio.to_thread(self._document.draft, edits)
        # Where the page itself is served is settled at the start, maybe by an option.
        config = draft.config.model_copy(update={"web": self.config.web})
        changes = await self._await(lambda: self._pipeline.apply(config))
        await asyncio.to_thread(self._document.store, draft)
        log.info("web: %s changed: %s", subject, "; ".join(changes) or "no effect")

    async def _call(self, function: Callable[[], R]) -> R:
        """Runs a function in the pipeline's loop."""

        async def run() -> R:
            return function()

        return await self._await(run)

    async def _await(self, start: Callable[[], Awaitable[R]]) -> R:
        """Awaits a coroutine in the pipeline's loop."""

        async def run() -> R:
            return await start()

        if self._loop.is_closed():
            raise Problem(503, "the monitor is shutting down")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), self._loop))


def _section_key(section: StreamConfig) -> str:
    """The name or address by which a stream is recognised in edited configurations."""
    return section.name or section.source


class _StreamRates:
    """Frames per second of each stream between two readings."""

    def __init__(self) -> None:
        self._readings: dict[str, tuple[float, int, int]] = {}
        self._rates: dict[str, tuple[float, float]] = {}

    def measure(self, stream: str, received: int, analysed: int) -> tuple[float, float]:
        """Returns frames received and analysed per second, over two seconds at least."""
        now = time.monotonic()
        then, received_before, analysed_before = self._readings.setdefault(stream, (now, received, analysed))
        passed = now - then
        if passed >= _RATE_S:
            self._rates[stream] = (
                round(max(0, received - received_before) / passed, 2),
                round(max(0, analysed - analysed_before) / passed, 2),
            )
            self._readings[stream] = (now, received, analysed)
        return self._rates.get(stream, (0.0, 0.0))


def entity_tag(value: Any) -> str:
    """Returns the strong entity tag of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:20]}"'


def check_match(etag: str, if_match: str | None, current: Any) -> None:
    """Raises `Problem` 428 without a tag and 412 for one that is out of date; `*` always matches."""
    if if_match is None:
        raise Problem(428, "the request has no If-Match header: send the ETag of the value that you read, or *")
    tags = [tag.strip() for tag in if_match.split(",")]
    if "*" not in tags and etag not in tags:
        raise Problem(
            412,
            "the value has changed since it was read: read it again and repeat the change",
            headers={"ETag": etag},
            extra={"current": current, "etag": etag},
        )


def is_allowed_host(host: str, allowed: Sequence[str] | None) -> bool:
    """Returns whether a camera's host is in `allowed` (names and networks); without a list any but loopback and
    link-local addresses and their names."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if allowed is None:
        if address is None:
            return host.lower().rstrip(".") not in {"localhost", "ip6-localhost"} and not host.endswith(".localhost")
        mapped = getattr(address, "ipv4_mapped", None) or address
        return not (mapped.is_loopback or mapped.is_link_local or mapped.is_unspecified)
    for entry in allowed:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            if entry.lower() == host.lower():
                return True
            continue
        if address is not None and address in network:
            return True
    return False


def unknown_stream(name: str) -> Problem:
    """Returns the error for a stream that does not exist."""
    return Problem(404, f"there is no stream {name!r}: GET /api/v1/streams lists them")


def redacted_config(config: Config) -> dict[str, Any]:
    """Returns the configuration as plain data with secrets as `***`."""
    raw: dict[str, Any] = config.model_dump(mode="json")
    for stream in raw["streams"]:
        stream["source"] = redact(stream["source"])
    raw["sinks"] = [redact(address) for address in raw["sinks"]]
    if raw.get("web"):
        raw["web"]["tokens"] = {role: "***" if token else None for role, token in raw["web"]["tokens"].items()}
    return raw


def _stream_etag(stream: StreamConfig) -> str:
    return entity_tag(stream.model_dump(mode="json", exclude={"queries", "zones", "lines", "ignore", "counts"}))


_SECTIONS: dict[str, type[BaseModel]] = {
    "queries": QueryConfig,
    "zones": ZoneConfig,
    "lines": LineConfig,
    "ignore": MaskConfig,
    "counts": CountConfig,
}


def _without_defaults(item: Mapping[str, Any], section: str) -> dict[str, Any]:
    """An item of a section as a person would write it: without what is the default anyway. Raises `ConfigError`."""
    try:
        checked = _SECTIONS[section].model_validate(item)
    except ValidationError as error:
        raise ConfigError(validation_sentence(error.errors())) from None
    written: dict[str, Any] = checked.model_dump(mode="json", exclude_defaults=True)
    if section == "queries" and written.get("id") == query_slug(written["text"]):
        del written["id"]
    return written
