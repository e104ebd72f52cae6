"""The configuration: what to watch, what to look for, where to send it. The same models make its JSON Schema.

A wrong key names itself, its place and what is allowed. `${NAME}` in any text is replaced by that environment
variable, so that passwords need not stand in the file.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from detectors.registry import default_detector
from sinks.address import redact
from sinks.tls import TlsOptions
from streamer.analysis.queries import query_slug
from streamer.errors import ConfigError
from streamer.object_store import parse_s3
from streamer.rules.ground import GroundPlane
from streamer.rules.rule import Anchor
from streamer.rules.zones import SETTLE_S
from streamer.yaml_reader import Place, read_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Point = tuple[Fraction, Fraction]
Corners = Annotated[list[Point], Field(description="Corners in their order, x and y as fractions of the frame.")]
Settle = Annotated[
    float, Field(ge=0, le=60, description="Seconds for which a track must stay on its new side of the edge.")
]
AnchorPoint = Annotated[
    Anchor,
    Field(description="Point of a box that decides: middle of the lower edge, centre, or any of the corners."),
]
_PLACES = {"polygon", "points", "holes"}
_SECTION_EXPECTED = ("model_type", "model_attributes_type", "dict_type")
_BY_NAME = {"queries", "detector", "tracker", "privacy"}
"""Sections for which a text may stand."""
_BY_SWITCH = {"media", "clips", "web"}
"""Sections for which `true` may stand."""


class _ConfigSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class QueryConfig(_ConfigSection):
    """Words to look for."""

    text: str = Field(min_length=1)
    id: str = Field("", description="how events call the query; made from the text when absent")
    threshold: Fraction | None = Field(None, description="the least score that counts; the detector's own when absent")
    unless: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="what answers one of these better is no match: a poster of a person"
    )
    paused: bool = Field(False, description="Do not detect this query for now; it keeps its place and its counts.")


class ZoneConfig(_ConfigSection):
    id: str = Field(min_length=1)
    polygon: Corners
    holes: list[Corners] = Field(default=[], description="Polygons inside the zone that do not belong to it.")
    dwell_s: list[Annotated[float, Field(gt=0)]] = Field(
        default=[], description="Seconds inside the zone after each of which a zone.dwell event is sent."
    )
    settle_s: Settle = SETTLE_S
    anchor: AnchorPoint = "feet"


class MaskConfig(_ConfigSection):
    """Region of the frame in which detections are ignored."""

    id: str = Field("mask", min_length=1, description="Name of the mask in errors.")
    polygon: Corners
    holes: list[Corners] = Field(default=[], description="Polygons inside the mask in which detections count.")
    anchor: AnchorPoint = "feet"


class LineConfig(_ConfigSection):
    id: str = Field(min_length=1)
    points: list[Point] = Field(
        description="Two ends; `in` is from the left to the right of the line as seen from its first end."
    )
    settle_s: Settle = SETTLE_S
    anchor: AnchorPoint = "feet"


class CountConfig(_ConfigSection):
    of: str | None = Field(None, description="Id of the zone or line to count; the whole frame by default.")
    query: str | None = Field(None, description="Id of the only query to count; all tracks by default.")
    window_s: float = Field(60.0, gt=0, description="Seconds of one window, at whose end a count event is sent.")


class GroundPointConfig(_ConfigSection):
    image: Point = Field(description="The point in fractions of the frame.")
    ground: tuple[float, float] = Field(description="The same point on the ground, in metres from an origin of choice.")


class CalibrationConfig(_ConfigSection):
    """Ground plane of a camera, from which speeds and distances in metres follow."""

    points: list[GroundPointConfig] = Field(
        min_length=4, description="At least four points on flat ground, no three of them in a line."
    )

    def plane(self) -> GroundPlane:
        """The plane. Raises `ConfigError`."""
        return GroundPlane([point.image for point in self.points], [point.ground for point in self.points])


class _RuleConfig(_ConfigSection):
    id: str = Field(min_length=1, description="Name of the rule in its events.")
    query: str = Field(min_length=1, description="Id of the query whose tracks the rule is about.")
    zone: str | None = Field(None, description="Id of the zone in which it holds; the whole frame by default.")
    for_s: float = Field(1.0, ge=0, le=86_400, description="Seconds for which it must hold before it is reported.")


class SpeedRuleConfig(_RuleConfig):
    """Tracks of a query that are faster than a limit."""

    kind: Literal["speed"]
    above_kmh: float = Field(gt=0, description="Limit, kilometres an hour; needs a calibration.")


class DistanceRuleConfig(_RuleConfig):
    """Tracks of two queries, or of the same one, that are closer than a limit."""

    kind: Literal["distance"]
    other: str | None = Field(None, description="Id of the other query; the same query by default.")
    below_m: float = Field(gt=0, description="Limit, metres; needs a calibration.")


class WithoutRuleConfig(_RuleConfig):
    """Tracks of a query with nothing of another query upon them, such as persons without a helmet."""

    kind: Literal["without"]
    without: str = Field(min_length=1, description="Id of the query of what is missing.")


class LeftRuleConfig(_RuleConfig):
    """Objects of a query that a person was near and then left, such as bags."""

    kind: Literal["left"]
    thing: str = Field(min_length=1, description="Id of the query of the objects; `query` is of those who leave them.")
    away_m: float = Field(2.0, gt=0, description="Metres from which one is away, with a calibration.")
    away: float = Field(1.0, gt=0, description="Heights of the person's box from which one is away, without one.")


_RULES = (SpeedRuleConfig, DistanceRuleConfig, WithoutRuleConfig, LeftRuleConfig)
RuleConfig = Annotated[
    SpeedRuleConfig | DistanceRuleConfig | WithoutRuleConfig | LeftRuleConfig, Field(discriminator="kind")
]


class SampleConfig(_ConfigSection):
    """Which frames the detector looks at."""

    every: int = Field(1, ge=1, description="every n-th frame")
    fps: float | None = Field(None, gt=0, description="at most so many frames per second")


class TlsConfig(_ConfigSection):
    """Trust at https and rtsps addresses: whom this client trusts, and how it proves who it is."""

    cafile: str | None = Field(None, description="PEM certificates of the authorities to trust instead of the system's")
    certfile: str | None = Field(None, description="PEM certificate that this client shows, with its chain")
    keyfile: str | None = Field(None, description="PEM private key of `certfile`; absent when `certfile` holds it, too")
    key_password: str | None = Field(None, repr=False, description="Password of an encrypted `keyfile`.")
    insecure: bool = Field(False, description="Trust every certificate. Passwords may then go to an impostor.")

    @model_validator(mode="after")
    def _fits_together(self) -> TlsConfig:
        self.options()
        return self

    def options(self) -> TlsOptions:
        """The same settings for a source. Raises `TlsOptionsError`."""
        return TlsOptions(self.cafile, self.certfile, self.keyfile, self.key_password, self.insecure)


class ClockConfig(_ConfigSection):
    """Times of a camera, as far as they are known in advance."""

    latency_s: float = Field(
        1.0, gt=0, le=120, description="Longest normal time from capture to arrival: camera, encoder and network."
    )
    synchronised: bool = Field(
        False, description="The camera's clock is kept right by NTP or PTP: its sender reports hold to within 50 ms."
    )


class StreamConfig(_ConfigSection):
    """One camera or file."""

    source: str = Field(min_length=1, description="path, glob, rtsp://, http(s)://, webcam:0, synthetic:street?seed=7")
    name: str | None = Field(None, min_length=1, description="made from the source when absent")
    queries: list[QueryConfig] | None = Field(None, description="instead of the queries for all streams")
    zones: list[ZoneConfig] = []
    lines: list[LineConfig] = []
    counts: list[CountConfig] = []
    calibration: CalibrationConfig | None = Field(None, description="Ground plane; rules in metres need it.")
    rules: list[RuleConfig] = Field(default=[], description="Conditions on tracks whose begin and end are events.")
    ignore: list[MaskConfig] = Field(default=[], description="Regions of the frame in which detections are ignored.")
    sample: SampleConfig = SampleConfig()
    transport: Literal["tcp", "udp"] = Field(
        "tcp", description="How RTSP carries its packets; the other way is taken where the camera refuses this one."
    )
    live: bool | None = Field(
        None, description="Whether an http(s) address is a camera or a recording; the server is asked when absent."
    )
    track: int | None = Field(
        None, ge=0, description="Number of the video track, from 0; the default or largest one when absent."
    )
    decode: Literal["auto", "cpu", "cuda", "vaapi", "videotoolbox"] = Field(
        "cpu",
        description="Device that decodes; auto takes the first that works. The CPU stands in where none does.",
    )
    stall_s: float | None = Field(
        None,
        gt=0,
        description="Seconds without a new picture that make an outage; after the camera's pace when absent.",
    )
    poll_s: float | None = Field(None, gt=0, description="Seconds between two requests of a snapshot address.")
    clock: ClockConfig = ClockConfig()
    tls: TlsConfig = TlsConfig()
    paused: bool = Field(False, description="Do not watch this stream for now; a camera is disconnected.")

    _texts = field_validator("queries", mode="before")(lambda value: _queries_from_texts(value))

    @model_validator(mode="after")
    def _tls_has_a_use(self) -> StreamConfig:
        scheme = self.source.partition("://")[0].lower()
        if self.tls != TlsConfig() and scheme not in ("https", "rtsps"):
            raise ValueError("tls is given, but the source is no https:// or rtsps:// address: write its scheme with s")
        return self

    @model_validator(mode="after")
    def _places_exist(self) -> StreamConfig:
        names = [zone.id for zone in self.zones] + [line.id for line in self.lines]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} names two zones or lines: give each its own id")
        ids = [rule.id for rule in self.rules]
        zones = [zone.id for zone in self.zones]
        for rule in self.rules:
            if ids.count(rule.id) > 1:
                raise ValueError(f"{rule.id!r} names two rules: give each its own id")
            if rule.zone is not None and rule.zone not in zones:
                raise ValueError(
                    f"the rule {rule.id!r} is for the zone {rule.zone!r}, but there are only "
                    f"{', '.join(zones) or 'no zones'}"
                )
            if isinstance(rule, SpeedRuleConfig | DistanceRuleConfig) and self.calibration is None:
                raise ValueError(
                    f"the rule {rule.id!r} is in metres, which needs `calibration`: give four points of the ground"
                )
        if self.calibration is not None:
            self.calibration.plane()
        for count in self.counts:
            if count.of is not None and count.of not in names:
                there = f"they are {', '.join(map(repr, names))}" if names else "the stream has none"
                raise ValueError(f"counts {count.of!r}, which is no zone or line: {there}")
        return self


class DetectorConfig(_ConfigSection):
    """The model that finds the queries. Further keys are options of that detector: `dtype`, `short_side`, ..."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field(
        "",
        description="Detector name: glip-tiny, glip-mini, coco-nano, motion, scripted:FILE.json, ...; by default "
        "motion for the query 'anything that moves', else glip-tiny.",
    )
    weights: Path | None = Field(None, description="Checkpoint or model folder used instead of the cached one.")
    tuned: Path | None = Field(None, description="File of prompt features made by `groundstream tune --mode prompt`.")
    device: str | None = Field(None, description="Compute device: cpu, cuda or cuda:1; the first GPU by default.")
    threshold: Fraction | None = Field(
        None, description="Least score (0..1) of a detection; the detector's own by default."
    )
    masks: str | None = Field(None, description="SAM model that adds masks to boxes, such as facebook/sam-vit-base.")
    gate: Literal["motion", "coco-nano"] | None = Field(
        None, description="Cheap detector that watches every frame, so that this one analyses only those with changes."
    )
    gate_moving_every: int = Field(
        4, ge=1, description="With `gate`: frames from one analysis to the next while something moves."
    )
    gate_still_every: int = Field(
        100, ge=1, description="With `gate`: frames from one analysis to the next while nothing moves."
    )


