"""Parts of one recording: the same pictures, detections and results as in one pass."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import supervision as sv

from detectors import Prompt, Request, create_detector
from detectors.registry import is_frame_detector
from streamer.cluster.recordings import run_unit
from streamer.errors import SourceError
from streamer.jobs import ProcessJob, StreamSummary
from streamer.jobs.result_folder import ResultFolder
from streamer.jobs.split import detect_segment, plan_segments, segment_path
from streamer.jobs.stored_detections import DetectionWriter, StoredDetector, picture_checksum, read_detections
from streamer.jobs.units import RecordingUnit, list_units
from streamer.sources.decode import LostPictures
from streamer.sources.file import FileSource
from streamer.sources.sampling import FrameSampling
from streamer.sources.segments import Segment, SegmentError, find_segments, read_segment
from streamer.street import Street
from tests.streamer.test_jobs import results

FRAMES, RATE = 96, 8


def encode(path: Path, codec: str, options: dict[str, str], *, frames: int = FRAMES, rate: int = RATE) -> Path:
    """Encodes the street, a key picture every 12 frames."""
    street = Street(5, size=(160, 96), fps=RATE)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 160, 96, "yuv420p", 12
        stream.options = options
        for index in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(street.image(index), format="bgr24")))
        container.mux(stream.encode())
    return path


X265 = {"x265-params": "keyint=12:min-keyint=12:log-level=none"}
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp4 with B pictures": ("a.mp4", "libx264", {"bf": "3", "x264-params": "keyint=12:scenecut=0"}),
    "mkv": ("a.mkv", "libx264", {"bf": "0", "x264-params": "keyint=12:scenecut=0"}),
    "transport stream": ("a.ts", "libx264", {"bf": "2", "x264-params": "keyint=12:scenecut=0"}),
    "open groups": ("a.mp4", "libx264", {"bf": "3", "x264-params": "keyint=12:min-keyint=12:scenecut=0:open-gop=1"}),
    "open groups in mkv": (
        "a.mkv",
        "libx264",
        {"bf": "3", "x264-params": "keyint=12:min-keyint=12:scenecut=0:open-gop=1"},
    ),
    "H.265": ("a.mp4", "libx265", {"x265-params": X265["x265-params"] + ":open-gop=0:bframes=3"}),
    "H.265 with open groups": ("a.mkv", "libx265", {"x265-params": X265["x265-params"] + ":open-gop=1:bframes=3"}),
    "MPEG-4": ("a.mp4", "mpeg4", {"bf": "2"}),
}


def sums_of_whole(path: Path) -> list[int]:
    with FileSource(str(path), "a").open_reader() as video:
        return [
            zlib.crc32(picture().tobytes()) for picture in video.pictures() if not isinstance(picture, LostPictures)
        ]


def split(
    path: Path, *, every: int = 1, fps: float | None = None, length_s: float = 2, most: int = 100
) -> list[Segment]:
    return find_segments(FileSource(str(path), "a"), FrameSampling(every, fps), batch=4, length_s=length_s, most=most)


@pytest.mark.parametrize("kind", KINDS)
def test_segments_hold_every_picture_once_and_unchanged(kind: str, tmp_path: Path) -> None:
    name, codec, options = KINDS[kind]
    path = encode(tmp_path / name, codec, options)
    segments = split(path)
    assert len(segments) >= 4, "it is divided"
    assert all(segment.first % 4 == 0 for segment in segments)
    found = [
        (number, zlib.crc32(picture().tobytes()))
        for segment in reversed(segments)
        for number, picture in read_segment(FileSource(str(path), "a"), segment)
    ]
    assert [checksum for _, checksum in sorted(found)] == sums_of_whole(path)
    assert sorted(number for number, _ in found) == list(range(FRAMES))


@pytest.mark.parametrize(("every", "fps"), [(3, None), (1, 3.0), (2, 2.5)])
def test_segments_want_the_pictures_that_sampling_takes(every: int, fps: float | None, tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", {"bf": "3"})
    wanted = [number for segment in split(path, every=every, fps=fps) for number in segment.wanted]
    sampling = FrameSampling(every, fps)
    frames = collect_frames(path)
    assert wanted == [frame.index for frame in frames if sampling.wants(frame)]
    assert len(wanted) < FRAMES


def collect_frames(path: Path) -> list[Any]:
    import asyncio

    async def collect() -> list[Any]:
        return [frame async for frame in FileSource(str(path), "a")]

    return asyncio.run(collect())


def test_there_are_at_most_as_many_segments_as_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", {})
    assert 2 <= len(split(path, length_s=0.1, most=3)) <= 4
    assert split(path, length_s=100) == []


def test_recordings_that_cannot_be_divided_stay_whole(tmp_path: Path) -> None:
    raw = encode(tmp_path / "a.h264", "libx264", {})
    avi = encode(tmp_path / "a.avi", "mpeg4", {})
    one_key = encode(tmp_path / "b.mp4", "libx264", {"x264-params": "keyint=1000:scenecut=0"})
    assert [split(path) for path in (raw, avi, one_key)] == [[], [], []]
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(SourceError, match="cannot be divided"):
        split(tmp_path / "text.mp4")


def test_damage_is_found_when_a_segment_is_decoded(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", "libx264", {"bf": "0"})
    segments = split(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 188 * 188
    data[middle : middle + 30 * 188] = b""
    path.write_bytes(data)
    errors = 0
    for segment in segments:
        try:
            list(read_segment(FileSource(str(path), "a"), segment))
        except SegmentError:
            errors += 1
    assert errors


class Shade:
    """Detects one box whose score comes from the picture, and counts the pictures."""

    threshold = 0.25

    def __init__(self) -> None:
        self.seen = 0

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return Prompt(tuple(queries))

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        self.seen += len(requests)
        return [shade_of(request.image, request.prompt) for request in requests]


def shade_of(image: np.ndarray[Any, Any], prompt: Prompt) -> sv.Detections:
    count = int(image[0, 0, 0]) % 3
    found = sv.Detections(
        np.tile(np.float32([1.5, 2.25, 30, 40]), (count, 1)).reshape(-1, 4),
        confidence=np.full(count, image.mean() / 255, np.float32),
        class_id=np.arange(count) % len(prompt.queries),
        mask=np.tile(image[None, :, :, 0] > 100, (count, 1, 1)) if count else None,
    )
    found.data["class_name"] = np.asarray(prompt.queries, dtype=object)[found.class_id]
    found.data["embedding"] = np.full((count, 4), image.std(), np.float32)
    return found


def test_stored_detections_are_those_of_the_detector(tmp_path: Path) -> None:
    dice = np.random.default_rng(3)
    images = [dice.integers(0, 255, (6, 8, 3), np.uint8) for _ in range(20)]
    shade = Shade()
    prompt = shade.prepare(["person", "red car"])
    for part in (0, 10):
        writer = DetectionWriter(shade.threshold, prompt.queries)
        for image in images[part : part + 10]:
            writer.add(image, shade_of(image, prompt))
        writer.save(tmp_path / f"{part}.npz")
    stored = StoredDetector("shade", [tmp_path / "0.npz", tmp_path / "10.npz"], Shade)
    assert stored.threshold == shade.threshold
    words = stored.prepare(["person", "red car"])
    for start in range(0, 20, 4):
        for image, found in zip(
            images[start : start + 4],
            stored.detect([Request(image, words) for image in images[start : start + 4]]),
            strict=True,
        ):
            expected = shade_of(image, prompt)
            assert found == expected
            assert found.xyxy.dtype == expected.xyxy.dtype
            assert list(found.data["class_name"]) == list(expected.data["class_name"])
            assert found.data["embedding"].tobytes() == expected.data["embedding"].tobytes()
    assert stored.detected_again == 0


def test_a_picture_that_was_not_expected_is_detected_again(tmp_path: Path) -> None:
    images = [np.full((6, 8, 3), shade, np.uint8) for shade in (10, 20, 30)]
    shade = Shade()
    prompt = shade.prepare(["person"])
    writer = DetectionWriter(shade.threshold, prompt.queries)
    for image in images:
        writer.add(image, sv.Detections.empty())  # nothing of which is right
    writer.save(tmp_path / "0.npz")
    stored = StoredDetector("shade", [tmp_path / "0.npz"], lambda: shade)
    words = stored.prepare(["person"])
    other = np.full((6, 8, 3), 99, np.uint8)
    found = [stored.detect([Request(image, words)])[0] for image in (images[0], other, images[2], images[2])]
    assert [len(each) for each in found] == [0, len(shade_of(other, prompt)), 0, len(shade_of(images[2], prompt))]
    assert (stored.detected_again, shade.seen) == (2, 2)
    assert picture_checksum(other) != picture_checksum(other.reshape(8, 6, 3))


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "gate.mp4"
    return encode(path, "libx264", {"bf": "2"}, frames=60)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fps", [None, 3.0])
def test_results_in_parts_are_those_of_the_whole(fps: float | None, long_clip: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "videos": [str(long_clip)],
        "queries": ["car", "person"],
        "detector": "glip-mini",
        "device": "cpu",
        "video": False,
        "batch": 4,
        "every": 2 if fps is None else 1,
        "fps": fps,
    }
    whole, parts = (ProcessJob(out=tmp_path / name, **settings) for name in ("whole", "parts"))
    [unit] = list_units(parts)
    segments = plan_segments(parts, unit, 4, least_s=2)
    assert len(segments) >= 3
    detector = create_detector("glip-mini", device="cpu")
    paths = [detect_segment(parts, unit, segment, detector) for segment in reversed(segments)][::-1]
    assert paths == [segment_path(parts, unit, segment) for segment in segments]
    before = [path.stat().st_mtime_ns for path in paths]
    assert detect_segment(parts, unit, segments[0], detector) == paths[0]
    assert [path.stat().st_mtime_ns for path in paths] == before, "what is there is not detected again"
    stored = [checksum for path in paths for checksum, _ in read_detections(path)]
    assert len(stored) == sum(len(segment.wanted) for segment in segments)
    in_parts, _, _ = run_unit(parts, unit, paths)
    in_whole, _, _ = run_unit(whole, unit)
    assert in_whole["tracks"] > 0
    assert {**in_parts, "folder": ""} == {**in_whole, "folder": ""}
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["gate"], "parts go when it is complete"
    assert plan_segments(parts, unit, 4, least_s=2) == [], "a complete recording is not planned again"


@pytest.mark.timeout(300)
def test_stored_parts_make_the_pass_over_the_whole_without_the_model(
    long_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ProcessJob([str(long_clip)], ["car"], tmp_path, detector="glip-mini", device="cpu", video=False, every=6)
    [unit] = list_units(job)
    segments = plan_segments(job, unit, 4, least_s=2)
    shade = Shade()
    paths = [detect_segment(job, unit, segment, shade) for segment in segments]

    def refuse(_config: object) -> object:
        raise AssertionError("the model is not needed")

    monkeypatch.setattr("streamer.cluster.recordings.load_detector", refuse)
    summary, _, _ = run_unit(job, unit, paths)
    assert (summary["error"], summary["analysed"]) == ("", 10)


def test_parts_of_a_recording_stay_when_another_of_a_similar_name_is_complete(tmp_path: Path) -> None:
    short, long = ResultFolder(tmp_path, "a"), ResultFolder(tmp_path, "a.b")
    for folder in (short, long):
        folder.parts.mkdir(parents=True)
    short.begin()
    short.finish(StreamSummary("a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.b.parts", "a"]


def test_cameras_pictures_and_unreadable_recordings_are_not_divided(tmp_path: Path) -> None:
    job = ProcessJob(["x"], ["car"], tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.png").write_bytes(b"\x89PNG")
    units = [
        RecordingUnit("a", "gone.mp4", error="gone.mp4 does not exist"),
        RecordingUnit("b", "synthetic:street?duration=900"),
        RecordingUnit("c", str(tmp_path / "pictures")),
    ]
    assert [plan_segments(job, unit, 4) for unit in units] == [[], [], []]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("glip-tiny", True), ("owlv2-base", True), ("coco-nano", True), ("motion", False), ("scripted:a.json", False)],
)
def test_detectors_that_remember_are_known(name: str, expected: bool) -> None:
    assert is_frame_detector(name) is expected
    assert is_frame_detector("of-another-distribution") is False
