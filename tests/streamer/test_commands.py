"""The command line as a user meets it: results on disk, one sentence for each mistake, the right exit code."""

from __future__ import annotations

import functools
import json
import re
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import jsonschema
import pytest

from sinks.address import redact
from sinks.event import Event
from streamer.build import open_pipeline
from streamer.cli import main
from streamer.jobs.result_folder import ResultFolder
from tests.sinks.authority import Authority
from tests.support.clips import make_clip
from tests.support.web_server import Answer, WebServer


@dataclass
class Run:
    code: int
    out: str
    err: str


Command = Callable[..., Run]


@pytest.fixture
def groundstream(capfd, monkeypatch) -> Command:
    """Runs the command line in this process; `groundstream("process", ...)`."""

    def run(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["groundstream", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return Run(code, out, err)

    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "walk.mp4", frames=60, fps=10)


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    """Someone walks from left to right, and a car stands."""
    frames = [
        [
            {"query": "person", "box": [4 * n, 100, 4 * n + 30, 180], "confidence": 0.9},
            {"query": "car", "box": [200, 30, 280, 80], "confidence": 0.8},
        ]
        for n in range(60)
    ]
    file = tmp_path_factory.mktemp("scripts") / "walk.json"
    file.write_text(json.dumps(frames))
    return file


def test_process_turns_a_video_into_tracks_events_and_an_annotated_video(groundstream, clip, script, tmp_path):
    out = tmp_path / "out"
    run = groundstream(
        *("process", clip, "-q", "person", "-q", "car", "--detector", f"scripted:{script}", "--out", out),
        *("--line", "middle:0.5,0 0.5,1", "--zone", "left:0,0 0.4,0 0.4,1 0,1", "--images", "--json"),
    )
    assert run.code == 0, run.err
    (summary,) = json.loads(run.out)["videos"]
    assert (summary["frames"], summary["analysed"], summary["tracks"], summary["error"]) == (60, 60, 2, "")
    assert summary["events"]["line.cross"] == 1
    assert summary["events"]["zone.enter"] == summary["events"]["zone.exit"] == 1

    folder = out / "walk"
    rows = [line.split(",") for line in (folder / "tracks.txt").read_text().splitlines()]
    assert {row[1] for row in rows} == {"1", "2"}
    assert (rows[0][0], rows[-1][0]) == ("1", "60")

    coco = json.loads((folder / "coco.json").read_text())
    assert len(coco["images"]) == 60
    assert {category["name"] for category in coco["categories"]} == {"person", "car"}
    assert len(coco["annotations"]) == len(rows)
    assert len(list((folder / "images").glob("*.jpg"))) == 60

    lines = (out / "events.jsonl").read_bytes().splitlines()
    events = [Event.from_json(line) for line in lines]
    assert [int(event.sequence) for event in events] == list(range(1, len(events) + 1))
    database = sqlite3.connect(out / "events.sqlite")
    assert database.execute("SELECT count(*) FROM events").fetchone() == (len(events),)
    database.close()

    from streamer.sources.decode import count_frames

    assert count_frames(folder / "video.mp4") == 60


def test_process_twice_gives_the_same_bytes(groundstream, clip, script, tmp_path):
    def once(out: Path) -> tuple[bytes, list[str]]:
        run = groundstream(
            *("process", clip, "-q", "person", "--detector", f"scripted:{script}", "--out", out, "--no-video"),
            *("--line", "middle:0.5,0 0.5,1", "--json"),
        )
        assert run.code == 0, run.err
        run_number = json.loads((out / "events.jsonl").read_text().splitlines()[0])["data"]["run"]
        text = (out / "events.jsonl").read_text().replace(str(run_number), "RUN")
        return (out / "walk" / "tracks.txt").read_bytes(), text.splitlines()

    assert once(tmp_path / "first") == once(tmp_path / "second")


def test_the_start_time_of_a_recording_may_be_reported(groundstream, clip, script, tmp_path):
    run = groundstream(
        *("process", clip, "-q", "person", "--detector", f"scripted:{script}", "--out", tmp_path, "--no-video"),
        *("--start-time", "2026-05-04T12:00:00Z", "--quiet"),
    )
    assert run.code == 0, run.err
    first = Event.from_json((tmp_path / "events.jsonl").read_text().splitlines()[0])
    assert first.time == "2026-05-04T12:00:00.000000Z"


def test_schema_prints_what_events_are_and_checks_files(groundstream, clip, script, tmp_path):
    schema = json.loads(groundstream("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    groundstream("process", clip, "-q", "car", "--detector", f"scripted:{script}", "--out", tmp_path, "--no-video")
    events = tmp_path / "events.jsonl"
    for line in events.read_text().splitlines():
        jsonschema.validate(json.loads(line), schema)
    good = groundstream("schema", "--validate", events)
    assert (good.code, good.out.strip().endswith("are valid, 0 are not")) == (0, True)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    nothing = groundstream("schema", "--validate", empty)
    assert (nothing.code, nothing.out) == (1, "")
    assert "holds no events" in nothing.err
    events.write_text(events.read_text() + '{"id": 3}\n')
    bad = groundstream("schema", "--validate", events)
    assert bad.code == 1
    assert "events.jsonl:" in bad.err


def test_help_and_version_are_understood_as_words(groundstream):
    assert groundstream("version").out == groundstream("--version").out != ""
    assert groundstream("help").out == groundstream("--help").out
    assert groundstream("help", "subscribe").out == groundstream("subscribe", "--help").out
    assert "evaluate events" in groundstream("help", "evaluate", "events").out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("process", "0", "-q", "person"), "write webcam:0"),
        (("process", "/dev/video77", "-q", "person"), "write webcam:77"),
        (("subscribe", "out/events.sqlite"), "did you mean sqlite:out/events.sqlite?"),
        (("subscribe", "events.jsonl"), "did you mean jsonl:events.jsonl?"),
    ],
)
def test_what_is_meant_is_said(groundstream, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    run = groundstream(*arguments)
    assert run.code in (1, 2)
    assert sentence in run.err


def test_the_annotated_video_keeps_the_shape_of_pixels(groundstream, tmp_path):
    import av

    clip = make_clip(tmp_path / "wide.mkv", 5, options={"x264-params": "sar=64/45"})
    assert groundstream("process", clip, "-q", "anything that moves", "--out", tmp_path / "out").code == 0
    with av.open(str(tmp_path / "out" / "wide" / "video.mp4")) as video:
        assert video.streams.video[0].sample_aspect_ratio == Fraction(64, 45)


def test_doctor_reports_what_works(groundstream, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    run = groundstream("doctor", "--json", "--source", "/no/such/file.mp4")
    findings = {finding["what"]: finding for finding in json.loads(run.out)}
    assert findings["codec h264"]["state"] == "works"
    assert findings["source /no/such/file.mp4"]["state"] == "broken"
    assert run.code == 1


def make_truncated(folder: Path, clip: Path) -> Path:
    path = folder / "truncated.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    return path


def make_text(folder: Path, _clip: Path) -> Path:
    path = folder / "letter.mp4"
    path.write_text("Dear camera,\n" * 50)
    return path


def make_empty(folder: Path, _clip: Path) -> Path:
    path = folder / "empty.mp4"
    path.touch()
    return path


def make_folder(folder: Path, _clip: Path) -> Path:
    path = folder / "papers"
    path.mkdir()
    (path / "notes.txt").write_text("no video here")
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder, clip: folder / "none.mp4", "does not exist"),
        (make_folder, "holds no videos"),
        (make_truncated, "was cut off"),
        (make_text, "is not a video"),
        (make_empty, "is empty (0 bytes)"),
    ],
)
def test_a_video_that_is_none_is_reported_in_one_sentence(groundstream, clip, script, tmp_path, make, sentence):
    video = make(tmp_path, clip)
    run = groundstream(
        "process", video, "-q", "person", "--detector", f"scripted:{script}", "--out", tmp_path / "out", "--no-video"
    )
    reported = run.err + run.out
    assert run.code == 1
    assert sentence in reported
    assert "Traceback" not in reported


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["-q", ""], 2, "queries[0].text is ''"),
        (["-q", "person", "-q", "person"], 2, "'person' is given twice"),
        (["-q", "person", "--zone", "yard:0,0 1,1"], 2, "zone 'yard' has 2 different points"),
        (["-q", "person", "--zone", "0,0 1,1"], 2, "expected NAME:x,y x,y"),
        (
            ["-q", "person", "--line", "door:0,0 2,1"],
            2,
            "'door:0,0 2,1' reaches outside the frame: give x,y as fractions",
        ),
        (["-q", "person", "--sink", "kafka:host:9092"], 2, "write kafka://HOST:PORT/TOPIC"),
        (["-q", "person", "--tracker", "bytetrak"], 2, "bytetrack"),
        (["-q", "person", "--start-time", "yesterday"], 2, "'yesterday' is not a time"),
        (["-q", "person", "--start-time", "1950-01-01"], 2, "'1950-01-01' lies outside 1970 to 2200"),
        (["-q", "person", "--json", "--sink", "stdout:"], 2, "both write to standard output"),
        (["-q", "person", "--fps", "0"], 2, "'--fps'"),
        (["-q", "person", "--batch", "100000"], 2, "'--batch'"),
        (["-q", "person", "--sink", "kafak://host/topic"], 2, "did you mean kafka"),
        (["-q", "person", "--out", "/proc/none"], 1, "/proc/none"),
        ([], 2, "Missing option"),
    ],
)
def test_a_wrong_option_is_reported_in_one_sentence(groundstream, clip, script, tmp_path, options, code, sentence):
    out = [] if "--out" in options else ["--out", tmp_path]
    run = groundstream("process", clip, "--detector", f"scripted:{script}", "--no-video", *out, *options)
    assert sentence in run.err + run.out
    assert run.code == code
    assert "Traceback" not in run.err


