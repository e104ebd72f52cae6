"""Cameras that are killed, freeze and send damaged or incomplete pictures: how soon each is back, and what was shown.

    python -m benchmarks.live_soak --seconds 120

RTSP cameras (H.264 and H.265, over TCP and UDP) on this machine are watched through `open_sources`, while each has one
fault after the other, in random order, of random length. Measured is the time from the end of a fault to the first
picture sent after it. Every picture shown is compared with the original, every frame is accounted for. Writes
benchmarks/results/live-soak.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from streamer.sources import Source, StateChange, open_sources
from tests.support.clips import make_clip, read_index
from tests.support.rtsp_server import RtspServer

RESULTS = Path(__file__).parent / "results" / "live-soak.md"
CAMERAS: dict[str, tuple[str, Literal["tcp", "udp"]]] = {
    "H.264, TCP": ("libx264", "tcp"),
    "H.264, UDP": ("libx264", "udp"),
    "H.265, TCP": ("libx265", "tcp"),
    "H.265, UDP": ("libx265", "udp"),
}
FAULTS = {
    "killed": "connections are reset, nothing listens",
    "frozen": "the connection stays, nothing is sent",
    "still picture": "the same picture with the same time, again and again",
    "packets lost": "5 % of RTP packets over UDP",
    "pictures lost": "20 % of pictures",
    "bytes overwritten": "10 % of RTP packets",
}
_VALUES = {
    "frozen": ("stall", True, False),
    "still picture": ("freeze_timestamps", True, False),
    "packets lost": ("drop", 0.05, 0.0),
    "pictures lost": ("drop_pictures", 0.2, 0.0),
    "bytes overwritten": ("corrupt", 0.1, 0.0),
}
_LONGEST_S = 6.0  # of a fault; a silence of 4 s is an outage
_BACK_LIMIT_S = 30.0
GOAL_S = 3.0


@dataclass
class Report:
    """What was measured. `damaged` counts shown pictures that differ from the original, by the fault at that time."""

    back_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    damaged: Counter[str] = field(default_factory=Counter)
    shown: int = 0
    received: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unaccounted: int = 0
    outages: int = 0
    disordered: int = 0
    never_back: int = 0
    threads_left: int = 0
    files_left: int = 0
    seconds: float = 0.0

    @property
    def worst_s(self) -> float:
        return max((value for values in self.back_s.values() for value in values), default=0.0)


class Camera:
    """One server with its viewer; pictures are checked as they come."""

    def __init__(self, name: str, clip: Path, originals: list[npt.NDArray[np.uint8]], report: Report) -> None:
        self.server = RtspServer({"cam": clip})
        self.transport = CAMERAS[name][1]
        # What is sent over TCP arrives whole.
        self.faults = [fault for fault in FAULTS if fault != "packets lost" or self.transport == "udp"]
        self.fault = ""
        self.newest_ns = 0  # when the newest picture was received
        self._originals = originals
        self._report = report

    async def watch(self, dice: random.Random, until_s: float) -> None:
        with self.server:
            (source,) = await asyncio.to_thread(
                open_sources, self.server.url(), transport=self.transport, on_state=self._note_state
            )
            reading = asyncio.create_task(self._read(source))
            await self._wait_picture(time.time_ns())
            while time.monotonic() < until_s:
                await self._endure(dice)
            await source.aclose()
            await reading
            tally = source.account.tally()
            self._report.received += tally.received
            self._report.dropped.update(tally.dropped)
            self._report.unaccounted += abs(tally.received - tally.analysed - sum(tally.dropped.values()))

    async def _endure(self, dice: random.Random) -> None:
        """One fault from its beginning to the return of the camera."""
        fault = dice.choice(self.faults)
        self.fault = fault
        if fault == "killed":
            await asyncio.to_thread(self.server.kill)
        else:
            name, bad, good = _VALUES[fault]
            setattr(self.server.faults, name, bad)
        await asyncio.sleep(dice.uniform(0.1, _LONGEST_S))
        if fault == "killed":
            await asyncio.to_thread(self.server.start)
        else:
            setattr(self.server.faults, name, good)
        ended_ns = time.time_ns()
        back_s = await self._wait_picture(ended_ns)
        if back_s is None:
            self._report.never_back += 1
        else:
            self._report.back_s[fault].append(back_s)
        await asyncio.sleep(1.0)  # what was damaged before may still be referred to
        self.fault = ""
        await asyncio.sleep(dice.uniform(0.0, 1.0))

    async def _wait_picture(self, after_ns: int) -> float | None:
        """Seconds until a picture has come that was received after `after_ns`; None where none does."""
        while self.newest_ns <= after_ns:
            if time.time_ns() - after_ns > _BACK_LIMIT_S * 1e9:
                return None
            await asyncio.sleep(0.005)
        return (self.newest_ns - after_ns) / 1e9

    async def _read(self, source: Source) -> None:
        last_ns = 0
        async for frame in source:
            source.account.analyse()
            self.newest_ns = frame.clock.received_ns or frame.time_ns
            self._report.shown += 1
            self._report.disordered += frame.time_ns <= last_ns
            last_ns = frame.time_ns
            number = read_index(frame.image)
            if number is None or not np.array_equal(frame.image, self._originals[number]):
                self._report.damaged[self.fault or "none"] += 1

    def _note_state(self, change: StateChange) -> None:
        self._report.outages += change.state.value in ("waiting", "stalled")


async def soak(folder: Path, seconds: float, seed: int = 0) -> Report:
    """Runs all cameras side by side; clips are made in `folder`."""
    report = Report()
    cameras = []
    clips = {codec: _make_clip(folder, codec) for codec, _ in CAMERAS.values()}
    originals = {codec: await _decode_all(clip) for codec, clip in clips.items()}
    files = len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    for name, (codec, _) in CAMERAS.items():
        cameras.append(Camera(name, clips[codec], originals[codec], report))
    await asyncio.gather(*(camera.watch(random.Random(seed + n), began + seconds) for n, camera in enumerate(cameras)))
    await asyncio.sleep(2.5)  # threads that were held up in the network end by themselves
    report.seconds = time.monotonic() - began
    report.threads_left = sum(thread.name.startswith(("watch", "rtsp")) for thread in threading.enumerate())
    report.files_left = max(0, len(os.listdir("/proc/self/fd")) - files)
    return report


def _make_clip(folder: Path, codec: str) -> Path:
    options = {"x265-params": "log-level=none:scenecut=0:open-gop=0:bframes=0"} if codec == "libx265" else {"bf": "0"}
    return make_clip(folder / f"{codec}.mp4", 60, size=(640, 480), gop=20, codec=codec, options=options)


async def _decode_all(clip: Path) -> list[npt.NDArray[np.uint8]]:
    (source,) = open_sources(str(clip))
    return [frame.image async for frame in source]


def write_report(report: Report, asked: str) -> str:
    """The results as Markdown."""
    rows = []
    for fault, meaning in FAULTS.items():
        back = report.back_s[fault]
        figures = f"{statistics.median(back):.2f} | {max(back):.2f}" if back else "- | -"
        rows.append(f"| {fault}: {meaning} | {len(back)} | {figures} | {report.damaged[fault]} |")
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.most_common()) or "0"
    return f"""# Live cameras: kills, freezes, damage

