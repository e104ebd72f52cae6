"""One stream of a pipeline: its source, its analysis, and all that the pipeline knows about it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import supervision as sv

from streamer.analysis.camera_motion import CameraWatch
from streamer.analysis.event_writer import EventTime
from streamer.analysis.stream_analysis import CoverageMeter, StreamAnalysis
from streamer.frame import Frame, FrameClock
from streamer.sources.frame_counter import FrameTally
from streamer.sources.sampling import FrameSampling
from streamer.sources.source import Source, SourceState, StateChange

_FRESH_NS = 2_000_000_000


class Recorder(Protocol):
    """Writes something of every frame of one stream: tracks as text, an annotated video."""

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        """`tracked` holds the frame's tracks; predictions from their motion where the frame was not `analysed`."""
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StreamReport:
    """State and counts of one stream at one moment. `age_s` is the age of the last frame when it had been followed,
    None for recordings; `seen_s` the capture time from the first frame to the last; `tracks` those open now."""

    stream: str
    live: bool
    state: SourceState
    tally: FrameTally
    age_s: float | None
    tracks: int
    seen_s: float
    error: str = ""


@dataclass(eq=False, slots=True)
class Stream:
    """One stream and everything that belongs to it. Used in the event loop only.

    `origin` names the part of a configuration it came from; it may hold an address with credentials, so it is not
    shown. `error` is one sentence, empty while all is well; the later fields are the memory of the following side.
    """

    source: Source
    analysis: StreamAnalysis
    sampling: FrameSampling = field(default_factory=FrameSampling)
    recorders: Sequence[Recorder] = ()
    origin: str = field(default="", repr=False)
    state: SourceState = field(default=SourceState.CONNECTING, init=False)
    age_s: float | None = field(default=None, init=False)
    error: str = field(default="", init=False)
    event_counts: Counter[str] = field(default_factory=Counter, init=False)
    coverage_meter: CoverageMeter = field(default_factory=CoverageMeter, init=False)
    camera_watch: CameraWatch = field(default_factory=CameraWatch, init=False)
    first_ns: int | None = field(default=None, init=False)
    last: EventTime | None = field(default=None, init=False)
    is_begun: bool = field(default=False, init=False)
    is_closed: bool = field(default=False, init=False)
    dark_since_ns: int | None = field(default=None, init=False)
    dark_cause: str = field(default="", init=False)
    analysed: int = field(default=0, init=False)
    not_sampled: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def is_live(self) -> bool:
        return self.source.live

    @property
    def seen_s(self) -> float:
        """Seconds of capture time from the first frame to the last."""
        return 0.0 if self.first_ns is None or self.last is None else (self.last.time_ns - self.first_ns) / 1e9

    def report(self) -> StreamReport:
        return StreamReport(
            self.name,
            self.is_live,
            self.state,
            self.source.account.tally(),
            self.age_s,
            len(self.analysis.tracks.records),
            self.seen_s,
            self.error,
        )

    def event_time(self) -> EventTime:
        """The time of events that concern the stream as a whole: that of its last frame while frames come, so that
        the times of its events rise; else the system clock."""
        last, now_ns = self.last, time.time_ns()
        if last is not None:
            is_fresh = self.dark_since_ns is None and now_ns - last.time_ns < _FRESH_NS
            if is_fresh or not self.is_live:
                return last
        return self.arrival_time(now_ns)

    def arrival_time(self, time_ns: int) -> EventTime:
        """The time of an event without a frame of its own, such as the loss of the camera, at `time_ns` (UTC)."""
        connection = self.last.clock.connection if self.last else 0
        clock = FrameClock("arrival", 0.0, time.time_ns(), connection)
        return EventTime(time_ns, clock, self.last.frame if self.last else None)

    def followed_tally(self, received: int) -> FrameTally:
        """A recording's frame counts as of the frame that is followed: the reader may be ahead by any number."""
        lost = received - self.analysed - self.not_sampled - self.failed
        dropped = {"corrupt": lost, "detector_error": self.failed, "not_sampled": self.not_sampled}
        return FrameTally(received, self.analysed, {reason: count for reason, count in dropped.items() if count})


class StateRelay:
    """Carries state changes from the sources' threads to the pipeline that is built after them."""

    def __init__(self) -> None:
        self._waiting: list[StateChange] = []
        self._deliver: Callable[[StateChange], object] = self._waiting.append

    def __call__(self, change: StateChange) -> None:
        self._deliver(change)

    def connect(self, deliver: Callable[[StateChange], object]) -> None:
        """Send every change to `deliver` from now on, those first that came before."""
        self._deliver = deliver
        for change in self._waiting:
            deliver(change)
