"""How good and how fast the trackers are, beside other packages, over the sequences of ../shared/data/mot.

    python benchmarks/tracking.py [--peers PEERS/bin/python] [--rounds 3] [--only accuracy,dropped,cost,memory]

The peers live in an environment of their own: python -m venv PEERS && PEERS/bin/pip install trackers norfair
pyxtrackers edgefirst-tracker. Writes the parts asked for into benchmarks/results/trackers.md; others stay as they are.
Accuracy is counted by trackeval; cost is `update` alone, median over frames and rounds, all trackers in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "mot"
RESULTS = Path(__file__).parent / "results" / "trackers.md"
OURS = ("default", "botsort", "bytetrack", "ocsort", "sort")
PEERS = ("roboflow bytetrack", "roboflow sort", "norfair", "pyxtrackers bytetrack", "edgefirst bytetrack")
SIZES = {10: 200, 100: 100, 500: 40, 2000: 16}  # boxes a frame: frames a round
SLOWEST_S = 60.0  # a tracker that would need longer for a block is not asked for a larger one

Frames = list[tuple[np.ndarray, np.ndarray]]  # boxes (N, 4) and scores (N,) of every frame
Step = Callable[[Any, float], Any]  # one update: prepared detections and time -> result
Rows = Callable[[Any], np.ndarray]  # (N, 5) id and box of a result


# The workers: one process per tracker, reported block by block what to do. They import only what they measure.


def worker(name: str) -> None:
    """Reads JSON lines with the path of an npz of frames, answers the time and leaves the tracks beside the npz."""
    sys.path[0] = str(ROOT) if name.startswith("groundstream") else tempfile.gettempdir()
    for line in sys.stdin:
        job = json.loads(line)
        with np.load(job["frames"]) as file:
            frames = [(file[f"b{n}"], file[f"s{n}"]) for n in range(len(file.files) // 2)]
        prepare, step, rows = make(name, job["fps"])
        given = [prepare(boxes, scores) for boxes, scores in frames]
        spent, tracks = [], []
        for number, found in enumerate(given):
            start = time.perf_counter()
            result = step(found, number / job["fps"])
            spent.append(time.perf_counter() - start)
            tracked = rows(result)
            tracks.append(np.column_stack((np.full(len(tracked), number + 1.0), tracked)))
        np.save(job["frames"] + ".tracks.npy", np.concatenate(tracks))
        print(json.dumps({"microseconds": statistics.median(spent[len(spent) // 4 :]) * 1e6}), flush=True)


def make(name: str, fps: float) -> tuple[Callable[[np.ndarray, np.ndarray], Any], Step, Rows]:
    """How to prepare detections for a tracker, take one step, and read its result."""
    package, _, kind = name.partition(" ")
    if package == "groundstream":
        from trackers import create_tracker

        ours = create_tracker(kind)
        return detections, lambda found, time_s: ours.update(found, time_s), with_ids
    if package == "roboflow":
        from trackers import ByteTrackTracker, SORTTracker

        theirs = {"bytetrack": ByteTrackTracker, "sort": SORTTracker}[kind](frame_rate=fps)
        return detections, lambda found, _: theirs.update(found), with_ids
    if package == "norfair":
        from norfair import Detection, Tracker

        norfair = Tracker(distance_function="iou", distance_threshold=0.7)

        def objects(boxes: np.ndarray, scores: np.ndarray) -> list[Any]:
            return [
                Detection(points=box.reshape(2, 2), scores=np.full(2, score))
                for box, score in zip(boxes[scores > 0.5], scores[scores > 0.5], strict=True)
            ]

        def seen(result: Any) -> np.ndarray:
            rows = [[thing.id, *thing.estimate.ravel()] for thing in result if thing.hit_counter_is_positive]
            return np.array(rows, dtype=np.float64).reshape(-1, 5)

        return objects, lambda found, _: norfair.update(detections=found), seen
    if package == "pyxtrackers":
        from pyxtrackers import BYTETracker

        compiled = BYTETracker(frame_rate=round(fps))

        def numbered(result: Any) -> np.ndarray:
            table = np.asarray(result, dtype=np.float64).reshape(-1, max(np.shape(result)[-1:] or (5,)))
            return table[:, [4, 0, 1, 2, 3]] if len(table) else np.empty((0, 5))

        return table_of, lambda found, _: compiled.update(found), numbered
    from edgefirst.tracker import ByteTrack

    edge = ByteTrack(lifespan_ns=1_000_000_000)
    names: dict[str, int] = {}

    def active(result: Any) -> np.ndarray:
        rows = [
            [names.setdefault(info.uuid, len(names) + 1), *info.tracked_location] for info in result if info is not None
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 5)

    def arrays(boxes: np.ndarray, scores: np.ndarray) -> Any:
        return boxes.astype(np.float32), scores.astype(np.float32), np.zeros(len(boxes), dtype=np.uint64)

    return arrays, lambda found, time_s: edge.update(*found, int(time_s * 1e9)), active


def detections(boxes: np.ndarray, scores: np.ndarray) -> Any:
    import supervision as sv

    return sv.Detections(
        xyxy=boxes.astype(np.float32), confidence=scores.astype(np.float32), class_id=np.zeros(len(boxes), dtype=int)
    )


def with_ids(result: Any) -> np.ndarray:
    if result.tracker_id is None or not len(result):
        return np.empty((0, 5))
    known = result.tracker_id >= 0
    return np.column_stack((result.tracker_id[known], result.xyxy[known])).astype(np.float64)


def table_of(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.column_stack((boxes, scores)).astype(np.float64)


class Worker:
    """A tracker in a process of its own."""

    def __init__(self, name: str, python: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.name = name
        self._process = subprocess.Popen(
            [python, __file__, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=tempfile.gettempdir(),
        )

    def run(self, frames: Path, fps: float) -> tuple[float, np.ndarray] | None:
        """Microseconds a frame and (N, 6) rows frame, id, box; None when the tracker failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"frames": str(frames), "fps": fps}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            return None
        return json.loads(answer)["microseconds"], np.load(f"{frames}.tracks.npy")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)


