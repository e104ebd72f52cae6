"""Recordings of other makers: where they begin and end, which track, which way up, when, and what they are called."""

from __future__ import annotations

import asyncio
import os
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from streamer.errors import SourceError
from streamer.frame import Frame
from streamer.sources import open_sources
from tests.support.clips import draw, make_clip, read_index
from tests.support.packets import Encoded, encode_pictures, write_packets


def read(address: str | Path, **options: Any) -> tuple[list[Frame], str]:
    """Frames of a source, and its error."""
    (source,) = open_sources(str(address), **options)
    frames: list[Frame] = []

    async def work() -> None:
        async for frame in source:
            frames.append(frame)  # noqa: PERF401  (what came before an error counts)

    try:
        asyncio.run(work())
    except SourceError as error:
        return frames, str(error)
    return frames, ""


def numbers(frames: list[Frame]) -> list[int | None]:
    return [read_index(frame.image) for frame in frames]


# Where it ends


@pytest.mark.parametrize("form", ["mkv", "mp4", "ts", "flv", "avi", "mov", "webm"])
@pytest.mark.parametrize("begins_s", [0.0, 80.0, 4000.0])
def test_a_whole_recording_is_whole_wherever_its_times_begin(tmp_path: Path, form: str, begins_s: float) -> None:
    if form == "avi" and begins_s > 100:
        return  # its times always begin at zero: the writer would fill the gap with empty frames
    codec = "libvpx" if form == "webm" else "libx264"
    packets = [packet.moved(begins_s) for packet in encode_pictures(40, codec=codec)]
    frames, error = read(write_packets(tmp_path / f"clip.{form}", packets, codec=codec))
    assert (len(frames), error) == (40, "")


@pytest.mark.parametrize("form", ["mkv", "mp4", "mov"])
def test_a_last_frame_may_be_shown_for_a_minute(tmp_path: Path, form: str) -> None:
    packets = [
        replace(packet, pts_s=float(n), dts_s=float(n), length_s=60.0 if n == 9 else 1.0)
        for n, packet in enumerate(encode_pictures(10))
    ]
    frames, error = read(write_packets(tmp_path / f"clip.{form}", packets, fps=1))
    assert (len(frames), error) == (10, "")


@pytest.mark.parametrize("form", ["mkv", "mp4", "ts", "flv"])
def test_a_recording_that_begins_amid_a_group_is_whole(tmp_path: Path, form: str) -> None:
    frames, error = read(write_packets(tmp_path / f"clip.{form}", encode_pictures(60)[7:]))
    assert (numbers(frames), error) == (list(range(10, 60)), "")


def test_segments_of_a_recorder_are_whole(tmp_path: Path) -> None:
    with (
        av.open(str(make_clip(tmp_path / "clip.mp4", 100))) as clip,
        av.open(
            str(tmp_path / "%02d.mkv"),
            "w",
            format="segment",
            options={"segment_time": "1", "segment_format": "matroska"},
        ) as segments,
    ):
        stream = segments.add_stream_from_template(clip.streams.video[0])
        for packet in clip.demux(video=0):
            if packet.size:
                packet.stream = stream
                segments.mux(packet)
    (tmp_path / "clip.mp4").unlink()
    paths = sorted(tmp_path.glob("*.mkv"))
    assert len(paths) > 2
    seen: list[int | None] = []
    for path in paths:
        frames, error = read(path)
        assert error == ""
        seen += numbers(frames)
    assert seen == list(range(100))