class TrackerConfig(_ConfigSection):
    """The tracker and how it recognises objects again."""

    name: str = Field("default", description="Tracker name: default, bytetrack, botsort, ocsort or sort.")
    reid: str | None = Field(
        None,
        description="Embeddings by which objects are recognised again: `detector`, from the detector's own features, "
        "or MODULE:FUNCTION, which takes a BGR image and boxes (N, 4) in pixels and returns (N, D) numbers.",
    )
    reid_s: float | None = Field(
        None, ge=0, description="Seconds for which lost tracks are recognised by their appearance; 30 by default."
    )

    @model_serializer(mode="wrap")
    def _name_alone(self, serialise: SerializerFunctionWrapHandler) -> object:
        """The name alone where nothing else is given, as it is written in a file."""
        given = serialise(self)
        return self.name if self.reid is None and self.reid_s is None else given

    @field_validator("reid")
    @classmethod
    def _reid_has_a_source(cls, value: str | None) -> str | None:
        module, colon, function = (value or "").partition(":")
        if value is None or value == "detector" or (colon and module and function.isidentifier()):
            return value
        raise ValueError(f"{value!r} gives no embeddings: write detector, or MODULE:FUNCTION")


class BatchConfig(_ConfigSection):
    size: int = Field(8, ge=1, le=1024, description="frames that the detector sees at once")
    wait_ms: float = Field(10.0, ge=0, le=10_000, description="how long to wait for more of them")


