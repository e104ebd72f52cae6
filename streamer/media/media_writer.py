"""Common part of the writers of snapshots and clips: the thread that stores media of events, and the counts."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from sinks.event import EventType, Media
from sinks.supervision import start_thread
from streamer.analysis.event_writer import EventTime
from streamer.media.folder import MediaStore

log = logging.getLogger("groundstream")

PICTURED = frozenset(
    {EventType.MATCH_BEGIN, EventType.ZONE_ENTER, EventType.ZONE_EXIT, EventType.ZONE_DWELL, EventType.LINE_CROSS}
)
"""Events that get pictures."""

_IDLE_S = 30.0

J = TypeVar("J")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Stored pictures of a track for the event `cause`, which was made at `moment`."""

    stream: str
    moment: EventTime
    track_number: int
    track_uid: str
    cause: str
    media: tuple[Media, ...]


@dataclass(frozen=True, slots=True)
class SnapshotTally:
    """Counts of the events for which pictures are wanted: asked = written + dropped (by reason) + pending."""

    asked: int
    written: int
    dropped: dict[str, int]

    @property
    def pending(self) -> int:
        """Events whose pictures are not written yet."""
        return self.asked - self.written - sum(self.dropped.values())


class MediaWriter(ABC, Generic[J]):
    """Stores media of events in `folder` from a thread of its own, and hands over what is finished.

    Subclasses queue jobs with the stream that they are for, and count these in `_busy`, both under `_condition`; they
    call `_start_thread` when they are complete.
    """

    def __init__(self, folder: MediaStore, kind: str) -> None:
        """`kind` names what is written, in messages: "pictures", "clips"."""
        self._folder = folder
        self._kind = kind
        self._queue: deque[tuple[str, J]] = deque()
        self._busy: Counter[str] = Counter()  # work that is ordered, queued or served, by stream
        self._finished: dict[str, list[Snapshot]] = {}
        self._condition = threading.Condition()
        self._is_closed = False
        self._asked = self._written = 0
        self._dropped: Counter[str] = Counter()
        self._has_failed = False

    def take_finished(self, stream: str) -> list[Snapshot]:
        """Returns what was written for events of a stream since the last call. Thread-safe."""
        if stream not in self._finished:  # most frames: without the lock
            return []
        with self._condition:
            return self._finished.pop(stream, [])

    def drain(self, stream: str, timeout_s: float) -> bool:
        """Waits until everything queued of a stream has been served; returns False after `timeout_s`. Thread-safe."""
        with self._condition:
            return self._condition.wait_for(lambda: self._is_closed or not self._busy[stream], timeout_s)

    def tally(self) -> SnapshotTally:
        """Returns the counts so far. Thread-safe."""
        with self._condition:
            return SnapshotTally(self._asked, self._written, dict(self._dropped))

    def close(self, timeout_s: float = 5.0) -> None:
        """Drops what waits and ends the thread, waiting up to `timeout_s` for a job under way. Safe to call twice."""
        with self._condition:
            if not self._is_closed:
                self._is_closed = True
                self._dropped["shutdown"] += self._count_waiting()
            self._queue.clear()
            self._condition.notify_all()
        self._thread.join(timeout_s)

    def _start_thread(self, name: str) -> None:
        self._thread = start_thread(self._serve_all, name=name)

    @abstractmethod
    def _count_waiting(self) -> int:
        """The events whose media are given up when the writer closes; under the lock."""

    # Everything below runs in the thread of the writer.

    @abstractmethod
    def _serve_job(self, job: J) -> None: ...

    def _serve_all(self) -> None:
        while True:
            self._remove_expired()
            with self._condition:
                self._condition.wait_for(lambda: self._queue or self._is_closed, _IDLE_S)
                if self._is_closed:
                    return
                if not self._queue:
                    continue
                stream, job = self._queue.popleft()
            try:
                self._serve_job(job)
            except Exception as error:
                self._log_failure(error)
            del job  # and the frame that it may hold
            with self._condition:
                self._busy[stream] -= 1
                self._condition.notify_all()

    def _remove_expired(self) -> None:
        try:
            self._folder.remove_expired()
        except Exception as error:
            self._log_failure(error)

    def _log_failure(self, error: Exception) -> None:
        """Logs the first of several failures in a row; all are counted."""
        if not self._has_failed:
            trace = None if isinstance(error, OSError) else error
            kind, folder = self._kind, self._folder.name
            log.error("%s in %s cannot be written or removed: %s", kind, folder, error, exc_info=trace)
        self._has_failed = True
