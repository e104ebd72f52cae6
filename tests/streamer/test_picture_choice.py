"""Choice of the pictures that are decoded: the wanted ones come as if all were decoded, in fewer decodes."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from streamer.frame import Frame, FrameClock
from streamer.sources import open_sources
from streamer.sources.decode import DecodedPicture, LostPictures, VideoReader
from streamer.sources.picture_choice import PacketUse, PictureChoice
from streamer.sources.sampling import FrameSampling
from streamer.sources.workers.pool import DecodePool
from tests.support.clips import make_clip, read_index
from tests.support.rtsp_server import RtspServer

STRUCTURES: dict[str, dict[str, Any]] = {
    "camera": {"gop": 25, "options": {"bf": "0", "sc_threshold": "0"}},
    "short groups": {"gop": 7, "options": {"bf": "0", "sc_threshold": "0"}},
    "non-reference pictures": {"gop": 25, "options": {"bf": "2", "sc_threshold": "0", "x264-params": "b-pyramid=0"}},
    "open groups": {"gop": 12, "options": {"bf": "3", "sc_threshold": "0", "x264-params": "open-gop=1"}},
    "H.265": {"gop": 25, "codec": "libx265", "options": {"x265-params": "bframes=0:keyint=25:min-keyint=25"}},
    "H.265, out of order": {"gop": 12, "codec": "libx265", "options": {"x265-params": "bframes=3:keyint=12"}},
}


def read_sampled(path: Path, fps: float, *, is_chosen: bool) -> tuple[list[int | None], int, int]:
    """The numbers in the wanted pictures, how many pictures were counted, and how many were lost to damage."""
    sampling, due = FrameSampling(fps=fps), None
    wanted: list[int | None] = []
    count = damaged = 0
    with VideoReader(str(path)) as video:
        if is_chosen:
            video.choice = PictureChoice(lambda: due)
        for picture in video.pictures():
            count += 1
            if isinstance(picture, LostPictures):
                damaged += not picture.is_unwanted
                continue
            assert picture.pts_ns is not None
            frame = Frame("cam", count - 1, picture.pts_ns, FrameClock("arrival"), picture, (320, 240))
            if sampling.wants(frame):
                wanted.append(read_index(frame.image))
            due = sampling.due_ns
    return wanted, count, damaged


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("fps", [1.0, 3.0, 5.0, 12.0, 25.0])
def test_the_wanted_pictures_come_as_if_all_were_decoded(tmp_path: Path, structure: str, fps: float):
    path = make_clip(tmp_path / "clip.mp4", 150, **STRUCTURES[structure])
    every, expected_count, _ = read_sampled(path, fps, is_chosen=False)
    chosen, count, damaged = read_sampled(path, fps, is_chosen=True)
    assert None not in chosen
    assert count == expected_count == 150
    if structure == "H.265, out of order" or structure == "open groups":
        # Once, a picture before a key picture may be missing: only then are the groups known to depend on each other.
        assert len(set(every) ^ set(chosen)) <= 4
        assert damaged <= 3
    else:
        assert chosen == every
        assert damaged == 0


def test_groups_of_changing_lengths_lose_no_wanted_picture(tmp_path: Path):
    dice = random.Random(3)
    for number in range(6):
        keys = sorted({0, *(dice.randrange(150) for _ in range(10))})
        path = make_clip(
            tmp_path / f"clip{number}.mp4",
            150,
            gop=250,
            options={"bf": "0", "sc_threshold": "0", "force_key_frames": ",".join(f"{k / 25:.3f}" for k in keys)},
        )
        for fps in (1.0, 2.5, 5.0):
            assert read_sampled(path, fps, is_chosen=True)[:2] == read_sampled(path, fps, is_chosen=False)[:2]


def decoded_share(structure: str, path: Path, fps: float, monkeypatch: pytest.MonkeyPatch) -> float:
    calls = 0
    decode = VideoReader._decode

    def counted(self: VideoReader, packet: Any, *rest: Any, **more: Any) -> Any:
        nonlocal calls
        calls += bool(packet.size)
        return decode(self, packet, *rest, **more)

    monkeypatch.setattr(VideoReader, "_decode", counted)
    make_clip(path, 250, **STRUCTURES[structure])
    read_sampled(path, fps, is_chosen=True)
    monkeypatch.undo()
    return calls / 250


def test_what_no_wanted_picture_builds_on_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shares = {
        name: decoded_share(name, tmp_path / f"{number}.mp4", 1.0, monkeypatch)
        for number, name in enumerate(["camera", "short groups", "non-reference pictures", "H.265"])
    }
    assert shares["camera"] < 0.35  # two groups show their length, then key pictures alone
    assert shares["short groups"] < 0.75
    assert shares["non-reference pictures"] < 0.6
    assert shares["H.265"] < 0.35


def use(choice: PictureChoice, time_ms: int, *, is_reference: bool = True) -> PacketUse:
    return choice.use(time_ms * 1_000_000, is_reference=lambda: is_reference)


def steady_choice(due_ms: list[int]) -> PictureChoice:
    """After two groups of 10 pictures, 40 ms apart; the third begins at 800 ms."""
    choice = PictureChoice(lambda: due_ms[0] * 1_000_000)
    for number in range(21):
        if number % 10 == 0:
            choice.note_key(number * 40_000_000)
        else:
            use(choice, number * 40)
    return choice


def test_the_end_of_a_group_is_held_until_the_next_key_picture():
    choice = steady_choice([1190])
    assert use(choice, 840) is PacketUse.HOLD
    assert use(choice, 880, is_reference=False) is PacketUse.DROP


def test_a_group_with_a_wanted_picture_is_decoded():
    choice = steady_choice([1150])
    assert use(choice, 840) is PacketUse.DECODE
    assert use(choice, 880, is_reference=False) is PacketUse.DROP
    assert use(choice, 1160) is PacketUse.DECODE


def test_a_key_picture_that_does_not_come_in_time_is_waited_for_no_longer():
    choice = steady_choice([1190])
    assert use(choice, 1160) is PacketUse.HOLD
    assert use(choice, 1200) is PacketUse.DECODE  # it is wanted itself
    late = steady_choice([1190])
    late._due_ns = lambda: 5_000_000_000
    assert use(late, 1300) is PacketUse.DECODE


def test_a_picture_out_of_order_is_followed_by_what_brings_it_out():
    due = [1150]
    choice = steady_choice(due)
    assert use(choice, 1160) is PacketUse.DECODE
    assert use(choice, 1080, is_reference=False) is PacketUse.DECODE
    due[0] = 1350  # it has come
    assert use(choice, 1120, is_reference=False) is PacketUse.DROP


def test_without_a_known_due_time_everything_is_decoded():
    choice = PictureChoice(lambda: None)
    choice.note_key(0)
    assert use(choice, 40, is_reference=False) is PacketUse.DECODE


def test_a_camera_in_a_worker_is_sampled_before_it_is_decoded(tmp_path: Path):
    """The account holds every picture that came, and nothing is counted as damaged."""
    camera = make_clip(tmp_path / "camera.mp4", 100, **STRUCTURES["camera"])

    async def work() -> None:
        with RtspServer({"cam": camera}) as server:
            async with DecodePool(1) as pool:
                source = pool.move(open_sources(server.url())[0])
                source.sample_in_worker(FrameSampling(fps=2.5))  # type: ignore[attr-defined]
                times = []
                async with asyncio.timeout(30):
                    async for frame in source:
                        source.account.analyse()
                        times.append(frame.time_ns)
                        assert read_index(frame.image) is not None
                        if len(times) == 12:
                            break
                await source.aclose()
                tally = source.account.tally()
                assert tally.pending == 0
                assert set(tally.dropped) <= {"not_sampled", "shutdown", "stale"}
                assert tally.received >= 100
                steps = [later - before for before, later in pairwise(times)]
                assert sorted(steps)[len(steps) // 2] == pytest.approx(400_000_000, rel=0.2)

    asyncio.run(work())


def test_a_picture_is_what_the_reader_gives_without_a_choice(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 30, **STRUCTURES["camera"])
    with VideoReader(str(path)) as video:
        assert all(isinstance(picture, DecodedPicture) for picture in video.pictures())
