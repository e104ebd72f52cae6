"""Several threads that decode one recording: the same pictures, losses and errors as with one, whatever is damaged."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from streamer.errors import SourceError
from streamer.sources import open_sources
from streamer.sources.decode import DamageFound, DecodedPicture, VideoReader
from streamer.sources.file import FileSource
from streamer.sources.source import ThreadedSource
from streamer.sources.workers import pool as pools
from streamer.sources.workers.pool import DecodePool
from streamer.sources.workers.proxy import WorkerSource
from streamer.threads import ThreadPlan
from tests.support.clips import make_clip, read_index

CODINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "h264": ("clip.mp4", {"options": {"bf": "0"}}),
    "h264 in slices": ("clip.mp4", {"options": {"bf": "0", "slices": "4"}, "size": (640, 480)}),
    "h264 in fields": ("clip.mkv", {"options": {"bf": "0", "flags": "+ildct+ilme"}}),
    "h264 with intra refresh": ("clip.mkv", {"options": {"bf": "0", "x264-params": "intra-refresh=1"}}),
    "h264 with B pictures": ("clip.mkv", {"options": {"bf": "3", "g": "24", "x264-params": "b-pyramid=normal"}}),
    "h264 in a transport stream": ("clip.ts", {"options": {"bf": "0", "g": "20"}}),
    "h265": ("clip.mkv", {"codec": "libx265", "options": {"x265-params": "keyint=20:bframes=3:log-level=none"}}),
}


SINGLE = {"h264 with B pictures", "h265"}
"""What is read with one thread, because several would hide damage."""


def read(path: Path, threads: int) -> tuple[list[tuple[Any, ...]], dict[str, int], int, str]:
    """The frames that a recording gives, what it drops, how many it received, and its error."""
    (source,) = open_sources(str(path))
    assert isinstance(source, FileSource)
    source.use_threads(threads)
    error, frames = "", []

    async def work() -> None:
        async for frame in source:
            source.account.analyse()
            frames.append((frame.index, frame.time_ns, frame.width, frame.image.tobytes()))

    try:
        asyncio.run(work())
    except SourceError as failure:
        error = str(failure)
    tally = source.account.tally()
    assert tally.pending == 0
    return frames, tally.dropped, tally.received, error


def spoil(path: Path, seed: int) -> Path:
    """A copy with some bytes overwritten, or without its end."""
    dice, data = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(dice.randrange(1, 5)):
        begin = dice.randrange(len(data) // 8, len(data) * 7 // 8)
        length = dice.choice((1, 4, 60, 600))
        data[begin : begin + length] = dice.randbytes(length) if seed % 2 else bytes(length)
    if seed % 5 == 0:
        del data[dice.randrange(len(data) // 2, len(data)) :]
    other = path.with_stem(f"spoiled-{seed}")
    other.write_bytes(data)
    return other


@pytest.mark.parametrize("coding", CODINGS)
def test_an_intact_recording_gives_the_same_frames(tmp_path: Path, coding: str) -> None:
    name, options = CODINGS[coding]
    path = make_clip(tmp_path / name, 90, **options)
    assert read(path, 4) == read(path, 1)
    with VideoReader(str(path), threads=4) as video:
        assert video._stream.codec_context.thread_count == (1 if coding in SINGLE else 4)
        shown = [picture for picture in video.pictures() if isinstance(picture, DecodedPicture)]
        assert [read_index(picture()) for picture in shown] == list(range(90))


@pytest.mark.parametrize("coding", [coding for coding in CODINGS if coding != "h265"])
def test_a_damaged_recording_loses_the_same_frames(tmp_path: Path, coding: str) -> None:
    name, options = CODINGS[coding]
    path = make_clip(tmp_path / name, 90, **options)
    damaged = 0
    for seed in range(12):
        spoiled = spoil(path, seed)
        alone = read(spoiled, 1)
        assert read(spoiled, 4) == alone, seed
        damaged += bool(alone[1])
    assert damaged > 3


def test_damage_ends_reading_with_several_threads(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 90)
    for seed in range(1, 20, 2):
        spoiled = spoil(path, seed)
        if "corrupt" in read(spoiled, 1)[1]:
            break
    with VideoReader(str(spoiled), threads=4) as video, pytest.raises(DamageFound):
        list(video.pictures())


def test_leaving_while_what_is_known_is_read_again_ends_the_thread(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 400)
    spoiled = spoil(path, 1)

    async def work() -> None:
        for number in range(12):
            (source,) = open_sources(str(spoiled))
            assert isinstance(source, FileSource)
            source.use_threads(4)
            async for frame in source:
                source.account.analyse()
                if frame.index >= 20 * number:
                    break
            await source.aclose()
            assert source.account.tally().pending == 0

    asyncio.run(work())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read ")]


def test_what_cannot_be_read_again_has_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pipe = make_clip(tmp_path / "clip.ts", 30), tmp_path / "pipe.ts"
    os.mkfifo(pipe)
    used: list[int] = []
    make = VideoReader.__init__

    def note(self: VideoReader, *values: Any, threads: int = 1, **more: Any) -> None:
        used.append(threads)
        make(self, *values, threads=threads, **more)

    monkeypatch.setattr(VideoReader, "__init__", note)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()), daemon=True)
    writer.start()
    assert len(read(pipe, 4)[0]) == 30
    assert used == [1]
    writer.join(10)
    assert not isinstance(open_sources("rtsp://127.0.0.1:1/cam")[0], ThreadedSource)


@pytest.mark.parametrize(
    ("cores", "sources", "expected"),
    [(1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 1, 3), (16, 1, 4), (16, 3, 4), (16, 5, 3), (16, 40, 1), (4, 0, 3)],
)
def test_recordings_share_the_cores(cores: int, sources: int, expected: int) -> None:
    assert ThreadPlan(cores, model=cores, decode_workers=cores).recording_threads(sources) == expected


def test_workers_are_given_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "clip.mp4", 60)
    monkeypatch.setattr(pools, "plan_threads", lambda: ThreadPlan(8, model=8, decode_workers=2))

    async def work() -> None:
        async with DecodePool() as pool:
            sources = [pool.move(open_sources(str(path))[0]) for _ in range(3)]
            indexes = []
            for source in sources:
                assert isinstance(source, WorkerSource)
                indexes.append((await anext(aiter(source))).index)
            assert [source.threads for source in sources] == [4, 3, 2]  # type: ignore[attr-defined]
            for source in sources:
                indexes += [frame.index async for frame in source]
            assert sorted(indexes) == sorted([*range(60)] * 3)

    asyncio.run(work())
