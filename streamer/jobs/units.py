"""Units of work: the recordings that the addresses of a job stand for, each with a name of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from streamer.errors import ConfigError, SourceAddressError, SourceError
from streamer.jobs.job import ProcessJob
from streamer.sources import open_sources
from streamer.sources.address import stream_name, unique
from streamer.sources.file import FileSource
from streamer.sources.images import ImageSource


@dataclass(frozen=True, slots=True)
class RecordingUnit:
    """One recording: `name` is its stream and folder, `address` opens it, `error` is why it cannot be opened."""

    name: str
    address: str
    live: bool = False
    error: str = ""


def list_units(job: ProcessJob) -> list[RecordingUnit]:
    """Returns the recordings of the job's shard in order.

    Of several addresses, one that stands for nothing is a unit with an `error`, so that the others are processed.
    Raises `SourceError` where there is no other, and `ConfigError`.
    """
    units: list[RecordingUnit] = []
    taken: set[str] = set()
    for video in job.videos:
        try:
            sources = open_sources(video, taken=taken)
        except SourceAddressError:
            raise
        except SourceError as error:
            if len(job.videos) == 1:
                raise
            units.append(RecordingUnit(unique(stream_name(video), taken), video, error=str(error)))
            taken.add(units[-1].name)
            continue
        for source in sources:
            place = (source.recording or source.remote) if isinstance(source, FileSource | ImageSource) else None
            units.append(RecordingUnit(source.name, video if place is None else str(place), source.live))
            taken.add(source.name)
    for unit in units:
        if unit.name in (".", "..") or "/" in unit.name:
            raise ConfigError(f"stream name {unit.name!r} cannot be a folder: rename the recording")
    if job.shard is None:
        return units
    number, count = job.shard
    return [unit for unit in units if shard_of(unit.name, count) == number - 1]


def shard_of(name: str, count: int) -> int:
    """Returns the shard of a recording or camera, 0 to `count` - 1: the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count


def identify_settings(job: ProcessJob, config_hash: str) -> str:
    """Returns what results depend on besides the recording: the configuration and what is written."""
    written: list[object] = [job.start_time, job.video, job.images]
    if job.exports:  # results of earlier versions, which had none, stay valid
        written.append(sorted(job.exports))
    if job.clips:
        written.append("clips")
    return digest([config_hash, json.dumps(written)])


def digest(parts: Iterable[str]) -> str:
    """Returns a short hash of texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
