"""Recordings: every frame once, in order, with its own time; damage reported, never shown."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from streamer.errors import SourceAddressError, SourceError
from streamer.frame import Frame
from streamer.sources import SourceState, open_sources
from streamer.sources.clock import FileClock
from tests.support import reading
from tests.support.clips import draw, make_clip, read_index

SECOND = 1_000_000_000


def read(address: str | Path, **options: Any) -> list[Frame]:
    (source,) = open_sources(str(address), **options)

    async def work() -> list[Frame]:
        return [frame async for frame in source]

    return asyncio.run(work())


def read_until_it_fails(address: Path) -> tuple[list[Frame], str, dict[str, int]]:
    (source,) = open_sources(str(address))
    frames: list[Frame] = []

    async def work() -> None:
        async for frame in source:
            frames.append(frame)  # noqa: PERF401  (what came before the error counts)

    with pytest.raises(SourceError) as failure:
        asyncio.run(work())
    return frames, str(failure.value), source.account.tally().dropped


def numbers(frames: list[Frame]) -> list[int | None]:
    return [read_index(frame.image) for frame in frames]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("plain.mov", {}),
        ("plain.mkv", {}),
        ("plain.ts", {}),
        ("plain.flv", {}),
        ("plain.h264", {}),
        ("with-b-frames.mp4", {"options": {"preset": "medium"}}),
        ("h265.mp4", {"codec": "libx265"}),
        ("ten-bit.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
        ("chroma-422.mp4", {"pix_fmt": "yuv422p"}),
        ("motion-jpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("mpeg4.mp4", {"codec": "mpeg4"}),
        ("odd-size.mp4", {"size": (322, 242)}),
    ],
)
def test_every_frame_of_every_kind_of_file_comes_once_and_in_order(tmp_path: Path, name: str, options: Any) -> None:
    frames = read(make_clip(tmp_path / name, 24, **options))
    assert numbers(frames) == list(range(24))
    assert [frame.index for frame in frames] == list(range(24))
    width, height = options.get("size", (320, 240))
    assert {(frame.width, frame.height, frame.image.shape) for frame in frames} == {(width, height, (height, width, 3))}
    steps = np.diff([frame.time_ns for frame in frames])
    assert np.all(abs(steps - SECOND / 25) < SECOND / 500)  # Matroska and FLV count in milliseconds


def test_colours_are_blue_green_red(tmp_path: Path) -> None:
    first = read(make_clip(tmp_path / "clip.mp4", 2, options={"crf": "5"}, pix_fmt="yuv444p"))[0]
    assert np.abs(first.image.astype(int) - draw(0)).mean() < 6


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (270, 3)])
def test_a_rotated_recording_is_turned_upright(tmp_path: Path, rotation: int, turns: int) -> None:
    frames = read(make_clip(tmp_path / "turned.mp4", 3, rotation=rotation))
    height, width = frames[0].image.shape[:2]
    assert (frames[0].width, frames[0].height) == (width, height) == ((240, 320) if turns % 2 else (320, 240))
    assert numbers(frames) == [None] * 3 or turns == 0  # the number is no longer at the top ...
    assert [read_index(np.rot90(frame.image, -turns)) for frame in frames] == [0, 1, 2]  # ... until it is turned back


def test_times_of_a_variable_frame_rate_are_the_files_own(tmp_path: Path) -> None:
    times_s = [0.0, 0.04, 0.08, 0.5, 0.51, 2.0, 7.25]
    frames = read(make_clip(tmp_path / "variable.mkv", len(times_s), times_s=times_s))
    assert [round(frame.time_s, 3) for frame in frames] == times_s
    assert frames[0].clock.basis == "file_pts"
    assert frames[0].clock.uncertainty_ms is None


def test_a_recording_date_or_a_given_start_places_it_in_time(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "dated.mp4", 2, metadata={"creation_time": "2024-05-06T07:08:09.000000Z"})
    dated = read(path)[0]
    assert (dated.time_ns, dated.clock.uncertainty_ms) == (1_714_979_289 * SECOND, 1000.0)
    assert read(path, start_time_ns=5 * SECOND)[0].time_ns == 5 * SECOND


def test_the_reader_sets_the_pace_and_only_a_few_frames_wait_for_it(tmp_path: Path) -> None:
    (source,) = open_sources(str(make_clip(tmp_path / "clip.mp4", 60)))

    async def slowly() -> None:
        seen = 0
        async for _ in source:
            seen += 1
            await asyncio.sleep(0.01)
            assert source.account.tally().received <= seen + 9
        assert seen == 60

    asyncio.run(slowly())
    assert source.account.tally().dropped == {}


def test_closing_early_ends_the_thread_and_accounts_for_what_waited(tmp_path: Path) -> None:
    (source,) = open_sources(str(make_clip(tmp_path / "clip.mp4", 60)))

    async def peek() -> None:
        async for _ in source:
            source.account.analyse()
            break
        await source.aclose()
        await source.aclose()
        assert [frame async for frame in source] == []

    asyncio.run(peek())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]
    tally = source.account.tally()
    assert tally.pending == 0
    assert set(tally.dropped) == {"shutdown"}


def test_pixels_are_the_same_array_for_every_thread_that_looks(tmp_path: Path) -> None:
    frame = read(make_clip(tmp_path / "clip.mp4", 1))[0]
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(id(frame.image))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1


def test_a_cut_off_recording_gives_all_it_has_and_then_says_so(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv", 100).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) // 2])
    frames, words, _ = read_until_it_fails(cut)
    assert 30 < len(frames) < 70
    assert numbers(frames) == list(range(len(frames)))
    assert "was cut off: it says 4.0 s" in words


def test_damaged_frames_are_counted_and_never_shown(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.ts", 100)
    original = {read_index(frame.image): frame.image for frame in read(path)}
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 3000] = bytes(3000)
    path.write_bytes(bytes(damaged))
    (source,) = open_sources(str(path))

    async def work() -> list[Frame]:
        return [frame async for frame in source]

    frames = asyncio.run(work())
    tally = source.account.tally()
    assert tally.dropped["corrupt"] > 0
    assert len(frames) + tally.dropped["corrupt"] == tally.received
    assert len(frames) > 70
    assert all(np.array_equal(frame.image, original[read_index(frame.image)]) for frame in frames)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes): give a video file"),
        (b"Dear diary, this is no film.\n" * 50, "is not a video: what it holds is not in a known video format"),
    ],
)
def test_what_is_no_video_is_reported_in_a_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "diary.mp4"
    path.write_bytes(content)
    frames, reported, _ = read_until_it_fails(path)
    assert frames == []
    assert reported == f"{path} {words}"


def test_an_mp4_without_its_index_is_reported_apart(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 30)
    path.write_bytes(path.read_bytes()[:5000])
    assert "without its index (moov)" in read_until_it_fails(path)[1]


def test_a_missing_file_an_empty_folder_and_an_unknown_scheme_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_sources(str(tmp_path / "nothing.mp4"))
    with pytest.raises(SourceError, match="holds no videos and no images"):
        open_sources(str(tmp_path))
    with pytest.raises(SourceAddressError, match="is not a known kind of address"):
        open_sources("gopher://u:secret@host/x")
    with pytest.raises(SourceAddressError, match="webcam:0"):
        open_sources("webcam:front")


def test_folders_and_globs_give_a_source_each_with_a_name_of_its_own(tmp_path: Path) -> None:
    for name in ("cam10.mp4", "cam2.mp4", "cam2.mkv", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [source.name for source in open_sources(str(tmp_path))] == ["cam2", "cam2-2", "cam10"]
    assert [source.name for source in open_sources(f"{tmp_path}/*.mp4")] == ["cam2", "cam10"]
    assert [source.name for source in open_sources([f"{tmp_path}/cam2.mp4"] * 2, name="gate")] == ["gate", "gate-2"]


def test_a_folder_of_images_is_a_stream_in_the_order_people_count(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        cv2.imwrite(str(tmp_path / f"{number}.png"), draw(number))
    (tmp_path / "3.png").write_bytes(b"no image")
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nframeRate=10\n")
    (source,) = open_sources(str(tmp_path))

    async def work() -> list[Frame]:
        return [frame async for frame in source]

    frames = asyncio.run(work())
    assert numbers(frames) == [1, 2, 10]
    assert [frame.index for frame in frames] == [0, 1, 3]
    assert [frame.time_s for frame in frames] == [0.0, 0.1, pytest.approx(0.3)]
    assert source.account.tally().dropped == {"corrupt": 1}


def test_a_listener_hears_when_a_recording_begins_and_ends(tmp_path: Path) -> None:
    reported: list[SourceState] = []
    read(make_clip(tmp_path / "clip.mp4", 3), on_state=lambda change: reported.append(change.state))
    assert reported == [SourceState.LIVE, SourceState.CLOSED]


def test_the_street_can_be_opened_by_its_address() -> None:
    (source,) = open_sources("synthetic:street?seed=3&size=320x192&fps=10&duration=0.3")

    async def work() -> list[Frame]:
        return [frame async for frame in source]

    assert len(asyncio.run(work())) == 3


def test_file_time_rises_through_resets_wraps_and_repeats() -> None:
    clock = FileClock(0, may_jump=True)
    pts_s = [100.0, 100.04, 100.08, 0.0, 0.04, 0.04, 95_000.0, 95_000.04]
    times = []
    for pts in pts_s:
        was_set = clock.leaps(round(pts * SECOND))  # the only leap forward here is one that the stream marks
        times.append(clock.time_ns(round(pts * SECOND), 0 if was_set else None) / SECOND)
    assert times == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.160001, 0.200001, 0.240001], abs=1e-5)
    assert sorted(set(times)) == times


@pytest.mark.parametrize("may_jump", [False, True])
def test_a_long_pause_is_time_that_passed(may_jump: bool) -> None:
    clock = FileClock(0, may_jump=may_jump)
    assert [clock.time_ns(s * SECOND) // SECOND for s in (0, 1, 500)] == [0, 1, 500]


def test_a_camera_shows_its_address_without_secrets_everywhere() -> None:
    (source,) = open_sources("rtsp://admin:hunter2@10.0.0.7:8554/yard/main")
    assert source.name == "10.0.0.7-8554-yard-main"
    assert "hunter2" not in repr(source)
    with pytest.raises(SourceAddressError) as refused:
        open_sources("rtsp://admin:hun/ter2@10.0.0.7/ch1")
    assert "ter2" not in str(refused.value)
    assert "%2F" in str(refused.value)


@pytest.mark.parametrize("form", ["ts", "mkv", "mp4"])
def test_a_named_pipe_is_read_once_and_ends(tmp_path: Path, form: str) -> None:
    data, pipe = make_clip(tmp_path / f"clip.{form}", 10).read_bytes(), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    seen = reading.read(str(pipe))
    writer.join()
    assert (seen.numbers, seen.states) == (list(range(10)), ["live", "closed"])


def test_an_animated_webp_is_named(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.webp", 3, codec="libwebp_anim", form="webp")
    assert "is an animated WebP" in reading.read(str(path)).error
