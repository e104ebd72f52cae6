"""How few labelled pictures a GLIP needs for a domain it has never seen: glip-mini on the couriers' street.

    python benchmarks/mini_tuning.py [--weights FOLDER] [--epochs 12] [--seeds 1] [--workers 2]

The domain: night, rain, and delivery robots, a word and a thing that training never showed. The curve of AP over 0, 1,
3, 5, 10 and all examples of each category for full tuning, tuning of the head, prompt tuning and words put by hand
(GLIP, arXiv:2112.03857, figure 6), with the paper's rates. Pictures are painted for three sets: to learn from, to stop
by, to be marked on. Writes results/mini_tuning.md and results/mini_tuning.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
SETS = {"learn": (8_100_001, 60), "stop": (8_200_001, 24), "mark": (8_300_001, 100)}  # seed, pictures
NAMES = ("person", "car", "bus", "bicycle", "dog", "delivery robot")
BY_HAND = {"delivery robot": ", small white car"}
SHOTS = (1, 3, 5, 10, None)
MODES = {"full": "o-", "head": "^-", "prompt": "s-"}  # and how they are drawn


class Trial(NamedTuple):
    """One way to fit: `mode` is one of `MODES`, none or by hand."""

    mode: str
    shots: int | None
    seed: int


class Outcome(NamedTuple):
    """`aps`: of everything, then of each of `NAMES`."""

    trial: Trial
    pictures: int
    aps: tuple[float, ...]


Means = dict[tuple[str, int | None], tuple[float, ...]]  # pictures and APs by mode and examples


def paint(folder: Path) -> None:
    """The three sets, as COCO data sets of their own."""
    import cv2

    from benchmarks.glip_mini.examination import is_clear, truth_row
    from benchmarks.glip_mini.lessons import is_evident
    from streamer.sources.street import SCENARIOS
    from streamer.street import sample_picture
    from streamer.street.export import CATEGORIES

    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    for name, (seed, count) in SETS.items():
        (folder / name).mkdir()
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for index in range(count):
            picture = sample_picture(seed, index, scenario=SCENARIOS["courier"])
            images.append({"id": index + 1, "file_name": f"{index}.png", "width": 640, "height": 384})
            cv2.imwrite(str(folder / name / f"{index}.png"), picture.image)
            # training labels include small things, as the street's lessons do
            is_known = is_evident if name == "learn" else is_clear
            boxes += [truth_row(one, index + 1, CATEGORIES[one.thing.kind], is_known) for one in picture.truth.seen]
        data = {"images": images, "annotations": boxes, "categories": categories}
        (folder / name / "truth.json").write_text(json.dumps(data))


def attempt(trial: Trial, folder: Path, weights: Path | None, epochs: int) -> Outcome:
    """Fit a fresh glip-mini and mark it on the third set."""
    import torch

    from detectors import coco_data
    from detectors.glip.model_files import find_files
    from detectors.glip.training import fitting

    torch.set_num_threads(1)
    model, tokenizer = find_files("glip-mini", weights).load()
    model.eval()
    words = BY_HAND if trial.mode == "by hand" else None
    tokens = fitting.caption_of(NAMES, tokenizer, model.config.text.max_length, words)
    sets = {name: coco_data.read_data_set(folder / name / "truth.json") for name in SETS}

    def examples(name: str, images: list[int], batch: int) -> fitting.TrainingExamples:
        return fitting.TrainingExamples(
            sets[name], folder / name, images, tokens, model.config.image, batch, trial.seed
        )

    everything = {name: [image["id"] for image in data["images"]] for name, data in sets.items()}
    chosen: list[int] = []
    if trial.mode in MODES:
        full = trial.shots is None
        chosen = everything["learn"] if full else fitting.few_shots(sets["learn"], trial.shots, trial.seed)
        course = fitting.FittingCourse(trial.mode, trial.shots, trial.seed, epochs)
        fitting.fit(model, examples("learn", chosen, 4), examples("stop", everything["stop"], 1), course)
    score = fitting.score_model(model, examples("mark", everything["mark"], 1))
    aps = score.ap, *(score.categories[name] for name in NAMES)
    print(f"{trial}: AP {' '.join(f'{ap:.3f}' for ap in aps)}", flush=True)
    return Outcome(trial, len(chosen), aps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    trials = [Trial("none", 0, 0), Trial("by hand", 0, 0)]
    for seed in range(10, 10 + options.seeds):
        trials += [Trial(mode, shots, seed) for shots in reversed(SHOTS) for mode in MODES]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paint(folder)
        with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
            count = len(trials)
            asked = (trials, [folder] * count, [options.weights] * count, [options.epochs] * count)
            outcomes = list(pool.map(attempt, *asked))
    means = averaged(outcomes)
    (RESULTS / "mini_tuning.md").write_text("\n".join(report(means, options)) + "\n")
    print((RESULTS / "mini_tuning.md").read_text())
    draw(means, RESULTS / "mini_tuning.png")


def averaged(outcomes: list[Outcome]) -> Means:
    """Over the seeds."""
    groups: dict[tuple[str, int | None], list[tuple[float, ...]]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.trial.mode, outcome.trial.shots].append((outcome.pictures, *outcome.aps))
    return {key: tuple(map(statistics.fmean, zip(*some, strict=True))) for key, some in groups.items()}


def report(means: Means, options: argparse.Namespace) -> list[str]:
    rows = [
        f"| {mode} | {'all' if shots is None else shots} | {pictures:.0f} | {' | '.join(f'{ap:.3f}' for ap in aps)} |"
        for (mode, shots), (pictures, *aps) in sorted(
            means.items(), key=lambda item: (item[0][0], item[0][1] is None, item[0][1] or 0)
        )
    ]
    return [
        "# Fitting glip-mini to the couriers' street",
        "",
        f"`benchmarks/mini_tuning.py --epochs {options.epochs} --seeds {options.seeds}`: night, rain, delivery robots; "
        f"{SETS['learn'][1]} pictures to learn from, {SETS['stop'][1]} to stop by, {SETS['mark'][1]} to be marked on. "
        f"AP is COCO's, 0.50 to 0.95. By hand: '{'delivery robot' + BY_HAND['delivery robot']}'.",
        "",
        f"| mode | examples of each | pictures | AP | {' | '.join(NAMES)} |",
        f"| --- | --- | --- | --- |{' --- |' * len(NAMES)}",
        *rows,
        "",
        "![curve](mini_tuning.png)",
    ]


def draw(means: Means, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = {0: 0, **{shots: place for place, shots in enumerate(SHOTS, 1)}}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), sharex=True)
    for axes, part, title in ((left, 1, "all six categories"), (right, -1, "delivery robots alone")):
        start = means["none", 0][part]
        for mode, style in MODES.items():
            values = [start, *(means[mode, shots][part] for shots in SHOTS)]
            axes.plot(range(len(values)), values, style, label=f"{mode} tuning")
        axes.axhline(means["by hand", 0][part], linestyle=":", color="grey", label="words by hand, no examples")
        axes.set(title=title, xlabel="examples of each category", ylabel="AP", ylim=(0, None))
        axes.set_xticks(list(places.values()), ["all" if key is None else str(key) for key in places])
        axes.grid(alpha=0.3)
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
