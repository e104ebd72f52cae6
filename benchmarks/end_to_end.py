"""Words to events, end to end: glip-mini on streets that it has not seen, against what really happens in them.

    python benchmarks/end_to_end.py [--only recorded|live] [--streets 3] [--seconds 25] [--live 45] [--detector NAME]

Writes benchmarks/results/end_to_end.md. The recorded streets are processed as `groundstream process` does it; the live
one appears by the clock on the wall and is read as a camera is. Things of which less than a quarter, or fewer than 60
pixels, are seen are not asked for; finding them is no fault either.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.glip_mini.examination import is_clear, truth_row
from detectors.evaluation import DetectionScore, coco_score
from detectors.overlap import ious
from streamer.build import open_pipeline
from streamer.config import parse_config
from streamer.jobs import ProcessJob
from streamer.street import Street
from streamer.street.words import KINDS
from streamer.tasks.evaluate_events import EventScore, LabelledEvent, read_labelled_events, score_events, shift_events
from streamer.tasks.process import process_videos
from trackers import evaluation, mot

if TYPE_CHECKING:
    from streamer.street import StreetEvent, StreetTruth

RESULTS = Path(__file__).parent / "results" / "end_to_end.md"
FIRST_SEED = 9_100_001  # training and examination take their streets from other seeds
SIZE, FPS = (640, 384), 10
LINES = {"middle": [(0.5, 0.3), (0.5, 1.0)]}
ZONES = {"crossing": [(0.35, 0.55), (0.65, 0.55), (0.75, 0.98), (0.25, 0.98)]}
LEAST_VISIBILITY = 0.25  # of what an event is asked of
TOLERANCE_S = EDGE_S = 1.0


def places(shapes: dict[str, list[tuple[float, float]]]) -> tuple[str, ...]:
    """As the command takes them."""
    return tuple(f"{name}:{' '.join(f'{x},{y}' for x, y in points)}" for name, points in shapes.items())


def happenings(events: list[StreetEvent], stream: str) -> tuple[list[LabelledEvent], list[LabelledEvent]]:
    """All that happens, and what of it can be seen."""
    everything = [(LabelledEvent(e.time_s, e.type, e.place, e.direction, stream), e.visibility) for e in events]
    return [one for one, _ in everything], [one for one, seen in everything if seen >= LEAST_VISIBILITY]


def mark_events(
    everything: list[LabelledEvent],
    visible: list[LabelledEvent],
    reported: list[LabelledEvent],
    start_s: float,
    end_s: float,
) -> list[str]:
    """Precision counts what was reported of hidden things as right, recall asks only for visible ones.

    Nothing is asked of the first and the last second: what is in a zone when the film begins has not entered it.
    """

    def well_inside(some: list[LabelledEvent]) -> list[LabelledEvent]:
        return [one for one in some if start_s + EDGE_S <= one.time_s <= end_s - EDGE_S]

    precise = score_events(everything, well_inside(reported), TOLERANCE_S)
    asked = score_events(well_inside(visible), reported, TOLERANCE_S)
    return [
        f"| events: precision of {len(well_inside(reported))} reported | {precise.precision:.3f} |",
        f"| events: recall of {len(well_inside(visible))} visible | {asked.recall:.3f} |",
        f"| events: error of the time, median and 95 % | {asked.offset_median_s:.2f} s, {asked.offset_p95_s:.2f} s |",
        *delays(asked),
    ]


def delays(score: EventScore) -> list[str]:
    if score.delay_median_s != score.delay_median_s:
        return []
    return [
        f"| events: reported so long after, median and 95 % | {score.delay_median_s:.2f} s, {score.delay_p95_s:.2f} s |"
    ]


def truth_rows(truths: list[StreetTruth]) -> np.ndarray:
    """(N, 9) rows as in MOT Challenge's gt.txt, of the visible boxes of what is clear."""
    rows = [
        [truth.index + 1, one.thing.identity, one.box[0], one.box[1], one.box[2] - one.box[0],
         one.box[3] - one.box[1], 1, 1, one.visibility]
        for truth in truths for one in truth.seen if is_clear(one)
    ]  # fmt: skip
    return np.array(rows, np.float64).reshape(-1, 9)


