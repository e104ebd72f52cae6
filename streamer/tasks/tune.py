"""The `tune` command: fits a GLIP to labelled pictures, or makes prompt features from better words."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors import coco_data, data_files
from detectors.device import choose_device
from detectors.glip.model_files import ModelFiles, find_files, write_folder
from detectors.glip.training import fitting
from streamer.errors import ConfigError
from streamer.tasks.closing import INTERRUPTED, SignalWatch
from streamer.tasks.console import make_folder, user_console


@dataclass(frozen=True, slots=True)
class TuneTask:
    """Options of `groundstream tune`."""

    truth: Path
    out: Path
    images: Path | None = None
    val: Path | None = None
    val_images: Path | None = None
    mode: str = "prompt"
    shots: int | None = None
    describe: Sequence[str] = ()
    model: str = "glip-tiny"
    weights: Path | None = None
    short_side: int | None = None
    epochs: int = 200
    batch: int = 4
    rate: float | None = None
    seed: int = 10
    device: str | None = None

    @property
    def makes_prompt(self) -> bool:
        """Whether the result is a file of prompt features, not a model folder."""
        return self.shots == 0 or self.mode == "prompt"


def run_tune(task: TuneTask, *, as_json: bool = False) -> int:
    """Runs the task, writes its result and prints the score; returns the exit code.

    Data, pictures and output are checked before the model is loaded. Ctrl-C ends training after the current step; the
    best epoch so far is written.
    """
    if task.makes_prompt and task.short_side is not None:
        raise ConfigError(
            "--short-side needs --mode full, head or linear: it belongs to a model folder, not to a prompt file"
        )
    console = user_console(stderr=True, quiet=as_json)
    data, other = _read_data(task)
    folders = _picture_folders(task, data, other)
    as_stored = coco_data.check_pictures(data, folders[0], task.truth)
    val_stored = as_stored if other is data else coco_data.check_pictures(other, folders[1], task.val or task.truth)
    source = find_files(task.model, task.weights)
    _check_output(task, source)
    if small := sum(not fitting.is_learned(row) for row in data["annotations"]):
        console.print(f"{task.truth}: {small} crowds and boxes no larger than a pixel are left out")

    network, tokenizer = source.load()
    network.to(choose_device(task.device))
    names = [category["name"] for category in data["categories"]]
    tokens = fitting.caption_of(names, tokenizer, network.config.text.max_length, _read_descriptions(task.describe))
    size = network.config.image.resized(task.short_side)
    chosen = [image["id"] for image in data["images"]]
    if task.shots is not None:
        chosen = fitting.few_shots(data, task.shots, task.seed)
    learning = fitting.TrainingExamples(
        data, folders[0], chosen, tokens, size, task.batch, task.seed, as_stored=as_stored
    )
    everything = [image["id"] for image in other["images"]]
    checking = fitting.TrainingExamples(other, folders[1], everything, tokens, size, 1, task.seed, as_stored=val_stored)

    def report_epoch(epoch: int, loss: float, ap: float) -> None:
        console.print(f"epoch {epoch}: loss {loss:.3f}, AP {ap:.3f}" if epoch else f"before: AP {ap:.3f}")

    result = fitting.FittingResult(0.0, 0, interrupted=False)
    if task.shots == 0:
        result = result._replace(ap=fitting.score_model(network, checking).ap)
        report_epoch(0, 0.0, result.ap)
    else:
        course = fitting.FittingCourse(task.mode, task.shots, task.seed, task.epochs, task.batch, task.rate)
        stop = threading.Event()
        with SignalWatch(stop.set):
            result = fitting.fit(network, learning, checking, course, report_epoch, stop.is_set)
        if result.interrupted:
            console.print(f"interrupted: the best epoch so far, {result.epoch}, is written")
        if result.epoch == 0:
            console.print(f"no epoch was better than the model as it came: {task.out} is that model")
    if task.makes_prompt:
        fitting.tuned_prompt(network, names, tokens).save(task.out)
    else:
        config = dataclasses.replace(network.config, image=size)
        write_folder(task.out, config, network.state_dict(), source.vocabulary)
    _print_result(task, result, len(chosen), as_json=as_json)
    return INTERRUPTED if result.interrupted else 0


def _print_result(task: TuneTask, result: fitting.FittingResult, pictures: int, *, as_json: bool) -> None:
    if as_json:
        facts = {"mode": task.mode, "pictures": pictures, "ap": result.ap, "epoch": result.epoch, "out": str(task.out)}
        print(json.dumps(facts))  # noqa: T201 - the output asked for
    else:
        user_console().print(f"AP {result.ap:.3f} with {pictures} pictures: {task.out}")


def _read_data(task: TuneTask) -> tuple[dict[str, Any], dict[str, Any]]:
    """The training and the validation data; the same object where there is no validation file."""
    data = coco_data.read_data_set(task.truth, for_training=True)
    other = data
    if task.val is not None:
        read = coco_data.read_data_set(task.val, for_training=True)
        other = coco_data.merge_categories(data, read, task.val)
    if not any(map(fitting.is_learned, other["annotations"])):
        raise data_files.DataSetError(
            f"{task.val or task.truth} has no box to choose an epoch by: add annotations, or leave out --val"
        )
    return data, other


def _picture_folders(task: TuneTask, data: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Path, Path]:
    own = task.images or fitting.folder_of(task.truth, data)
    if task.val is None:
        return own, task.val_images or own
    return own, task.val_images or fitting.folder_of(task.val, other)


def _check_output(task: TuneTask, source: ModelFiles) -> None:
    """Makes the folder of the result. Raises `ConfigError` where it would replace an input or cannot be written."""
    out = task.out
    inputs = [task.truth, source.weights, source.vocabulary, *([task.val] if task.val else [])]
    if out.resolve() in {file.resolve() for file in inputs} or out.resolve() == source.weights.parent.resolve():
        raise ConfigError(f"cannot write the result to {out}: it is an input of this command; choose another --out")
    if task.makes_prompt and out.is_dir():
        raise ConfigError(f"cannot write the result to {out}: it is a folder; --out names a file for prompt features")
    if not task.makes_prompt and out.exists() and not out.is_dir():
        raise ConfigError(
            f"cannot write the result to {out}: it is a file; --out names a folder for --mode {task.mode}"
        )
    folder = make_folder(out.parent if task.makes_prompt else out)
    probe = folder / f".{out.name}.probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}; choose another --out") from error


def _read_descriptions(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for one in given:
        name, equals, words = one.partition("=")
        if not equals:
            raise ConfigError(
                f"cannot parse --describe {one!r}: expected NAME=WORDS, such as 'stingray=, flat and round'"
            )
        found[name] = words
    return found
