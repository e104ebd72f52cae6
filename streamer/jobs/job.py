"""A job: the recordings, the queries and the settings of one `process` run, and the summary of each recording."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamer.config import Config, parse_config
from streamer.detector_choice import DetectorChoice
from streamer.errors import ConfigError

_EARLIEST_YEAR, _LATEST_YEAR = 1970, 2200  # times are nanoseconds since 1970 in 63 bits
_WHOLE_BATCHES_MS = 10_000
"""Recordings wait for whole batches, so that the images of a batch do not depend on the speed of the machine."""


@dataclass(frozen=True, slots=True)
class ProcessJob:
    """The options of `groundstream process`.

    `videos`: addresses of recordings; `out`: the folder of results; `jobs`: recordings at a time (None: by cores and
    memory); `again`: redo finished recordings; `shard`: (number from 1, count), only this part of the recordings;
    `queue`: the address of a Kafka topic of addresses, instead of `videos`;
    `close_timeout_s`: seconds that closing of sinks and files may take.
    """

    videos: Sequence[str]
    queries: Sequence[str]
    out: Path
    detector: str | None = None
    weights: Path | None = None
    tuned: Path | None = None
    device: str | None = None
    threshold: float | None = None
    masks: str | None = None
    detector_options: Sequence[str] = ()
    tracker: str = "default"
    reid: str | None = None
    sinks: Sequence[str] = ()
    video: bool = True
    images: bool = False
    clips: bool = False
    exports: Sequence[str] = ()
    zones: Sequence[str] = ()
    lines: Sequence[str] = ()
    every: int = 1
    fps: float | None = None
    batch: int = 8
    start_time: str | None = None
    jobs: int | None = None
    again: bool = False
    shard: tuple[int, int] | None = None
    queue: str | None = None
    close_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """Result of one recording. `seconds` is capture time; `settings` identifies what the result depends on; `places`
    holds the crossings of each line by direction, and the tracks that entered and left each zone."""

    stream: str
    frames: int = 0
    analysed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    tracks: int = 0
    events: dict[str, int] = field(default_factory=dict)
    folder: str = ""
    error: str = ""
    interrupted: bool = False
    recording: str = ""
    settings: str = ""
    places: dict[str, dict[str, int]] = field(default_factory=dict)


_KEPT_MEDIA = {"max_bytes": 1 << 50, "max_age_days": 3650}
"""Pictures and clips of a job stay as other results do."""


def job_config(job: ProcessJob) -> Config:
    """Returns the configuration of the job's options, one stream for each address. Raises `ConfigError`."""
    if not job.videos and job.queue is None:
        raise ConfigError("no recordings to process: give files, folders or addresses")
    detector = DetectorChoice(
        job.detector, job.weights, job.tuned, job.device, job.threshold, job.masks, job.detector_options
    )
    stream = stream_settings(job)
    sources = job.videos or [job.queue or ""]
    raw: dict[str, Any] = {
        "streams": [{"source": video, **stream} for video in sources],
        "queries": list(job.queries),
        "detector": detector.section(),
        "tracker": tracker_setting(job.tracker, job.reid),
        "batch": {"size": job.batch, "wait_ms": _WHOLE_BATCHES_MS},
        "sinks": list(job.sinks),
        "media": job.clips and {"folder": str(job.out / "media"), "clips": True, **_KEPT_MEDIA},
        "close_timeout_s": job.close_timeout_s,
    }
    return parse_config(raw, "command line")


def tracker_setting(name: str, reid: str | None) -> str | dict[str, str]:
    """Returns the `tracker:` of a configuration."""
    return name if reid is None else {"name": name, "reid": reid}


def stream_settings(job: ProcessJob) -> dict[str, Any]:
    """Returns the settings that every stream of the job has. Raises `ConfigError`."""
    return {
        "zones": [{"id": name, "polygon": points} for name, points in map(parse_place, job.zones)],
        "lines": [{"id": name, "points": points} for name, points in map(parse_place, job.lines)],
        "sample": {"every": job.every, "fps": job.fps},
    }


def parse_place(text: str) -> tuple[str, list[list[float]]]:
    """'door:0.5,0.2 0.5,0.9' -> ('door', [[0.5, 0.2], [0.5, 0.9]]). Raises `ConfigError`."""
    name, colon, rest = text.partition(":")
    try:
        points = [[float(value) for value in point.split(",")] for point in rest.split()]
        if not colon or not name or any(len(point) != 2 for point in points):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"cannot parse zone or line {text!r}: expected NAME:x,y x,y ... in fractions of the frame, "
            "such as door:0.5,0 0.5,1"
        ) from None
    if any(not 0 <= value <= 1 for point in points for value in point):
        raise ConfigError(f"zone or line {text!r} reaches outside the frame: give x,y as fractions of it, from 0 to 1")
    return name, points


def parse_start_time(text: str) -> int:
    """Returns an ISO 8601 time as UTC nanoseconds; without a zone it is UTC. Raises `ConfigError`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"start time {text!r} is not a time: write it as 2026-05-04T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if not _EARLIEST_YEAR <= moment.astimezone(UTC).year <= _LATEST_YEAR:
        raise ConfigError(f"start time {text!r} lies outside {_EARLIEST_YEAR} to {_LATEST_YEAR}: give another")
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def parse_shard(text: str) -> tuple[int, int]:
    """'2/8' -> (2, 8). Raises `ConfigError`."""
    number, slash, count = text.partition("/")
    if slash and text.isascii() and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise ConfigError(f"shard {text!r} is not NUMBER/COUNT: write 1/8 for the first of eight parts")


def read_addresses(path: str) -> list[str]:
    """Returns the addresses of a file, one per line, from standard input for `-`; `#` begins a comment line.

    Raises `ConfigError`.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise ConfigError(f"cannot read addresses from {path}: {reason}; expected one address per line") from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
