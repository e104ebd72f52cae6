"""A live stream whose frames carry their index as a bar code, and as the place of their one box."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np

from streamer.analysis.event_writer import StreamIdentity
from streamer.analysis.queries import QueryBook
from streamer.analysis.stream_analysis import StreamAnalysis
from streamer.frame import Frame, FrameClock
from streamer.rules.track_ids import derived_uids
from streamer.web.live_frames import LiveFrame, LiveFrames
from tests.support.fakes import PRODUCER
from trackers import create_tracker

BITS = 16
WIDTH, HEIGHT = 640, 384


def coded_image(index: int) -> np.ndarray:
    """A grey picture whose upper rows show `index` in 16 bars, the highest bit first."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for bit in range(BITS):
        left = bit * WIDTH // BITS
        image[: HEIGHT // 4, left : left + WIDTH // BITS] = 255 if index >> (BITS - 1 - bit) & 1 else 0
    return image


def box_place(index: int) -> float:
    """The left edge of the box of a frame."""
    return round(index % 1000 / 2000, 5)


class CodedCameras:
    """Plays coded frames into `frames` from a thread, `fps` for each of `names`."""

    def __init__(self, frames: LiveFrames, names: list[str], fps: float) -> None:
        self._frames = frames
        self._names = names
        self._period_s = 1 / fps
        self._stopped = threading.Event()
        self._slots = {}
        for name in names:
            identity = StreamIdentity(name, f"/streams/{name}", 1, PRODUCER, derived_uids(name))
            analysis = StreamAnalysis(identity, create_tracker("bytetrack"), QueryBook(["person"]), 0.5)
            self._slots[name] = frames.new_recorder(name, analysis)._slot
        self._thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self) -> CodedCameras:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _play(self) -> None:
        following = time.monotonic()
        for index in itertools.count(1):
            following += self._period_s
            if self._stopped.wait(max(0.0, following - time.monotonic())):
                return
            image = coded_image(index)
            now = time.time_ns()
            for name, slot in self._slots.items():
                frame = Frame(name, index, now, FrameClock("arrival", 0.0, now), image, (WIDTH, HEIGHT))
                left = box_place(index)
                match = {"query": "person", "number": 1, "text": "person", "score": 0.8}
                box = [left, 0.5, left + 0.2, 0.9]
                track = {"number": 1, "uid": "T", "box": box, "state": "confirmed", "matches": [match]}
                slot.newest = LiveFrame(frame, [track], True, time.monotonic())
                self._frames.announce(name, slot)
