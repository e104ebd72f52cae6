"""Damage: what FFmpeg shows whole is never called damaged, what is damaged is never shown, every packet is counted."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from streamer.errors import SourceError
from streamer.frame import Frame
from streamer.sources import open_sources
from streamer.sources.decode import DecodedPicture, VideoReader
from streamer.sources.h264 import FrameNumbers
from streamer.sources.h265 import PictureUnits
from streamer.sources.nal_units import UnitLayout
from tests.support.clips import make_clip, read_index
from tests.support.packets import Encoded, encode_pictures, join_units, split_units, write_packets

PARAMETER_SET, SLICE = 7, 1


def read(path: Path) -> tuple[list[int | None], dict[str, int], str]:
    """Numbers of the pictures that a source hands over, what it dropped, and its error."""
    (source,) = open_sources(str(path))
    frames: list[Frame] = []
    error = ""

    async def work() -> None:
        async for frame in source:
            source.account.analyse()
            frames.append(frame)

    try:
        asyncio.run(work())
    except SourceError as failure:
        error = str(failure)
    tally = source.account.tally()
    assert tally.pending == 0
    return [read_index(frame.image) for frame in frames], tally.dropped, error


def shown_by_ffmpeg(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(not frame.is_corrupt for frame in container.decode(video=0))


def units_of(packets: Sequence[Encoded]) -> list[list[bytes]]:
    return [split_units(packet.data) for packet in packets]


def with_units(packets: Sequence[Encoded], units: Sequence[Sequence[bytes]]) -> list[Encoded]:
    return [replace(packet, data=join_units(parts)) for packet, parts in zip(packets, units, strict=True)]


@pytest.mark.parametrize("rest", [b"", b"\x00", b"\x9a", b"\xff\xff\xff", bytes(40)])
def test_a_slice_that_ends_early_costs_its_group_and_no_more(tmp_path: Path, rest: bytes) -> None:
    packets = encode_pictures(40)
    units = units_of(packets)
    units[14] = [b"\x41" + rest]
    seen, dropped, error = read(write_packets(tmp_path / "clip.ts", with_units(packets, units)))
    assert error == ""
    assert seen == [n for n in range(40) if not 14 <= n < 20]
    assert sum(dropped.values()) == 6


@pytest.mark.parametrize("form", ["ts", "mkv", "mp4", "flv"])
def test_parameter_sets_that_no_slice_uses_change_nothing(tmp_path: Path, form: str) -> None:
    other = encode_pictures(1, options={"x264-params": "sps-id=3:keyint=250"})
    foreign = [unit for unit in split_units(other[0].data) if unit[0] & 31 == PARAMETER_SET]
    packets = encode_pictures(40)
    units = [
        foreign + parts if packet.is_key else parts for packet, parts in zip(packets, units_of(packets), strict=True)
    ]
    path = write_packets(tmp_path / f"clip.{form}", with_units(packets, units))
    assert read(path) == (list(range(40)), {}, "")


MESSAGES = {
    "a user message that is too short for its length": b"\x4e\x01\x05\xff\x40" + b"text" * 9 + b"\x80",
    "a picture timing message of one byte": b"\x4e\x01\x01\x01\x00\x80",
    "a mastering display message of two bytes": b"\x4e\x01\x89\x02\x12\x34\x80",
    "a message without an end": b"\x4e\x01\x04\x7f",
    "an unknown unit": b"\x60\x01\xff\xff",
    "a parameter set of noise": b"\x44\x01\xff\xff\xff\xff",
    "a video parameter set of noise": b"\x40\x01\xff\x00\xff",
}


@pytest.mark.parametrize("form", ["ts", "mkv", "mp4"])
@pytest.mark.parametrize("flaw", MESSAGES)
def test_a_flaw_beside_an_h265_picture_is_no_damage(tmp_path: Path, flaw: str, form: str) -> None:
    packets = encode_pictures(20, codec="libx265")
    units = [[MESSAGES[flaw], *parts] for parts in units_of(packets)]
    path = write_packets(tmp_path / f"clip.{form}", with_units(packets, units), codec="libx265")
    seen, dropped, error = read(path)
    assert (len(seen), dropped, error) == (shown_by_ffmpeg(path), {}, "")
    assert seen == list(range(20))


SETTINGS = [
    ("libx264", {"bf": "3", "b_strategy": "0"}),
    ("libx264", {"bf": "8", "x264-params": "b-pyramid=normal:ref=8"}),
    ("libx264", {"x264-params": "interlaced=1"}),
    ("libx264", {"x264-params": "slices=4"}),
    ("libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
    ("libx264", {"bf": "3", "x264-params": "open-gop=1:keyint=10"}),
    ("libx264", {"x264-params": "bframes=0:ref=4:sps-id=5"}),
    ("libx264", {"x264-params": "aud=1:nal-hrd=cbr:vbv-maxrate=400:vbv-bufsize=400:bitrate=400"}),
    ("libx265", {"x265-params": "log-level=none:keyint=10:bframes=4"}),
    ("libx265", {"x265-params": "log-level=none:keyint=10:open-gop=1:bframes=3"}),
    ("libx265", {"x265-params": "log-level=none:keyint=10:hrd=1:vbv-maxrate=400:vbv-bufsize=400:aud=1:hash=1"}),
    ("libx265", {"x265-params": "log-level=none:keyint=10:slices=2:repeat-headers=1"}),
    ("mjpeg", {}),
    ("mpeg4", {"bf": "2"}),
    ("mpeg2video", {"bf": "2"}),
    ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"}),
    ("libsvtav1", {"preset": "12"}),
]


@pytest.mark.parametrize(("codec", "options"), SETTINGS, ids=[f"{n}-{c}" for n, (c, _) in enumerate(SETTINGS)])
def test_a_healthy_recording_loses_no_picture_that_ffmpeg_gives(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    forms = ["mkv", "mp4", "ts", "avi"]
    if codec.startswith(("libvpx", "libsvtav1")):
        forms = ["mkv"]
    elif codec == "libx265":
        forms.remove("avi")
    elif codec == "mjpeg":
        forms.remove("ts")
    for form in forms:
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        path = make_clip(tmp_path / f"clip.{form}", 40, codec=codec, pix_fmt=pixels, options=options)
        seen, dropped, error = read(path)
        assert (len(seen), dropped, error) == (shown_by_ffmpeg(path), {}, ""), form


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="scheduling policies are known on Linux alone")
def test_an_encoder_leaves_the_priority_of_the_tests_alone(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    make_clip(tmp_path / "clip.mkv", 10, codec="libsvtav1", options={"preset": "12"})
    assert os.sched_getscheduler(0) == before


# Pictures that build on one which is shown after them, on parts of several, or on none that is shown after them.
REORDERED = {
    "three B-pictures": ("libx264", {"bf": "3", "b_strategy": "0"}),
    "B-pictures that others build on": ("libx264", {"bf": "4", "x264-params": "b-pyramid=normal"}),
    "open groups": ("libx264", {"bf": "3", "x264-params": "open-gop=1"}),
    "refreshed part by part": ("libx264", {"x264-params": "intra-refresh=1:bframes=0"}),
    "several slices": ("libx264", {"x264-params": "slices=4:ref=4:bframes=2"}),
    "H.265": ("libx265", {"x265-params": "log-level=none:bframes=4:keyint=10:open-gop=0:scenecut=0"}),
    "H.265, open groups": ("libx265", {"x265-params": "log-level=none:bframes=3:keyint=10:open-gop=1:scenecut=0"}),
}


@pytest.mark.parametrize("loss", ["end of a picture", "whole picture"])
@pytest.mark.parametrize("name", REORDERED)
def test_no_picture_that_builds_on_a_damaged_one_is_shown_before_or_after_it(
    tmp_path: Path, name: str, loss: str
) -> None:
    codec, options = REORDERED[name]
    packets = encode_pictures(120, codec=codec, options=options)
    originals = decode(write_packets(tmp_path / "whole.mkv", packets, codec=codec))
    assert len(originals) == 120
    chance = np.random.default_rng(2)
    changed: list[Encoded] = []
    for number, packet in enumerate(packets):
        if number not in range(5, 60) or chance.random() > 0.15:
            changed.append(packet)
        elif loss != "whole picture":
            changed.append(replace(packet, data=packet.data[: len(packet.data) // 2]))
    for form in ("mkv", "ts"):
        seen = decode(write_packets(tmp_path / f"clip.{form}", changed, codec=codec), lossy=True)
        numbers = [read_index(image) for image in seen]
        assert len(numbers) >= 40, form  # what comes after the damage is there
        if "H.265" not in name or loss == "whole picture":  # FFmpeg's decoder does not notice every cut in H.265
            assert None not in numbers
            for number, image in zip(numbers, seen, strict=True):
                assert np.array_equal(image, originals[number or 0]), (form, number)


def decode(path: Path, *, lossy: bool = False) -> list[npt.NDArray[np.uint8]]:
    with VideoReader(str(path), lossy=lossy) as video:
        return [picture() for picture in video.pictures() if isinstance(picture, DecodedPicture)]


def test_damage_before_a_key_picture_is_none_after_it(tmp_path: Path) -> None:
    """Open groups: what is shown before a key picture builds on the group before, what is shown after it does not."""
    options = {"x265-params": "log-level=none:bframes=3:keyint=20:open-gop=1:scenecut=0"}
    packets = encode_pictures(60, codec="libx265", gop=20, options=options)
    path = write_packets(tmp_path / "clip.mkv", packets[:5] + packets[6:], codec="libx265")
    numbers = [read_index(image) for image in decode(path, lossy=True)]
    assert set(range(20, 60)) <= set(numbers)


@pytest.mark.parametrize("messages", [b"\x06\x05\x02", b"\x06\xff\xff\x06\x01\x80", b"\x06\x06\xff", b"\x06"])
def test_a_recovery_point_that_cannot_be_read_is_none(messages: bytes) -> None:
    slice_unit = b"\x41\x9a\x00\x00"
    assert FrameNumbers().recovery_count(join_units([messages, slice_unit])) == 0


def test_the_recovery_point_is_found_among_other_messages() -> None:
    user_data = b"\x05\x03abc"
    point = b"\x06\x02" + bits("0000 10010 1 0 00")  # recovery_frame_cnt 17, then three flags
    unit = b"\x06" + user_data + point + b"\x80"
    assert FrameNumbers().recovery_count(join_units([unit, b"\x41\x9a\x00\x00"])) == 17


def test_h264_in_fields_is_one_picture_for_two_packets(tmp_path: Path) -> None:
    """Two packets a picture, none of them lost: a made stream, because no encoder here makes fields."""
    numbers = FrameNumbers()
    # Sequence set: baseline-like, 4-bit numbers, fields possible; picture set 0; slices with field_pic_flag set.
    numbers.has_gap(join_units([bytes([0x67, 77, 0, 30]) + bits("1 1 1 1 010 0 00101 00101 0 1 1 0 0 1")]))
    numbers.has_gap(join_units([b"\x68" + bits("1 1 0 0 1")]))
    field = join_units([b"\x41" + bits("1 00110 1 0000 1 0 1")])
    whole = join_units([b"\x41" + bits("1 00110 1 0000 0 0 1")])
    assert (numbers.is_field(field), numbers.is_field(whole)) == (True, False)


def bits(text: str) -> bytes:
    digits = text.replace(" ", "")
    digits += "0" * (-len(digits) % 8)
    return int(digits, 2).to_bytes(len(digits) // 8, "big")


def test_jpegs_that_are_cut_or_damaged_are_not_shown(tmp_path: Path) -> None:
    packets = encode_pictures(20, codec="mjpeg")
    data = [packet.data for packet in packets]
    data[5] = data[5][: len(data[5]) // 2]
    data[9] = data[9][: len(data[9]) * 97 // 100]
    middle = len(data[13]) // 2
    data[13] = data[13][:middle] + bytes(400) + data[13][middle + 400 :]
    data[15] = data[15][:-2]  # only the end marker is missing: the picture is whole
    path = write_packets(
        tmp_path / "clip.mkv", [replace(p, data=d) for p, d in zip(packets, data, strict=True)], codec="mjpeg"
    )
    seen, dropped, _ = read(path)
    assert seen == [n for n in range(20) if n not in (5, 9, 13)]
    assert dropped == {"corrupt": 3}


@pytest.mark.parametrize("form", ["ts", "mkv", "mp4", "flv", "avi"])
def test_every_packet_of_a_damaged_recording_is_counted(tmp_path: Path, form: str) -> None:
    packets = encode_pictures(60)
    chance = np.random.default_rng(5)
    damaged = []
    for packet in packets:
        data = bytearray(packet.data)
        if chance.random() < 0.15:
            start = int(chance.integers(5, len(data)))
            data[start : start + 30] = bytes(len(data[start : start + 30]))
        damaged.append(replace(packet, data=bytes(data)))
    path = write_packets(tmp_path / f"clip.{form}", damaged)
    with av.open(str(path)) as container:
        packet_count = sum(packet.size > 0 for packet in container.demux(video=0))
    seen, dropped, _ = read(path)
    assert len(seen) + dropped["corrupt"] == packet_count


def test_nothing_in_a_stream_makes_the_readers_of_units_fail() -> None:
    """Random bytes, lengths and cuts, as start codes and as lengths: 3,000 packets."""
    chance = np.random.default_rng(3)
    records = [
        None,
        b"",
        b"\x01\x4d\x00\x1e\xff\xe1\x00\x05abcde\x01\x00\x02fg",
        b"\x01" + bytes(21) + b"\x07\xff",
        b"\0\0\1\x67",
    ]
    for record, _ in itertools.product(records, range(600)):
        length = int(chance.integers(0, 90))
        packet = chance.integers(0, 256, length, dtype=np.uint8).tobytes()
        if chance.random() < 0.5:
            packet = packet.replace(packet[:1], b"\0\0\1" + bytes([chance.choice([0x41, 0x65, 0x67, 0x68])]), 3)
        for codec in ("h264", "hevc"):
            layout = UnitLayout(codec, record)
            found = layout.units(packet)
            assert all(0 <= start < end <= len(packet) for start, end in found)
            layout.holds_slice(packet)
        numbers, units = FrameNumbers(record), PictureUnits(record)
        numbers.has_gap(packet)
        numbers.is_field(packet)
        units.sets_and_slices(units.without_messages(packet))


def test_units_are_found_behind_start_codes_and_behind_lengths() -> None:
    record = b"\x01\x4d\x00\x1e\xff\xe0\x00"
    for size in (1, 2, 255, 256, 257, 300, 511, 512, 70_000):  # some lengths look like start codes
        unit = b"\x65" + b"\x55" * (size - 1)
        prefixed = len(unit).to_bytes(4, "big") + unit
        assert [prefixed[a:b] for a, b in UnitLayout("h264", record).units(prefixed * 1)] == [unit]
        marked = b"\0\0\0\1" + unit + b"\0\0\1\x41\x9a"
        assert [marked[a:b] for a, b in UnitLayout("h264", None).units(marked)] == [unit, b"\x41\x9a"]
        assert [marked[a:b] for a, b in UnitLayout("h264", record).units(marked)] == [unit, b"\x41\x9a"]
