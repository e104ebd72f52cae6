"""Memory of a monitor over time: live streams, edited queries, a sink that fails most of the time.

    python -m benchmarks.soak_memory --seconds 1800 --streams 8 --fps 2

Runs a pipeline with the scripted detector over live streams of the synthetic street twice, at the same time, each in a
process of its own: once as it is, once with another query every 5 seconds (a person edits perhaps once in an hour, so
the clock runs fast). Measures memory, threads and open files; the slope is the median of all pairs of the second half
(Theil and Sen), which a single step, such as the start of a thread, does not change. Writes benchmarks/results/soak.md.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sinks.event import Event
from sinks.sink import SinkError
from streamer.build import open_pipeline
from streamer.config import parse_config

RESULTS = Path(__file__).parent / "results" / "soak.md"
EDIT_EVERY_S = 5.0
_WARM_UP_S = 10.0


class _CountingSink:
    """Takes everything, or only every fifth batch."""

    def __init__(self, *, failing: bool) -> None:
        self._failing = failing
        self._batches = 0

    async def send_batch(self, events: Sequence[Event]) -> None:
        self._batches += 1
        if self._failing and self._batches % 5:
            raise SinkError("the peer is down")

    async def aclose(self) -> None:
        pass


def write_script(path: Path) -> None:
    """A walker who comes for 25 frames of every 40."""
    frames = [
        [{"query": "person", "box": [40 + n % 60, 60, 80 + n % 60, 160], "confidence": 0.9}] if n % 40 < 25 else []
        for n in range(400)
    ]
    path.write_text(json.dumps({"frames": frames, "repeat": True}))


async def measure(folder: Path, seconds: float, *, streams: int, fps: float, edits: bool) -> dict[str, Any]:
    """Seconds, megabytes, threads and open files, every 2 seconds; and how many events and edits there were."""
    write_script(folder / "script.json")
    zone = {"id": "yard", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    source = "synthetic:street?seed={}&size=160x120&live=1&fps={}&clean=1"
    raw: dict[str, Any] = {
        "streams": [{"name": f"camera-{n}", "source": source.format(n, fps), "zones": [zone]} for n in range(streams)],
        "queries": ["person", "car"],
        "detector": f"scripted:{folder / 'script.json'}",
        "sinks": [],
    }
    sinks = {"well": _CountingSink(failing=False), "ill": _CountingSink(failing=True)}
    process, rows, edited = psutil.Process(), [], 0
    async with open_pipeline(parse_config(raw), spool_path=folder / "spool", more_sinks=sinks) as pipeline:
        running = asyncio.create_task(pipeline.run())
        await asyncio.sleep(_WARM_UP_S)
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < seconds:
            if edits and passed >= edited * EDIT_EVERY_S:
                edited += 1
                await pipeline.apply(parse_config({**raw, "queries": ["person", f"car {edited % 50}"]}))
            gc.collect()
            rows.append((passed, process.memory_info().rss / 1e6, process.num_threads(), process.num_fds()))
            await asyncio.sleep(2)
        events = sum(counts.total() for counts in pipeline.event_counts.values())
        await pipeline.stop()
        await running
    return {"rows": rows, "events": events, "edits": edited}


def summarize(name: str, found: dict[str, Any]) -> str:
    """One row of the table."""
    rows = np.array(found["rows"])
    half = rows[len(rows) // 2 :]
    first, second = np.triu_indices(len(half), 1)
    steps = (half[second, 1] - half[first, 1]) / (half[second, 0] - half[first, 0])
    per_hour = float(np.median(steps)) * 3600
    per_edit = "" if not found["edits"] else f"{per_hour / (3600 / EDIT_EVERY_S) * 1000:.0f} kB"
    begin, middle, end = (f"{rows[index, 1]:.1f}" for index in (0, len(rows) // 2, -1))
    threads, files = (f"{int(rows[0, column])}, {int(rows[-1, column])}" for column in (2, 3))
    cells = (name, found["events"], found["edits"], f"{begin}, {middle}, {end} MB", f"{per_hour:+.1f} MB", per_edit)
    return "| " + " | ".join(map(str, (*cells, threads, files))) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--fps", type=float, default=25.0, help="frames a second of each stream")
    parser.add_argument("--one", choices=("edits", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            edits = options.one == "edits"
            done = measure(Path(folder), options.seconds, streams=options.streams, fps=options.fps, edits=edits)
            print(json.dumps(asyncio.run(done)))
        return
    asked = f"--seconds {options.seconds:g} --streams {options.streams} --fps {options.fps:g}"
    titles = {"plain": "as it is", "edits": f"another query every {EDIT_EVERY_S:g} s"}
    runs = {
        name: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak_memory", "--one", name, *asked.split()],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in titles
    }
    lines = []
    for name, run in runs.items():
        printed, _ = run.communicate(timeout=options.seconds + 300)
        if run.returncode:
            raise RuntimeError(f"the run {titles[name]!r} failed with {run.returncode}")
        lines.append(summarize(titles[name], json.loads(printed.splitlines()[-1])))
    head = "| run | events | edits | memory: beginning, middle, end | an hour | an edit | threads | open files |"
    table = "\n".join([head, "| " + " | ".join(["---"] * 8) + " |", *lines])
    text = f"# Memory over time\n\n`python -m benchmarks.soak_memory {asked}`\n\n{table}\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
