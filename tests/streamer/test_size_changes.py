"""A stream that changes its resolution: tracks live on, videos show whole pictures, camera motion starts again."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import supervision as sv

from streamer.analysis.camera_motion import CameraWatch
from streamer.analysis.frame_sizes import FrameSizes
from streamer.frame import Frame, FrameClock
from streamer.recorders.video_writer import VideoWriter
from trackers import create_tracker

SIZES = [(320, 240), (160, 120), (480, 360), (640, 240)]


def frame(index: int, size: tuple[int, int], seed: int = 0) -> Frame:
    image = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Frame("cam", index, index * 100_000_000, FrameClock("file_pts"), image, size)


def test_a_track_keeps_its_id_and_its_place_through_changes_of_size() -> None:
    tracker, sizes = create_tracker("default"), FrameSizes()
    ids = set()
    for index in range(60):
        size = SIZES[index // 15]
        box = np.array([[0.2 + index * 0.005, 0.4, 0.3 + index * 0.005, 0.7]]) * np.tile(size, 2)
        found = sv.Detections(box.astype(np.float32), confidence=np.array([0.9], np.float32), class_id=np.array([0]))
        tracked = sizes.update(tracker, found, frame(index, size), None)
        if len(tracked):
            ids.update(tracked.tracker_id.tolist())  # type: ignore[union-attr]
            assert tracked.xyxy == pytest.approx(box, abs=0.03 * size[0])
        predicted = sizes.from_tracker(tracker.predict((index + 0.5) / 10), frame(index, size))
        if len(predicted):
            assert predicted.xyxy == pytest.approx(box, abs=0.06 * size[0])
    assert len(ids) == 1


def test_camera_motion_starts_again_with_a_new_size() -> None:
    watch, nothing = CameraWatch(), sv.Detections.empty()
    for index in range(40):
        shown = frame(index, SIZES[index // 10])
        if watch.wants(shown):
            assert watch.update(shown, nothing) is None


def test_a_video_shows_the_whole_of_every_picture(tmp_path: Path) -> None:
    """A white picture with a red rim, in four sizes: the rim is seen on all sides of each."""
    with VideoWriter(tmp_path / "out.mp4", SIZES[0], quality=10) as writer:
        for index, (width, height) in enumerate(SIZES):
            image = np.full((height, width, 3), 255, np.uint8)
            rim = height // 10
            image[:rim], image[-rim:], image[:, :rim], image[:, -rim:] = ((0, 0, 255),) * 4
            writer.write(image, index * 100_000_000)
    with av.open(str(tmp_path / "out.mp4")) as container:
        pictures = [picture.to_ndarray(format="bgr24") for picture in container.decode(video=0)]
    assert [picture.shape for picture in pictures] == [(240, 320, 3)] * 4
    for picture in pictures:
        red = (picture[:, :, 2] > 150) & (picture[:, :, 1] < 100)
        rows, columns = np.nonzero(red)
        assert (columns.min(), columns.max()) == (0, 319)
        height = rows.max() - rows.min() + 1
        assert height in (240, 120)
        white = np.nonzero(picture.min(axis=2) > 200)
        assert rows.min() < white[0].min()
        assert white[0].max() < rows.max()