def counted(tracks: np.ndarray, truths: list[StreetTruth]) -> np.ndarray:
    """The rows of a tracks.txt without those that lie on something that is not asked for."""
    kept = []
    for truth in truths:
        rows = tracks[tracks[:, 0] == truth.index + 1]
        boxes = np.column_stack([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]])
        unclear = np.array([one.box for one in truth.seen if not is_clear(one)], np.float64).reshape(-1, 4)
        clear = np.array([one.box for one in truth.seen if is_clear(one)], np.float64).reshape(-1, 4)
        on_unclear = (ious(boxes, unclear) >= 0.5).any(1) & ~(ious(boxes, clear) >= 0.5).any(1)
        kept.append(rows[~on_unclear])
    return np.concatenate(kept)


def coco_of(videos: list[tuple[str, list[StreetTruth]]], out: Path) -> DetectionScore:
    """What `process` wrote as COCO files against the truth."""
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for stream, truths in videos:
        start = len(images)
        images += [{"id": start + truth.index + 1} for truth in truths]
        boxes += [
            truth_row(one, start + truth.index + 1, KINDS.index(one.thing.kind) + 1)
            for truth in truths
            for one in truth.seen
        ]
        written = json.loads((out / stream / "coco.json").read_text())
        numbers = {category["id"]: KINDS.index(category["name"]) + 1 for category in written["categories"]}
        found += [
            {**row, "image_id": start + row["image_id"], "category_id": numbers[row["category_id"]]}
            for row in written["annotations"]
            if row["category_id"] in numbers
        ]
    categories = [{"id": number, "name": kind} for number, kind in enumerate(KINDS, 1)]
    return coco_score({"images": images, "annotations": boxes, "categories": categories}, found)


def names(streets: int) -> dict[str, int]:
    """The streams' names as `process` gives them to one street after the other, and the streets' seeds."""
    return {("street" if not n else f"street-{n + 1}"): FIRST_SEED + n for n in range(streets)}


def recorded(options: argparse.Namespace, folder: Path) -> list[str]:
    """Streets from beginning to end, every frame."""
    film = f"size=640x384&fps={FPS}&duration={options.seconds:g}"
    job = ProcessJob(
        videos=[f"synthetic:street?seed={seed}&{film}" for seed in names(options.streets).values()],
        queries=KINDS,
        out=folder,
        detector=options.detector,
        weights=options.weights,
        video=False,
        lines=places(LINES),
        zones=places(ZONES),
    )
    started = time.process_time()
    if process_videos(job, quiet=True, as_json=True):
        raise SystemExit("a street failed")
    cpu_s = time.process_time() - started
    videos, truths, tracks, infos = [], {}, {}, {}
    everything: list[LabelledEvent] = []
    visible: list[LabelledEvent] = []
    for stream, seed in names(options.streets).items():
        street = Street(seed, SIZE, FPS)
        frames = [street.truth(index) for index in range(round(options.seconds * FPS))]
        videos.append((stream, frames))
        truths[stream] = truth_rows(frames)
        tracks[stream] = counted(evaluation.read_tracks(folder / stream / "tracks.txt"), frames)
        infos[stream] = mot.SequenceInfo(stream, float(FPS), len(frames), *SIZE)
        all_of_it, seen = happenings(street.events(options.seconds, LINES, ZONES), stream)
        everything += all_of_it
        visible += seen
    detection = coco_of(videos, folder)
    _, track = evaluation.evaluate(truths, tracks, infos)
    reported = [replace(one, published_s=None) for one in read_labelled_events(folder / "events.jsonl")]
    frames_in_all = options.streets * round(options.seconds * FPS)
    return [
        f"## {options.streets} recorded streets of {options.seconds:g} s, 640x384, {FPS} frames/s, every frame",
        "",
        "| figure | found |",
        "| --- | --- |",
        f"| boxes of tracks: AP50, AP | {detection.ap50:.3f}, {detection.ap:.3f} |",
        f"| tracks, kinds together: HOTA, IDF1, MOTA | {track.hota:.1f}, {track.idf1:.1f}, {track.mota:.1f} |",
        f"| identity switches, of {track.truths} boxes | {track.id_switches} |",
        *mark_events(everything, visible, reported, 0.0, options.seconds),
        f"| CPU time a frame, painting of the street included | {1000 * cpu_s / frames_in_all:.0f} ms |",
        "",
    ]  # fmt: skip


