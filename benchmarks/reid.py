"""Re-identification by the detector's own features on synthetic streets: identities with and without it, and its cost.

    python -m benchmarks.reid [--streets 5] [--seconds 45]

`glip-mini` finds people once, with embeddings; the default tracker then follows its detections without and with
`appearance`. For gaps, the detections of chosen people are left out for a while, as behind a lorry, and what the
tracker calls them afterwards is compared: the same id (right), the id of another person (wrong), or a new one.
Results: `benchmarks/results/reid.md`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import supervision as sv
import torch

from benchmarks.end_to_end import counted, truth_rows
from detectors import Request, create_detector
from detectors.overlap import ious
from streamer.analysis.label_scores import for_tracker
from streamer.street import Street
from streamer.street.truth import StreetTruth
from trackers import create_tracker, evaluation, mot

RESULTS = Path(__file__).parent / "results" / "reid.md"
FIRST_SEED = 9_400_001  # streets that nothing was chosen on
SIZE, FPS = (640, 384), 10
GAPS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
HIDDEN_AT_ONCE = 6  # people of a street that are hidden in one run
BEFORE_S, AFTER_S = 1.0, 2.0  # in which the ids of a person are read
CLEAR = 0.6  # visibility from which a person can be matched to a track


@dataclass(frozen=True)
class StreetVideo:
    """The detections of one street with embeddings, and what is there, by frame."""

    found: list[sv.Detections]
    truths: list[StreetTruth]
    threshold: float


@dataclass(frozen=True)
class HiddenPerson:
    """A person whose detections are left out from frame `start` up to frame `end`."""

    identity: int
    start: int
    end: int
    has_double: bool  # whether another person in clothes of the same colour is in the picture


def look_at_street(seed: int, seconds: float) -> StreetVideo:
    street = Street(seed, SIZE, FPS)
    detector = create_detector("glip-mini", embed=True)
    prompt = detector.prepare(["person"])
    found, truths = [], []
    for number in range(round(seconds * FPS)):
        picture = street.picture(number)
        truths.append(street.truth(number))
        found += detector.detect([Request(picture.image, prompt, "street")])
    return StreetVideo(found, truths, detector.threshold)


def people_of(truth: StreetTruth, visible: float = CLEAR) -> dict[int, tuple[str, np.ndarray]]:
    """Colour and box of each visible person by identity."""
    return {
        one.thing.identity: (one.thing.colour, np.array(one.box, np.float64))
        for one in truth.seen
        if one.thing.kind == "person" and one.visibility >= visible
    }


def choose_hidden(video: StreetVideo, gap_s: float, seed: int) -> list[HiddenPerson]:
    """People who are in clear view before and after a gap that begins at a random time."""
    random = np.random.default_rng(seed)
    frames, gap = len(video.truths), round(gap_s * FPS)
    before, after = round(BEFORE_S * FPS), round(AFTER_S * FPS)
    people = [people_of(truth) for truth in video.truths]
    hidden: list[HiddenPerson] = []
    for identity in random.permutation(sorted({one for seen in people for one in seen})).tolist():
        starts = [
            start
            for start in range(3 * FPS, frames - gap - after)
            if all(identity in people[n] for n in range(start - before, start))
            and sum(identity in people[n] for n in range(start + gap, start + gap + after)) >= after // 2
        ]
        if starts and len(hidden) < HIDDEN_AT_ONCE:
            start = int(random.choice(starts))
            colour = people[start - 1][identity][0]
            doubles = {
                other
                for n in range(start - before, start + gap + after)
                for other, (worn, _) in people[n].items()
                if worn == colour and other != identity
            }
            hidden.append(HiddenPerson(identity, start, start + gap, bool(doubles)))
    return hidden


def without_hidden(video: StreetVideo, number: int, hidden: Collection[HiddenPerson]) -> sv.Detections:
    """The detections of a frame without those of the people who are hidden in it."""
    found = video.found[number]
    seen = people_of(video.truths[number], 0.0)
    boxes = [seen[one.identity][1] for one in hidden if one.start <= number < one.end and one.identity in seen]
    if not boxes or not len(found):
        return found
    kept = ious(np.asarray(found.xyxy, np.float64), np.array(boxes)).max(axis=1) < 0.3
    return cast("sv.Detections", found[kept])


def follow_video(video: StreetVideo, *, appearance: bool, hidden: Collection[HiddenPerson] = ()) -> np.ndarray:
    """Rows of a tracks.txt of the default tracker."""
    tracker, numbers, thresholds = create_tracker("default", appearance=appearance), np.array([0]), video.threshold
    rows = []
    for number in range(len(video.found)):
        named, _ = for_tracker(without_hidden(video, number, hidden), numbers, np.array([thresholds]))
        tracked = tracker.update(named, number / FPS)
        for box, identity in zip(tracked.xyxy, tracked.tracker_id, strict=True):
            rows.append([number + 1, identity, *box[:2], *(box[2:] - box[:2]), 1, -1, -1, -1])
    return np.array(rows, np.float64)


def ids_by_frame(tracks: np.ndarray, truths: Sequence[StreetTruth]) -> list[dict[int, int]]:
    """For each frame the track of each person in clear view that has one."""
    found = []
    for truth in truths:
        rows = tracks[tracks[:, 0] == truth.index + 1]
        boxes = np.column_stack([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]])
        ids: dict[int, int] = {}
        for identity, (_, box) in people_of(truth).items():
            overlap = ious(box[None], boxes)[0]
            if overlap.size and overlap.max() >= 0.5:
                ids[identity] = int(rows[overlap.argmax(), 1])
        found.append(ids)
    return found


def judge_gaps(ids: Sequence[dict[int, int]], hidden: Collection[HiddenPerson]) -> Counter[tuple[bool, str]]:
    """How many hidden people came back under their own id, another person's and a new one, by whether they have a
    double."""
    outcome: Counter[tuple[bool, str]] = Counter()
    for person in hidden:
        before = Counter(
            ids[n][person.identity]
            for n in range(person.start - round(BEFORE_S * FPS), person.start)
            if person.identity in ids[n]
        )
        after = Counter(
            ids[n][person.identity]
            for n in range(person.end, min(len(ids), person.end + round(AFTER_S * FPS)))
            if person.identity in ids[n]
        )
        if not before or not after:
            continue
        own, now = before.most_common(1)[0][0], after.most_common(1)[0][0]
        others = {
            number for n in range(person.end) for identity, number in ids[n].items() if identity != person.identity
        }
        kind = "right" if now == own else "wrong" if now in others else "new"
        outcome[person.has_double, kind] += 1
    return outcome


def score_identities(videos: dict[str, StreetVideo], *, appearance: bool) -> evaluation.TrackingScore:
    truth = {name: truth_rows([_people_alone(one) for one in video.truths]) for name, video in videos.items()}
    tracks = {
        name: counted(follow_video(video, appearance=appearance), [_people_alone(one) for one in video.truths])
        for name, video in videos.items()
    }
    infos = {name: mot.SequenceInfo(name, float(FPS), len(video.truths), *SIZE) for name, video in videos.items()}
    return evaluation.evaluate(truth, tracks, infos)[1]


def _people_alone(truth: StreetTruth) -> StreetTruth:
    return replace(truth, seen=tuple(one for one in truth.seen if one.thing.kind == "person"))


def measure_cost(video: StreetVideo, seed: int) -> tuple[float, float, float]:
    """CPU milliseconds a frame of the detector without embeddings, with them, and what the tracker takes more."""
    street = Street(seed, SIZE, FPS)
    pictures = [street.picture(number).image for number in range(0, 60, 3)]
    spent: dict[bool, float] = defaultdict(float)
    detectors = {embed: create_detector("glip-mini", embed=embed) for embed in (False, True)}
    for turn in range(4):
        for embed, detector in detectors.items():
            prompt = detector.prepare(["person"])
            begun = time.process_time()
            for picture in pictures:
                detector.detect([Request(picture, prompt, "street")])
            spent[embed] += (time.process_time() - begun) * (turn > 0)  # the first turn warms up
    seconds: dict[bool, float] = defaultdict(float)
    for _ in range(2):
        for appearance in (False, True):
            begun = time.process_time()
            follow_video(video, appearance=appearance)
            seconds[appearance] += time.process_time() - begun
    each = 1000 / (3 * len(pictures))
    return spent[False] * each, spent[True] * each, (seconds[True] - seconds[False]) * 500 / len(video.found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streets", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=45.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.streets)
    videos = {str(seed): look_at_street(seed, arguments.seconds) for seed in seeds}
    lines = [
        "# Re-identification on streets",
        "",
        f"Written by `python -m benchmarks.reid`; {platform.machine()}, {arguments.streets} streets of "
        f"{arguments.seconds:.0f} s from seed {FIRST_SEED} on, {FPS} frames/s, query person, glip-mini, "
        "default tracker.",
        "",
        "| people | HOTA | IDF1 | MOTA | identity switches |",
        "| --- | --: | --: | --: | --: |",
    ]
    for name, appearance in (("without reid", False), ("with reid", True)):
        score = score_identities(videos, appearance=appearance)
        lines.append(f"| {name} | {score.hota:.1f} | {score.idf1:.1f} | {score.mota:.1f} | {score.id_switches} |")
    lines += [
        "",
        "People who are hidden for a while and come back, each with the id before (right), with that of another person "
        "(wrong), or with a new one. A double wears the same colour and is in the picture at that time.",
        "",
        "| gap | double | people | without: right | wrong | new | with: right | wrong | new |",
        "| --: | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for gap_s in GAPS_S:
        outcomes: dict[bool, Counter[tuple[bool, str]]] = {False: Counter(), True: Counter()}
        for number, video in enumerate(videos.values()):
            hidden = choose_hidden(video, gap_s, number)
            for appearance, outcome in outcomes.items():
                tracks = follow_video(video, appearance=appearance, hidden=hidden)
                outcome.update(judge_gaps(ids_by_frame(tracks, video.truths), hidden))
        for has_double in (False, True):
            cells = [
                str(outcomes[appearance][has_double, kind])
                for appearance in (False, True)
                for kind in ("right", "wrong", "new")
            ]
            people = sum(outcomes[False][has_double, kind] for kind in ("right", "wrong", "new"))
            lines.append(f"| {gap_s:.0f} s | {'yes' if has_double else 'no'} | {people} | {' | '.join(cells)} |")
    plain, embedding, more = measure_cost(next(iter(videos.values())), FIRST_SEED)
    lines += [
        "",
        f"Cost a frame, CPU time on one thread: detector {plain:.1f} ms without and {embedding:.1f} ms with "
        f"embeddings, tracker {more:+.2f} ms.",
    ]
    print("\n".join(lines))
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
