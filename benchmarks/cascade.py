"""Cascade against the large detector on every frame: events, analysed frames, CPU, on quiet and busy streets.

    python benchmarks/cascade.py [--streets 2] [--seconds 25] [--gates motion:4 motion:2]

Writes benchmarks/results/cascade.md. glip-mini on streets that it has not seen, ten pictures a second; precision and
recall of line crossings and zone entries and exits as in `end_to_end.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.end_to_end import EDGE_S, LINES, TOLERANCE_S, ZONES, happenings
from streamer.build import open_pipeline
from streamer.config import parse_config
from streamer.detector_choice import load_detector
from streamer.street import Scenario, Street
from streamer.street.words import KINDS
from streamer.tasks.evaluate_events import LabelledEvent, read_labelled_events, score_events

RESULTS = Path(__file__).parent / "results" / "cascade.md"
FIRST_SEED = 9_400_001
SIZE, FPS = (640, 384), 10
STREETS = {"quiet": (0.1, 0.05), "calm": (0.4, 0.3), "busy": (1.0, 1.0)}
"""Crowd and traffic, as shares of the usual ones."""


@dataclass
class CascadeRun:
    """Sums over streets: pictures, calls, CPU seconds, and events that were right, reported, found and asked for."""

    pictures: int = 0
    analysed: int = 0
    cpu_s: float = 0.0
    right: float = 0.0
    reported: int = 0
    found: float = 0.0
    asked: int = 0
    late_s: float = 0.0  # worst 95 % of a street: reported time against the time in the world


def measure(run: CascadeRun, seed: int, seconds: float, crowd: float, traffic: float, gate: str | None) -> None:
    """Adds one street to a run."""
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.jsonl"
        source = f"synthetic:street?seed={seed}&size={SIZE[0]}x{SIZE[1]}&fps={FPS}&duration={seconds:g}"
        section: dict[str, Any] = {
            "name": "street",
            "source": f"{source}&crowd={crowd}&traffic={traffic}",
            "lines": [{"id": name, "points": points} for name, points in LINES.items()],
            "zones": [{"id": name, "polygon": points} for name, points in ZONES.items()],
        }
        config = parse_config(
            {
                "streams": [section],
                "queries": list(KINDS),
                "detector": {"name": "glip-mini", **gate_options(gate)},
                "sinks": [f"jsonl:{events}"],
            }
        )
        detector = load_detector(config.detector)

        async def go() -> None:
            async with open_pipeline(config, detector=detector) as pipeline:
                await pipeline.run()

        began = time.process_time()
        asyncio.run(go())
        run.cpu_s += time.process_time() - began
        pictures = round(seconds * FPS)
        run.pictures += pictures
        run.analysed += getattr(detector, "analysed", pictures)
        street = Street(seed, SIZE, FPS, Scenario(crowd=crowd, traffic=traffic))
        everything, visible = happenings(street.events(seconds, LINES, ZONES), "street")
        reported = read_labelled_events(events)

    def inside(some: list[LabelledEvent]) -> list[LabelledEvent]:
        return [one for one in some if EDGE_S <= one.time_s <= seconds - EDGE_S]

    precise = score_events(everything, inside(reported), TOLERANCE_S)
    asked = score_events(inside(visible), reported, TOLERANCE_S)
    run.right += precise.precision * len(inside(reported)) if inside(reported) else 0.0
    run.reported += len(inside(reported))
    run.found += asked.recall * len(inside(visible)) if inside(visible) else 0.0
    run.asked += len(inside(visible))
    run.late_s = max(run.late_s, asked.offset_p95_s)


def gate_options(gate: str | None) -> dict[str, Any]:
    """Keys of the section `detector` for a gate such as "motion:4", which is a name and `gate_moving_every`."""
    if gate is None:
        return {}
    name, _, every = gate.partition(":")
    return {"gate": name, **({"gate_moving_every": int(every)} if every else {})}


def share(part: float, whole: float) -> str:
    return f"{part / whole:.3f}" if whole else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streets", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--gates", nargs="+", default=["motion:4", "motion:2"])
    options = parser.parse_args()
    lines = [
        "# Cascade",
        "",
        f"Written by `benchmarks/cascade.py`: glip-mini at {SIZE[0]}x{SIZE[1]}, {FPS} pictures a second, "
        f"{options.streets} streets of {options.seconds:g} s for each row. CPU is of the whole program, painting "
        "the street included.",
        "",
        "| street | gate | analysed by the large detector | CPU ms a picture | precision (events) | recall (events) "
        "| error of the time, 95 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (crowd, traffic) in STREETS.items():
        for gate in (None, *options.gates):
            run = CascadeRun()
            for number in range(options.streets):
                measure(run, FIRST_SEED + number, options.seconds, crowd, traffic, gate)
            lines.append(
                f"| {name} | {gate or 'none'} | {run.analysed} of {run.pictures} "
                f"| {1000 * run.cpu_s / run.pictures:.0f} | "
                f"{share(run.right, run.reported)} ({run.reported}) | {share(run.found, run.asked)} ({run.asked}) "
                f"| {run.late_s:.2f} s |"
            )
            print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
