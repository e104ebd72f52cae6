"""The annotated video beside the frame path: a recording's is whole, a live one never holds the stream up."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import supervision as sv

from streamer.frame import Frame, FrameClock
from streamer.recorders.painter import LineCounts
from streamer.recorders.video import AnnotatedVideo, Places
from streamer.rules.places import Zone

FRAMES = 30


def frame(index: int) -> Frame:
    image = np.full((64, 96, 3), 8 * index, np.uint8)
    return Frame("gate", index, index * 40_000_000, FrameClock("file_pts"), image, (96, 64))


class Slow(AnnotatedVideo):
    """Draws nothing before `go` is set."""

    go: threading.Event

    def _draw_frame(self, frame: Frame, tracked: sv.Detections, places: Places, counts: LineCounts) -> None:
        assert self.go.wait(30)
        super()._draw_frame(frame, tracked, places, counts)


def drawn(path: Path) -> int:
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def test_a_live_video_leaves_frames_out_counts_them_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = Slow(tmp_path / "live.mp4", str, lambda: ((), ()), wait=False)
    video.go = threading.Event()

    async def watch() -> None:
        for index in range(FRAMES):
            await video.write(frame(index), sv.Detections.empty(), analysed=True)
        video.go.set()
        await video.aclose()

    asyncio.run(watch())
    assert video.skipped > 0
    assert drawn(tmp_path / "live.mp4") + video.skipped == FRAMES
    reported = [record.getMessage() for record in caplog.records]
    assert len(reported) == 2, "once when it begins and once at the end"
    assert f"{video.skipped} frames were left out" in reported[1]


def test_a_recordings_video_holds_every_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video = AnnotatedVideo(tmp_path / "file.mp4", str, lambda: ((), ()), wait=True)

    async def watch() -> None:
        for index in range(FRAMES):
            await video.write(frame(index), sv.Detections.empty(), analysed=True)
        await video.aclose()

    asyncio.run(watch())
    assert video.skipped == 0
    assert drawn(tmp_path / "file.mp4") == FRAMES
    assert not caplog.records


def test_a_zone_that_is_added_while_it_runs_is_drawn_from_then_on(tmp_path: Path) -> None:
    zones: list[Zone] = []
    video = AnnotatedVideo(tmp_path / "file.mp4", str, lambda: (tuple(zones), ()), wait=True)
    black = np.zeros((96, 128, 3), np.uint8)

    async def watch() -> None:
        for index in range(20):
            if index == 10:
                zones.append(Zone("door", [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]]))
            shown = Frame("gate", index, index * 40_000_000, FrameClock("file_pts"), black, (128, 96))
            await video.write(shown, sv.Detections.empty(), analysed=True)
        await video.aclose()

    asyncio.run(watch())
    with av.open(str(tmp_path / "file.mp4")) as film:
        brightest = [int(shown.to_ndarray(format="gray").max()) for shown in film.decode(video=0)]
    assert max(brightest[:9]) < 60
    assert min(brightest[11:]) > 100