`python -m benchmarks.live_soak {asked}`

{len(CAMERAS)} cameras of 25 pictures a second, {report.seconds:.0f} s. Return: seconds from the end of a fault to the
receipt of the first whole picture after it.

| fault | times | return, median | worst | damaged pictures shown |
| --- | --: | --: | --: | --: |
{chr(10).join(rows)}
| none | | | | {report.damaged["none"]} |

Bytes that were overwritten are not noticed by FFmpeg's decoders; checksums keep them from viewers on real networks.

| | |
| --- | --- |
| worst return | {report.worst_s:.2f} s (goal: below {GOAL_S:g} s) |
| faults after which no picture came | {report.never_back} |
| outages reported | {report.outages} |
| pictures received, shown | {report.received:,}, {report.shown:,} |
| dropped | {dropped} |
| frames not accounted for | {report.unaccounted} |
| capture times that do not rise | {report.disordered} |
| threads and open files left at the end | {report.threads_left}, {report.files_left} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(soak(Path(folder), options.seconds, options.seed))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(write_report(report, f"--seconds {options.seconds:g} --seed {options.seed}"))
    print(RESULTS.read_text())
    unnoticed = sum(count for fault, count in report.damaged.items() if fault != "bytes overwritten")
    sys.exit(bool(report.never_back or report.unaccounted or report.disordered or unnoticed))


if __name__ == "__main__":
    main()
