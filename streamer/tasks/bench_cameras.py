"""The capacity of a machine for cameras: frames analysed and their age, for growing numbers of cameras.

The cameras are served over HTTP by a process on the same machine, whose work counts against the machine; decoding,
tracking, rules and a sink are the product's, the detector is scripted and costs nothing.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from streamer.build import open_pipeline
from streamer.config import parse_config
from streamer.errors import ConfigError
from streamer.frame import Frame
from streamer.pipeline.stream import Stream, StreamReport
from streamer.tasks.bench import cpu_seconds
from streamer.tasks.console import user_console

_DRAWN_S = 4.0
_WARM_UP_S = 20.0
"""How long all cameras may take until frames of each have come."""
_SETTLE_S = 3.0
_ENOUGH = 0.95
_OLDEST_MS = 500.0


@dataclass(frozen=True, slots=True)
class CamerasPace:
    """One measurement. Ages are from capture to the end of analysis, milliseconds; `fairness` is Jain's index over
    the analysed frames of each camera, 1 where all have the same share; `lost_per_s` counts the frames dropped for any
    reason but sampling; `cpu` is in cores: this process, workers."""

    cameras: int
    wanted_per_s: float
    analysed_per_s: float
    age_p50_ms: float
    age_p95_ms: float
    fairness: float
    lost_per_s: float
    cpu: tuple[float, float]

    @property
    def is_enough(self) -> bool:
        """Whether the machine carries these cameras: nearly all frames in time."""
        return self.analysed_per_s >= _ENOUGH * self.wanted_per_s and self.age_p95_ms <= _OLDEST_MS


def report_capacity(
    *, fps: float, size: str, sample: float, counts: Sequence[int] | None, seconds: float, most: int, as_json: bool
) -> None:
    """Measure the given numbers of cameras, or search for the most that the machine carries, and print."""
    with tempfile.TemporaryDirectory() as name:
        video = draw_camera(Path(name) / "camera.mp4", size, fps)
        bench = CameraBench(video, min(sample, fps), seconds, Path(name))
        paces = [bench.measure(count) for count in counts] if counts else list(search_capacity(bench, most))
    carried = max((pace.cameras for pace in paces if pace.is_enough), default=0)
    if as_json:
        print(json.dumps({"cameras": carried, "measured": [asdict(pace) for pace in paces]}, indent=2))  # noqa: T201
        return
    console = user_console()
    console.print(capacity_table(paces, f"{size} at {fps:g} frames/s, {min(sample, fps):g} analysed a second each"))
    console.print(
        f"this machine carries {carried} cameras: {_ENOUGH:.0%} of the frames analysed, "
        f"19 of 20 within {_OLDEST_MS:.0f} ms"
    )


def search_capacity(bench: CameraBench, most: int) -> Iterator[CamerasPace]:
    """Measurements with ever more cameras until the machine is too slow, then between the last two."""
    enough, too_many = 0, most + 1
    count = min(4, most)
    while too_many - enough > max(1, enough // 4):
        pace = bench.measure(count)
        yield pace
        if pace.is_enough:
            enough = count
        else:
            too_many = count
        count = min(2 * count, most) if too_many > most else (enough + too_many) // 2
        if count in (0, enough):
            return


def capacity_table(paces: Sequence[CamerasPace], title: str) -> Table:
    """The measurements for people."""
    table = Table(
        "cameras",
        "analysed/s",
        "of",
        "age p50, ms",
        "age p95, ms",
        "fairness",
        "lost/s",
        "CPU here",
        "CPU decoding",
        title=title,
    )
    for pace in paces:
        here, decoding = pace.cpu
        table.add_row(
            str(pace.cameras),
            f"{pace.analysed_per_s:.0f}",
            f"{pace.wanted_per_s:.0f}",
            f"{pace.age_p50_ms:.0f}",
            f"{pace.age_p95_ms:.0f}",
            f"{pace.fairness:.3f}",
            f"{pace.lost_per_s:.0f}",
            f"{here:.2f}",
            f"{decoding:.2f}",
        )
    return table


def draw_camera(path: Path, size: str, fps: float) -> Path:
    """A video of the synthetic street, encoded as cameras do. Raises `ConfigError` for a size that is none."""
    from streamer.sources import open_sources
    from streamer.sources.loop_camera import encode_as_camera

    try:
        width, height = (int(part) for part in size.lower().split("x"))
    except ValueError:
        raise ConfigError(f"size {size!r} is not WIDTHxHEIGHT, such as 1280x720") from None

    async def draw() -> list[Frame]:
        (street,) = open_sources(f"synthetic:street?seed=11&size={size}&fps={fps:g}&duration={_DRAWN_S:g}")
        return [frame async for frame in street]

    encode_as_camera(str(path), asyncio.run(draw()), (width // 2 * 2, height // 2 * 2), fps)
    return path


class CameraBench:
    """Measures pipelines over many cameras that all send `video`, with `sample` frames a second analysed of each."""

    def __init__(self, video: Path, sample: float, seconds: float, folder: Path) -> None:
        self._video = video
        self._sample = sample
        self._seconds = seconds
        self._folder = folder
        self._script = folder / "script.json"
        answers = [{"query": "person", "box": [50 * n, 60, 50 * n + 30, 140], "confidence": 0.9} for n in range(5)]
        self._script.write_text(json.dumps({"frames": [answers], "repeat": True}))

    def measure(self, cameras: int) -> CamerasPace:
        """Run `cameras` cameras until all have sent frames, then measure."""
        from streamer.sources.loop_camera import serve_recording

        with serve_recording(str(self._video), _WARM_UP_S + _SETTLE_S + self._seconds + 60) as address:
            return asyncio.run(self._run(cameras, address))

    async def _run(self, cameras: int, address: str) -> CamerasPace:
        raw = {
            "streams": [
                {"name": f"cam{n}", "source": f"{address}/cam{n}", "sample": {"fps": self._sample}}
                for n in range(cameras)
            ],
            "queries": ["person"],
            "detector": f"scripted:{self._script}",
            "sinks": [f"jsonl:{self._folder / 'events.jsonl'}"],
        }
        ages: list[float] = []
        seen: Counter[str] = Counter()
        streams: dict[str, Stream] = {}

        def note(name: str) -> None:
            seen[name] += 1
            age_s = streams[name].age_s
            if age_s is not None:
                ages.append(age_s * 1000)

        async with open_pipeline(parse_config(raw, "bench"), on_frame=note) as pipeline:
            streams.update({stream.name: stream for stream in pipeline.streams})
            running = asyncio.create_task(pipeline.run())
            deadline = time.monotonic() + _WARM_UP_S
            while len(seen) < cameras and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await asyncio.sleep(_SETTLE_S)
            ages.clear()
            seen.clear()
            lost, cpu, began = count_lost(pipeline.report()), cpu_seconds(), time.monotonic()
            await asyncio.sleep(self._seconds)
            lasted = time.monotonic() - began
            after, counts, taken = cpu_seconds(), dict(seen), list(ages)
            lost = count_lost(pipeline.report()) - lost
            await pipeline.stop()
            await running
        shares = np.array([counts.get(name, 0) for name in streams], float)
        return CamerasPace(
            cameras=cameras,
            wanted_per_s=cameras * self._sample,
            analysed_per_s=float(shares.sum()) / lasted,
            age_p50_ms=float(np.percentile(taken, 50)) if taken else float("inf"),
            age_p95_ms=float(np.percentile(taken, 95)) if taken else float("inf"),
            fairness=float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())) if shares.any() else 0.0,
            lost_per_s=lost / lasted,
            cpu=((after[0] - cpu[0]) / lasted, (after[1] - cpu[1]) / lasted),
        )


def count_lost(reports: Iterable[StreamReport]) -> int:
    """Frames of the streams that were dropped against their sampling: skipped before decoding (`overload`), replaced by
    a newer one before they were analysed (`stale`), or lost for any other reason."""
    drops = [report.tally.dropped for report in reports]
    return sum(count for dropped in drops for reason, count in dropped.items() if reason != "not_sampled")
