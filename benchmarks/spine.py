"""The path from frames to events: throughput against bare decoding, memory over a long file, real footage.

    python benchmarks/spine.py [--pets FOLDER] [--frames 20000] [--rounds 5]

Writes benchmarks/results/spine.md. FOLDER is MOTChallenge's PETS09-S2L1 with its video beside gt.txt and seqinfo.ini.
Run it on a machine that does nothing else. Wall times of a shared machine mean little: compare shares and CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from streamer.build import open_pipeline
from streamer.config import parse_config
from streamer.jobs import ProcessJob
from streamer.recorders.video_writer import VideoWriter
from streamer.sources import open_sources
from streamer.tasks.bench import PaceComparison, measure_path
from streamer.tasks.process import process_videos
from streamer.threads import set_environment

RESULTS = Path(__file__).parent / "results" / "spine.md"
SIZES = ("768x576", "1280x720")
DRAWN = 400  # different pictures in a drawn video, which then begins again


def draw(path: Path, size: str, frames: int) -> Path:
    """A video of the synthetic street, `frames` long."""
    width, height = map(int, size.split("x"))

    async def pictures() -> list:
        (street,) = open_sources(f"synthetic:street?seed=11&size={size}&fps=25&duration={min(frames, DRAWN) / 25}")
        return [frame.image async for frame in street]

    with VideoWriter(path, (width, height)) as writer:
        for index, image in enumerate(itertools.islice(itertools.cycle(asyncio.run(pictures())), frames)):
            writer.write(image, index * 40_000_000)
    return path


def memory_over(video: Path, folder: Path) -> list[float]:
    """Resident memory in MiB, ten times over a run of the whole path with 20 boxes a frame."""
    process = psutil.Process()
    taken: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            taken.append(process.memory_info().rss / 2**20)

    answers = [[{"query": "person", "box": [30 * n, 50, 30 * n + 20, 120], "confidence": 0.9} for n in range(20)]]
    script = folder / "still.json"
    script.write_text(json.dumps({"frames": answers, "repeat": True}))
    raw = {
        "streams": [{"source": str(video), "counts": [{"window_s": 10}]}],
        "queries": ["person"],
        "detector": f"scripted:{script}",
        "sinks": [f"sqlite:{folder / 'events.sqlite'}"],
    }

    async def run() -> None:
        async with open_pipeline(parse_config(raw, "benchmark")) as pipeline:
            await pipeline.run()

    thread = threading.Thread(target=watch)
    thread.start()
    asyncio.run(run())
    done.set()
    thread.join()
    return [taken[len(taken) * tenth // 10] for tenth in range(1, 10)] + taken[-1:]


def score_pets(folder: Path, out: Path) -> str:
    """Real pedestrians, found by motion alone, against the ground truth."""
    from trackers import evaluation, mot

    job = ProcessJob(videos=[str(folder / "video.mp4")], queries=["anything that moves"], out=out, video=False)
    started = time.monotonic()
    process_videos(job, quiet=True, as_json=True)
    seconds = time.monotonic() - started
    truth = {folder.name: evaluation.read_truth(folder)}
    tracks = {folder.name: evaluation.read_tracks(out / "video" / "tracks.txt")}
    _, score = evaluation.evaluate(truth, tracks, {folder.name: mot.read_info(folder)})
    return (
        f"`process {folder.name} --query 'anything that moves'`: HOTA {score.hota:.1f}, IDF1 {score.idf1:.1f}, "
        f"MOTA {score.mota:.1f}, {score.id_switches} identity switches; {795 / seconds:.0f} frames/s in all.\n"
    )


def row(comparison: PaceComparison, size: str) -> str:
    beside = "decoding, BGR" if comparison.reads_pixels else "decoding"
    return (
        f"| {size} | {beside} | {comparison.decoding.frames_per_s:.0f} | {comparison.pipeline.frames_per_s:.0f} | "
        f"{comparison.share:.0%} | {comparison.cpu_ms_beyond_decoding:.2f} | {comparison.peak_memory_mib:.0f} |"
    )


def rows(video: Path, size: str, rounds: int, folder: Path) -> list[str]:
    return [
        row(measure_path(video, boxes=20, rounds=rounds, folder=folder, reads_pixels=reads_pixels), size)
        for reads_pixels in (False, True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pets", type=Path)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    set_environment()
    sys.setswitchinterval(0.0001)  # both as the command line does
    lines = [
        "# The path without a model",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "Scripted detector with 20 boxes a frame, default tracker, rules and a JSON-lines sink; medians of "
        f"{arguments.rounds} rounds in turns with bare decoding of the same file by PyAV.",
        "",
        "CPU counts the decode workers. `decoding, BGR`: both sides read the pixels of every frame.",
        "",
        "| video | against | alone, frames/s | whole path, frames/s | share | CPU beyond, ms a frame | memory, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in SIZES:
            video = draw(folder / f"street-{size}.mp4", size, 1500)
            lines += rows(video, f"street {size}", arguments.rounds, folder)
        if arguments.pets:
            video = arguments.pets / "video.mp4"
            lines += rows(video, "PETS 768x576", arguments.rounds, folder)
        memory = memory_over(draw(folder / "long.mp4", "320x240", arguments.frames), folder)
        tenths = ", ".join(f"{value:.0f}" for value in memory)
        lines += ["", f"Memory over {arguments.frames} frames of one file, at each tenth: {tenths} MiB.", ""]
        if arguments.pets:
            lines.append(score_pets(arguments.pets, folder / "pets"))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