class SpoolConfig(_ConfigSection):
    """The file that keeps events until every sink has them."""

    path: Path | None = Field(None, description="File of the spool; in the user's state folder when absent.")
    fsync_each: bool = Field(False, description="Bring every event to the disk at once: survives a power cut, slower.")
    when_full: Literal["block", "drop_oldest"] = Field(
        "block",
        description="What a full spool does: hold frames back, or drop the oldest updates (never begins and ends).",
    )
    max_bytes: int = Field(1 << 30, ge=1 << 16, description="Bytes of events that may wait for the sinks.")


class EnrichConfig(_ConfigSection):
    """Descriptions and masks beside the frame path, within a budget."""

    model: str = Field(description="glamm-fullscope, another GLaMM, a folder of one, or `sam` for masks alone")
    clip: Path | None = Field(None, description="CLIP's folder, when it is not in the cache")
    device: str | None = None
    tracks: bool = Field(True, description="describe tracks that begin")
    zones: list[str] | None = Field(None, description="and what enters these zones; an empty list: all")
    every_s: float | None = Field(None, gt=0, description="and the scene, every so often")
    per_minute: int = Field(30, ge=1, description="calls of the model in any minute")
    per_stream_minute: int = Field(10, ge=1)


class ClipsConfig(_ConfigSection):
    """Length of the clips of events."""

    before_s: float = Field(5.0, ge=0, le=60, description="Seconds of a clip before its event.")
    after_s: float = Field(5.0, ge=0, le=60, description="Seconds of a clip after its event.")


