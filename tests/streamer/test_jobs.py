"""Jobs on recordings: complete folders, resuming, interruption and the same results in any company."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import supervision as sv

from detectors import Prompt, Request
from streamer.jobs import ProcessJob, StreamSummary
from streamer.jobs.event_archive import EventArchive
from streamer.jobs.job import parse_shard, read_addresses
from streamer.jobs.result_folder import ResultFolder
from streamer.jobs.shared_parts import SharedDetector
from streamer.jobs.units import list_units, shard_of
from streamer.street import Street

MOVING = ("-q", "anything that moves", "--no-video")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for seed, (name, frames) in enumerate((("a", 50), ("b", 40), ("c", 30))):
        make_street_clip(folder / f"{name}.mp4", seed, frames)
    return folder


def make_street_clip(path: Path, seed: int, frames: int) -> None:
    """Encodes some seconds of the synthetic street, where things move."""
    street = Street(seed, size=(320, 192), fps=8)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(street.image(index), format="bgr24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "groundstream", "process", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=240, cwd=ROOT)


def results(out: Path) -> dict[str, bytes]:
    """Everything that a job wrote for each recording: tracks, events with their ids, and the summary."""
    found: dict[str, bytes] = {}
    for name in ("tracks.txt", "coco.json", "summary.json", "events.jsonl"):
        for path in sorted(out.glob(f"*/{name}")):
            found[str(path.relative_to(out))] = path.read_bytes().replace(str(out).encode(), b"OUT")
    return found


def summaries(output: str) -> dict[str, Any]:
    return {video["stream"]: video for video in json.loads(output)["videos"]}


@pytest.mark.timeout(300)
def test_complete_recordings_are_skipped_and_events_kept(clips: Path, tmp_path: Path) -> None:
    first = run(clips / "a.mp4", *MOVING, "--out", tmp_path)
    assert first.returncode == 0, first.stderr
    before = results(tmp_path)
    second = run(clips / "a.mp4", clips / "b.mp4", *MOVING, "--out", tmp_path, "--json")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["skipped"] == ["a"]
    assert {name: content for name, content in results(tmp_path).items() if name.startswith("a/")} == before
    with sqlite3.connect(tmp_path / "events.sqlite") as database:
        streams = dict(database.execute("SELECT stream, count(*) FROM events GROUP BY stream").fetchall())
    database.close()
    assert set(streams) == {"a", "b"}
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["id"] for line in lines}) == sum(streams.values())


@pytest.mark.timeout(300)
def test_other_settings_replace_nothing_unless_asked_to(clips: Path, tmp_path: Path) -> None:
    assert run(clips / "a.mp4", *MOVING, "--out", tmp_path).returncode == 0
    before = results(tmp_path)
    other = run(clips / "a.mp4", *MOVING, "--out", tmp_path, "--every", 2)
    assert other.returncode == 1
    assert "give --again to replace them" in other.stdout
    assert results(tmp_path) == before
    again = run(clips / "a.mp4", *MOVING, "--out", tmp_path, "--every", 2, "--again")
    assert again.returncode == 0, again.stderr
    assert results(tmp_path) != before
    lines = (tmp_path / "events.jsonl").read_bytes()
    assert lines == (tmp_path / "a" / "events.jsonl").read_bytes()


def test_a_folder_of_the_users_is_left_alone(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    done = run(clips / "a.mp4", *MOVING, "--out", tmp_path, "--again")
    assert done.returncode == 1
    assert "holds no results of groundstream" in done.stdout
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes.txt"]


@pytest.mark.timeout(300)
def test_results_do_not_depend_on_company_or_order(clips: Path, tmp_path: Path) -> None:
    names = ["a.mp4", "b.mp4", "c.mp4"]
    found = []
    for number, (order, jobs) in enumerate([(names, 3), (names[::-1], 2), (["b.mp4", "a.mp4", "c.mp4"], 1)]):
        out = tmp_path / str(number)
        done = run(*(clips / name for name in order), *MOVING, "--out", out, "--jobs", jobs)
        assert done.returncode == 0, done.stderr
        found.append(results(out))
    alone = tmp_path / "alone"
    for name in names:
        assert run(clips / name, *MOVING, "--out", alone).returncode == 0
    found.append(results(alone))
    assert any(content for name, content in found[0].items() if name.endswith("tracks.txt"))
    assert all(other == found[0] for other in found[1:])


@pytest.mark.timeout(300)
def test_a_killed_job_continues_with_the_same_results(clips: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    videos = [clips / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    assert run(*videos, *MOVING, "--out", whole).returncode == 0
    command = [sys.executable, "-m", "groundstream", "process", *map(str, videos), *MOVING, "--out", str(killed)]
    dice = random.Random(7)
    for _ in range(4):
        job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.8, 2.5))
        job.kill()
        job.wait()
        for path in killed.glob("[abc]/"):
            assert (path / "summary.json").exists(), "a folder has its name before it is complete"
    done = run(*videos, *MOVING, "--out", killed)
    assert done.returncode == 0, done.stderr
    assert results(killed) == results(whole)
    assert sorted(path.name for path in killed.iterdir() if path.is_dir()) == ["a", "b", "c"]
    lines = [json.loads(line)["id"] for line in (killed / "events.jsonl").read_text().splitlines()]
    assert sorted(set(lines)) == sorted(
        json.loads(line)["id"] for line in (whole / "events.jsonl").read_text().splitlines()
    )


@pytest.mark.timeout(300)
def test_an_interrupted_job_ends_with_130_and_keeps_what_is_complete(clips: Path, tmp_path: Path) -> None:
    street = "synthetic:street?seed=3&size=320x192&fps=10&duration=3000"
    command = [sys.executable, "-m", "groundstream", "process", str(clips / "c.mp4"), street, *MOVING]
    job = subprocess.Popen(
        [*command, "--out", str(tmp_path), "--json", "--jobs", "2"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "c" / "summary.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    job.send_signal(signal.SIGINT)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 130
    report = json.loads(out)
    assert report["interrupted"] is True
    assert {name: video["interrupted"] for name, video in summaries(out).items()} == {"c": False, "street": True}
    assert (tmp_path / "c" / "tracks.txt").exists()
    assert not (tmp_path / "street").exists()
    partial = json.loads((tmp_path / "street.interrupted" / "summary.json").read_text())
    assert partial["interrupted"] is True
    assert partial["analysed"] > 0


def test_an_unreadable_recording_does_not_stop_the_others(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    done = run(tmp_path / "bad.mp4", clips / "c.mp4", *MOVING, "--out", tmp_path / "out", "--json-lines")
    assert done.returncode == 1
    *each, whole = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["stream"]: bool(line["error"]) for line in each} == {"bad": True, "c": False}
    assert [video["stream"] for video in whole["videos"]] == ["bad", "c"]


def test_a_missing_recording_does_not_stop_the_others(clips: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "gone.mp4", clips / "c.mp4", *MOVING, "--out", tmp_path / "out", "--json")
    assert done.returncode == 1
    assert {name: bool(video["error"]) for name, video in summaries(done.stdout).items()} == {"gone": True, "c": False}
    assert "gone.mp4 does not exist" in summaries(done.stdout)["gone"]["error"]
    alone = run(tmp_path / "gone.mp4", *MOVING, "--out", tmp_path / "none")
    assert (alone.returncode, "does not exist" in alone.stderr) == (1, True)


def test_an_output_folder_that_cannot_be_is_one_sentence(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        done = run(clips / "c.mp4", *MOVING, "--out", out)
        assert done.returncode == 1
        assert f"cannot make the output folder {out}" in done.stderr


@pytest.mark.timeout(300)
def test_two_runs_at_the_same_time_leave_whole_folders(clips: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "groundstream", "process", str(clips), *MOVING, "--out", str(tmp_path / "both")]
    jobs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [job.communicate(timeout=200)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], errors
    assert not any(b"moved, deleted or replaced" in error for error in errors)
    assert run(clips, *MOVING, "--out", tmp_path / "one").returncode == 0
    assert results(tmp_path / "both") == results(tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "both").iterdir() if path.is_dir()) == ["a", "b", "c"]


def test_the_folder_of_a_run_at_work_is_not_removed(tmp_path: Path) -> None:
    first, second, killed = (ResultFolder(tmp_path, "a") for _ in range(3))
    for folder in (first, second, killed):
        folder.begin()
    killed._unlock()  # the kernel does so when a process ends
    second.finish(StreamSummary("a"))
    assert first.path.exists()
    assert not killed.path.exists()
    first.finish(StreamSummary("a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert sorted(path.name for path in first.final.iterdir()) == ["summary.json"]


def test_a_sink_of_detections_gets_every_frame_of_a_recording(clips: Path, tmp_path: Path) -> None:
    file = tmp_path / "metadata.xml"
    assert run(*MOVING, clips / "c.mp4", "--out", tmp_path / "out", "--sink", f"onvif:{file}").returncode == 0
    assert file.read_text().count("<tt:Transformation>") == 30


def test_addresses_come_from_a_file_or_standard_input(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"\ufeff# recordings\n{clips / 'a.mp4'}\n\n{clips / 'b.mp4'}\n")
    assert read_addresses(str(tmp_path / "list.txt")) == [str(clips / "a.mp4"), str(clips / "b.mp4")]
    done = run("--from", "-", *MOVING, "--out", tmp_path / "out", "--json", stdin=f"{clips / 'c.mp4'}\n")
    assert list(summaries(done.stdout)) == ["c"]
    none = run(*MOVING, "--out", tmp_path / "none")
    assert (none.returncode, "no recordings to process" in none.stderr) == (2, True)


def test_shards_divide_the_recordings(clips: Path, tmp_path: Path) -> None:
    job = {"videos": [str(clips)], "queries": ["person"], "out": tmp_path}
    parts = [[unit.name for unit in list_units(ProcessJob(**job, shard=(part, 3)))] for part in (1, 2, 3)]
    assert sorted(sum(parts, [])) == ["a", "b", "c"]
    assert all(0 <= shard_of(f"camera-{n}", 7) < 7 for n in range(100))
    assert parse_shard("2/8") == (2, 8)
    for wrong in ("0/8", "9/8", "8", "a/b", "1/0"):
        with pytest.raises(ValueError, match="NUMBER/COUNT"):
            parse_shard(wrong)


@pytest.mark.anyio
async def test_the_archive_takes_every_event_once(clips: Path, tmp_path: Path) -> None:
    from sinks.conformance import sample_events

    lines = tmp_path / "new.jsonl"
    lines.write_bytes(b"".join(event.to_json() + b"\n" for event in sample_events(1200)))
    for _ in range(2):
        archive = EventArchive(tmp_path)
        archive.open()
        await archive.add("gate", lines)
        await archive.aclose()
    assert (tmp_path / "events.jsonl").read_bytes() == lines.read_bytes()


@pytest.mark.timeout(300)
def test_every_file_with_events_is_for_its_owner_alone(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sinks = [f"jsonl:{out / 'own.jsonl'}", f"sqlite:{out / 'own.sqlite'}", f"parquet:{out / 'parquet'}"]
    options = [word for address in sinks for word in ("--sink", address)]
    for every in (1, 2):  # the second run replaces the events of the first
        done = run(clips / "c.mp4", *MOVING, *options, "--out", out, "--again", "--every", every)
        assert done.returncode == 0, done.stderr
    modes = {path: path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    marks = (b"specversion", b"PAR1")
    holding = {path: mode for path, mode in modes.items() if any(mark in path.read_bytes() for mark in marks)}
    assert {"events.jsonl", "events.sqlite", "own.jsonl", "own.sqlite"} <= {path.name for path in holding}
    assert ".parquet" in {path.suffix for path in holding}
    assert set(holding.values()) == {0o600}, holding


class CountingDetector:
    threshold = 0.5

    def __init__(self) -> None:
        self.calls: list[int] = []

    def prepare(self, queries: Any) -> Prompt:
        return Prompt(tuple(queries))

    def detect(self, requests: Any) -> list[sv.Detections]:
        self.calls.append(len(requests))
        time.sleep(0.05)
        if any(request.stream == "broken" for request in requests):
            raise ValueError("this stream is broken")
        return [sv.Detections(np.full((1, 4), request.image.shape[0], np.float32)) for request in requests]


def test_waiting_batches_of_several_recordings_are_joined() -> None:
    from concurrent.futures import ThreadPoolExecutor

    inner = CountingDetector()
    shared = SharedDetector(inner, "counting", combine=True)
    prompt = shared.prepare(["person"])
    heights = range(1, 9)
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(
                lambda height: shared.detect([Request(np.zeros((height, 4, 3), np.uint8), prompt, f"s{height}")]),
                heights,
            )
        )
    assert [int(result[0].xyxy[0, 0]) for result in found] == list(heights)
    assert len(inner.calls) < len(found)


def test_a_broken_recording_does_not_break_the_batch_of_the_others() -> None:
    from concurrent.futures import ThreadPoolExecutor

    shared = SharedDetector(CountingDetector(), "counting", combine=True)
    prompt = shared.prepare(["person"])

    def detect(stream: str) -> str:
        try:
            return str(len(shared.detect([Request(np.zeros((2, 2, 3), np.uint8), prompt, stream)])))
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(detect, ["a", "broken", "b", "c"])) == ["1", "this stream is broken", "1", "1"]
