"""GLaMM from the command line, end to end with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import supervision as sv
import typer
from typer.testing import CliRunner, Result

from detectors.detector import DetectorError
from streamer.commands import glamm
from streamer.errors import StreamerError

app = typer.Typer()
for command in (glamm.segment, glamm.describe, glamm.region, glamm.caption, glamm.chat):
    app.command()(command)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    return path


def run(hub: Path, command: str, *arguments: str, answer: str | None = None) -> Result:
    where = ["--model", str(hub / "glamm"), "--clip", str(hub / "clip"), "--device", "cpu"]
    return CliRunner().invoke(app, [command, *arguments, *where], input=answer)


def reported(result: Result) -> Any:
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_segment_prints_a_mask_for_each_phrase(hub: Path, photo: Path, tmp_path: Path) -> None:
    found = reported(
        run(hub, "segment", str(photo), "-q", "red car", "-q", "a man", "--json", "--out", str(tmp_path / "o"))
    )
    assert (found["width"], found["height"], found["model"]) == (90, 60, "glamm")
    assert {entry["phrase"] for entry in found["segments"]} <= {"red car", "a man"}
    first = found["segments"][0]
    mask = sv.rle_to_mask(first["mask"]["counts"], (90, 60))
    assert mask.any()
    rows, columns = mask.nonzero()
    assert first["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (tmp_path / "o/street.png").is_file()


def test_describe_writes_a_page_and_a_picture(hub: Path, photo: Path, tmp_path: Path) -> None:
    found = reported(run(hub, "describe", str(photo), "--json", "--out", str(tmp_path / "o")))
    assert found["text"] == "cat"
    assert found["spans"] == [{"start": 0, "end": 3, "phrase": "cat", "masks": [0]}]
    assert found["masks"][0]["size"] == [60, 90]
    page = (tmp_path / "o/street.html").read_text()
    assert '<span data-masks="0"' in page
    assert ">cat</span>" in page
    picture = cv2.imread(str(tmp_path / "o/street.png"))
    assert picture.shape[1] == 90
    assert picture.shape[0] > 60  # the text stands below


def test_describe_speaks_to_people_too(hub: Path, photo: Path, tmp_path: Path) -> None:
    result = run(hub, "describe", str(photo), "--out", str(tmp_path / "o"))
    assert result.stdout.strip() == "cat"
    assert "GB that are free on cpu" in result.stderr


def test_region_and_caption_report_in_words(hub: Path, photo: Path) -> None:
    found = reported(run(hub, "region", str(photo), "--box", "10,10,50,40", "--box", "0,0,90,60", "--json"))
    assert [entry["text"] for entry in found["regions"]] == ["cat", "cat"]
    assert reported(run(hub, "caption", str(photo), "--json"))["text"] == "cat"


def test_chat_remembers_what_was_said(hub: Path, photo: Path, tmp_path: Path) -> None:
    messages = ["-m", "What is it?", "-m", "And in <bbox>?"]
    arguments = [*messages, "--box", "0,0,40,40", "--json", "--out", str(tmp_path / "o")]
    found = reported(run(hub, "chat", str(photo), *arguments))
    assert [turn["message"] for turn in found["turns"]] == ["What is it?", "And in <bbox>?"]
    assert [len(turn["masks"]) for turn in found["turns"]] == [1, 1]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["street-1.png", "street-2.png"]


def test_a_conversation_at_the_terminal_survives_a_slip(hub: Path, photo: Path) -> None:
    result = run(hub, "chat", str(photo), answer="what is [SEG]?\nwhat is it?\n\n")
    assert result.exit_code == 0
    assert result.stdout.strip() == "cat"
    assert "mark of the model's own" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "usage"),
    [
        (["caption", "{dir}/none.png"], "none.png: No such file", True),
        (["caption", "{dir}/text.png"], "cannot decode the picture", True),
        (["segment", "{photo}", "-q", "  "], "is empty", True),
        (["region", "{photo}", "--box", "1,2,3"], "expected x1,y1,x2,y2", True),
        (["region", "{photo}", "--box", "1,2,300,40"], "is not in the picture", True),
        (["chat", "{photo}", "--json"], "give --message", True),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    hub: Path, photo: Path, tmp_path: Path, arguments: list[str], message: str, usage: bool
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    filled = [argument.format(dir=tmp_path, photo=photo) for argument in arguments]
    error = run(hub, *filled).exception
    assert isinstance(error, DetectorError | StreamerError)
    assert message in str(error)
    assert isinstance(error, ValueError) == usage
    assert "\n" not in str(error)


def test_missing_clip_is_one_sentence(hub: Path, photo: Path) -> None:
    error = CliRunner().invoke(app, ["caption", str(photo), "--model", str(hub / "glamm")]).exception
    assert isinstance(error, DetectorError)
    assert "--clip" in str(error)


def test_an_answer_without_a_mask_is_reported(tiny: ModuleType, photo: Path, tmp_path: Path) -> None:
    hub = tiny.save_hub(tiny.random_glamm(), tmp_path / "hub", answer="A man")
    result = run(hub, "segment", str(photo), "-q", "dog", "--generate", "--json")
    assert result.exit_code == 1
    assert "GLaMM answered to 'dog' with no mask, but the words 'A man'" in result.stderr
    assert json.loads(result.stdout)["segments"] == []


def test_the_commands_start_without_heavy_libraries() -> None:
    code = (
        "import sys, streamer.commands.glamm; print([m for m in ('torch', 'cv2', 'supervision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


def test_annotate_describes_frames_in_the_structure_of_grand(hub: Path, tmp_path: Path) -> None:
    from streamer.commands import annotate

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(pictures / "a.png"), image)
    script = [[{"query": "cat", "box": [10, 10, 50, 40], "confidence": 0.9}]]
    detectors = []
    for name in ("first", "second"):
        (tmp_path / f"{name}.json").write_text(json.dumps(script))
        detectors += ["--detector", f"scripted:{tmp_path / name}.json"]
    single = typer.Typer()
    single.command()(annotate.annotate)
    where = ["--model", str(hub / "glamm"), "--clip", str(hub / "clip"), "--describe"]
    arguments = [str(pictures), "-q", "cat", *detectors, *where, "--out", str(tmp_path / "o"), "--json"]
    result = CliRunner().invoke(single, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    (record,) = json.loads((tmp_path / "o/grand.json").read_text()).values()
    assert list(record) == [
        "objects", "floating_objects", "floating_attributes", "landmark", "relationships", "short_captions",
        "dense_caption", "additional_context", "frame_index", "timestamp",
    ]  # fmt: skip
    assert record["dense_caption"]["caption"] == "cat"
    seen = record["objects"] + record["floating_objects"]
    assert [thing["id"] for thing in seen] == list(range(len(seen)))
    assert all(thing["segmentation"]["size"] == [60, 90] for thing in seen)
    assert [(thing["label"], len(thing["votes"]), thing["attributes"]) for thing in record["objects"]] == [
        ("cat", 2, ["cat"])
    ]
    assert record["landmark"] == {"category": None, "fine_category": None}
    assert "<p>cat</p>" in (tmp_path / "o/review.html").read_text()


def test_segment_reads_the_frames_of_a_video(hub: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "clip"
    pictures.mkdir()
    for number in range(3):
        cv2.imwrite(str(pictures / f"{number}.png"), np.full((60, 90, 3), 80 * number, np.uint8))
    result = run(hub, "segment", str(pictures), "-q", "cat", "--json", "--fps", "1000")
    assert [json.loads(line)["frame"] for line in result.stdout.splitlines()] == [0, 1, 2]
