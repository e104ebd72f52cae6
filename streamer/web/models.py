"""Bodies of the HTTP API; every number, text and list has a bound."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamer.rules.zones import SETTLE_S

Fraction = Annotated[float, Field(ge=0, le=1)]
PLAIN_TEXT = r"^[^\x00-\x1f\x7f]*$"
"""Text without control characters."""
PLAIN_ID = r"^[^/\x00-\x1f\x7f]*$"
"""Text that can be part of a path."""
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=PLAIN_TEXT)]
Words = Annotated[str, Field(min_length=1, max_length=500, pattern=PLAIN_TEXT)]
Point = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Settle = Annotated[float, Field(ge=0, le=3600, description="Seconds on the other side after which a change counts.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HealthAnswer(_Body):
    status: Literal["ok", "not ready"]


class LoginBody(_Body):
    """A token, or the one-time code of a login link."""

    token: str | None = Field(None, min_length=1, max_length=256)
    code: str | None = Field(None, min_length=1, max_length=256)


class SessionAnswer(_Body):
    role: Literal["viewer", "operator"]


class ClockStatus(_Body):
    """The basis of capture times."""

    basis: str
    uncertainty_ms: float | None


class StreamStatus(_Body):
    """State and counts of one stream; the address of its source is redacted."""

    name: str
    live: bool
    state: str = Field(description="connecting, live, stalled, waiting, closed or paused.")
    cause: str = Field(description="Why it is not live, one sentence; empty while all is well.")
    source: str
    width: int | None
    height: int | None
    received: Count
    analysed: Count
    dropped: dict[str, int]
    fps_received: float
    fps_analysed: float
    age_ms: float | None
    tracks: Count
    clock: ClockStatus | None
    last_frame: str | None = Field(description="Capture time of the newest frame.")
    video: str | None = Field(None, description="Address of the annotated video of a finished job.")
    seconds: float | None = Field(None, description="Length of a finished recording.")


class StreamList(_Body):
    items: list[StreamStatus]


class SinkState(_Body):
    """State and backlog of one sink; its address is redacted."""

    name: str
    state: Literal["up", "down"]
    since: str
    error: str
    delivered: Count
    dead: Count
    failures: Count
    backlog: Count


class SinkList(_Body):
    items: list[SinkState]


class QueryBody(_Body):
    """Words to detect."""

    text: Words
    id: str = Field("", max_length=200, pattern=PLAIN_ID)
    threshold: Fraction | None = None
    unless: list[Words] = Field(default=[], max_length=20)
    paused: bool = False


class QueryPatch(_Body):
    """Changes of a query; absent fields stay."""

    text: Words | None = None
    threshold: Fraction | None = None
    unless: list[Words] | None = Field(None, max_length=20)
    paused: bool | None = None


class QueryStatus(QueryBody):
    """A query as it is in force."""

    number: int = Field(0, description="Position of its colour; never given to another query of the stream.")
    revision: int = 1
    effective_threshold: float = 0.0
    tracks: int = Field(0, description="Open tracks that match it now.")
    histogram: list[int] = Field(default=[], description="Best scores of the last hour's tracks, 20 parts of 0..1.")
    suggested_threshold: float | None = None


class QueryList(_Body):
    items: list[QueryStatus]
    shared: bool = Field(description="The list is the one for all streams: a change gives this stream its own.")
    overridden: bool = Field(description="The list was changed on the page and not written to the file.")


class ZoneBody(_Body):
    """A polygon in fractions of the frame."""

    id: Name
    polygon: list[Point] = Field(min_length=3, max_length=200)
    dwell_s: list[Annotated[float, Field(gt=0, le=86_400)]] = Field(default=[], max_length=20)
    settle_s: Settle = SETTLE_S
    holes: list[Annotated[list[Point], Field(min_length=3, max_length=200)]] = Field(default=[], max_length=20)
    anchor: Name = "feet"


class MaskBody(_Body):
    """A region in which detections are ignored, in fractions of the frame."""

    id: Name = "mask"
    polygon: list[Point] = Field(min_length=3, max_length=200)
    holes: list[Annotated[list[Point], Field(min_length=3, max_length=200)]] = Field(default=[], max_length=20)
    anchor: Name = "feet"


class LineBody(_Body):
    """A line in fractions of the frame; `in` is from its left to its right."""

    id: Name
    points: list[Point] = Field(min_length=2, max_length=2)
    settle_s: Settle = SETTLE_S
    anchor: Name = "feet"


class CountBody(_Body):
    """A windowed count of a zone, a line or the whole picture."""

    of: Name | None = None
    query: Name | None = None
    window_s: float = Field(60.0, gt=0, le=86_400)


class TryPlaceBody(_Body):
    """A zone or a line to be tried on the tracks of the last hour."""

    polygon: list[Point] | None = Field(None, min_length=3, max_length=200)
    points: list[Point] | None = Field(None, min_length=2, max_length=2)


class TryPlaceAnswer(_Body):
    tracks: Count


class StreamBody(_Body):
    """A camera to add."""

    source: str = Field(min_length=1, max_length=2000)
    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w. -]+$")
    queries: list[QueryBody] | None = Field(None, max_length=100)
    fps: float | None = Field(None, gt=0, le=1000, description="Most frames a second that are analysed.")
    transport: Literal["tcp", "udp"] = "tcp"


class StreamPatch(_Body):
    """Changes of a camera; absent fields stay."""

    source: str | None = Field(None, min_length=1, max_length=2000)
    fps: float | None = Field(None, gt=0, le=1000)
    transport: Literal["tcp", "udp"] | None = None
    paused: bool | None = None


class SinkBody(_Body):
    """A sink to add, by its address."""

    address: str = Field(min_length=1, max_length=2000)


class PreviewBody(_Body):
    """Words to try on the recent past."""

    text: Words
    unless: list[Words] = Field(default=[], max_length=20)
    seconds: float = Field(60.0, ge=1, le=600)


class PreviewTicket(_Body):
    id: str
    frames: Count


class EventPage(_Body):
    """A page of a list of events in order of capture time."""

    items: list[dict[str, Any]]
    next: str | None = Field(description="The value of `after` for the following page, null at the end.")


class BucketCount(_Body):
    time: str
    kind: str
    direction: str | None
    events: Count
    tracks: Count


class BucketList(_Body):
    bucket_s: int
    items: list[BucketCount]


class TrackAnswer(_Body):
    """Everything stored about one track."""

    uid: str
    stream: str
    number: int
    first_seen: str
    last_seen: str
    queries: list[str]
    path: list[Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(description="Feet, fractions.")
    descriptions: list[str]
    media: list[dict[str, Any]]
    events: list[dict[str, Any]]


class ConfigAnswer(_Body):
    """The effective configuration without secrets."""

    config: dict[str, Any]
    file: str | None = Field(description="Name of the configuration file, null without one.")
    writable: bool
    reason: str = Field(description="Why changes are not written to the file; empty when they are.")
    overridden: list[str] = Field(description="Places whose values come from the page instead of the file.")
    yaml: str = Field(description="The effective configuration as YAML to copy, empty without overrides.")


class ClusterNode(_Body):
    """A node that shares cameras with others."""

    name: str
    state: str = Field(description="ready, joining, draining, drained, behind or silent.")
    cameras: int
    capacity: int | None
    revision: int = Field(description="Of the configuration that the node uses.")
    renewed_s: float = Field(description="Seconds since its last renewal.")
    page: str = Field(description="Address of its page; empty where other machines do not reach one.")


class ClusterCamera(_Body):
    """A camera and who watches it."""

    name: str
    holder: str | None = Field(description="The node that watches it, null for none.")
    epoch: int = Field(description="The run of its events.")
    moving_to: str | None
    page: str = Field(description="Address of the camera on the page of its holder; empty where it has none.")


class ClusterAnswer(_Body):
    """All nodes and cameras; `node` is the one that answers."""

    node: str
    revision: int
    nodes: list[ClusterNode]
    cameras: list[ClusterCamera]


class ServerInfo(_Body):
    """What this server offers to the page."""

    version: str
    role: Literal["viewer", "operator"]
    live: bool = Field(description="Streams are live, not the results of a finished job.")
    editable: bool
    memory_s: float
    node: str | None = Field(None, description="Name of this node where several share the cameras.")