class MediaConfig(_ConfigSection):
    """Pictures and clips of events: of a track that matches a query, enters a zone or crosses a line."""

    folder: Path | str | None = Field(
        None,
        description="Folder of the pictures, or `s3://BUCKET/FOLDER` (extra s3); `media` in the user's state folder if "
        "absent.",
    )
    snapshots: Literal["full", "crop", "none"] = Field(
        "full",
        description="What is stored: the full frame and the part around the track, that part alone, or no picture. "
        "true is full, false is none.",
    )
    clips: ClipsConfig | None = Field(
        None,
        description="Clips of the same events, without encoding where the source allows it; false or absent: none, "
        "true: from 5 seconds before to 5 seconds after.",
    )
    max_age_days: float = Field(7.0, gt=0, le=3650, description="Days after which a picture or clip is removed.")
    max_bytes: int = Field(
        5 << 30, ge=1 << 20, description="Bytes of all pictures and clips in the folder; the oldest are removed first."
    )

    @field_validator("folder", mode="before")
    @classmethod
    def _check_folder(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lower().startswith("s3:"):
            parse_s3(value)
            return value
        if "://" in value:
            raise ValueError("expected a folder or s3://BUCKET/FOLDER")
        return Path(value)

    @field_validator("clips", mode="before")
    @classmethod
    def _clips_by_switch(cls, value: object) -> object:
        return ({} if value else None) if isinstance(value, bool) else value

    @field_validator("snapshots", mode="before")
    @classmethod
    def _snapshots_by_switch(cls, value: object) -> object:
        return ("full" if value else "none") if isinstance(value, bool) else value


class PrivacyConfig(_ConfigSection):
    """What pictures show outside the frame path: in the page, snapshots, clips, videos and exports."""

    pictures: Literal["all", "blur", "none"] = Field(
        "all",
        description="all: as they came. blur: the boxes of the named queries are blurred, and the whole frame where "
        "they were not looked for. none: no picture is shown or stored.",
    )
    blur: list[str] = Field(default=[], max_length=100, description="Ids or texts of the queries to blur.")

    @model_validator(mode="after")
    def _check_names(self) -> PrivacyConfig:
        if self.pictures == "blur" and not self.blur:
            raise ValueError("pictures: blur needs names: give blur: [a person], or pictures: none")
        if self.pictures != "blur" and self.blur:
            raise ValueError(f"blur has no effect with pictures: {self.pictures}: write pictures: blur")
        return self


class WebTokens(_ConfigSection):
    """Access tokens of the page and the HTTP API, best written as `${NAME}`."""

    viewer: str | None = Field(None, min_length=16, max_length=256, description="The token that may read everything.")
    operator: str | None = Field(
        None, min_length=16, max_length=256, description="The token that may also change cameras, queries and sinks."
    )


LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


class WebConfig(_ConfigSection):
    """The page and the HTTP API of a running `monitor`."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 means every interface.")
    port: int = Field(8090, ge=0, le=65535, description="Port to listen on; 0 chooses a free one.")
    tokens: WebTokens = Field(WebTokens(), description="Access tokens; missing ones are generated at the first start.")
    origins: list[str] = Field(
        default=[], description="Further origins, such as https://example.org, whose pages may use the API."
    )
    trusted_proxies: list[IPv4Network | IPv6Network] = Field(
        default=[], description="Networks of reverse proxies whose X-Forwarded-* headers are believed."
    )
    root_path: str = Field(
        "", pattern=r"^(/[\w.~-]+)*$", description="Path under which a reverse proxy serves the page, such as /video."
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/?#\s]+(/[^?#\s]*)?$",
        description="Address of the page for other nodes that share the cameras; made of host and port when absent, "
        "unless host is a loopback address.",
    )
    certificate: Path | None = Field(None, description="A PEM file with the TLS certificate chain of the server.")
    key: Path | None = Field(None, description="A PEM file with the private key of the TLS certificate.")
    sources: list[str] | None = Field(
        None,
        description="Hosts and networks of cameras that operators may add through the page; any but loopback and "
        "link-local addresses when absent.",
    )
    memory_s: float = Field(
        60.0, ge=0, le=600, description="Seconds of pictures in memory for trying queries on the past; 0 keeps none."
    )
    keep_days: float = Field(30.0, gt=0, le=3650, description="Days after which the page forgets an event.")

    @model_validator(mode="after")
    def _check_certificate(self) -> WebConfig:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both files or neither")
        return self

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not re.fullmatch(r"https?://[^/?#\s*]+", origin):
                raise ValueError(f"{origin!r} is not an origin: write scheme and host, such as https://example.org")
        return value

    def page_address(self) -> str:
        """The address of the page for other machines, empty where they do not reach it."""
        if self.public_url is not None:
            return f"{self.public_url.rstrip('/')}/"
        if self.host in LOOPBACK_HOSTS or not self.port:
            return ""
        host = socket.getfqdn() if self.host in ("0.0.0.0", "::") else self.host
        host = f"[{host}]" if ":" in host else host
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{host}:{self.port}{self.root_path}/"


class Config(_ConfigSection):
    """A groundstream configuration."""

    streams: list[StreamConfig] = Field(min_length=1)
    queries: list[QueryConfig] = Field(default=[], description="for every stream that has none of its own")
    detector: DetectorConfig = DetectorConfig()
    tracker: TrackerConfig = TrackerConfig()
    stationary_s: float | None = Field(
        None,
        ge=0,
        description="Longest time in seconds for which a stationary track that is not seen keeps its identity, also "
        "through outages; 300 in the default tracker.",
    )
    batch: BatchConfig = BatchConfig()
    sinks: list[str] = Field(
        default=["stdout:"], description="stdout:, jsonl:PATH, sqlite:PATH, kafka://..., https://..."
    )
    detections: bool = Field(
        False,
        description="Publish an event with the detections of every analysed frame; sinks with format=nv turn it on.",
    )
    spool: SpoolConfig = SpoolConfig()
    close_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Seconds that closing may take altogether; undelivered events stay.",
    )
    enrich: EnrichConfig | None = None
    media: MediaConfig | None = Field(
        None, description="Pictures of events; true uses the defaults, absent or false stores none."
    )
    privacy: PrivacyConfig = Field(
        PrivacyConfig(), description="What pictures show; `none` for no pictures at all, `all` for everything."
    )
    metrics_port: int | None = Field(None, ge=1, le=65535, description="serve Prometheus metrics here")
    metrics_host: str = Field("127.0.0.1", description="0.0.0.0 lets other machines read them")
    web: WebConfig | None = Field(None, description="The page and the HTTP API; true uses the defaults, false is off.")

    _texts = field_validator("queries", mode="before")(lambda value: _queries_from_texts(value))

    @field_validator("detector", "tracker", mode="before")
    @classmethod
    def _part_by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("privacy", mode="before")
    @classmethod
    def _privacy_by_word(cls, value: object) -> object:
        return {"pictures": value} if isinstance(value, str) else value

    @field_validator("web", "media", mode="before")
    @classmethod
    def _section_by_switch(cls, value: object) -> object:
        return ({} if value else None) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _something_to_look_for(self) -> Config:
        for position, stream in enumerate(self.streams):
            if not (stream.queries if stream.queries is not None else self.queries):
                raise ValueError(f"streams[{position}] has nothing to look for: give it or the whole file queries")
        return self

    @model_validator(mode="after")
    def _choose_detector(self) -> Config:
        if not self.detector.name:
            queries = [query.text for query in self.queries]
            queries += [query.text for stream in self.streams for query in stream.queries or ()]
            named = self.detector.model_copy(update={"name": default_detector(queries)})
            object.__setattr__(self, "detector", named)
        return self

    @model_validator(mode="after")
    def _detector_gives_embeddings(self) -> Config:
        if self.tracker.reid == "detector":
            embedding = DetectorConfig.model_validate({**self.detector.model_dump(), "embed": True})
            object.__setattr__(self, "detector", embedding)
        return self

    @model_validator(mode="after")
    def _counted_queries_exist(self) -> Config:
        for position, stream in enumerate(self.streams):
            queries = self.queries if stream.queries is None else stream.queries
            ids = [query.id or query_slug(query.text) for query in queries]
            for rule in stream.rules:
                named = [rule.query, *(getattr(rule, key, None) for key in ("other", "without", "thing"))]
                if missing := [query for query in named if query is not None and query not in ids]:
                    raise ValueError(
                        f"streams[{position}]: the rule {rule.id!r} names the query {missing[0]!r}, but its queries' "
                        f"ids are {', '.join(ids)}: give one of these"
                    )
            for count in stream.counts:
                if count.query is not None and count.query not in ids:
                    raise ValueError(
                        f"streams[{position}] counts the query {count.query!r}, but its queries' ids are "
                        f"{', '.join(ids)}: give one of these"
                    )
        return self


def load_config(path: Path) -> Config:
    """The configuration in a YAML file. Raises `ConfigError` with one line per mistake."""
    return read_config(read_config_text(path), str(path))


def read_config_text(path: Path) -> str:
    """The text of a configuration file. Raises `ConfigError`."""
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}; give the path of a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file: a configuration is YAML") from error


def read_config(text: str, origin: str) -> Config:
    """The configuration in a YAML text; `origin` names it in errors. Raises `ConfigError` with one line per mistake."""
    raw, spellings = read_yaml(text, origin)
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin} holds {_kind(raw)}, not a configuration: it begins with `streams:`")
    return parse_config(_filled(raw, origin), origin, spellings)


def parse_config(
    raw: Mapping[str, Any], origin: str = "configuration", spellings: Mapping[Place, str] | None = None
) -> Config:
    """The configuration in a mapping; `origin` names it in errors, `spellings` are those of `read_yaml`. Raises
    `ConfigError`."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        sentences = [_sentence(origin, mistake, spellings or {}) for mistake in error.errors()]
        raise ConfigError("\n".join(sentences)) from error


def parse_detector(raw: Mapping[str, Any], queries: Sequence[str], origin: str = "command line") -> DetectorConfig:
    """The detector section of a configuration that has no streams. Raises `ConfigError`."""
    name = raw.get("name") or default_detector(queries)
    try:
        return DetectorConfig.model_validate({**raw, "name": name})
    except ValidationError as error:
        mistakes = [{**mistake, "loc": ("detector", *mistake["loc"])} for mistake in error.errors()]
        raise ConfigError("\n".join(_sentence(origin, mistake) for mistake in mistakes)) from error


def config_schema() -> dict[str, Any]:
    """The JSON Schema (Draft 2020-12) of the configuration file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def _queries_from_texts(value: object) -> object:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        return [{"text": item} if isinstance(item, str) else item for item in value]
    return value


def _filled(value: Any, origin: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, origin) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, origin) for item in value]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in os.environ:
            raise ConfigError(f"{origin} asks for ${{{name}}}, but there is no environment variable {name}: set it")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def _sentence(origin: str, mistake: Mapping[str, Any], spellings: Mapping[Place, str] | None = None) -> str:
    location = _without_tags(mistake["loc"])
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if mistake["type"] == "extra_forbidden":
        allowed = _allowed_keys(mistake["loc"][:-1])
        near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{origin}: {place} is not a key: {hint}allowed here are {', '.join(allowed)}"
    if mistake["type"] == "missing":
        return f"{origin}: {place} is missing"
    if mistake["type"] == "value_error":
        return f"{origin}: {place + ' ' if place else ''}{mistake['ctx']['error']}"
    value = mistake["input"]
    if mistake["type"] == "less_than_equal" and _PLACES & set(location):
        return f"{origin}: {place} is {value!r}: give coordinates as fractions of the frame, from 0 to 1"
    is_text = mistake["type"] == "string_type" or (
        mistake["type"] in _SECTION_EXPECTED and _owner(location) in _BY_NAME
    )
    if is_text and (value is None or isinstance(value, bool | int | float)):
        text = (spellings or {}).get(tuple(location), str(value))
        return f'{origin}: {place} is {text}, which is read as {_kind(value)} and not as a text: quote it, "{text}"'
    return redact(f"{origin}: {place} is {value!r}: {_expectation(mistake)}")


def _without_tags(location: Sequence[str | int]) -> list[str | int]:
    """A place as the file has it: pydantic adds the kind of a rule behind its number."""
    return [part for number, part in enumerate(location) if number < 2 or location[number - 2] != "rules"]


def _owner(location: Sequence[str | int]) -> str:
    """The key whose value a place is, or is an item of."""
    return next((part for part in reversed(location) if isinstance(part, str)), "")


def _expectation(mistake: Mapping[str, Any]) -> str:
    """What was expected instead of a value, from a mistake as pydantic describes it."""
    limits = mistake.get("ctx", {})
    match mistake["type"]:
        case "model_type" | "model_attributes_type" | "dict_type":
            owner = _owner(mistake["loc"])
            if owner == "rules":
                return _rule_expectation()
            other = "a text, or " if owner in _BY_NAME else "true, or " if owner in _BY_SWITCH else ""
            return f"expected {other}the keys {', '.join(_allowed_keys(mistake['loc']))}"
        case "union_tag_not_found" | "union_tag_invalid":
            return _rule_expectation()
        case "too_short":
            return f"expected a list of at least {limits['min_length']}"
        case "list_type":
            return "expected a list, such as [first, second]"
        case "tuple_type" | "too_long" if _PLACES & set(mistake["loc"]):
            return "expected a point [x, y] in fractions of the frame"
        case "float_type" | "float_parsing":
            return "expected a number"
        case "finite_number":
            return "expected a finite number"
        case "int_type" | "int_parsing" | "int_from_float":
            return "expected a whole number"
        case "bool_type" | "bool_parsing":
            return "expected true or false"
        case "string_too_short":
            return "expected a text that is not empty"
        case "greater_than":
            return f"expected more than {limits['gt']:g}"
        case "greater_than_equal":
            return f"expected at least {limits['ge']:g}"
        case "less_than_equal":
            return f"expected at most {limits['le']:g}"
        case "literal_error":
            return f"expected {limits['expected']}"
    return f"{mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def _rule_expectation() -> str:
    kinds = sorted(get_args(section.model_fields["kind"].annotation)[0] for section in _RULES)
    return f"expected a section with `kind`, one of {', '.join(kinds)}"


def _allowed_keys(location: Sequence[str | int]) -> list[str]:
    """The keys that the section at `location` may have, found by walking the schema."""
    schema = Config.model_json_schema()
    node = schema
    for part in location:
        if "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            node = node["items"] if isinstance(part, int) else node["properties"][part]
        for choice in node.get("anyOf", ()):
            if choice.get("type") != "null":
                node = choice
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return list(node["properties"])


def _kind(value: object) -> str:
    names = {type(None): "nothing", list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return (names | {float: "a number"}).get(type(value), f"a {type(value).__name__}")