@pytest.mark.parametrize(
    ("form", "words"), [("mkv", "it says 4.0 s"), ("avi", "it says 100 frames"), ("flv", "it says 4.0 s")]
)
def test_a_recording_that_lost_its_end_is_reported_after_all_it_has(tmp_path: Path, form: str, words: str) -> None:
    path = write_packets(tmp_path / f"clip.{form}", encode_pictures(100))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames, error = read(path)
    assert 20 < len(frames) < 80
    assert numbers(frames) == list(range(len(frames)))
    assert f"was cut off: {words} and ends after" in error


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
        ("clip.mkv", "libx264", {}),
        ("clip.webm", "libvpx", {}),
        ("clip.wmv", "wmv2", {}),
        ("clip.asf", "msmpeg4v3", {}),
    ],
)
def test_a_few_frames_that_are_missing_at_the_end_are_noticed(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    """Too few for the times to show it: the structure of the file does."""
    path = write_packets(tmp_path / name, encode_pictures(100, codec=codec), codec=codec, options=options)
    whole = path.read_bytes()
    assert read(path)[1] == ""
    path.write_bytes(whole[: len(whole) * 92 // 100])
    frames, error = read(path)
    assert 80 < len(frames) < 97
    assert "was cut off: " in error
    path.write_bytes(whole + bytes(5000) + b"appended by a recorder")
    assert read(path)[1] == ""


def test_a_codec_whose_key_pictures_are_not_marked_is_read_from_the_beginning(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.roq", 30, codec="roqvideo", size=(256, 256), pix_fmt="yuvj444p", fps=30)
    frames, error = read(path)
    assert (len(frames), error) == (30, "")


def test_an_mp4_with_its_index_in_front_that_lost_its_end_is_reported(tmp_path: Path) -> None:
    path = write_packets(tmp_path / "clip.mp4", encode_pictures(100), options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    frames, error = read(path)
    assert 20 < len(frames) < 90
    assert "it says 100 frames and ends after" in error


# Text from outside


@pytest.mark.parametrize("form", ["mkv", "mp4", "flv", "avi", "ts", "mov"])
def test_titles_in_any_encoding_are_no_obstacle(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"clip.{form}"
    with av.open(str(path), "w", metadata_errors="surrogateescape") as container:
        title = b"Ma\xdfnahme \xff\xfe".decode(errors="surrogateescape")
        container.metadata.update({"title": title, "service_name": title, "comment": title})
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = 320, 240
        stream.metadata.update({"title": title, "handler_name": title})
        for n in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(n), format="bgr24")))
        container.mux(stream.encode(None))
    frames, error = read(path)
    assert (len(frames), error) == (5, "")


@pytest.mark.parametrize("tag", ["", "PT4S", "-1:00", "a:b:c", "00:00:99999999999999999999", "00:00:04.000000000\0\0"])
def test_an_odd_duration_tag_is_no_error(tmp_path: Path, tag: str) -> None:
    path = write_packets(tmp_path / "clip.mkv", encode_pictures(100))
    data = path.read_bytes()
    place = data.index(b"00:00:04.0")
    path.write_bytes(data[:place] + tag.encode().ljust(18, b"\0")[:18] + data[place + 18 :])
    frames, error = read(path)
    assert (len(frames), error) == (100, "")


@pytest.mark.parametrize(
    "name", ["2026-11-24T10:00:00.mp4", "http:clip.mp4", "concat:a|b.mp4", "50%.mp4", "a [x]*?.mp4", "-.mp4"]
)
def test_a_name_that_looks_like_an_address_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    os.replace(make_clip(tmp_path / "clip.mp4", 5), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for address in (name, str(tmp_path / name)):
        frames, error = read(address)
        assert (len(frames), error) == (5, "")


# Which picture, and which way up


@pytest.mark.parametrize("default", [0, 1, None])
def test_the_default_track_is_read_else_the_largest(tmp_path: Path, default: int | None) -> None:
    sizes = [(160, 128), (320, 240)] if default != 0 else [(320, 240), (160, 128)]
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for position, size in enumerate(sizes):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height = size
            stream.disposition = Disposition.default if position == default else Disposition(0)
            streams.append(stream)
        for n in range(10):
            for stream, size in zip(streams, sizes, strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(n, size), format="bgr24")))
        for stream in streams:
            container.mux(stream.encode(None))
    frames, _ = read(path)
    assert {(frame.width, frame.height) for frame in frames} == {(320, 240)}
    chosen, _ = read(path, track=0)
    assert {(frame.width, frame.height) for frame in chosen} == {sizes[0]}
    _, error = read(path, track=2)
    assert "has no video track 2: give a track from 0 to 1" in error


MATRICES = {
    "upright": (1, 0, 0, 1, 0, 0),
    "mirrored": (-1, 0, 0, 1, 320, 0),
    "upside down and mirrored": (1, 0, 0, -1, 0, 240),
    "upside down": (-1, 0, 0, -1, 320, 240),
    "quarter turn right": (0, 1, -1, 0, 240, 0),
    "quarter turn left": (0, -1, 1, 0, 0, 320),
    "transposed": (0, 1, 1, 0, 0, 0),
    "transposed over the other diagonal": (0, -1, -1, 0, 240, 320),
}


@pytest.mark.parametrize("name", MATRICES)
def test_each_display_matrix_moves_every_pixel_to_its_place(tmp_path: Path, name: str) -> None:
    a, b, c, d, x, y = MATRICES[name]
    path = make_clip(tmp_path / "clip.mp4", 3)
    plain = read(path)[0][0].image
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 1 << 30)
    path.write_bytes(data)
    turned = read(path)[0][0].image
    # By the standard a pixel at (column, row) moves to (a column + c row + x, b column + d row + y).
    for row, column in ((3, 5), (20, 300), (230, 10), (200, 310)):
        to_column, to_row = a * column + c * row + x, b * column + d * row + y
        to_column -= (a or c) < 0
        to_row -= (b or d) < 0
        assert np.array_equal(turned[to_row, to_column], plain[row, column])


def test_the_shape_of_pixels_is_noted(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "wide.mkv", 3, options={"x264-params": "sar=4/3"})
    assert read(path)[0][0].pixel_aspect == pytest.approx(4 / 3)


# Times


def test_avi_with_b_pictures_has_even_times_in_the_order_shown(tmp_path: Path) -> None:
    packets = encode_pictures(40, options={"bf": "3", "b_strategy": "0"}, fps=10)
    timeless = [replace(packet, pts_s=None, dts_s=n / 10) for n, packet in enumerate(packets)]
    frames, _ = read(write_packets(tmp_path / "clip.avi", timeless, fps=10), start_time_ns=0)
    assert numbers(frames) == list(range(40))
    assert [frame.time_s for frame in frames] == pytest.approx([n / 10 for n in range(40)], abs=0.001)
    assert frames[0].clock.uncertainty_ms == pytest.approx(100, abs=1)


@pytest.mark.parametrize("bf", ["0", "3"])
def test_a_raw_stream_has_times_of_its_rate(tmp_path: Path, bf: str) -> None:
    path = make_clip(tmp_path / "clip.h264", 30, fps=10, options={"bf": bf, "b_strategy": "0", "preset": "medium"})
    frames, _ = read(path)
    assert numbers(frames) == list(range(30))
    steps = np.diff([frame.time_s for frame in frames])
    assert steps.min() > 0
    assert steps == pytest.approx([steps[0]] * 29, abs=0.002)


def pause(packets: list[Encoded], at: int, by_s: float) -> list[Encoded]:
    return packets[:at] + [packet.moved(by_s) for packet in packets[at:]]


@pytest.mark.parametrize("pause_s", [2.0, 29.0, 105.0, 3000.0])
@pytest.mark.parametrize("form", ["ts", "mp4", "mkv"])
def test_a_pause_is_time_that_passed(tmp_path: Path, form: str, pause_s: float) -> None:
    frames, _ = read(write_packets(tmp_path / f"clip.{form}", pause(encode_pictures(40), 20, pause_s)))
    assert numbers(frames) == list(range(40))
    assert frames[-1].time_s - frames[0].time_s == pytest.approx(39 / 25 + pause_s, abs=0.05)


def mark_discontinuity(path: Path, after_s: float) -> None:
    """Sets the discontinuity flag of the first clock reference later than `after_s`."""
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 188):
        if data[at + 3] & 0x20 and data[at + 4] >= 7 and data[at + 5] & 0x10:
            base = int.from_bytes(data[at + 6 : at + 11], "big") >> 7
            if base / 90_000 > after_s:
                data[at + 5] |= 0x80
                path.write_bytes(data)
                return
    raise AssertionError("no clock reference")


