"""Many cameras on one machine: how many frames are analysed, how old they are, and how fairly the loss is shared.

    python benchmarks/cameras.py [--size 640x480] [--fps 25] [--cameras 16 32 64 96 128] [--seconds 10] [--rounds 1]

Writes benchmarks/results/cameras.md: medians of rounds that go through all numbers of cameras in turns. The detector
is scripted; each camera is sampled at 5 frames a second. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from streamer.tasks.bench_cameras import CameraBench, CamerasPace, draw_camera
from streamer.threads import plan_threads, set_environment

RESULTS = Path(__file__).parent / "results" / "cameras.md"
SAMPLE = 5.0


def row(paces: Sequence[CamerasPace]) -> str:
    """One line of the table: medians over the rounds."""
    first = paces[0]

    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    return (
        f"| {first.cameras} | {median([p.analysed_per_s for p in paces]):.0f} of {first.wanted_per_s:.0f} | "
        f"{median([p.age_p50_ms for p in paces]):.0f} | {median([p.age_p95_ms for p in paces]):.0f} | "
        f"{median([p.fairness for p in paces]):.3f} | {median([p.lost_per_s for p in paces]):.0f} | "
        f"{median([p.cpu[0] for p in paces]):.2f} | {median([p.cpu[1] for p in paces]):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--fps", type=float, default=25.0)
    parser.add_argument("--cameras", type=int, nargs="+", default=[16, 32, 64, 96, 128])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    set_environment()
    sys.setswitchinterval(0.0001)  # both as the command line does
    with tempfile.TemporaryDirectory() as name:
        video = draw_camera(Path(name) / "camera.mp4", options.size, options.fps)
        bench = CameraBench(video, SAMPLE, options.seconds, Path(name))
        rounds = [[bench.measure(count) for count in options.cameras] for _ in range(options.rounds)]
    load = os.getloadavg()[1]
    lines = [
        "# Many cameras",
        "",
        f"{platform.machine()}, {plan_threads()}, Python {platform.python_version()}; load average over 5 minutes at "
        f"the end {load:.1f}.",
        "",
        f"{options.size} at {options.fps:g} frames/s over HTTP from the same machine, sampled at {SAMPLE:g}/s, "
        f"scripted detector; medians of {options.rounds} rounds of {options.seconds:g} s. CPU in cores. "
        "Fairness is Jain's index over the frames analysed of each camera.",
        "",
        "| cameras | analysed a second | age p50, ms | age p95, ms | fairness | lost/s | CPU here | CPU decoding |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(row(paces) for paces in zip(*rounds, strict=True)),
        "",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
