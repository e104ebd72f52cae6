"""The spool of a pipeline: its file, its settings from a configuration, and delivery at the end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from sinks.address import redact
from sinks.sink import Sink, SinkError
from sinks.spool.spool import Spool
from sinks.supervision import start_task
from streamer.config import Config, MediaConfig
from streamer.errors import ConfigError
from streamer.media.folder import MediaFolder, MediaStore
from streamer.pipeline.pipeline import Pipeline
from streamer.pipeline.terms import StreamTerms

log = logging.getLogger("groundstream")

DRAIN_SHARE = 0.8
"""The part of the closing time after which sinks that lag are no longer waited for; the rest closes them."""
_LONGEST_NAME = 40


def state_folder() -> Path:
    """The folder for files that must survive a restart (XDG base directories)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "groundstream"


def media_store(config: Config) -> MediaStore:
    """The pictures and clips of events: the configured folder or bucket, else a folder in the state folder.

    Raises `ConfigError` for a bucket that cannot be used.
    """
    settings = config.media or MediaConfig()
    max_age_s, max_bytes = settings.max_age_days * 86_400, settings.max_bytes
    if isinstance(settings.folder, str):
        from streamer.media.bucket import MediaBucket
        from streamer.object_store import ObjectStoreError, parse_s3

        try:
            cache = state_folder() / "media-cache"
            return MediaBucket(parse_s3(settings.folder), cache, max_age_s=max_age_s, max_bytes=max_bytes)
        except ObjectStoreError as error:
            raise ConfigError(f"media.folder {redact(settings.folder)} cannot be used: {error}") from None
    return MediaFolder(settings.folder or state_folder() / "media", max_age_s=max_age_s, max_bytes=max_bytes)


def spool_file(config: Config, config_file: Path | None, node: str | None = None) -> Path:
    """The spool's file: the configured one, else one in the state folder.

    Its name follows from the configuration file's path, so that corrected addresses keep their events; without such a
    file from what is watched and where events go, so that two monitors do not share it. The name of a `node` becomes a
    part of it, so that two nodes on one machine do not share it either.
    """
    if config.spool.path is not None:
        return config.spool.path if node is None else file_of_node(config.spool.path, node)
    if config_file is not None:
        own = [] if node is None else [node]
        return state_folder() / _file_name("-".join([config_file.stem, *own]), [str(config_file.resolve()), *own])
    sources = [stream.source for stream in config.streams]
    watched = [f"{stream.name or ''} {_place_of(stream.source)}" for stream in config.streams]
    targets = sorted(_place_of(address) for address in config.sinks)
    return state_folder() / _file_name(config.streams[0].name or redact(sources[0]), [*watched, "->", *targets])


def file_of_node(path: Path, node: str) -> Path:
    """The file beside `path` that belongs to one node."""
    return path.with_name(f"{path.stem}-{node}{path.suffix}")


def _file_name(stem: str, parts: Iterable[str]) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:_LONGEST_NAME] or "monitor"
    return f"{readable}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:8]}.spool"


def _place_of(address: str) -> str:
    """An address without options and secrets: what stays when a setting changes."""
    place = redact(address).partition("?")[0]
    return place if ":" in place else str(Path(place).absolute())


@asynccontextmanager
async def open_spool(
    config: Config, path: Path | None, sinks: Mapping[str, Sink], *, terms: StreamTerms | None = None
) -> AsyncIterator[PipelineSpool]:
    """The spool with the policy of the configuration; without a path events are kept in memory. Events that `terms` do
    not admit are dropped."""
    gone = asyncio.Event()
    async with await Spool.open(
        path,
        sinks,
        max_bytes=config.spool.max_bytes,
        when_full=config.spool.when_full,
        sync_each=config.spool.fsync_each,
        close_timeout_s=config.close_timeout_s,
        on_reader_gone=lambda _name: gone.set(),
        admits=None if terms is None else lambda event: terms.admits(event.data.stream, event.data.run),
    ) as spool:
        yield PipelineSpool(spool, gone, config.close_timeout_s if path is not None else None)


class PipelineSpool:
    """A spool and the pipeline that writes to it: stops the pipeline when the only reader of a sink has left (the end
    of a pipe), and delivers at the end."""

    def __init__(self, spool: Spool, gone: asyncio.Event, close_timeout_s: float | None) -> None:
        self.spool = spool
        self._gone = gone
        self._close_timeout_s = close_timeout_s  # None: events are in memory only
        self._watcher: asyncio.Task[object] | None = None

    def watch(self, pipeline: Pipeline) -> None:
        """Stops the pipeline when a reader leaves."""

        async def stop_when_gone() -> None:
            await self._gone.wait()
            await pipeline.stop()

        self._watcher = start_task(stop_when_gone(), name="reader watch")

    async def finish(self, pipeline: Pipeline, patience_s: float | None) -> None:
        """Delivers the rest and closes the spool.

        Events in a file are delivered within the closing time, which began when the pipeline was stopped; the rest
        stays for the next start. Events in memory are waited for until the sinks have taken nothing for `patience_s`;
        raises `SinkError` when some are lost.
        """
        if self._watcher is not None:
            self._watcher.cancel()
        if self._close_timeout_s is None:
            if not await _drain_patiently(self.spool, patience_s):
                raise SinkError(f"{_late_sinks(self.spool)}: they are lost with this job, run it again when it works")
            return
        now = time.monotonic()
        began = pipeline.stopped_at or now
        is_delivered = await self.spool.drain(max(0.0, began + DRAIN_SHARE * self._close_timeout_s - now))
        if not is_delivered:
            log.warning("%s: they stay in the spool and are sent at the next start", _late_sinks(self.spool))
        await self.spool.aclose(max(0.5, began + self._close_timeout_s - time.monotonic()))


async def _drain_patiently(spool: Spool, patience_s: float | None) -> bool:
    """Waits for the sinks while they take something; returns whether they have everything."""
    left = _backlog(spool)
    while not await spool.drain(patience_s):
        before, left = left, _backlog(spool)
        if left >= before:
            return False
    return True


def _backlog(spool: Spool) -> int:
    return sum(status.backlog for status in spool.status())


def _late_sinks(spool: Spool) -> str:
    late = [status for status in spool.status() if status.backlog]
    return "; ".join(f"{one.name} has not taken {one.backlog} events ({one.error or 'slow'})" for one in late)