@pytest.mark.parametrize(
    "mistake",
    [
        ["-q", "person", "--detector", "glib-tiny"],
        ["-q", "person", "--sink", "kafak://host/topic"],
        ["-q", "person", "--zone", "yard:0,0 1,1"],
        ["-q", "person", "-q", "person"],
    ],
)
def test_a_job_that_cannot_begin_leaves_earlier_results_alone(groundstream, clip, script, tmp_path, mistake):
    detector = [] if "--detector" in mistake else ["--detector", f"scripted:{script}"]
    earlier = {tmp_path / "events.jsonl": b"lines", tmp_path / "events.sqlite": b"rows"}
    for path, content in earlier.items():
        path.write_bytes(content)
    assert groundstream("process", clip, *detector, "--no-video", "--out", tmp_path, *mistake).code == 2
    assert {path: path.read_bytes() for path in earlier} == earlier


def test_results_that_cannot_be_replaced_are_reported_in_one_sentence(groundstream, clip, script, tmp_path):
    command = ("process", clip, "-q", "person", "--detector", f"scripted:{script}", "--no-video", "--out")
    (tmp_path / "events.sqlite").mkdir()
    run = groundstream(*command, tmp_path)
    assert (run.code, run.err.count("\n")) == (1, 1)
    assert "events.sqlite: Is a directory" in run.err
    (tmp_path / "file").touch()
    run = groundstream(*command, tmp_path / "file")
    assert (run.code, run.err.count("\n")) == (1, 1)
    assert "File exists" in run.err


