"""The enricher: descriptions and masks for events, made in their own thread, outside the frame path.

The pipeline offers each frame with its events and goes on at once. The enricher's thread calls a describer (GLaMM, or
SAM alone) within a budget; the result becomes an event of its own, later than the one it explains. Every request is
counted: asked = answered + cached + dropped (by reason) + pending.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sinks.event import Description, Event, EventType
from sinks.supervision import start_thread
from streamer.analysis.event_writer import EventTime
from streamer.enrichment.describers import Box, Describer
from streamer.errors import ConfigError
from streamer.frame import Frame

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger("groundstream")

_MINUTE_S = 60.0
_REMEMBERED = 1024
_THUMBNAIL = 16
_UNCHANGED = 3.0
"""Grey levels, of 255, by which two thumbnails of one view may differ on average."""


class EnrichTrigger(StrEnum):
    """The reason for a description."""

    TRACK = "track"
    ZONE = "zone"
    INTERVAL = "interval"
    REQUEST = "request"


@dataclass(frozen=True)
class EnrichPlan:
    """Descriptions made without a request: of new tracks, of tracks that enter a zone, of the scene at intervals.

    `zones` None means no zone, an empty set every zone; `every_s` is seconds of capture time.
    """

    tracks: bool = True
    zones: frozenset[str] | None = None
    every_s: float | None = None

    def __post_init__(self) -> None:
        if self.every_s is not None and self.every_s <= 0:
            raise ConfigError(f"enrichment interval {self.every_s} s is not positive: give a time above 0")


@dataclass(frozen=True)
class CallBudget:
    """The largest number of describer calls in any minute, in total and per stream."""

    per_minute: int = 30
    per_stream_minute: int = 10

    def __post_init__(self) -> None:
        if self.per_minute < 1 or self.per_stream_minute < 1:
            raise ConfigError(
                f"enrichment budget of {min(self.per_minute, self.per_stream_minute)} calls a minute is below 1: "
                "give 1 or more, or switch enrichment off"
            )


@dataclass(frozen=True)
class EnrichSubject:
    """The subject of a request: an object in its box (x1, y1, x2, y2, fractions of the frame), or the scene."""

    track_uid: str | None = None
    track_number: int | None = None
    box: Box | None = None
    phrase: str = ""


_DEFAULT_PLAN = EnrichPlan()
_DEFAULT_BUDGET = CallBudget()
_SCENE = EnrichSubject()


@dataclass(frozen=True)
class Enrichment:
    """A description of `subject` at `moment`; `cause` is the id of the event that it explains."""

    stream: str
    trigger: EnrichTrigger
    moment: EventTime
    subject: EnrichSubject
    cause: str | None
    description: Description


@dataclass(frozen=True)
class EnrichTally:
    """Counts of the requests: asked = answered + cached + dropped (by reason) + pending."""

    asked: int
    answered: int
    cached: int
    dropped: dict[str, int]

    @property
    def pending(self) -> int:
        return self.asked - self.answered - self.cached - sum(self.dropped.values())


@dataclass(frozen=True)
class _EnrichRequest:
    frame: Frame
    trigger: EnrichTrigger
    subject: EnrichSubject
    cause: str | None
    at: float


@dataclass(frozen=True)
class _SeenSubject:
    """The last description of a subject; for a scene also its thumbnail, (16, 16, 3) float32."""

    description: Description
    at: float
    thumbnail: npt.NDArray[np.float32] | None


class _MinuteWindow:
    """Times of the calls within the last minute, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: deque[float] = deque()

    def is_spent(self, now: float) -> bool:
        while self._calls and now - self._calls[0] >= _MINUTE_S:
            self._calls.popleft()
        return len(self._calls) >= self._limit

    def add_call(self, now: float) -> None:
        self._calls.append(now)