@pytest.mark.parametrize("jump_s", [5.0, 105.0, 40_000.0])
def test_a_clock_that_says_it_was_set_costs_no_time(tmp_path: Path, jump_s: float) -> None:
    path = write_packets(tmp_path / "clip.ts", pause(encode_pictures(40), 20, jump_s))
    mark_discontinuity(path, jump_s - 3)
    frames, _ = read(path)
    assert numbers(frames) == list(range(40))
    assert frames[-1].time_s - frames[0].time_s == pytest.approx(39 / 25, abs=0.1)


def test_joined_transport_streams_go_on_where_the_first_ended(tmp_path: Path) -> None:
    first = write_packets(tmp_path / "a.ts", [packet.moved(500) for packet in encode_pictures(40)]).read_bytes()
    second = write_packets(tmp_path / "b.ts", encode_pictures(40, first=40)).read_bytes()
    (tmp_path / "joined.ts").write_bytes(first + second)
    frames, _ = read(tmp_path / "joined.ts")
    assert numbers(frames) == list(range(80))
    times = [frame.time_s for frame in frames]
    assert times[-1] - times[0] == pytest.approx(79 / 25, abs=0.1)
    assert sorted(set(times)) == times


def test_slow_recordings_keep_their_rate(tmp_path: Path) -> None:
    packets = [replace(p, pts_s=2.0 * n, dts_s=2.0 * n) for n, p in enumerate(encode_pictures(20))]
    frames, _ = read(write_packets(tmp_path / "clip.ts", packets, fps=Fraction(1, 2)))  # type: ignore[arg-type]
    assert [frame.time_s for frame in frames] == pytest.approx([2.0 * n for n in range(20)], abs=0.001)