def save(path: Path, frames: Frames) -> Path:
    arrays = {f"b{n}": boxes for n, (boxes, _) in enumerate(frames)}
    arrays |= {f"s{n}": scores for n, (_, scores) in enumerate(frames)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def scene(count: int, frames: int, seed: int = 0) -> Frames:
    """`count` people walking about at the density of a crowded street, 5 % missed in every frame."""
    random = np.random.default_rng(seed)
    extent = np.array([1920.0, 1080.0]) * max(1.0, (count / 100) ** 0.5)
    height = random.uniform(60, 180, count)
    half = np.column_stack((height * 0.2, height * 0.5))
    centre, speed = random.uniform(0, 1, (count, 2)) * extent, random.normal(0, 3, (count, 2))
    out = []
    for _ in range(frames):
        speed += random.normal(0, 0.3, (count, 2))
        centre += speed
        speed[(centre < 0) | (centre > extent)] *= -1
        boxes = np.column_stack((centre - half, centre + half)) + random.normal(0, 1, (count, 4))
        seen = random.random(count) < 0.95
        out.append((boxes[seen], np.clip(random.normal(0.82, 0.13, count), 0.05, 1)[seen]))
    return out


def workers(peers: str | None) -> Iterator[Worker]:
    for name in OURS:
        yield Worker(f"groundstream {name}", sys.executable)
    for name in PEERS if peers else ():
        yield Worker(name, str(peers))


def cost(peers: str | None, rounds: int) -> list[str]:
    lines = ["| tracker | " + " | ".join(f"{size} boxes" for size in SIZES) + " |", "| --- |" + " ---: |" * len(SIZES)]
    everyone = list(workers(peers))
    spent: dict[str, dict[int, list[float]]] = {each.name: {size: [] for size in SIZES} for each in everyone}
    out: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for size, frames in SIZES.items():
            path = save(Path(folder) / f"{size}.npz", scene(size, frames))
            for _ in range(rounds):
                for each in everyone:
                    reported = None if each.name in out else each.run(path, 30.0)
                    if reported is not None:
                        spent[each.name][size].append(reported[0])
                    if reported is None or reported[0] * 1e-6 * 10 * frames > SLOWEST_S:
                        out.add(each.name)
    for each in everyone:
        each.close()
        cells = [f"{statistics.median(times):,.0f}" if times else "–" for times in spent[each.name].values()]
        lines.append(f"| {each.name} | " + " | ".join(cells) + " |")
    return lines


def sequences() -> dict[str, tuple[Any, Frames, Any, dict[int, Any]]]:
    """Every sequence's info, detections, truth and camera motion, by name."""
    from trackers import evaluation, mot

    found = {}
    for folder in mot.sequence_folders(DATA, "det"):
        info, motion = mot.read_info(folder), mot.find(folder, "gmc")
        rows = mot.by_frame(mot.read_rows(folder / "det.txt", 7), info.length)
        frames = [(mot.to_corners(part), part[:, 6]) for part in rows]
        found[folder.name] = (
            info,
            frames,
            evaluation.read_truth(folder),
            mot.read_camera(motion) if motion is not None else {},
        )
    return found


def as_mot(tracks: np.ndarray) -> np.ndarray:
    """Rows frame, id, box -> frame, id, left, top, width, height."""
    return np.column_stack((tracks[:, :4], tracks[:, 4:6] - tracks[:, 2:4]))


def scored(label: str, data: dict[str, Any], tracks: dict[str, np.ndarray]) -> str:
    from trackers.evaluation import evaluate

    cells = []
    for names in (list(data), [name for name in data if "SMOTsim" not in name]):
        _, all_ = evaluate(
            {name: data[name][2] for name in names},
            {name: tracks[name] for name in names},
            {name: data[name][0] for name in names},
        )
        cells.append(f"{all_.hota:.2f} / {all_.idf1:.2f} / {all_.mota:.2f}")
    return f"| {label} | {' | '.join(cells)} |"


def follow(name: str, info: Any, frames: Frames, cameras: dict[int, Any], times: Any = None) -> np.ndarray:
    """(N, 6) MOT rows of one of our trackers; `times` in seconds, those of the frame rate when absent."""
    from trackers import create_tracker

    tracker, rows = create_tracker(name), []
    for number, (boxes, scores) in enumerate(frames):
        time_s = number / info.frame_rate if times is None else times[number]
        tracked = with_ids(tracker.update(detections(boxes, scores), time_s, cameras.get(number + 1)))
        rows.append(np.column_stack((np.full(len(tracked), number + 1.0), tracked)))
    return as_mot(np.concatenate(rows))


def accuracy(peers: str | None, reported: str) -> list[str]:
    """The table of all trackers; without `peers` their rows stay as they were `reported`."""
    data = sequences()
    lines = ["| tracker | all 15: HOTA / IDF1 / MOTA | 11 with a real detector |", "| --- | ---: | ---: |"]
    for name in OURS:
        tracks = {key: follow(name, info, frames, cameras) for key, (info, frames, _, cameras) in data.items()}
        lines.append(scored(f"groundstream {name}", data, tracks))
    if not peers:
        return lines + [row for row in reported.splitlines() if row.startswith(tuple(f"| {name} " for name in PEERS))]
    with tempfile.TemporaryDirectory() as folder:
        for name in PEERS:
            each, tracks = Worker(name, peers), {}
            for key, (info, frames, _, _) in data.items():
                reported = each.run(save(Path(folder) / f"{key}.npz", frames), info.frame_rate)
                if reported is None:
                    break
                tracks[key] = as_mot(reported[1])
            each.close()
            lines.append(scored(name, data, tracks) if len(tracks) == len(data) else f"| {name} | failed | |")
    return lines


def dropped() -> list[str]:
    """About 40 % of the frames lost: single ones at random and bursts of six; scored on the frames that are left."""
    from dataclasses import replace

    from trackers.evaluation import evaluate

    random = np.random.default_rng(11)
    groups = {"MOT15": (), "MOT17": ("MOT17",), "MOT20": ("MOT20",), "SMOTsim": ("SMOTsim",)}
    results: dict[str, dict[str, tuple[Any, ...]]] = {"true times": {}, "fixed step": {}}
    for name, (info, frames, truth, _) in sequences().items():
        kept = random.random(len(frames)) >= 0.25
        for start in np.flatnonzero(random.random(len(frames)) < 0.035):
            kept[start : start + 6] = False
        kept[0] = True
        left = np.flatnonzero(kept)
        place = np.full(len(frames) + 1, 0.0)
        place[left + 1] = np.arange(1, left.size + 1)
        cut = truth[place[truth[:, 0].astype(int)] > 0]
        cut[:, 0] = place[cut[:, 0].astype(int)]
        part = [frames[number] for number in left]
        short = replace(info, length=left.size)
        for label, times in (("true times", left / info.frame_rate), ("fixed step", None)):
            results[label][name] = (short, cut, follow("default", info, part, {}, times))
    lines = [f"| HOTA on the kept frames | {' | '.join(groups)} | all |", "| --- |" + " ---: |" * (len(groups) + 1)]
    for label, found in results.items():
        cells = []
        for words in (*groups.values(), None):
            other = ("MOT17", "MOT20", "SMOTsim")
            names = [n for n in found if words is None or (n.startswith(words) if words else not n.startswith(other))]
            _, score = evaluate(
                {n: found[n][1] for n in names}, {n: found[n][2] for n in names}, {n: found[n][0] for n in names}
            )
            cells.append(f"{score.hota:.2f}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def memory(frames: int = 100_000) -> list[str]:
    """Resident memory of one tracker over a long stream of things that come and go."""
    from trackers import create_tracker

    tracker = create_tracker("default")
    given = [detections(*found) for found in scene(8, 500)]
    sizes = {}
    for number in range(frames):
        tracker.update(given[number % len(given)], number / 30 + 5 * (number // len(given)))
        if number + 1 in {frames // 10, frames // 2, frames}:
            sizes[number + 1] = resident_mib()
    return [f"{count:,} frames: {size:.1f} MiB" for count, size in sizes.items()]


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


ACCURACY = "Accuracy (one setting each, motion only)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the Python of an environment with the other packages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="accuracy,dropped,cost,memory")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    sys.path[0] = str(ROOT)
    reported = sections(RESULTS.read_text()) if RESULTS.is_file() else {}
    parts: dict[str, tuple[str, Callable[[], list[str]]]] = {
        "accuracy": (ACCURACY, lambda: accuracy(arguments.peers, reported.get(ACCURACY, ""))),
        "dropped": ("`default` with about 40 % of the frames lost", dropped),
        "cost": ("Cost of one `update`, microseconds", lambda: cost(arguments.peers, arguments.rounds)),
        "memory": ("Memory of a process with one `default`, 8 boxes a frame", memory),
    }
    for name in arguments.only.split(","):
        title, part = parts[name]
        reported[title] = "\n".join(part())
        print(f"## {title}\n\n{reported[title]}\n", flush=True)
        head = (
            f"# Trackers\n\nPython {platform.python_version()}, NumPy {np.__version__}, one thread, a shared machine."
        )
        known = [f"## {title}\n\n{reported[title]}" for title, _ in parts.values() if title in reported]
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n\n".join((head, *known)) + "\n")


def sections(text: str) -> dict[str, str]:
    """The parts of an earlier run, by title: a part that is not asked for keeps its figures."""
    found = (part.partition("\n\n") for part in text.split("\n## ")[1:])
    return {title.strip(): body.strip() for title, _, body in found}


if __name__ == "__main__":
    main()
