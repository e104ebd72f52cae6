"""Enrichment: words and masks for what happened, made beside the frame path and never waited for by it.

The pipeline hands over each frame with its events; that costs a look at the events and nothing else. A thread of its
own asks a describer (GLaMM, or SAM alone) within a budget, and hands on what comes back, later than the event that it
explains. Every request is accounted for: asked = answered + cached + dropped (by reason) + pending.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from sinks.event import Description, Event, EventType, Span
from streamer.analysis.event_writer import EventTime
from streamer.errors import ConfigError
from streamer.frame import Frame

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from detectors.glamm.box_masks import BoxMasks
    from detectors.glamm.segmenter import Glamm

log = logging.getLogger("groundstream")

_MINUTE_S = 60.0
_REMEMBERED = 1024
_THUMBNAIL = 16
_UNCHANGED = 3.0
"""Grey levels, of 255, by which two thumbnails of one view may differ on average."""

Box = tuple[float, float, float, float]


class EnrichTrigger(StrEnum):
    """Why something is described."""

    TRACK = "track"
    ZONE = "zone"
    INTERVAL = "interval"
    REQUEST = "request"


@dataclass(frozen=True)
class EnrichPlan:
    """What is described by itself: tracks that begin, tracks that enter a zone, the scene every so often.

    `zones` None means none of them, an empty set all of them.
    """

    tracks: bool = True
    zones: frozenset[str] | None = None
    every_s: float | None = None

    def __post_init__(self) -> None:
        if self.every_s is not None and self.every_s <= 0:
            raise ConfigError(f"enrichment every {self.every_s} s: give a time above 0")


@dataclass(frozen=True)
class CallBudget:
    """The most calls of the describer in any minute."""

    per_minute: int = 30
    per_stream_minute: int = 10

    def __post_init__(self) -> None:
        if self.per_minute < 1 or self.per_stream_minute < 1:
            raise ConfigError("an enrichment budget below one call a minute allows nothing: switch enrichment off")


@dataclass(frozen=True)
class EnrichSubject:
    """What a request is about: a thing in its box (x1, y1, x2, y2, fractions of the frame), or the scene."""

    track_uid: str | None = None
    track_number: int | None = None
    box: Box | None = None
    phrase: str = ""


_DEFAULT_PLAN = EnrichPlan()
_DEFAULT_BUDGET = CallBudget()
_SCENE = EnrichSubject()


class Describer(Protocol):
    """Looks and tells, None where it has nothing to tell; called in the enricher's thread only.

    `image` is BGR, `box` in fractions or None for the whole scene.
    """

    def __call__(self, image: npt.NDArray[np.uint8], box: Box | None, phrase: str) -> Description | None: ...


@dataclass(frozen=True)
class Enrichment:
    """A description of what was seen at `moment`; `cause` is the id of the event that it explains."""

    stream: str
    trigger: EnrichTrigger
    moment: EventTime
    subject: EnrichSubject
    cause: str | None
    description: Description


@dataclass(frozen=True)
class EnrichTally:
    """What became of the requests."""

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
    """The last description of a subject; of a scene also how it looked."""

    description: Description
    at: float
    thumbnail: npt.NDArray[np.float32] | None


class _MinuteWindow:
    """Calls within the last minute, of which there may be `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: deque[float] = deque()

    def spent(self, now: float) -> bool:
        while self._calls and now - self._calls[0] >= _MINUTE_S:
            self._calls.popleft()
        return len(self._calls) >= self._limit

    def call(self, now: float) -> None:
        self._calls.append(now)


class Enricher:
    """Describes what `plan` names and what is asked for, within `budget`; `deliver` gets the results in its thread.

    Requests are dropped, and counted, as `queue_full` when too many wait, `stale` when one waited longer than
    `stale_s`, `unchanged` when a scene looks as it did when last described, `budget` when the minute's calls are
    spent, `nothing` when the describer had nothing to tell, `error` when it failed and `shutdown` at the end.
    A track, or a scene that has not changed, that was described within `cache_s` is told the same again without a
    call.
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
        self._describe = describe
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
        self._thread = threading.Thread(target=self._work, name="enrich", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame, events: Iterable[Event]) -> None:
        """One frame and what happened in it. Returns at once, whatever the describer is doing."""
        wanted = [found for event in events if (found := self._wanted(event)) is not None]
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
        """Describe the scene, or `subject`, as it stands in the next frame of the stream. From any thread."""
        with self._condition:
            self._asked += 1
            if self._closed:
                self._dropped["shutdown"] += 1
            else:
                self._requested.setdefault(stream, []).append(subject)

    def tally(self) -> EnrichTally:
        """The account so far. From any thread."""
        with self._condition:
            return EnrichTally(self._asked, self._answered, self._cached, dict(self._dropped))

    def drain(self, timeout_s: float) -> bool:
        """Wait until all that was offered has been served, as at the end of a recording; returns whether it has."""
        with self._condition:
            return self._condition.wait_for(lambda: self._closed or not (self._queue or self._serving), timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Drop what waits and end the thread; a call that is under way may end after `timeout_s`, unheard."""
        with self._condition:
            self._closed = True
            waiting = len(self._queue) + sum(len(subjects) for subjects in self._requested.values())
            self._queue.clear()
            self._requested.clear()
            if waiting:
                self._dropped["shutdown"] += waiting
            self._condition.notify_all()
        self._thread.join(timeout_s)

    def _wanted(self, event: Event) -> tuple[EnrichTrigger, EnrichSubject, str | None] | None:
        if event.type is EventType.TRACK_BEGIN and self._plan.tracks:
            return EnrichTrigger.TRACK, _subject(event), event.id
        zone, zones = event.data.zone, self._plan.zones
        if event.type is EventType.ZONE_ENTER and zone is not None and zones is not None:
            return (EnrichTrigger.ZONE, _subject(event), event.id) if not zones or zone.id in zones else None
        return None

    # the enricher's own thread

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                request = self._queue.popleft()
                self._serving = True
            try:
                outcome = self._serve(request)
            except Exception as error:
                outcome = "error"
                log.error("%s: cannot be described: %s", request.frame.stream, error, exc_info=True)
            self._count(outcome)

    def _count(self, outcome: str) -> None:
        with self._condition:
            self._serving = False
            self._condition.notify_all()
            if outcome == "answered":
                self._answered += 1
            elif outcome == "cached":
                self._cached += 1
            else:
                self._dropped["shutdown" if self._closed else outcome] += 1

    def _serve(self, request: _EnrichRequest) -> str:
        """`answered`, `cached`, or why not."""
        now, stream, subject = self._clock(), request.frame.stream, request.subject
        if now - request.at > self._stale_s:
            return "stale"
        key = (stream, subject.track_uid)
        seen = self._seen.get(key)
        thumbnail = None
        if subject.track_uid is None:
            thumbnail = _thumbnail(request.frame.image)
            if seen is not None and (seen.thumbnail is None or _changed(seen.thumbnail, thumbnail)):
                seen = None
            if seen is not None and request.trigger is EnrichTrigger.INTERVAL:
                return "unchanged"
        if seen is not None and now - seen.at <= self._cache_s:
            return self._tell(request, seen.description, "cached")
        calls = self._stream_calls.setdefault(stream, _MinuteWindow(self._budget.per_stream_minute))
        if self._all_calls.spent(now) or calls.spent(now):
            return "budget"
        self._all_calls.call(now)
        calls.call(now)
        description = self._describe(request.frame.image, subject.box, subject.phrase)
        if description is None:
            return "nothing"
        self._seen[key] = _SeenSubject(description, self._clock(), thumbnail)
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return self._tell(request, description, "answered")

    def _tell(self, request: _EnrichRequest, description: Description, outcome: str) -> str:
        if self._closed:
            return "shutdown"
        frame = request.frame
        moment = EventTime.of(frame)
        self._deliver(Enrichment(frame.stream, request.trigger, moment, request.subject, request.cause, description))
        return outcome


def _subject(event: Event) -> EnrichSubject:
    track = event.data.track
    if track is None:
        return _SCENE
    phrase = event.data.matches[0].text if event.data.matches else ""
    return EnrichSubject(track.uid, track.number, (track.box.x1, track.box.y1, track.box.x2, track.box.y2), phrase)


def _thumbnail(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    import cv2
    import numpy as np

    small = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32)


def _changed(before: npt.NDArray[np.float32], now: npt.NDArray[np.float32]) -> bool:
    return float(abs(before - now).mean()) > _UNCHANGED


class GlammDescriber:
    """Tells with GLaMM: of a thing what stands in its box, with its mask; of a scene a grounded text."""

    def __init__(self, glamm: Glamm) -> None:
        from detectors.glamm.box_masks import BoxMasks

        self._glamm = glamm
        self._masks = BoxMasks(glamm.model.sam)

    def __call__(self, image: npt.NDArray[np.uint8], box: Box | None, phrase: str) -> Description:
        from streamer.enrichment.grounded import description

        if box is None:
            return description(self._glamm.describe(image), self._glamm.name)
        pixels = _pixels(box, image)
        text = self._glamm.caption_region(image, pixels)
        return _thing(self._masks, image, pixels, text, phrase, self._glamm.name)


class MaskDescriber:
    """Gives a thing its mask with SAM alone; the words are those that it was found by. It has none for a scene."""

    def __init__(self, masks: BoxMasks, name: str = "sam") -> None:
        self._masks = masks
        self._name = name

    def __call__(self, image: npt.NDArray[np.uint8], box: Box | None, phrase: str) -> Description | None:
        if box is None:
            return None
        return _thing(self._masks, image, _pixels(box, image), phrase, phrase, self._name)


def _pixels(box: Box, image: npt.NDArray[np.uint8]) -> Box:
    """A box in pixels, at least one wide and high."""
    height, width = image.shape[:2]
    x1, y1 = min(box[0] * width, width - 1.0), min(box[1] * height, height - 1.0)
    return x1, y1, max(box[2] * width, x1 + 1), max(box[3] * height, y1 + 1)


def _thing(
    masks: BoxMasks, image: npt.NDArray[np.uint8], pixels: Box, text: str, phrase: str, model: str
) -> Description:
    """A description whose one span, all of the text, is the thing itself."""
    import numpy as np

    from streamer.rules.mask_rle import mask_model

    found, _ = masks.masks(image, np.array([pixels]))
    span = Span(start=0, end=len(text), phrase=phrase or text, mask=mask_model(found[0]))
    return Description(text=text, spans=[span], model=model)
