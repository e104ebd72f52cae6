"""Hardware decoding: the choice of the device, and the way back to the CPU with one line in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from av.codec.hwaccel import HWAccel

from streamer.config import parse_config
from streamer.errors import ConfigError
from streamer.pipeline.sections import CHANGEABLE
from streamer.sources import hardware, open_sources
from streamer.sources.decode import DecodedPicture, VideoReader
from streamer.sources.source import Source
from streamer.sources.workers.pool import DecodePool
from streamer.tasks.doctor import _check_hardware_decoding
from tests.support.clips import make_clip, read_index
from tests.support.rtsp_server import RtspServer


@pytest.fixture(autouse=True)
def fresh_choice() -> Iterator[None]:
    hardware._log_once.cache_clear()
    yield
    hardware._log_once.cache_clear()


def give_devices(monkeypatch: pytest.MonkeyPatch, working: set[str]) -> None:
    def find_obstacle(device: str) -> str:
        return "" if device in working else "no driver for it"

    find_obstacle.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(hardware, "find_obstacle", find_obstacle)


@pytest.mark.parametrize(
    ("decode", "working", "expected"),
    [
        ("cpu", {"cuda", "vaapi"}, None),
        ("auto", {"cuda", "vaapi"}, "cuda"),
        ("auto", {"videotoolbox"}, "videotoolbox"),
        ("auto", set(), None),
        ("vaapi", {"cuda", "vaapi"}, "vaapi"),
        ("vaapi", {"cuda"}, None),
    ],
)
def test_the_device_that_works_is_chosen(
    decode: Any, working: set[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    give_devices(monkeypatch, working)
    assert hardware.choose_device(decode) == expected


def test_a_device_that_is_not_there_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    give_devices(monkeypatch, set())
    path = make_clip(tmp_path / "clip.mp4", 20)
    with caplog.at_level(logging.INFO, "groundstream"):
        for _ in range(3):
            with VideoReader(str(path), decode="vaapi") as video:
                pictures = [picture for picture in video.pictures() if isinstance(picture, DecodedPicture)]
            assert [read_index(picture()) for picture in pictures] == list(range(20))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "decode: vaapi is not possible here (no driver for it): pictures are decoded on the CPU instead",
        )
    ]


def test_auto_without_a_device_is_no_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    give_devices(monkeypatch, set())
    with caplog.at_level(logging.INFO, "groundstream"):
        assert hardware.choose_device("auto") is None
        assert hardware.choose_device("auto") is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "cuda: no driver for it, vaapi: no driver for it" in caplog.text


def test_a_codec_that_the_device_cannot_decode_is_decoded_on_the_cpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Real accelerators are handed to FFmpeg: none of them decodes FFV1."""
    give_devices(monkeypatch, {"videotoolbox"})
    handed: list[object] = []
    open_container = av.open

    def note(*values: Any, hwaccel: Any = None, **more: Any) -> Any:
        handed.append(hwaccel)
        return open_container(*values, hwaccel=hwaccel, **more)

    monkeypatch.setattr(av, "open", note)
    path = make_clip(tmp_path / "clip.mkv", 5, codec="ffv1")
    handed.clear()
    with caplog.at_level(logging.INFO, "groundstream"), VideoReader(str(path), decode="videotoolbox") as video:
        assert sum(isinstance(picture, DecodedPicture) for picture in video.pictures()) == 5
    assert isinstance(handed[0], HWAccel)
    assert "videotoolbox cannot decode ffv1" in caplog.text


def test_a_device_that_fails_when_a_video_is_opened_gives_way_to_the_cpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """As when the memory of the device is full."""
    is_working = True

    def find_obstacle(device: str) -> str:
        return "" if device == "cuda" and is_working else "out of memory"

    find_obstacle.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(hardware, "find_obstacle", find_obstacle)
    open_container = av.open

    def fail(*values: Any, hwaccel: Any = None, **more: Any) -> Any:
        nonlocal is_working
        if hwaccel is not None:
            is_working = False
            raise av.error.ExternalError(1, "device")
        return open_container(*values, hwaccel=hwaccel, **more)

    path = make_clip(tmp_path / "clip.mp4", 5)
    monkeypatch.setattr(av, "open", fail)
    with caplog.at_level(logging.INFO, "groundstream"), VideoReader(str(path), decode="cuda") as video:
        assert sum(isinstance(picture, DecodedPicture) for picture in video.pictures()) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "decode: cuda is not possible here (out of memory): pictures are decoded on the CPU instead"
    ]