def test_videos_with_the_same_name_get_folders_of_their_own(groundstream, clip, script, tmp_path):
    other = tmp_path / "other" / clip.name
    other.parent.mkdir()
    other.write_bytes(clip.read_bytes())
    run = groundstream(
        *("process", clip, other, "-q", "person", "--detector", f"scripted:{script}", "--out", tmp_path / "out"),
        *("--no-video", "--json"),
    )
    assert run.code == 0, run.err
    assert [video["stream"] for video in json.loads(run.out)["videos"]] == ["walk", "walk-2"]
    assert (tmp_path / "out" / "walk-2" / "tracks.txt").stat().st_size


def test_tracks_have_the_same_names_however_the_recording_is_addressed(
    groundstream, clip, script, tmp_path, monkeypatch
):
    (tmp_path / "other").mkdir()
    other = make_clip(tmp_path / "other" / "walk.mp4", frames=59, fps=10)
    monkeypatch.chdir(clip.parent)

    def names(number: int, address: object) -> set[str]:
        out = tmp_path / str(number)
        run = groundstream(
            *("process", address, "-q", "person", "--detector", f"scripted:{script}", "--no-video", "--out", out)
        )
        assert run.code == 0, run.err
        database = sqlite3.connect(out / "events.sqlite")
        rows = database.execute("SELECT DISTINCT subject FROM events WHERE track IS NOT NULL").fetchall()
        database.close()
        return {row[0] for row in rows}

    relative = names(1, "walk.mp4")
    assert relative
    assert relative == names(2, clip) == names(3, f"{clip.parent}/*.mp4") == names(4, clip.parent)
    assert relative.isdisjoint(names(5, other))
    assert names(6, f"{clip.parent}/w*.mp4").isdisjoint(names(7, f"{other.parent}/w*.mp4"))


