"""Jobs on recordings: memory over many files, the cost of a resume, busy cores, whole batches, a Ray cluster, kills.

    python -m benchmarks.jobs [--files 1000] [--rounds 3] [--kills 20] [--only PART ...]

Writes benchmarks/results/jobs.md; parts that are left out keep their rows. CPU time and memory are those of the whole
family of processes, read ten times a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import supervision as sv

from benchmarks.spine import draw
from detectors import Prompt, Request
from streamer.jobs.shared_parts import SharedDetector

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "jobs.md"
PARTS = ("files", "cores", "batches", "cluster", "kills")
QUERY = ("-q", "anything that moves", "--no-video")
WALL_S = 900
_BEGIN, _END = "<!-- {} -->", "<!-- /{} -->"


@dataclass
class Usage:
    """What a family of processes used: seconds of CPU and of the clock, and the most memory at a time in MiB."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def measure_command(*arguments: object, environment: dict[str, str] | None = None) -> Usage:
    """Runs `groundstream process` to its end. Raises `RuntimeError` where it fails."""
    command = [sys.executable, "-m", "groundstream", "process", *map(str, arguments), *QUERY, "--json"]
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        used: dict[int, float] = {}
        peak = 0
        while job.poll() is None:
            if time.monotonic() - started > WALL_S:
                job.kill()
                raise RuntimeError(f"{' '.join(command)} took more than {WALL_S} s")
            peak = max(peak, _read_family(psutil.Process(job.pid), used))
            time.sleep(0.1)
        if job.returncode:
            errors.seek(0)
            raise RuntimeError(errors.read().decode()[-1000:])
    return Usage(sum(used.values()), time.monotonic() - started, peak / 2**20)


def _read_family(parent: psutil.Process, used: dict[int, float]) -> int:
    """Notes the CPU seconds of each process by its number; returns their unshared memory in bytes."""
    memory = 0
    with contextlib.suppress(psutil.Error):
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
                memory += process.memory_full_info().uss
    return memory


def measure_files(folder: Path, count: int) -> list[str]:
    """Many small recordings in one job, and the same job again when all are complete."""
    original = draw(folder / "clip.mp4", "320x192", 10)
    many = folder / "many"
    many.mkdir()
    for number in range(count):
        shutil.copy(original, many / f"clip-{number:05}.mp4")
    first = measure_command(many, "--out", folder / "out")
    again = measure_command(many, "--out", folder / "out")
    few = folder / "few"
    few.mkdir()
    for number in range(20):
        shutil.copy(original, few / f"clip-{number}.mp4")
    base = measure_command(few, "--out", folder / "out-few")
    return [
        f"| {count:,} recordings of 10 frames: most memory | {first.peak_mib:.0f} MiB |",
        f"| 20 such recordings: most memory | {base.peak_mib:.0f} MiB |",
        f"| {count:,} recordings: CPU each, all included | {1000 * first.cpu_s / count:.0f} ms |",
        f"| resume that finds all complete: CPU each | {1000 * again.cpu_s / count:.1f} ms |",
        f"| resume that finds all complete: CPU in all | {again.cpu_s:.1f} s |",
    ]


def draw_recordings(folder: Path, count: int) -> Path:
    """Recordings of 768x576, 100 frames each."""
    original = draw(folder / "long.mp4", "768x576", 100)
    several = folder / "several"
    several.mkdir()
    for number in range(count):
        shutil.copy(original, several / f"long-{number}.mp4")
    return several


def measure_cores(folder: Path, rounds: int) -> list[str]:
    """The same recordings one at a time and as many as there are cores, in turns."""
    several = draw_recordings(folder, 6)
    one, many = [], []
    for number in range(rounds):
        one.append(measure_command(several, "--jobs", 1, "--out", folder / f"one-{number}"))
        many.append(measure_command(several, "--out", folder / f"many-{number}"))
    return [
        f"| cores of this machine | {os.cpu_count()} |",
        f"| cores busy, one recording at a time | {_median(one, lambda use: use.cpu_s / use.wall_s):.2f} |",
        f"| cores busy, default | {_median(many, lambda use: use.cpu_s / use.wall_s):.2f} |",
        f"| CPU of default against one at a time | {_median(many, _cpu) / _median(one, _cpu):.2f} |",
        f"| CPU of a frame of 768x576 (decode, motion, tracks, rules) | {_median(one, _cpu) / 600 * 1000:.1f} ms |",
    ]


class _CountingDetector:
    """Takes as long as a GPU does and notes the size of each batch."""

    threshold = 0.5

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return Prompt(tuple(queries))

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        self.sizes.append(len(requests))
        time.sleep(0.01 + 0.002 * len(requests))
        return [sv.Detections.empty() for _ in requests]


def _offer_batches(detector: SharedDetector, batch: Sequence[Request], _recording: int) -> None:
    for _ in range(50):
        detector.detect(batch)


def measure_batches() -> list[str]:
    """Eight recordings that each offer half a batch: what reaches the detector with and without joining."""
    means = {}
    for combine in (False, True):
        counting = _CountingDetector()
        shared = SharedDetector(counting, "counting", combine=combine)
        prompt = shared.prepare(["person"])
        half = [Request(np.zeros((2, 2, 3), np.uint8), prompt) for _ in range(4)]
        with ThreadPoolExecutor(8) as recordings:
            list(recordings.map(partial(_offer_batches, shared, half), range(8)))
        means[combine] = statistics.fmean(counting.sizes)
    return [f"| images in a call, 8 recordings with 4 each: alone, joined | {means[False]:.1f}, {means[True]:.1f} |"]


