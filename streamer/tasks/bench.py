"""The cost of the path around the detector: everything but a model, against bare decoding of the same file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]
import supervision as sv
from rich.console import Console
from rich.table import Table

from detectors import Prompt, Request, create_detector
from streamer.build import open_pipeline
from streamer.config import parse_config
from streamer.errors import ConfigError

_LINE = {"id": "middle", "points": [[0.5, 0.0], [0.5, 1.0]]}
_ZONE = {"id": "centre", "polygon": [[0.3, 0.3], [0.7, 0.3], [0.7, 0.9], [0.3, 0.9]]}


@dataclass(frozen=True, slots=True)
class PathPace:
    """Frames per second of elapsed time, and milliseconds of CPU per frame over all threads and decode workers."""

    frames_per_s: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class PaceComparison:
    """Medians over rounds that were run in turns."""

    video: str
    frames: int
    boxes: int
    decoding: PathPace
    pipeline: PathPace
    share: float
    cpu_ms_beyond_decoding: float
    reads_pixels: bool
    peak_memory_mib: float


def compare_with_decoding(
    video: Path | None, *, boxes: int, frames: int, size: str, rounds: int, as_json: bool, reads_pixels: bool = False
) -> None:
    """Measure and print; see `measure`."""
    with tempfile.TemporaryDirectory() as folder:
        if video is None:
            video = draw_street(Path(folder) / f"street-{size}.mp4", size, frames)
        comparison = measure_path(video, boxes=boxes, rounds=rounds, folder=Path(folder), reads_pixels=reads_pixels)
    if as_json:
        print(json.dumps(asdict(comparison), indent=2))  # noqa: T201
        return
    table = Table("", "frames/s", "CPU ms a frame", title=f"{comparison.frames} frames of {comparison.video}")
    alone = "decoding and converting to BGR" if comparison.reads_pixels else "decoding alone"
    for name, pace in ((alone, comparison.decoding), ("pipeline", comparison.pipeline)):
        table.add_row(name, f"{pace.frames_per_s:.0f}", f"{pace.cpu_ms:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"{comparison.share:.0%} of {alone}, {comparison.cpu_ms_beyond_decoding:.2f} ms of CPU a frame "
        f"beyond it, peak memory {comparison.peak_memory_mib:.0f} MiB",
        highlight=False,
    )


def measure_path(video: Path, *, boxes: int, rounds: int, folder: Path, reads_pixels: bool = False) -> PaceComparison:
    """Decode alone, then decode, follow `boxes` scripted boxes a frame with the default tracker and rules, in turns.

    With `reads_pixels` both convert every frame to BGR and read it. Raises what opening the video raises.
    """
    from streamer.sources.decode import count_frames

    frames = count_frames(video)
    script = folder / "script.json"
    script.write_text(json.dumps({"frames": _scripted_walks(boxes, frames), "repeat": True}))
    decoding: list[PathPace] = []
    pipeline: list[PathPace] = []
    for _ in range(rounds):
        with _ResourceWatch(frames) as watch:
            if reads_pixels:
                _convert_frames(video)
            else:
                count_frames(video)
        decoding.append(watch.pace)
        pipeline.append(asyncio.run(_run(video, script, folder, frames, reads_pixels=reads_pixels)))
    alone, whole = _median_pace(decoding), _median_pace(pipeline)
    return PaceComparison(
        video=video.name,
        frames=frames,
        boxes=boxes,
        decoding=alone,
        pipeline=whole,
        share=statistics.median(p.frames_per_s / d.frames_per_s for p, d in zip(pipeline, decoding, strict=True)),
        cpu_ms_beyond_decoding=whole.cpu_ms - alone.cpu_ms,
        reads_pixels=reads_pixels,
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def draw_street(path: Path, size: str, frames: int) -> Path:
    """A video of the synthetic street. Raises `ConfigError` for a size that is none."""
    from streamer.recorders.video_writer import VideoWriter
    from streamer.sources import open_sources

    try:
        width, height = (int(part) for part in size.lower().split("x"))
    except ValueError:
        raise ConfigError(f"size {size!r} is not WIDTHxHEIGHT, such as 1280x720") from None

    async def draw() -> None:
        (street,) = open_sources(f"synthetic:street?seed=11&size={size}&fps=25&duration={frames / 25}")
        with VideoWriter(path, (width, height)) as writer:
            async for frame in street:
                writer.write(frame.image, frame.time_ns)

    asyncio.run(draw())
    return path


def _scripted_walks(boxes: int, frames: int) -> list[list[dict[str, object]]]:
    """People who walk to and fro on tracks of their own, one for each box."""
    rows = []
    for frame in range(min(frames, 500)):
        row = []
        for number in range(boxes):
            x = 30 + 28.0 * number + 20 * abs((frame / 50 + number / 3) % 2 - 1)
            y = 60 + 17.0 * (number % 8) + 10 * abs((frame / 70 + number / 5) % 2 - 1)
            row.append({"query": "person", "box": [x, y, x + 24, y + 60], "confidence": 0.9})
        rows.append(row)
    return rows


class PixelReader:
    """A scripted detector that reads the pixels of every frame, as a model would."""

    def __init__(self, script: Path) -> None:
        self._scripted = create_detector(f"scripted:{script}")
        self.threshold = self._scripted.threshold

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return self._scripted.prepare(queries)

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        for request in requests:
            request.image[::64, ::64].sum()
        return self._scripted.detect(requests)


def _convert_frames(video: Path) -> None:
    from streamer.sources.decode import DecodedPicture, VideoReader

    with VideoReader(str(video)) as reader:
        for picture in reader.pictures():
            if isinstance(picture, DecodedPicture):
                picture()[::64, ::64].sum()


async def _run(video: Path, script: Path, folder: Path, frames: int, *, reads_pixels: bool) -> PathPace:
    """Building the pipeline and reading the script are not the frame path, and are left out."""
    raw = {
        "streams": [{"source": str(video), "zones": [_ZONE], "lines": [_LINE], "counts": [{"window_s": 10}]}],
        "queries": ["person"],
        "detector": f"scripted:{script}",
        "sinks": [f"jsonl:{folder / 'events.jsonl'}"],
    }
    detector = PixelReader(script) if reads_pixels else None
    async with open_pipeline(parse_config(raw, "bench"), detector=detector) as pipeline:
        with _ResourceWatch(frames) as watch:
            await pipeline.run()
    return watch.pace


def cpu_seconds() -> tuple[float, float]:
    """CPU seconds so far of this process and of its decode workers."""
    workers = 0.0
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "streamer.sources.workers.worker" in child.cmdline():
                times = child.cpu_times()
                workers += times.user + times.system
    return time.process_time(), workers


class _ResourceWatch:
    """Times a block in which `frames` frames are worked on."""

    def __init__(self, frames: int) -> None:
        self._frames = frames

    def __enter__(self) -> Self:
        self._wall, self._cpu = time.perf_counter(), sum(cpu_seconds())
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, sum(cpu_seconds()) - self._cpu
        self.pace = PathPace(self._frames / wall, cpu * 1000 / self._frames)


def _median_pace(paces: list[PathPace]) -> PathPace:
    return PathPace(
        statistics.median(pace.frames_per_s for pace in paces), statistics.median(pace.cpu_ms for pace in paces)
    )