def test_a_video_that_cannot_be_opened_is_no_failure_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    give_devices(monkeypatch, {"cuda"})
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(av.error.InvalidDataError):
        VideoReader(str(path), decode="cuda")


def test_pictures_that_the_cpu_decodes_after_all_are_reported_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "groundstream"):
        hardware.note_format("cuda", "h264", "nv12")
        assert not caplog.records
        for _ in range(3):
            hardware.note_format("cuda", "h264", "yuv420p10le")
    (record,) = caplog.records
    assert "cuda does not decode this kind of h264 (yuv420p10le)" in record.getMessage()


@pytest.mark.parametrize(
    ("working", "expected"),
    [
        ({"vaapi"}, (True, "decode: vaapi works")),
        ({"cuda", "vaapi"}, (True, "decode: cuda works, vaapi too")),
        (
            set(),
            (
                False,
                "decode: cpu only; cuda: no driver for it; vaapi: no driver for it; videotoolbox: no driver for it",
            ),
        ),
    ],
)
def test_doctor_says_which_devices_decode(
    working: set[str], expected: tuple[bool, str], monkeypatch: pytest.MonkeyPatch
):
    give_devices(monkeypatch, working)
    assert hardware.describe_decoding() == expected
    (result,) = _check_hardware_decoding()
    assert (result.what, result.state, result.detail) == (
        "hardware decoding",
        "works" if expected[0] else "missing",
        expected[1],
    )


def test_workers_report_a_missing_device_once_in_the_log_of_the_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    if not hardware.find_obstacle("vaapi"):
        pytest.skip("this machine decodes with VA-API")
    path = make_clip(tmp_path / "clip.mp4", 20)

    async def work() -> None:
        async with DecodePool(3) as pool:
            sources = [pool.move(open_sources(str(path), decode="vaapi")[0]) for _ in range(3)]
            pool.start_workers()

            async def count(source: Source) -> int:
                return len([frame.index async for frame in source])

            assert await asyncio.gather(*map(count, sources)) == [20, 20, 20]
            assert len(pool.process_ids) == 3

    with caplog.at_level(logging.INFO):
        asyncio.run(work())
    said = [record for record in caplog.records if "decode: vaapi" in record.getMessage()]
    assert [(record.name, record.levelname) for record in said] == [("groundstream", "WARNING")]


def test_an_obstacle_is_named_or_absent_for_every_device():
    for device in ("cuda", "vaapi", "videotoolbox"):
        hardware.find_obstacle.cache_clear()
        cause = hardware.find_obstacle(device)
        assert cause == "" or "without it" in cause or "no such device" in cause


def test_recordings_and_cameras_are_read_by_any_choice(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 60)

    async def first(address: str) -> int | None:
        (source,) = open_sources(address, decode="auto")
        async for frame in source:
            number = read_index(frame.image)
            break
        await source.aclose()
        return number

    async def work() -> None:
        assert await first(str(path)) == 0
        with RtspServer({"cam": path}) as server:
            async with asyncio.timeout(30):
                assert await first(server.url()) is not None

    asyncio.run(work())


def test_the_choice_crosses_to_a_worker(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 5)
    for address in (str(path), "rtsp://127.0.0.1:1/cam"):
        (source,) = open_sources(address, decode="vaapi")
        assert "vaapi" in repr(source.recipe())  # type: ignore[attr-defined]


def test_the_configuration_names_the_devices():
    stream = {"source": "rtsp://cam/1", "decode": "cuda"}
    assert parse_config({"streams": [stream], "queries": ["car"]}).streams[0].decode == "cuda"
    assert "decode" not in CHANGEABLE  # the source is opened again
    with pytest.raises(ConfigError, match=r"streams\[0\]\.decode.*auto.*cpu.*cuda"):
        parse_config({"streams": [{**stream, "decode": "gpu"}], "queries": ["car"]})