@contextlib.contextmanager
def ray_node(folder: Path, cores: int) -> Iterator[tuple[str, dict[str, str], psutil.Process]]:
    """A Ray head with so many workers: its address, the environment of its clients, its process."""
    port = 20_000 + secrets.randbelow(10_000)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}", "--block"]
    command += [f"--num-cpus={cores}", "--object-store-memory=100000000", "--include-dashboard=false"]
    command += ["--disable-usage-stats", "--temp-dir", str(folder / "r")]
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            time.sleep(12)
            yield f"127.0.0.1:{port}", environment, psutil.Process(head.pid)
        finally:
            family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)
            head.wait(10)


def measure_cluster(folder: Path, rounds: int) -> list[str]:
    """The same recordings on Ray workers and without, in turns."""
    several = draw_recordings(folder, 6)
    walls: dict[int, list[float]] = {1: [], 2: []}
    ratios: list[float] = []
    for cores in (1, 2):
        with ray_node(Path(tempfile.mkdtemp(prefix="gs")), cores) as (address, environment, head):
            for number in range(rounds + 1):  # the first one starts the workers
                out = folder / f"ray-{cores}-{number}"
                used: dict[int, float] = {}
                _read_family(head, used)
                before = sum(used.values())
                with _watched(head, used):
                    mine = measure_command(several, "--out", out, "--cluster", address, environment=environment)
                cpu = mine.cpu_s + sum(used.values()) - before
                if number:
                    walls[cores].append(json.loads((out / "cluster-report.json").read_text())["seconds"])
                    plain = measure_command(several, "--jobs", cores, "--out", folder / f"plain-{cores}-{number}")
                    ratios.append(cpu / plain.cpu_s)
    return [
        f"| CPU on Ray (driver, workers, Ray itself) against a plain run | {statistics.median(ratios):.2f} |",
        f"| two workers against one: times as fast | {statistics.median(walls[1]) / statistics.median(walls[2]):.2f} |",
    ]


@contextlib.contextmanager
def _watched(parent: psutil.Process, used: dict[int, float]) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            _read_family(parent, used)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure_kills(folder: Path, kills: int) -> list[str]:
    """Kills a job at random moments until it was killed so often; the results must be those of an undisturbed run."""
    original = draw(folder / "street.mp4", "320x192", 120)
    videos = [shutil.copy(original, folder / f"v{number}.mp4") for number in range(3)]
    whole = measure_command(*videos, "--out", folder / "whole")
    expected = read_results(folder / "whole")
    dice = random.Random(19)
    rounds = done = same = 0
    while done < kills:
        out = folder / f"killed-{rounds}"
        rounds += 1
        command = [sys.executable, "-m", "groundstream", "process", *map(str, videos), *QUERY, "--out", str(out)]
        for _ in range(min(4, kills - done)):
            job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                job.wait(dice.uniform(0.3, 1.0) * whole.wall_s)
            except subprocess.TimeoutExpired:
                job.kill()
                job.wait()
                done += 1
        measure_command(*videos, "--out", out)
        same += read_results(out) == expected
    return [
        f"| {done} kills (SIGKILL) in {rounds} jobs: jobs with the results of an undisturbed run | {same} of {rounds} |"
    ]


def read_results(out: Path) -> dict[str, bytes]:
    """Tracks, boxes, summaries and events with their ids of each recording, and the ids in the archive."""
    found = {
        str(path.relative_to(out)): path.read_bytes().replace(str(out).encode(), b"OUT")
        for name in ("tracks.txt", "coco.json", "summary.json", "events.jsonl")
        for path in sorted(out.glob(f"*/{name}"))
    }
    ids = sorted(json.loads(line)["id"] for line in (out / "events.jsonl").read_text().splitlines())
    return {**found, "ids": "\n".join(ids).encode()}


def _cpu(use: Usage) -> float:
    return use.cpu_s


def _median(uses: Sequence[Usage], value: Callable[[Usage], float]) -> float:
    return statistics.median(map(value, uses))


def write_results(rows: dict[str, list[str]]) -> None:
    """Replaces the rows of the parts that were measured."""
    old = RESULTS.read_text() if RESULTS.exists() else ""
    body = []
    for part in PARTS:
        kept = old.partition(_BEGIN.format(part) + "\n")[2].partition(_END.format(part))[0].strip().splitlines()
        lines = ["| what | |", "| --- | --- |", *rows[part]] if part in rows else kept
        body += [_BEGIN.format(part), "", *lines, "", _END.format(part), ""]
    machine = f"Measured on {os.cpu_count()} cores ({platform.machine()}, Python {platform.python_version()})"
    head = ["# Jobs on recordings", "", f"`python -m benchmarks.jobs`. {machine}; `motion`, without videos.", ""]
    RESULTS.write_text("\n".join([*head, *body]).rstrip() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    measures: dict[str, Callable[[Path], list[str]]] = {
        "files": lambda folder: measure_files(folder, options.files),
        "cores": lambda folder: measure_cores(folder, options.rounds),
        "batches": lambda _folder: measure_batches(),
        "cluster": lambda folder: measure_cluster(folder, options.rounds),
        "kills": lambda folder: measure_kills(folder, options.kills),
    }
    for part in options.only:
        with tempfile.TemporaryDirectory() as folder:
            rows = measures[part](Path(folder))
        print("\n".join(rows), flush=True)
        write_results({part: rows})


if __name__ == "__main__":
    main()
