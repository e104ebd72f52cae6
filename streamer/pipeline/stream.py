"""One stream of a pipeline: its source, its analysis, and all that the pipeline knows about it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import supervision as sv

from streamer.analysis.camera_motion import CameraWatch
from streamer.analysis.event_writer import EventTime
from streamer.analysis.stream_analysis import AnalysisChange, CoverageMeter, StreamAnalysis
from streamer.config import StreamConfig
from streamer.frame import Frame, FrameClock
from streamer.pipeline.terms import StreamTerm
from streamer.sources.frame_counter import FrameTally
from streamer.sources.packet_clips import ClipCutter, PacketLimits, PacketSource
from streamer.sources.sampling import FrameSampling
from streamer.sources.source import Source, SourceState, StateChange
from streamer.sources.workers.proxy import WorkerSource

_FRESH_NS = 2_000_000_000


class StateRelay:
    """Carries state changes from the sources' threads to the pipeline that uses the sources later."""

    def __init__(self) -> None:
        self._waiting: list[StateChange] = []
        self._deliver: dict[str, Callable[[StateChange], object]] = {}

    def __call__(self, change: StateChange) -> None:
        deliver = self._deliver.get(change.stream, self._waiting.append)
        deliver(change)

    def connect(self, stream: str, deliver: Callable[[StateChange], object]) -> None:
        """Send every change of `stream` to `deliver` from now on, those first that came before."""
        self._deliver[stream] = deliver
        for change in self._waiting:
            if change.stream == stream:
                deliver(change)
        self._waiting = [change for change in self._waiting if change.stream != stream]


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


@dataclass(frozen=True, slots=True, eq=False)
class StreamChange:
    """A change of a stream's analysis in force for frames captured at `since_ns` or later. `queued_s` is the monotonic
    time it was made at."""

    since_ns: int
    change: AnalysisChange
    queued_s: float = field(default_factory=time.monotonic)


@dataclass(eq=False, slots=True)
class Stream:
    """One stream and everything that belongs to it. Used in the event loop only.

    `recorders` have names, so that one can be removed; `relay` is what the source was opened with as `on_state`;
    `section` is the part of the configuration that the stream comes from (not shown: it may hold a password). `term`
    limits the time in which its events may be sent, None for no limit. `error` is one sentence, empty while all is
    well; `leaving_cause` says why the stream will be removed, where that is known; `cutter` makes clips of the packets
    of the source, where it keeps them. The fields after it are the memory of the two halves of the pipeline: `taken_ns`
    is the capture time of the newest frame that went to the detector, `in_flight` counts the frames between the two
    halves, `changes` holds those that wait for the first frame captured after them, `changed_ns` is the time from which
    the latest is in force.
    """

    source: Source
    analysis: StreamAnalysis
    sampling: FrameSampling = field(default_factory=FrameSampling)
    recorders: dict[str, Recorder] = field(default_factory=dict)
    relay: StateRelay = field(default_factory=lambda: StateRelay(), repr=False)
    section: StreamConfig | None = field(default=None, repr=False)
    term: StreamTerm | None = None
    state: SourceState = field(default=SourceState.CONNECTING, init=False)
    age_s: float | None = field(default=None, init=False)
    error: str = field(default="", init=False)
    leaving_cause: str = field(default="", init=False)
    cutter: ClipCutter | None = field(default=None, init=False, repr=False)
    event_counts: Counter[str] = field(default_factory=Counter, init=False)
    coverage_meter: CoverageMeter = field(default_factory=CoverageMeter, init=False)
    camera_watch: CameraWatch = field(default_factory=CameraWatch, init=False)
    first_ns: int | None = field(default=None, init=False)
    last: EventTime | None = field(default=None, init=False)
    is_begun: bool = field(default=False, init=False)
    is_closed: bool = field(default=False, init=False)
    has_failed: bool = field(default=False, init=False)
    dark_since_ns: int | None = field(default=None, init=False)
    dark_cause: str = field(default="", init=False)
    analysed: int = field(default=0, init=False)
    not_sampled: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    taken_ns: int | None = field(default=None, init=False)
    changed_ns: int = field(default=0, init=False)
    in_flight: int = field(default=0, init=False)
    changes: deque[StreamChange] = field(default_factory=deque, init=False)
    past_tally: FrameTally = field(default=FrameTally(0, 0, {}), init=False)

    def __post_init__(self) -> None:
        if self.is_paused:
            self.state = SourceState.PAUSED

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def is_live(self) -> bool:
        return self.source.live

    @property
    def is_paused(self) -> bool:
        """Whether the configuration pauses the stream."""
        return self.section is not None and self.section.paused

    @property
    def seen_s(self) -> float:
        """Seconds of capture time from the first frame to the last."""
        return 0.0 if self.first_ns is None or self.last is None else (self.last.time_ns - self.first_ns) / 1e9

    def report(self) -> StreamReport:
        return StreamReport(
            self.name,
            self.is_live,
            self.state,
            self.tally(),
            self.age_s,
            len(self.analysis.tracks.records),
            self.seen_s,
            self.error,
        )

    def choose_frames(self, sampling: FrameSampling, *, has_recorders: bool | None = None) -> None:
        """Detect in the frames that `sampling` wants from now on.

        A decode worker drops the others where no recorder writes them; `has_recorders` says so where that is about to
        change.
        """
        is_recorded = bool(self.recorders) if has_recorders is None else has_recorders
        self.sampling = sampling
        if isinstance(self.source, WorkerSource):
            left = self.source.sample_in_worker(FrameSampling() if is_recorded else sampling)
            self.sampling = sampling if is_recorded else left

    def tally(self) -> FrameTally:
        """Frame counts of all sources that the stream has had: a camera that is resumed gets a new one."""
        return self.past_tally + self.source.account.tally()

    def keep_packets(self, limits: PacketLimits) -> None:
        """Have the present source keep its packets for clips, where it can; before it is read."""
        if isinstance(self.source, PacketSource):
            self.cutter = self.source.keep_packets(limits)

    def replace_source(self, source: Source) -> None:
        """Go on with another source of the same name."""
        self.past_tally = self.tally()
        self.source = source
        self.error = ""

    def change_time_ns(self) -> int:
        """The capture time from which a change made now is in force: later than every frame already taken, and not
        before now by the clock of the camera, where that is wrong by seconds."""
        after_taken = max(self.changed_ns, 0 if self.taken_ns is None else self.taken_ns + 1)
        if not self.is_live:
            return after_taken
        now_ns = time.time_ns()
        received_ns = None if self.last is None else self.last.clock.received_ns
        if self.last is not None and received_ns is not None and received_ns - self.last.time_ns > _FRESH_NS:
            now_ns -= received_ns - self.last.time_ns
        return max(now_ns, after_taken)

    def event_time(self) -> EventTime:
        """The time of events that concern the stream as a whole: that of its last frame while frames come, so that
        the times of its events rise; else the system clock."""
        last, now_ns = self.last, time.time_ns()
        if last is not None:
            is_fresh = self.dark_since_ns is None and now_ns - last.time_ns < _FRESH_NS
            if is_fresh or not self.is_live:
                return last
        return self.arrival_time(now_ns)

    def time_before(self, time_ns: int) -> EventTime:
        """The time of what ends because of a change in force from `time_ns` on: not after it, nor before the last
        frame."""
        moment = self.event_time()
        if moment.time_ns < time_ns:
            return moment
        last_ns = time_ns - 1 if self.last is None else max(self.last.time_ns, time_ns - 1)
        return replace(moment, time_ns=last_ns)

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