def live(options: argparse.Namespace, folder: Path) -> list[str]:
    """One street as a camera shows it: frames that come too early for the model are skipped and counted."""
    seed = FIRST_SEED + options.streets
    reported, database = folder / "live.jsonl", folder / "live.sqlite"
    raw = {
        "streams": [
            {
                "name": "live",
                "source": f"synthetic:street?seed={seed}&size=640x384&fps={FPS}&duration={options.live:g}&live=1",
                "zones": [{"id": name, "polygon": points} for name, points in ZONES.items()],
                "lines": [{"id": name, "points": points} for name, points in LINES.items()],
            }
        ],
        "queries": list(KINDS),
        "detector": {"name": options.detector, "weights": options.weights},
        "sinks": [f"jsonl:{reported}", f"sqlite:{database}"],
    }

    async def run() -> Any:
        async with open_pipeline(parse_config(raw, "benchmark")) as pipeline:
            await pipeline.run()
            return pipeline.report()[0]

    report = asyncio.run(run())
    start_s = began(reported)
    everything, visible = happenings(Street(seed, SIZE, FPS).events(options.live, LINES, ZONES), "live")
    everything, visible = (shift_events(some, start_s, "live") for some in (everything, visible))
    tally = report.tally
    return [
        f"## A live street of {options.live:g} s at {FPS} frames/s",
        "",
        "| figure | found |",
        "| --- | --- |",
        f"| frames received, analysed, dropped | {tally.received}, {tally.analysed}, {sum(tally.dropped.values())} |",
        *mark_events(everything, visible, read_labelled_events(reported), start_s, start_s + options.live),
        "",
    ]


def began(reported: Path) -> float:
    """When the live street showed its first frame, in seconds since 1970."""
    for line in reported.read_text().splitlines():
        data = json.loads(line)["data"]
        if "frame" in data:
            return data["clock"]["captured_ns"] / 1e9 - data["frame"]["index"] / FPS
    raise SystemExit("the live street brought no event of a frame")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streets", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--live", type=float, default=45.0)
    parser.add_argument("--detector", default="glip-mini")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only", choices=("recorded", "live"), help="measure one part; the other keeps its figures")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    before = options.out.read_text().split("\n## ")[1:] if options.out.is_file() else []
    parts = {("live" if part.startswith("A live street") else "recorded"): f"## {part}" for part in before}
    with tempfile.TemporaryDirectory() as name:
        if options.only != "live":
            parts["recorded"] = "\n".join(recorded(options, Path(name) / "recorded"))
        if options.only != "recorded":
            parts["live"] = "\n".join(live(options, Path(name)))
    head = (
        f"# Words to events, end to end\n\n`python benchmarks/end_to_end.py`, {options.detector}, "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}. Queries: "
        f"{', '.join(KINDS)}. A line across the street and the crossing as a zone; an event counts within "
        f"{TOLERANCE_S:g} s."
    )
    text = "\n\n".join((head, *(parts[part].strip() for part in ("recorded", "live") if part in parts))) + "\n"
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
