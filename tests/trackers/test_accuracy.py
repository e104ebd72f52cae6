"""Accuracy of `default` on real sequences: the README's figures are lower bounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import typer
from typer.testing import CliRunner

from streamer.commands.evaluate_tracking import tracking
from streamer.commands.track import track
from trackers import TrackerInputError, create_tracker, evaluation, mot
from trackers.mot import MotFileError, SequenceInfo

app = typer.Typer()
app.command("track")(track)
app.command("tracking")(tracking)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.timeout(180)
def test_one_setting_of_default_reaches_the_figures_on_all_sequences(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackeval")
    data = shared / "data" / "mot"
    reported = json.loads(run("track", data, "--out", tmp_path, "--json"))
    assert len(reported) == 15
    real = [row["tracks"] for row in reported if "SMOTsim" not in row["tracks"]]
    everything = json.loads(run("tracking", data, tmp_path, "--json"))["combined"]
    only = [word for path in real for word in ("--sequence", Path(path).stem)]
    detectors = json.loads(run("tracking", data, tmp_path, "--json", *only))["combined"]
    assert everything["hota"] >= 64.6
    assert everything["idf1"] >= 74.7
    assert everything["mota"] >= 75.4
    assert detectors["hota"] >= 57.0
    assert detectors["idf1"] >= 69.3
    assert detectors["mota"] >= 65.3


def write_sequence(folder: Path, boxes: int = 10) -> Path:
    folder.mkdir(parents=True)
    (folder / "seqinfo.ini").write_text(
        f"[Sequence]\nname={folder.name}\nframeRate=10\nseqLength={boxes}\nimWidth=640\nimHeight=480\n"
    )
    rows = [f"{frame},-1,{10 * frame},50,40,100,0.9,-1,-1,-1" for frame in range(1, boxes + 1)]
    (folder / "det.txt").write_text("\n".join(rows) + "\n")
    (folder / "gt.txt").write_text(
        "\n".join(row.replace(",-1,", ",7,", 1).replace("0.9,-1,-1", "1,1,1") for row in rows)
    )
    return folder


def test_a_perfect_tracker_scores_a_hundred(tmp_path: Path) -> None:
    pytest.importorskip("trackeval")
    folder = write_sequence(tmp_path / "data" / "walk")
    run(
        "track",
        tmp_path / "data",
        "--tracker",
        "bytetrack",
        "--option",
        "show_observed=true",
        "--out",
        tmp_path / "out",
    )
    reported = json.loads(run("tracking", tmp_path / "data", tmp_path / "out", "--json"))["sequences"]["walk"]
    assert reported["hota"] == pytest.approx(100, abs=0.1)
    assert (reported["idf1"], reported["mota"], reported["id_switches"], reported["misses"]) == (100, 100, 0, 0)
    assert "walk" in run("tracking", tmp_path / "data", tmp_path / "out")
    assert run("track", folder / "det.txt", "--out", tmp_path / "one.txt").count("one.txt") <= 1
    assert len((tmp_path / "one.txt").read_text().splitlines()) == 10


def test_distractors_are_neither_reward_nor_penalty() -> None:
    info = SequenceInfo("s", 30, 1, 640, 480, "MOT17")
    truth = np.array([[1.0, 1, 10, 10, 50, 100, 1, 1, 1], [1, 2, 200, 10, 50, 100, 0, 8, 1]])
    tracks = np.array([[1.0, 5, 11, 10, 50, 100], [1, 6, 201, 10, 50, 100], [1, 7, 400, 10, 50, 100]])
    data = evaluation.prepare(truth, tracks, info)
    assert (data["num_gt_dets"], data["num_tracker_dets"]) == (1, 2)
    plain = evaluation.prepare(truth, tracks, SequenceInfo("s", 30, 1, 640, 480, "MOT15"))
    assert (plain["num_gt_dets"], plain["num_tracker_dets"]) == (1, 3)


def test_an_id_given_twice_is_reported() -> None:
    info = SequenceInfo("walk", 30, 1, 640, 480)
    with pytest.raises(evaluation.TrackEvaluationError, match="walk, frame 1: two boxes have the same id"):
        evaluation.prepare(np.ones((1, 9)), np.array([[1.0, 1, 0, 0, 9, 9], [1, 1, 20, 0, 9, 9]]), info)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,-1,10,10,5", "line 1 is '1,-1,10,10,5': expected 7 or more numbers, separated by commas"),
        ("frame,id,left", "expected 7 or more numbers"),
        ("0,-1,10,10,5,5,0.9", "expected a whole frame number from 1 to 1,000,000,000"),
        ("1764036000000000000,-1,10,10,5,5,0.9", "expected a whole frame number from 1 to 1,000,000,000"),
        ("1,-1,nan,10,5,5,0.9", r"det\.txt, line 1 is '1,-1,nan,10,5,5,0\.9': expected finite numbers"),
        ("1,-1,10,10,inf,5,0.9", "expected finite numbers"),
        ("1,-1,10,10,-5,5,0.9", "expected a width and a height from 0 on"),
        ("1,-1,1e300,10,5,5,0.9", "in pixels, up to 10,000,000"),
        ("1,0.5,10,10,5,5,0.9", "expected a whole number as the id"),
        ("1,-1,10,10,5,5,0.9\n\n2,-1,x,10,5,5,0.9", "line 3 is"),
    ],
)
def test_a_file_that_holds_no_detections_is_reported(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "det.txt"
    path.write_text(text)
    with pytest.raises(MotFileError, match=words):
        run("track", path, "--out", tmp_path / "out.txt")


def test_frames_without_boxes_do_not_take_their_time_when_nothing_is_tracked(tmp_path: Path) -> None:
    path = tmp_path / "det.txt"
    path.write_text("\ufeff1,-1,100,100,40,80,0.9,-1,-1,-1\n30000000,-1,100,100,40,80,0.9,-1,-1,-1\n")
    (done,) = json.loads(run("track", path, "--fps", "25", "--out", tmp_path / "out.txt", "--json"))
    assert done["frames"] == 30_000_000
    assert [row.split(",")[0] for row in (tmp_path / "out.txt").read_text().splitlines()] == ["1"]


def test_skipped_frames_change_nothing(tmp_path: Path) -> None:
    """Two walks with a pause that is longer than any memory of the tracker: every frame against the command."""
    path = tmp_path / "det.txt"
    frames = [*range(1, 40), *range(400, 460)]
    path.write_text("".join(f"{frame},-1,{100 + 3 * (frame % 100)},100,40,80,0.9\n" for frame in frames))
    run("track", path, "--fps", "10", "--option", "relink_s=2", "--out", tmp_path / "out.txt")
    tracker, lines = create_tracker("default", relink_s=2.0), []
    for frame, rows in enumerate(mot.by_frame(mot.read_rows(path, 7), 459), start=1):
        found = sv.Detections(xyxy=mot.to_corners(rows), confidence=rows[:, 6])
        tracked = tracker.update(found, (frame - 1) / 10)
        lines += mot.track_lines(frame, tracked.tracker_id, tracked.xyxy, tracked.confidence)  # type: ignore[arg-type]
    assert (tmp_path / "out.txt").read_text() == "".join(lines)


def test_tracks_of_a_longer_sequence_are_refused() -> None:
    info = SequenceInfo("walk", 30, 1, 640, 480)
    with pytest.raises(evaluation.TrackEvaluationError, match="go to frame 2, the sequence has 1"):
        evaluation.prepare(np.ones((1, 9)), np.array([[2.0, 1, 0, 0, 9, 9]]), info)


def test_what_cannot_be_tracked_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    folder = write_sequence(tmp_path / "walk")
    with pytest.raises(MotFileError, match="does not exist"):
        run("track", tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MotFileError, match="holds no sequence"):
        run("track", tmp_path / "empty")
    with pytest.raises(TrackerInputError, match="did you mean 'bytetrack'"):
        run("track", folder, "--tracker", "bytetracks", "--out", tmp_path / "out")
    with pytest.raises(TrackerInputError, match="write it as NAME=VALUE"):
        run("track", folder, "--option", "lost_s", "--out", tmp_path / "out")
    with pytest.raises(MotFileError, match="--fps is 0"):
        run("track", folder, "--fps", "0", "--out", tmp_path / "out")
    with pytest.raises(MotFileError, match=r"no sequence 'run': it has walk"):
        run("tracking", folder, tmp_path, "--sequence", "run")
    with pytest.raises(MotFileError, match=r"walk\.txt does not exist"):
        run("tracking", folder, tmp_path)
    assert not (tmp_path / "out").exists()
