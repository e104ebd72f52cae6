"""Train glip-mini from nothing on the synthetic street: `python -m benchmarks.glip_mini.train --minutes 110`.

Checkpoints go to `--work`; a run that was stopped goes on from there. `--write FOLDER` makes a model folder of the
averaged weights when the run is over: with the threshold, a model card and a sheet of pictures.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich.progress
import typer
from rich.console import Console

if TYPE_CHECKING:
    from benchmarks.glip_mini.lessons import Lessons
    from detectors.glip.modeling.model import GlipModel
    from detectors.glip.training.trainer import GlipTrainer, TrainingProgress

log = logging.getLogger(__name__)

SHORT, THRESHOLD = 24, 0.5  # pictures and threshold of the examinations on the way


def train_mini(
    minutes: Annotated[float | None, typer.Option(help="Train as long as this; the rate falls in proportion.")] = None,
    steps: Annotated[int | None, typer.Option(help="Or as many batches as this: the same result every time.")] = None,
    work: Annotated[Path, typer.Option(help="Where checkpoint.pt and log.jsonl go.")] = Path("runs/mini"),
    write: Annotated[Path | None, typer.Option(help="Write the model folder here when done.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of the streets.")] = 0,
    batch: Annotated[int, typer.Option(min=4, help="Pieces of 320 x 192 in a batch.")] = 8,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that paint.")] = 1,
    every: Annotated[int, typer.Option(min=1, help="Batches between two checkpoints.")] = 100,
    examine: Annotated[int, typer.Option(min=0, help="Batches between two examinations; 0: none.")] = 2000,
    pictures: Annotated[int, typer.Option(min=1, help="Streets of the last examination.")] = 200,
) -> None:
    """Train glip-mini on the synthetic street, or go on with it."""
    from benchmarks.glip_mini.card import Run, finish
    from detectors.device import choose_device
    from detectors.glip.model_files import PACKAGED, VOCABULARY, write_folder
    from detectors.glip.training.trainer import GlipTrainer, TrainingRecipe, numbered

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if steps is None and minutes is None:
        minutes = 110.0
    recipe = TrainingRecipe(
        rate=rate,
        text_rate=rate / 2,
        matrix_rate=rate * 10,
        weight_decay=0.02,
        decay="cosine",
        average=0.998,
        steps=steps,
        minutes=minutes,
        drop_block=False,
    )
    model, lessons = fresh(seed, batch)
    trainer = GlipTrainer(model, recipe, choose_device(device), seed)
    checkpoint = work / "checkpoint.pt"
    if checkpoint.is_file():
        trainer.resume(checkpoint)
        log.info("going on after step %d, %.1f minutes", trainer.step, trainer.seconds / 60)
    work.mkdir(parents=True, exist_ok=True)
    rank, world = together()
    source = numbered(lessons, trainer.step * world + rank, workers, world)
    if rank > 0:
        trainer.run(source)
        return
    with Diary(trainer, work, every, examine) as diary:
        trainer.run(source, diary)
    trainer.save(checkpoint)
    if write is not None:
        write_folder(write, model.config, trainer.average.tensors, PACKAGED / VOCABULARY)
        length = f"--minutes {minutes:g}" if steps is None else f"--steps {steps}"
        started = f"torchrun --nproc-per-node {world} -m" if world > 1 else "python -m"
        reported = f"{started} benchmarks.glip_mini.train {length} --batch {batch} --rate {rate:g} --seed {seed}"
        count = sum(tensor.numel() for tensor in trainer.average.tensors.values())
        run = Run(trainer.step, trainer.seconds / 60, trainer.step * batch * world, count, reported)
        log.info("%s", json.dumps(finish(write, run, pictures).as_plain()))


def together() -> tuple[int, int]:
    """This process's number and how many train together: more than one when `torchrun` has started them."""
    import torch.distributed

    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    torch.distributed.init_process_group("gloo")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def fresh(seed: int, batch: int) -> tuple[GlipModel, Lessons]:
    """A glip-mini of random weights and its lessons."""
    import torch

    from benchmarks.glip_mini.lessons import Lessons
    from detectors.glip.caption import BertTokenizer
    from detectors.glip.config import GlipConfig
    from detectors.glip.model_files import CONFIG, PACKAGED, VOCABULARY
    from detectors.glip.modeling.model import GlipModel
    from detectors.glip.training.trainer import start

    torch.manual_seed(seed)
    model = start(GlipModel(GlipConfig.read(PACKAGED / CONFIG)))
    return model, Lessons(BertTokenizer(PACKAGED / VOCABULARY), seed=seed + 1, batch=batch)


class Diary:
    """Shows how it goes, by a bar in a terminal and else by lines, and keeps checkpoints."""

    def __init__(self, trainer: GlipTrainer, work: Path, every: int, examine: int) -> None:
        self._trainer, self._work, self._every, self._examine = trainer, work, every, examine
        self._recent: list[TrainingProgress] = []
        self._bar = rich.progress.Progress(
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[losses]} {task.fields[marks]}"),
            console=Console(stderr=True),
        )
        self._bar.disable = not self._bar.console.is_terminal
        self._task = self._bar.add_task("", total=1.0, losses="", marks="")

    def __enter__(self) -> Diary:
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def __call__(self, progress: TrainingProgress) -> None:
        self._recent.append(progress)
        if progress.step % 20 == 0:
            self._note()
        if progress.step % self._every == 0:
            self._trainer.save(self._work / "checkpoint.pt")
        if self._examine and progress.step % self._examine == 0:
            self._ask(progress.step)

    def _note(self) -> None:
        recent, last = self._recent, self._recent[-1]
        mean = {
            name: round(sum(getattr(one, name) for one in recent) / len(recent), 4)
            for name in ("total", "token", "box", "centerness", "gradient")
        }
        row = {"step": last.step, "minutes": round(last.seconds / 60, 2), "done": round(last.done, 4), **mean}
        self._write(row)
        losses = f"token {mean['token']:.2f} box {mean['box']:.2f} centerness {mean['centerness']:.2f}"
        self._bar.update(self._task, completed=last.done, losses=losses)
        self._recent = []

    def _ask(self, step: int) -> None:
        """A short examination of the averaged weights."""
        from benchmarks.glip_mini.examination import answer_of, examine
        from detectors import create_detector
        from detectors.glip.model_files import PACKAGED, VOCABULARY, write_folder

        folder = self._work / "model"
        write_folder(folder, self._trainer.model.config, self._trainer.average.tensors, PACKAGED / VOCABULARY)
        report = examine(answer_of(create_detector("glip-mini", weights=folder)), SHORT, THRESHOLD)
        self._write({"step": step, "phrases_ap50": round(report.phrases, 4), "kinds_ap50": round(report.kinds, 4)})
        self._bar.update(self._task, marks=f"AP50 phrases {report.phrases:.2f} kinds {report.kinds:.2f}")

    def _write(self, row: dict[str, float]) -> None:
        with (self._work / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._bar.disable:
            log.info("%s", json.dumps(row))


if __name__ == "__main__":
    typer.run(train_mini)