def test_a_sink_that_fails_costs_no_summary(groundstream, clip, script, tmp_path, monkeypatch):
    monkeypatch.setattr("streamer.jobs.runner.open_pipeline", functools.partial(open_pipeline, patience_s=0.3))
    run = groundstream(
        *("process", clip, "-q", "person", "--detector", f"scripted:{script}", "--no-video", "--out", tmp_path),
        *("--sink", "jsonl:/dev/full"),
    )
    assert run.code == 1
    assert "/dev/full" in run.err
    assert "Traceback" not in run.err
    assert "60 frames" in run.out
    assert json.loads((tmp_path / "walk" / "summary.json").read_text())["analysed"] == 60


def test_a_table_in_a_pipe_is_not_cut_and_a_failure_is_reported_once(groundstream, clip, script, tmp_path):
    long = tmp_path / f"{'very-' * 20}long.mp4"
    long.write_bytes(clip.read_bytes())
    bad = make_empty(tmp_path, clip)
    run = groundstream(
        *("process", long, bad, "-q", "person", "--detector", f"scripted:{script}", "--no-video"),
        *("--out", tmp_path / "out"),
    )
    assert run.code == 1
    assert any(line.startswith("│") and long.stem in line for line in run.out.splitlines())
    assert "track.begin 1, track.end 1" in run.out
    assert (run.out + run.err).count("is empty (0 bytes)") == 1


def test_events_on_standard_output_stand_there_alone(groundstream, clip, script, tmp_path):
    run = groundstream(
        *("process", clip, "-q", "person", "--detector", f"scripted:{script}", "--no-video", "--out", tmp_path),
        *("--sink", "stdout:"),
    )
    assert run.code == 0, run.err
    assert run.out == (tmp_path / "events.jsonl").read_text()


def test_what_moves_asked_for_twice_is_reported_so(groundstream, clip, tmp_path):
    run = groundstream("process", clip, "-q", "anything that moves", "-q", "anything that moves", "--out", tmp_path)
    assert (run.code, "'anything that moves' is given twice" in run.err) == (2, True)


def test_a_web_camera_that_no_one_serves_ends_the_job(groundstream, script, tmp_path):
    run = groundstream(
        *("process", "http://127.0.0.1:3/x", "-q", "person", "--detector", f"scripted:{script}", "--no-video"),
        *("--out", tmp_path),
    )
    assert (run.code, "nothing listens at 127.0.0.1:3" in run.out) == (1, True)


