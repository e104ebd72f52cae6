"""Results of finished `process` jobs, served in the page: videos with boxes, timeline, counts, search."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sinks.event import Event
from streamer.config import WebConfig
from streamer.errors import ConfigError
from streamer.media.folder import MediaFolder
from streamer.web.access import AccessControl, AccessTokens, Role, hash_secret
from streamer.web.event_store import EventFeed, EventStore
from streamer.web.live_frames import LiveFrames
from streamer.web.models import SinkState, StreamStatus
from streamer.web.server import WebAddress, serve_state
from streamer.web.state import WebState

log = logging.getLogger("groundstream")

_BATCH = 2000
_KEEP_DAYS = 3650.0


class FinishedResults:
    """The recordings in the results of a job: a folder for each, with `summary.json` and maybe `video.mp4`."""

    def __init__(self, folder: Path) -> None:
        """Raises `ConfigError` for a folder that holds no results."""
        if not folder.is_dir():
            raise ConfigError(f"cannot show {folder}: it is not a folder; give the --out folder of a process job")
        self.folder = folder
        self._summaries = {path.parent: _read_summary(path) for path in sorted(folder.rglob("summary.json"))}
        if not self._summaries:
            raise ConfigError(f"cannot show {folder}: it holds no results; give the --out folder of a process job")

    async def list_streams(self) -> list[StreamStatus]:
        """Returns every recording."""
        return [self._describe(folder, summary) for folder, summary in self._summaries.items()]

    async def list_sinks(self) -> list[SinkState]:
        """Returns no sinks: the job is finished."""
        return []

    def find_video(self, stream: str) -> Path | None:
        """Returns the annotated video of a recording."""
        for folder, summary in self._summaries.items():
            video = folder / "video.mp4"
            if summary.get("stream", folder.name) == stream and video.is_file():
                return video
        return None

    def read_events(self) -> Iterator[Event]:
        """Yields the events of all recordings; lines that are no events are counted in the log."""
        unreadable = 0
        for path in sorted(self.folder.rglob("events.jsonl")):
            with path.open("rb") as lines:
                for line in lines:
                    try:
                        yield Event.from_json(line)
                    except ValueError:
                        unreadable += 1
        if unreadable:
            log.warning("%d lines of the events in %s cannot be read", unreadable, self.folder)

    def _describe(self, folder: Path, summary: dict[str, Any]) -> StreamStatus:
        name = str(summary.get("stream", folder.name))
        return StreamStatus(
            name=name,
            live=False,
            state="closed",
            cause=str(summary.get("error", "")),
            source=name,
            width=None,
            height=None,
            received=int(summary.get("frames", 0)),
            analysed=int(summary.get("analysed", 0)),
            dropped={str(reason): int(count) for reason, count in dict(summary.get("dropped", {})).items()},
            fps_received=0.0,
            fps_analysed=0.0,
            age_ms=None,
            tracks=int(summary.get("tracks", 0)),
            clock=None,
            last_frame=None,
            video="video.mp4" if (folder / "video.mp4").is_file() else None,
            seconds=float(summary.get("seconds", 0.0)),
        )


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}; run the job again") from None
    return raw if isinstance(raw, dict) else {}


@contextlib.contextmanager
def serve_results(folder: Path, host: str, port: int) -> Iterator[WebAddress]:
    """Serves the results in a folder until the context is left. Raises `ConfigError`, `StreamerError`."""
    results = FinishedResults(folder)
    with tempfile.TemporaryDirectory(prefix="groundstream-view-") as scratch:
        store = EventStore(Path(scratch) / "events.sqlite", keep_days=_KEEP_DAYS)
        for batch in _batches(results.read_events()):
            store.add_events(batch)
        tokens = {role: hash_secret(secrets.token_urlsafe(32)) for role in Role}
        frames = LiveFrames(memory_s=0)
        state = WebState(
            WebConfig(host=host, port=port, memory_s=0),
            AccessControl(AccessTokens(tokens)),
            store,
            EventFeed(store),
            frames,
            results,
            media=[MediaFolder(folder / "media"), *(MediaFolder(each) for each in sorted(folder.glob("*/media")))],
            videos=results,
        )
        try:
            with serve_state(state) as address:
                yield address
        finally:
            frames.close()
            store.close()


def _batches(events: Iterator[Event]) -> Iterator[Sequence[Event]]:
    batch: list[Event] = []
    for event in events:
        batch.append(event)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