class Enricher:
    """Describes what `plan` names and what is requested, within `budget`; `deliver` gets the results in its thread.

    Requests are dropped, and counted, as `queue_full` when too many wait, `stale` when one waited longer than
    `stale_s`, `unchanged` when a scene looks as it did when last described, `budget` when the minute's calls are
    spent, `nothing` when the describer returned nothing, `error` when it failed and `shutdown` at the end.
    A track, or an unchanged scene, that was described within `cache_s` gets the same description without a call.
    """

    def __init__(
        self,
        describe: Describer,
        deliver: Callable[[Enrichment], None],
        plan: EnrichPlan = _DEFAULT_PLAN,
        budget: CallBudget = _DEFAULT_BUDGET,
        *,
        queue_size: int = 8,
        stale_s: float = 30.0,
        cache_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._describer = describe
        self._deliver = deliver
        self._plan = plan
        self._budget = budget
        self._queue_size = queue_size
        self._stale_s = stale_s
        self._cache_s = cache_s
        self._clock = clock
        self._all_calls = _MinuteWindow(budget.per_minute)
        self._stream_calls: dict[str, _MinuteWindow] = {}
        self._next_ns: dict[str, int] = {}
        self._seen: OrderedDict[tuple[str, str | None], _SeenSubject] = OrderedDict()
        self._requested: dict[str, list[EnrichSubject]] = {}
        self._queue: deque[_EnrichRequest] = deque()
        self._condition = threading.Condition()
        self._closed = self._serving = False
        self._asked = self._answered = self._cached = 0
        self._dropped: Counter[str] = Counter()
        self._thread = start_thread(self._serve_all, name="enrich")

    def offer(self, frame: Frame, events: Iterable[Event]) -> None:
        """Queue requests for one frame and its events. Returns at once, even while the describer works."""
        wanted = [found for event in events if (found := self._request_for(event)) is not None]
        if self._plan.every_s is not None and frame.time_ns >= self._next_ns.get(frame.stream, 0):
            self._next_ns[frame.stream] = frame.time_ns + int(self._plan.every_s * 1e9)
            wanted.append((EnrichTrigger.INTERVAL, EnrichSubject(), None))
        if not wanted and frame.stream not in self._requested:
            return
        with self._condition:
            self._asked += len(wanted)
            wanted += [(EnrichTrigger.REQUEST, subject, None) for subject in self._requested.pop(frame.stream, ())]
            for trigger, subject, cause in wanted:
                if self._closed:
                    self._dropped["shutdown"] += 1
                elif len(self._queue) >= self._queue_size:
                    self._dropped["queue_full"] += 1
                else:
                    self._queue.append(_EnrichRequest(frame, trigger, subject, cause, self._clock()))
            self._condition.notify_all()

    def request(self, stream: str, subject: EnrichSubject = _SCENE) -> None:
        """Describe the scene, or `subject`, in the next frame of the stream. Thread-safe."""
        with self._condition:
            self._asked += 1
            if self._closed:
                self._dropped["shutdown"] += 1
            else:
                self._requested.setdefault(stream, []).append(subject)

    def tally(self) -> EnrichTally:
        """The counts so far. Thread-safe."""
        with self._condition:
            return EnrichTally(self._asked, self._answered, self._cached, dict(self._dropped))

    def drain(self, timeout_s: float) -> bool:
        """Wait until every queued request has been served, as at the end of a recording; False after `timeout_s`."""
        with self._condition:
            return self._condition.wait_for(lambda: self._closed or not (self._queue or self._serving), timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Drop waiting requests and end the thread. Waits up to `timeout_s` for a call that is under way; its result is
        dropped."""
        with self._condition:
            self._closed = True
            waiting = len(self._queue) + sum(len(subjects) for subjects in self._requested.values())
            self._queue.clear()
            self._requested.clear()
            if waiting:
                self._dropped["shutdown"] += waiting
            self._condition.notify_all()
        self._thread.join(timeout_s)

    def _request_for(self, event: Event) -> tuple[EnrichTrigger, EnrichSubject, str | None] | None:
        if event.type is EventType.TRACK_BEGIN and self._plan.tracks:
            return EnrichTrigger.TRACK, _subject_of(event), event.id
        zone, zones = event.data.zone, self._plan.zones
        if event.type is EventType.ZONE_ENTER and zone is not None and zones is not None:
            return (EnrichTrigger.ZONE, _subject_of(event), event.id) if not zones or zone.id in zones else None
        return None

    # Everything below runs in the enricher's thread.

    def _serve_all(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                request = self._queue.popleft()
                self._serving = True
            try:
                outcome = self._serve_request(request)
            except Exception as error:
                outcome = "error"
                log.error("%s: description failed: %s", request.frame.stream, error, exc_info=True)
            self._count_outcome(outcome)

    def _count_outcome(self, outcome: str) -> None:
        with self._condition:
            self._serving = False
            self._condition.notify_all()
            if outcome == "answered":
                self._answered += 1
            elif outcome == "cached":
                self._cached += 1
            else:
                self._dropped["shutdown" if self._closed else outcome] += 1

    def _serve_request(self, request: _EnrichRequest) -> str:
        """Serves one request; returns `answered`, `cached` or the reason for dropping it."""
        now, stream, subject = self._clock(), request.frame.stream, request.subject
        if now - request.at > self._stale_s:
            return "stale"
        key = (stream, subject.track_uid)
        seen = self._seen.get(key)
        thumbnail = None
        if subject.track_uid is None:
            thumbnail = _make_thumbnail(request.frame.image)
            if seen is not None and (seen.thumbnail is None or _has_changed(seen.thumbnail, thumbnail)):
                seen = None
            if seen is not None and request.trigger is EnrichTrigger.INTERVAL:
                return "unchanged"
        if seen is not None and now - seen.at <= self._cache_s:
            return self._deliver_description(request, seen.description, "cached")
        calls = self._stream_calls.setdefault(stream, _MinuteWindow(self._budget.per_stream_minute))
        if self._all_calls.is_spent(now) or calls.is_spent(now):
            return "budget"
        self._all_calls.add_call(now)
        calls.add_call(now)
        description = self._describer(request.frame.image, subject.box, subject.phrase)
        if description is None:
            return "nothing"
        self._seen[key] = _SeenSubject(description, self._clock(), thumbnail)
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return self._deliver_description(request, description, "answered")

    def _deliver_description(self, request: _EnrichRequest, description: Description, outcome: str) -> str:
        if self._closed:
            return "shutdown"
        frame = request.frame
        moment = EventTime.of(frame)
        self._deliver(Enrichment(frame.stream, request.trigger, moment, request.subject, request.cause, description))
        return outcome


def _subject_of(event: Event) -> EnrichSubject:
    track = event.data.track
    if track is None:
        return _SCENE
    phrase = event.data.matches[0].text if event.data.matches else ""
    return EnrichSubject(track.uid, track.number, (track.box.x1, track.box.y1, track.box.x2, track.box.y2), phrase)


def _make_thumbnail(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    import cv2
    import numpy as np

    small = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32)


def _has_changed(before: npt.NDArray[np.float32], now: npt.NDArray[np.float32]) -> bool:
    return float(abs(before - now).mean()) > _UNCHANGED