def test_many_mistakes_are_counted_rather_than_listed(groundstream, tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text("{}\n" * 50)
    run = groundstream("schema", "--validate", file)
    assert run.code == 1
    assert len(run.err.splitlines()) == 21
    assert "and 30 more" in run.err
    assert "50 are not" in run.out


def test_the_table_of_doctor_shows_states_as_words(groundstream, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    out = groundstream("doctor", "--sink", "nosuch:[bold]x").out
    assert re.search(r"│ broken +│", out)
    assert "[red]" not in out
    assert "pip install 'groundstream[" in out or "works" in out


def test_doctor_opens_streams_with_their_own_tls_options_and_names_the_check_that_failed(
    groundstream, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    authority = Authority(tmp_path)
    clip = Answer(make_clip(tmp_path / "clip.mkv", 10).read_bytes(), ranges=True)
    trusted = {"tls": {"cafile": str(authority.certificate)}}
    with (
        WebServer({"/a.mkv": clip}, certificate=authority.issue("127.0.0.1")) as good,
        WebServer({"/a.mkv": clip}, certificate=authority.issue("127.0.0.1", expired=True)) as expired,
        WebServer({"/a.mkv": clip}, certificate=authority.issue("camera.example")) as elsewhere,
    ):
        addresses = [server.url("/a.mkv") for server in (good, expired, elsewhere)]
        streams = [{"source": address, "name": f"s{n}", **trusted} for n, address in enumerate(addresses)]
        streams += [{"source": good.url("/a.mkv?2"), "name": "open", "tls": {"insecure": True}}]
        streams += [{"source": good.url("/a.mkv?3"), "name": "none"}]
        config = {"streams": streams, "queries": ["dog"], "sinks": [f"jsonl:{tmp_path}/e.jsonl", f"video:{tmp_path}"]}
        path = tmp_path / "watch.yaml"
        path.write_text(json.dumps(config))
        run = groundstream("doctor", "--json", "--config", path)
    details = [f["state"] + ": " + f["detail"] for f in json.loads(run.out) if f["what"].startswith("source ")]
    assert details[0] == "works: 320x240, clock file_pts"
    assert re.match("broken: .*has expired", details[1])
    assert re.match("broken: .*for another host", details[2])
    assert re.match("works: .*not verified", details[3])
    assert re.match("broken: .*not trusted .*cafile", details[4])
    sinks = [f["state"] for f in json.loads(run.out) if f["what"].startswith("sink ")]
    assert sinks == ["works", "broken"]
    assert run.code == 1


def test_doctor_says_why_no_picture_came(groundstream, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("streamer.tasks.doctor._SOURCE_WAIT_S", 2)
    with WebServer({"/live": Answer(status=503)}) as server:
        path = tmp_path / "watch.yaml"
        path.write_text(json.dumps({"streams": [{"source": server.url("/live"), "live": True}], "queries": ["dog"]}))
        run = groundstream("doctor", "--json", "-c", path)
    assert "no picture within 2 s: the server reports a failure of its own (503)" in run.out
    assert groundstream("doctor", "-c", tmp_path / "none.yaml").code == 2


@pytest.mark.parametrize("scheme", ["jsonl", "sqlite", "parquet"])
def test_a_check_of_a_file_sink_leaves_nothing_behind(groundstream, tmp_path, monkeypatch, scheme):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    in_the_way = tmp_path / ("file" if scheme == "parquet" else "folder")
    good = f"{scheme}:{tmp_path}/none/events?types=track.*"
    wrong = [f"{scheme}:{tmp_path}/file/events", f"{scheme}:{tmp_path}/events?colour=red", f"{scheme}:{in_the_way}"]
    options = [option for sink in (good, *wrong) for option in ("--sink", sink)]
    findings = {finding["what"]: finding for finding in json.loads(groundstream("doctor", "--json", *options).out)}
    assert findings[f"sink {good}"]["detail"] == "can be written"
    assert [findings[f"sink {redact(sink)}"]["state"] for sink in wrong] == ["broken"] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "state"}


def test_labels_stay_in_the_picture_and_can_be_read():
    import numpy as np
    import supervision as sv

    from streamer.recorders.painter import BoxPainter, ink_on

    assert ink_on(sv.Color.from_hex("#ffe119")) == (0, 0, 0)
    assert ink_on(sv.Color.from_hex("#1a2b4c")) == (255, 255, 255)

    def painted(box: list[float]) -> int:
        tracked = sv.Detections(np.array([box]), tracker_id=np.array([3]), class_id=np.array([1]))
        image = np.zeros((240, 320, 3), np.uint8)
        return np.count_nonzero(BoxPainter((320, 240), lambda _: "a red car", (), ()).paint(image, tracked).any(axis=2))

    middle = painted([100, 100, 140, 140])
    for corner in ([280, 100], [100, 0], [280, 0], [280, 200]):  # a label that is cut there loses 700 pixels or more
        assert painted([*corner, corner[0] + 40, corner[1] + 40]) > middle - 300


def test_an_unknown_detector_is_reported_with_the_nearest(groundstream, clip, tmp_path):
    run = groundstream("process", clip, "-q", "person", "--detector", "glib-tiny", "--out", tmp_path)
    assert (run.code, "did you mean glip" in run.err) == (2, True)


def test_a_full_disk_is_reported_in_one_sentence(groundstream, clip, script, tmp_path, monkeypatch):
    def begin(folder: ResultFolder) -> None:
        folder.path.mkdir(parents=True)
        (folder.path / "tracks.txt").symlink_to("/dev/full")

    monkeypatch.setattr(ResultFolder, "begin", begin)
    run = groundstream(
        "process", clip, "-q", "person", "--detector", f"scripted:{script}", "--out", tmp_path, "--no-video"
    )
    assert run.code == 1
    assert "tracks.txt: No space left on device" in run.out
    assert "Traceback" not in run.err


def test_monitor_needs_something_to_watch_and_to_look_for(groundstream, tmp_path):
    assert groundstream("monitor").code == 2
    assert "no query is given" in groundstream("monitor", "webcam:0").err
    both = groundstream("monitor", "webcam:0", "-q", "x", "-c", tmp_path / "c.yaml")
    assert (both.code, "cannot stand beside a configuration file" in both.err) == (2, True)


@pytest.mark.parametrize(
    "option",
    [
        ["--detector", "motion"],
        ["--weights", "w.pth"],
        ["--device", "cpu"],
        ["--threshold", "0"],
        ["--tracker", "sort"],
        ["--fps", "5"],
        ["--udp"],
        ["--metrics-port", "9000"],
    ],
)
def test_an_option_beside_a_configuration_is_refused(groundstream, tmp_path, option):
    run = groundstream("monitor", "-c", tmp_path / "c.yaml", *option)
    assert run.code == 2
    assert f"{option[0]} cannot stand beside a configuration file" in run.err
