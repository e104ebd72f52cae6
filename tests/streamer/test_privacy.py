"""Privacy of pictures: what is blurred, that doubt blurs everything, and that no way out shows more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import unquote, urlsplit

import av
import cv2
import numpy as np
import pytest
import supervision as sv

from sinks.event import EventType
from streamer.analysis.queries import QueryBook
from streamer.build import open_cover, open_media
from streamer.config import parse_config
from streamer.errors import ConfigError
from streamer.frame import Frame, FrameClock
from streamer.media.clips import ClipSpan, ClipWriter
from streamer.media.folder import MediaFolder
from streamer.media.privacy import PictureCover, blur_boxes
from streamer.media.snapshots import SnapshotWriter
from streamer.rules.matches import QueryMatches
from streamer.sources import open_sources
from tests.support.clips import make_clip
from tests.support.fakes import Bench, FakeDetector, FakeSource, camera, detections

SIZE = (320, 240)
PERSON = (100, 60, 160, 200)
"""A person in black and white stripes; the rest is a fine pattern, too."""


def painted() -> np.ndarray:
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    return np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)


class PatternSource(FakeSource):
    """A recording of the pattern."""

    async def __anext__(self) -> Frame:
        plain = await super().__anext__()
        return Frame(plain.stream, plain.index, plain.time_ns, plain.clock, painted(), SIZE)


class Pictures:
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        self.frames.append(frame)

    async def aclose(self) -> None:
        pass


def is_sharp(image: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    """Whether any part of a box still shows the pattern of single pixels."""
    x1, y1, x2, y2 = box
    part = image[y1:y2, x1:x2].astype(int)
    return bool(np.abs(np.diff(part, axis=1)).max() > 60)


def answer(score: float):
    return lambda request: detections([PERSON], [score], [0], request.prompt.queries)


def run_covered(cover: PictureCover, *, queries=("person",), score: float = 0.9, **writers) -> tuple[Bench, Pictures]:
    async def go() -> tuple[Bench, Pictures]:
        pictures = Pictures()
        made = camera(PatternSource(count=40), queries, recorders=[pictures])
        async with Bench([made], FakeDetector(answer(score)), cover=cover, **writers) as bench:
            await bench.run()
        return bench, pictures

    return asyncio.run(go())


OUTSIDE = (200, 10, 300, 230)


@pytest.mark.parametrize("score", [0.9, 0.1])
def test_named_things_are_blurred_whether_or_not_they_are_tracked(score: float):
    bench, pictures = run_covered(PictureCover("blur", ["person"]), score=score)
    assert len(pictures.frames) == 40
    assert (EventType.TRACK_BEGIN in {one.type for one in bench.sink.events}) is (score > 0.5)
    for frame in pictures.frames:
        assert not is_sharp(frame.image, PERSON)
        assert (frame.image[10:230, 200:300] == painted()[10:230, 200:300]).all()


def test_everything_is_blurred_where_a_named_query_is_missing():
    _, pictures = run_covered(PictureCover("blur", ["person", "a child"]))
    assert pictures.frames
    assert not any(is_sharp(frame.image, (0, 0, *SIZE)) for frame in pictures.frames)


def test_snapshots_and_clips_show_no_more(tmp_path: Path):
    writers = {
        "snapshots": SnapshotWriter(MediaFolder(tmp_path)),
        "clips": ClipWriter(MediaFolder(tmp_path), ClipSpan(1.0, 0.5)),
    }
    bench, _ = run_covered(PictureCover("blur", ["person"]), **writers)
    media = [medium for one in bench.sink.events for medium in one.data.media or ()]
    assert {medium.kind for medium in media} == {"snapshot", "crop", "clip"}
    for medium in media:
        path = Path(unquote(urlsplit(medium.uri).path))
        if medium.kind == "snapshot" and not medium.boxed:
            assert not is_sharp(cv2.imread(str(path)), PERSON)
            assert is_sharp(cv2.imread(str(path)), OUTSIDE)
        if medium.kind == "clip":
            with av.open(str(path)) as container:
                images = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
            assert images
            assert not any(is_sharp(image, PERSON) for image in images)


def test_packets_are_not_kept_where_pictures_are_covered(tmp_path: Path):
    path = make_clip(tmp_path / "source.mp4", 40)
    media = tmp_path / "media"
    media.mkdir()

    async def go() -> None:
        (source,) = open_sources(str(path), name="gate")
        made = camera(source)  # type: ignore[arg-type]
        writer = ClipWriter(MediaFolder(media), ClipSpan(1.0, 0.2))
        cover = PictureCover("blur", ["person"])
        async with Bench([made], FakeDetector(answer(0.9)), clips=writer, cover=cover) as bench:
            await bench.run()
        assert made.cutter is None
        clips = [one for one in bench.sink.events if one.data.media]
        assert clips

    asyncio.run(go())


def test_no_pictures_means_none(tmp_path: Path):
    raw = {
        "streams": [{"source": "synthetic:street"}],
        "queries": ["a person"],
        "media": {"folder": str(tmp_path / "media"), "clips": True},
    }
    config = parse_config({**raw, "privacy": "none"})
    writers = open_media(config)
    assert (writers.snapshots, writers.clips) == (None, None)
    assert not (tmp_path / "media").exists()
    cover = open_cover(config)
    assert cover is not None
    _, pictures = run_covered(cover)
    assert all((frame.image == frame.image[0, 0]).all() for frame in pictures.frames)
    assert pictures.frames[0].image.shape == (SIZE[1], SIZE[0], 3)
    assert open_cover(parse_config(raw)) is None


class Scene:
    """A cover that is asked frame by frame."""

    def __init__(self, names=("person",), queries=("person", "a dog")) -> None:
        self.cover = PictureCover("blur", names)
        self.book = QueryBook(queries)
        self.none = sv.Detections.empty()

    def show(self, seconds: float, found: sv.Detections | None = None, queries=None) -> np.ndarray:
        asked = self.book.at() if queries is None else queries
        frame = Frame("gate", int(seconds * 25), int(seconds * 1e9), FrameClock("arrival"), painted(), SIZE)
        return self.cover.cover(frame, self.none, found, asked, QueryMatches()).image

    def found(self, *rows: int) -> sv.Detections:
        return detections([PERSON] * len(rows), [0.05] * len(rows), rows, ["person", "a dog"])


def test_a_place_stays_blurred_for_a_second_and_other_queries_do_not_count():
    scene = Scene()
    assert not is_sharp(scene.show(10, scene.found(0)), PERSON)
    assert not is_sharp(scene.show(10.9, scene.found()), PERSON)
    assert is_sharp(scene.show(11.1, scene.found()), PERSON)
    assert is_sharp(scene.show(11.2, scene.found(1)), PERSON)
    assert is_sharp(scene.show(11.2, scene.found(0)), OUTSIDE)


def test_everything_is_blurred_before_the_first_analysis_and_a_second_after_the_last():
    scene = Scene()
    assert not is_sharp(scene.show(10, None, ()), OUTSIDE)
    assert is_sharp(scene.show(10.1, scene.found()), OUTSIDE)
    assert is_sharp(scene.show(11.0, None, ()), OUTSIDE)
    assert not is_sharp(scene.show(11.2, None, ()), OUTSIDE)


def test_a_paused_or_removed_query_blurs_everything_at_once(caplog):
    scene = Scene()
    assert is_sharp(scene.show(10, scene.found()), OUTSIDE)
    scene.book.replace(["a dog"], time_ns=0)
    assert not is_sharp(scene.show(10.1, scene.found()), OUTSIDE)
    assert "gate: whole pictures are blurred" in caplog.text
    scene.book.replace(["person", "a dog"], time_ns=0)
    assert is_sharp(scene.show(10.2, scene.found()), OUTSIDE)


def test_a_blurred_box_holds_nothing_that_can_be_recognised():
    image = np.zeros((240, 320, 3), np.uint8)
    image[60:200, 100:160:2] = 255
    covered = blur_boxes(image, [PERSON, (-50, -50, 20, 20), (300, 220, 900, 900), (10, 10, 10, 10)])
    assert covered[70:190, 105:155].std() < 20
    assert image[70:190, 105:155].std() > 100  # the frame itself stays as it is
    assert (covered[230:, 100:200] == image[230:, 100:200]).all()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"pictures": "blur"}, "blur needs names"),
        ({"pictures": "none", "blur": ["a person"]}, "blur has no effect"),
        ("faces", "privacy.pictures is 'faces'"),
        ({"blurr": []}, "did you mean 'blur'"),
    ],
)
def test_a_wrong_setting_is_named(section, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"streams": [{"source": "synthetic:street"}], "queries": ["a person"], "privacy": section})
