"""The event: a CloudEvents 1.0 envelope around versioned `data`. These models are the source of the JSON Schema.

Within a major version changes only add: readers ignore fields that they do not know.
CloudEvents: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_URI = "https://groundstream.dev/schema/event.v1.json"
MAX_SEQUENCE_DIGITS = 20
EPOCH_DIGITS = 16

Nanoseconds = Annotated[int, Field(ge=0, description="UTC, nanoseconds since 1970-01-01")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class EventType(StrEnum):
    """What happened; the last part is the major version of `data`."""

    TRACK_BEGIN = "groundstream.track.begin.v1"
    TRACK_UPDATE = "groundstream.track.update.v1"
    TRACK_END = "groundstream.track.end.v1"
    TRACK_MERGE = "groundstream.track.merge.v1"
    MATCH_BEGIN = "groundstream.match.begin.v1"
    MATCH_END = "groundstream.match.end.v1"
    ZONE_ENTER = "groundstream.zone.enter.v1"
    ZONE_EXIT = "groundstream.zone.exit.v1"
    ZONE_DWELL = "groundstream.zone.dwell.v1"
    LINE_CROSS = "groundstream.line.cross.v1"
    COUNT = "groundstream.count.v1"
    ENRICH = "groundstream.enrich.v1"
    STREAM_ONLINE = "groundstream.stream.online.v1"
    STREAM_OFFLINE = "groundstream.stream.offline.v1"
    COVERAGE = "groundstream.coverage.v1"
    QUERY = "groundstream.query.v1"
    DETECTIONS = "groundstream.detections.v1"
    RULE = "groundstream.rule.v1"
    MEDIA = "groundstream.media.v1"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Clock(_Model):
    """How far the capture time can be trusted, and when the frame passed through."""

    basis: Literal["rtcp_sr", "file_pts", "arrival"]
    uncertainty_ms: float | None = Field(None, ge=0, description="absent: unknown, as in a file without a start time")
    captured_ns: Nanoseconds
    received_ns: Nanoseconds | None = Field(None, description="absent for files")
    emitted_ns: Nanoseconds | None = Field(None, description="absent for files")
    connection: int = Field(0, ge=0, description="rises with each reconnect")


class FrameInfo(_Model):
    index: int = Field(ge=0)
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class Box(_Model):
    """Fractions of the full frame."""

    x1: Fraction
    y1: Fraction
    x2: Fraction
    y2: Fraction


class Mask(_Model):
    """COCO run-length encoding: `size` is (height, width), `counts` the compressed string."""

    encoding: Literal["coco_rle"] = "coco_rle"
    size: tuple[int, int]
    counts: str


class TrackInfo(_Model):
    uid: str = Field(description="ULID, unique for ever")
    number: int = Field(ge=1, description="the tracker's id")
    state: Literal["confirmed", "coasting", "lost", "ended"]
    revision: int = Field(ge=1, description="rises with each event of the track")
    first_seen_ns: Nanoseconds
    last_seen_ns: Nanoseconds
    box: Box
    score: Fraction
    stationary: bool = False
    end_reason: Literal["left_view", "lost", "stream_down", "query_removed", "merged", "shutdown", "crashed"] | None = (
        None
    )
    merged_into: str | None = None
    mask: Mask | None = None


class Match(_Model):
    """One query that the track answers to."""

    query_id: str
    query_rev: int = Field(ge=1)
    text: str
    phrase: str | None = None
    score: Fraction
    threshold: Fraction
    calibrated: bool = False


class ZoneInfo(_Model):
    id: str
    dwell_s: float | None = Field(None, ge=0)


class LineInfo(_Model):
    id: str
    direction: Literal["in", "out"] = Field(description="in: from the left to the right of the line as it is drawn")


class CountInfo(_Model):
    """Occupancy and traffic of a window of time: `entered`/`left` for zones, `in`/`out` for lines.

    A window without an analysed frame has the state "unknown" and no occupancy.
    """

    id: str = Field(description="the zone or line that is counted, or the stream's name for the whole picture")
    query: str | None = None
    from_ns: Nanoseconds
    to_ns: Nanoseconds
    occupancy: int | None = Field(None, ge=0, description="inside at the end of the window; none when unknown")
    occupancy_max: int | None = Field(None, ge=0)
    occupancy_mean: float | None = Field(None, ge=0)
    entered: int = Field(0, ge=0)
    left: int = Field(0, ge=0)
    state: Literal["unknown"] | None = Field(None, description="unknown: no frame of the window was analysed")


class CoverageInfo(_Model):
    """What was seen of a stretch of time: received = analysed + dropped + pending - pending_before, exactly."""

    from_ns: Nanoseconds
    to_ns: Nanoseconds
    state: Literal["seeing", "degraded", "blind"]
    received: int = Field(ge=0)
    analysed: int = Field(ge=0)
    dropped: dict[str, int] = Field(default_factory=dict, description="frames, by reason")
    pending: int = Field(0, ge=0, description="received, not yet analysed or dropped, at the end")
    events_dropped: dict[str, int] = Field(default_factory=dict, description="by reason")


class Span(_Model):
    """A stretch of a text that stands for a mask: characters [start, end)."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)
    phrase: str
    mask: Mask | None = None


class Description(_Model):
    text: str
    spans: list[Span] = Field(default_factory=list)
    model: str


