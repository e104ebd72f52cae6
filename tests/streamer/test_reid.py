"""Recognition by appearance: the configuration, the user's own function, and GLIP's features on a street."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from detectors.detector import detections
from streamer.analysis.event_writer import StreamIdentity
from streamer.analysis.queries import QueryBook
from streamer.analysis.stream_analysis import StreamAnalysis
from streamer.config import load_config, parse_config
from streamer.detector_choice import load_detector
from streamer.errors import ConfigError
from streamer.frame import Frame, FrameClock
from streamer.pipeline.sections import make_embedder, make_tracker
from streamer.rules.track_ids import derived_uids
from streamer.tasks.process import ProcessJob, process_videos
from tests.support.fakes import PRODUCER
from trackers import create_tracker

RAW = {"streams": [{"source": "x"}], "queries": ["person"], "detector": "glip-mini"}


def colours(image, boxes):
    """Mean colour of each box."""
    return np.array(
        [image[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1].reshape(-1, 3).mean(axis=0) for x1, y1, x2, y2 in boxes]
    )


def test_without_reid_the_tracker_is_a_name_as_before() -> None:
    config = parse_config({**RAW, "tracker": "bytetrack"})
    assert config.model_dump()["tracker"] == "bytetrack"
    assert "embed" not in config.detector.model_dump()
    assert parse_config(RAW).tracker.name == "default"


def test_reid_by_the_detector_asks_it_for_embeddings(tmp_path: Path) -> None:
    file = tmp_path / "cameras.yaml"
    file.write_text("streams: [{source: 'webcam:0'}]\nqueries: [person]\ntracker: {reid: detector, reid_s: 60}\n")
    config = load_config(file)
    assert config.detector.model_dump()["embed"] is True
    assert make_embedder(config) is None
    options = make_tracker(config).options  # type: ignore[attr-defined]
    assert (options.appearance, options.reid_s) == (True, 60.0)
    assert parse_config(config.model_dump()) == config


@pytest.mark.parametrize(
    ("tracker", "sentence"),
    [
        ({"reid": "colour"}, "tracker.reid 'colour' gives no embeddings: write detector, or MODULE:FUNCTION"),
        ({"reid": "a:b c"}, "MODULE:FUNCTION"),
        ({"reid_s": -1}, "reid_s"),
        ({"rieid": "detector"}, "did you mean 'reid'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tracker: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        parse_config({**RAW, "tracker": tracker})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["no_such_module:embed", "os:no_such_function", "os:path"])
def test_a_function_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="give MODULE:FUNCTION"):
        make_embedder(parse_config({**RAW, "tracker": {"reid": name}}))


def test_a_function_in_the_present_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_looks.py").write_text("def embed(image, boxes):\n    return boxes\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    embed = make_embedder(parse_config({**RAW, "tracker": {"reid": "own_looks:embed"}}))
    assert embed is not None
    np.testing.assert_array_equal(embed(np.zeros((4, 4, 3), np.uint8), np.ones((1, 4), np.float32)), np.ones((1, 4)))


def test_a_detector_without_embeddings_says_what_to_do() -> None:
    config = parse_config(
        {**RAW, "detector": "motion", "queries": ["anything that moves"], "tracker": {"reid": "detector"}}
    )
    with pytest.raises(ConfigError, match=r"'motion' gives no embeddings.*GLIP.*MODULE:FUNCTION"):
        load_detector(config.detector)


class TwoCrossings:
    """A stream of people in two colours, in which one goes and comes back elsewhere 10 s later."""

    def __init__(self, embed) -> None:
        identity = StreamIdentity("cam", "/streams/cam", 1, PRODUCER, derived_uids("cam"))
        tracker = create_tracker("default", appearance=embed is not None)
        self.analysis = StreamAnalysis(identity, tracker, QueryBook(["person"]), 0.5, embed=embed)
        self.time_s = 0.0

    def see(self, *people: tuple[int, int, tuple[int, int, int]]) -> list[int]:
        """Track numbers of people with feet at (x, y), each painted in a colour."""
        image = np.full((480, 640, 3), 90, np.uint8)
        boxes = [[x - 20, y - 100, x + 20, y] for x, y, _ in people]
        for (x1, y1, x2, y2), (_, _, colour) in zip(boxes, people, strict=True):
            image[y1:y2, x1:x2] = colour
        frame = Frame(
            "cam", round(self.time_s * 10), round(self.time_s * 1e9), FrameClock("file_pts"), image, (640, 480)
        )
        queries = self.analysis.queries.at(frame.time_ns)
        found = detections(boxes, [0.9] * len(boxes), [0] * len(boxes), ["person"])
        tracked, _ = self.analysis.analyse(frame, found, queries)
        self.time_s += 0.1
        return [] if tracked.tracker_id is None else tracked.tracker_id.tolist()

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.see()


@pytest.mark.parametrize(("embed", "is_known"), [(colours, True), (None, False)])
def test_people_come_back_by_the_colour_of_their_clothes(embed, is_known: bool) -> None:
    stream = TwoCrossings(embed)
    palette = [(20 * n, 255 - 25 * n, (90 * n) % 256) for n in range(10)]
    for number, colour in enumerate(palette):
        for step in range(5):
            stream.see((60 + 50 * number + 6 * step, 450, colour))
        stream.wait(7)
    for step in range(10):
        before = stream.see((100 + 6 * step, 200, (20, 20, 230)), (100 + 6 * step, 400, (230, 20, 20)))
    red, blue = before
    stream.wait(10)
    for step in range(4):
        back = stream.see((300 + 6 * step, 300, (230, 20, 20)))
    assert (back == [blue]) is is_known
    assert back != [red]


@pytest.mark.parametrize("reid", ["detector", "tests.streamer.test_reid:colours"])
def test_a_recording_is_followed_with_looks(reid: str, tmp_path: Path) -> None:
    job = ProcessJob(
        videos=["synthetic:street?seed=9100002&duration=2&fps=5&size=320x192"], queries=["person"],
        detector="glip-mini", reid=reid, out=tmp_path, video=False,
    )  # fmt: skip
    process_videos(job, quiet=True, as_json=True)
    summary = json.loads(next(tmp_path.glob("*/summary.json")).read_text())
    assert summary["analysed"] == 10
    assert summary["tracks"] > 0
