"""Pictures into MP4: times, colours, size, and what happens when they cannot be written."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sinks.sink import SinkAddressError, SinkError
from streamer.recorders.video_writer import VideoWriter

MS = 1_000_000


def picture(value: int, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    return np.full((size[1], size[0], 3), value, np.uint8)


def read(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as video:
        return [(round(frame.time * 1000), frame.to_ndarray(format="bgr24")) for frame in video.decode(video=0)]


def test_every_picture_is_shown_at_the_time_it_was_captured(tmp_path: Path) -> None:
    times = [0, 40, 80, 200, 240, 1000]
    with VideoWriter(tmp_path / "v.mp4", (96, 64)) as video:
        for number, time_ms in enumerate(times):
            video.write(picture(20 + 30 * number), 10**18 + time_ms * MS)
    found = read(tmp_path / "v.mp4")
    assert [time for time, _ in found] == times
    assert [int(image.mean()) for _, image in found] == pytest.approx([20 + 30 * n for n in range(6)], abs=6)


def test_colours_are_blue_green_red(tmp_path: Path) -> None:
    image = picture(0)
    image[:, :48] = (255, 0, 0)
    image[:, 48:] = (0, 0, 255)
    with VideoWriter(tmp_path / "v.mp4", (96, 64)) as video:
        video.write(image, 0)
    ((_, found),) = read(tmp_path / "v.mp4")
    assert found[32, 20, 0] > 200 > 60 > found[32, 20, 2]
    assert found[32, 80, 2] > 200 > 60 > found[32, 80, 0]


def test_the_shape_of_pixels_is_kept(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", (96, 64), pixel_aspect=64 / 45) as video:
        video.write(picture(90), 0)
    with av.open(str(tmp_path / "v.mp4")) as found:
        assert found.streams.video[0].sample_aspect_ratio == Fraction(64, 45)


def test_a_picture_with_other_pixels_keeps_its_shape_among_bars(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", (96, 64)) as video:
        video.write(picture(200), 0)
        video.write(picture(200, (48, 64)), 40 * MS, 2.0)  # the same shape
        video.write(picture(200), 80 * MS, 0.5)  # half as wide
    images = [image for _, image in read(tmp_path / "v.mp4")]
    assert images[1].min() > 150
    assert images[2][:, :20].max() < 60 < 150 < images[2][:, 30:66].min()


def test_odd_sizes_lose_a_line_and_equal_times_lose_no_picture(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", (97, 65)) as video:
        for time_ms in (0, 40, 40, 30, 80):
            video.write(picture(90, (97, 65)), time_ms * MS)
    found = read(tmp_path / "v.mp4")
    assert len(found) == 5
    assert found[0][1].shape == (64, 96, 3)
    assert [time for time, _ in found] == sorted(time for time, _ in found)


def test_a_slow_encoder_counts_what_it_leaves_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    with VideoWriter(tmp_path / "v.mp4", (640, 480), when_full="drop") as video:
        for number in range(100):
            video.write(noise, number * 40 * MS)
    assert video.dropped > 0
    assert video.written + video.dropped == 100
    assert len(read(tmp_path / "v.mp4")) == video.written


def test_a_video_without_a_picture_leaves_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", (96, 64)):
        pass
    assert not (tmp_path / "v.mp4").exists()


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"cannot be written \(Is a directory\)"):
        VideoWriter(tmp_path, (96, 64))
    with pytest.raises(SinkAddressError, match="too small"):
        VideoWriter(tmp_path / "v.mp4", (1, 64))

    def fill_the_disk() -> None:
        noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
        with VideoWriter("/dev/full", (320, 240)) as video:
            for number in range(400):
                video.write(noise, number * 40 * MS)

    with pytest.raises(SinkError, match="No space left on device"):
        fill_the_disk()