class Media(_Model):
    kind: Literal["snapshot", "crop", "clip"]
    uri: str
    sha256: str
    boxed: bool | None = Field(None, description="present where the box of the track is drawn on the picture")
    captured_ns: Nanoseconds | None = Field(None, description="capture time of the picture")
    begin_ns: Nanoseconds | None = Field(None, description="capture time of the first picture of a clip")
    end_ns: Nanoseconds | None = Field(None, description="capture time at which the last picture of a clip ends")
    box: Box | None = Field(None, description="the track in the full frame at that time")


class QueryInfo(_Model):
    id: str
    rev: int = Field(ge=1)
    text: str
    threshold: Fraction
    change: Literal["added", "changed", "paused", "resumed", "removed"]


class OutageInfo(_Model):
    """Why and since when a stream was or is not seen."""

    cause: str
    since_ns: Nanoseconds
    until_ns: Nanoseconds | None = None


class Detection(_Model):
    box: Box
    score: Fraction
    query: str
    query_id: str | None = Field(None, description="the id of the query")
    query_rev: int | None = Field(None, ge=1, description="the revision of the query")
    track: int | None = None
    uid: str | None = Field(None, description="the track's public id")
    zones: list[str] | None = Field(None, description="ids of the zones that the track is in")


class Producer(_Model):
    version: str
    detector: str
    tracker: str
    config_hash: str


class RuleInfo(_Model):
    """Finding of a declared rule, or of one that the application added."""

    id: str = Field(description="the rule's id")
    text: str | None = Field(None, description="the finding in words")
    value: float | None = Field(None, description="the measured value, in the rule's own unit")
    state: Literal["begin", "end"] | None = Field(None, description="for rules that hold for a time")
    other: int | None = Field(None, ge=1, description="number of the other track that the finding is about")


class EventData(_Model):
    stream: str
    run: int = Field(
        ge=0, description="live: rises with each start; recordings: the same for the same work, so that ids repeat"
    )
    clock: Clock
    frame: FrameInfo | None = Field(None, description="absent before the first frame of a stream")
    track: TrackInfo | None = None
    matches: list[Match] | None = None
    zone: ZoneInfo | None = None
    line: LineInfo | None = None
    count: CountInfo | None = None
    coverage: CoverageInfo | None = None
    description: Description | None = None
    cause: str | None = Field(default=None, description="the id of the event that this one explains")
    media: list[Media] | None = None
    query: QueryInfo | None = None
    outage: OutageInfo | None = None
    detections: list[Detection] | None = None
    rule: RuleInfo | None = None
    producer: Producer


class Event(_Model):
    """One thing that happened. `id` is fixed before the event is stored anywhere, so a re-send carries the same one."""

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1, description="<run>.<stream>.<sequence>")
    source: str = Field(min_length=1, description="/streams/<stream> or /files/<name>")
    type: EventType
    subject: str = Field(description="the track's ULID, or the stream for stream-wide events")
    time: str = Field(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$", description="capture time, RFC 3339 UTC, microseconds"
    )
    dataschema: str = SCHEMA_URI
    datacontenttype: Literal["application/json"] = "application/json"
    partitionkey: str = Field(description="the stream: order holds per stream")
    sequence: str = Field(pattern=r"^\d{20}$", description="per stream and run, +1 each event; a gap means loss")
    epoch: str | None = Field(
        None, pattern=r"^\d{16}$", description="the run: events of one source are ordered by (epoch, sequence)"
    )
    traceparent: str | None = Field(
        None,
        pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        description="the trace of the frame, where it is traced (W3C Trace Context)",
    )
    data: EventData

    def to_json(self) -> bytes:
        """The event as one line of JSON, UTF-8, without fields that are absent.

        Written once: every sink gets the same bytes, and what was read from JSON keeps fields that we do not know.
        """
        line: bytes | None = self.__dict__.get("_line")
        if line is None:
            line = self.__dict__["_line"] = self.model_dump_json(exclude_none=True).encode()
        return line

    @classmethod
    def from_json(cls, raw: bytes | str) -> Self:
        """Raises `pydantic.ValidationError` when it is not an event."""
        event = cls.model_validate_json(raw)
        line = raw.encode() if isinstance(raw, str) else bytes(raw)
        if b"\n" not in line:
            event.__dict__["_line"] = line
        return event

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("_line", None)
        return copy

    @property
    def kind(self) -> str:
        """The type without its common words: `track.begin`, `zone.enter`, `coverage`."""
        return self.type.value.removeprefix("groundstream.").rpartition(".")[0]

    @property
    def queries(self) -> list[str]:
        """The words that this event is about, each once, in their order."""
        data = self.data
        words = [match.text for match in data.matches or ()]
        words += [detection.query for detection in data.detections or ()]
        if data.query is not None:
            words.append(data.query.text)
        if data.count is not None and data.count.query is not None:
            words.append(data.count.query)
        return list(dict.fromkeys(words))


def rfc3339(time_ns: int) -> str:
    """UTC nanoseconds as RFC 3339 with microseconds, cut, not rounded, so that order is kept."""
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC) + timedelta(microseconds=time_ns // 1000 % 1_000_000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}Z"


def event_id(run: int, stream: str, sequence: int) -> str:
    return f"{run}.{stream}.{sequence}"


def format_sequence(sequence: int) -> str:
    return f"{sequence:0{MAX_SEQUENCE_DIGITS}d}"


def format_epoch(run: int) -> str:
    return f"{run:0{EPOCH_DIGITS}d}"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (Draft 2020-12) of one event, generated from the models."""
    schema = Event.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_URI, **schema}
