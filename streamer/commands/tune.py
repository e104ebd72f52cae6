"""`groundstream tune`: fit a GLIP to a domain from labelled pictures, or from better words."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping


class TuneMode(StrEnum):
    FULL = "full"
    HEAD = "head"
    LINEAR = "linear"
    PROMPT = "prompt"


def tune(
    truth: Annotated[Path, typer.Argument(help="Labelled pictures to learn from, in COCO's format.")],
    out: Annotated[Path, typer.Option(help="prompt: a file for --tuned; other modes: a folder for --weights.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; TRUTH's or images there, when absent.")
    ] = None,
    val: Annotated[Path | None, typer.Option(help="Labelled pictures to stop by; TRUTH itself when absent.")] = None,
    val_images: Annotated[Path | None, typer.Option(help="Their folder.")] = None,
    mode: Annotated[TuneMode, typer.Option(help="What learns: everything, the head, its last layer, or the words.")] = (
        TuneMode.PROMPT
    ),
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples of each category; all when absent. 0: only --describe.")
    ] = None,
    describe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WORDS", help="Words to put behind a category's name: 'ray=, flat and round'."),
    ] = None,
    model: Annotated[str, typer.Option(help="glip-tiny, glip-mini, ...")] = "glip-tiny",
    weights: Annotated[
        Path | None, typer.Option(help="A checkpoint or model folder instead of the cached one.")
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(min=32, help="Pixels at which the result shall see pictures: a smaller one is a faster student."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most; it stops when the AP stands still.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in a step.")] = 4,
    rate: Annotated[float | None, typer.Option(help="Learning rate; the paper's for the mode when absent.")] = None,
    seed: Annotated[int, typer.Option(help="Which examples, in which order.")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print what came of it as JSON.")] = False,
) -> None:
    """Fit a GLIP to pictures of your own: everything of it, its head, or only the words (prompt tuning)."""
    import dataclasses
    import json

    from rich.console import Console

    from detectors import evaluation
    from detectors.device import choose_device
    from detectors.glip.model_files import find, write_folder
    from detectors.glip.training import fitting
    from streamer.errors import ConfigError

    makes_words = shots == 0 or mode is TuneMode.PROMPT
    if makes_words and short_side is not None:
        raise ConfigError(
            "--short-side belongs to a model folder, and tuned words are none: give it with --mode full, head or linear"
        )
    data = evaluation.read_truth(truth)
    other = data if val is None else evaluation.read_truth(val)
    source = find(model, weights)
    network, tokenizer = source.load()
    network.to(choose_device(device))
    names = [category["name"] for category in data["categories"]]
    tokens = fitting.caption_of(names, tokenizer, network.config.text.max_length, _descriptions(describe or []))
    size = network.config.image.resized(short_side)
    chosen = [image["id"] for image in data["images"]] if shots is None else fitting.few_shots(data, shots, seed)
    learning = fitting.TrainingExamples(
        data, images or fitting.folder_of(truth, data), chosen, tokens, size, batch, seed
    )
    everything = [image["id"] for image in other["images"]]
    checking = fitting.TrainingExamples(
        other,
        val_images or (images if val is None else None) or fitting.folder_of(val or truth, other),
        everything,
        tokens,
        size,
        1,
        seed,
    )
    console = Console(stderr=True, quiet=as_json)

    def told(epoch: int, loss: float, ap: float) -> None:
        console.print(f"epoch {epoch}: loss {loss:.3f}, AP {ap:.3f}" if epoch else f"before: AP {ap:.3f}")

    if shots == 0:
        ap = fitting.scored(network, checking).ap
        told(0, 0.0, ap)
    else:
        course = fitting.FittingCourse(mode.value, shots, seed, epochs, batch, rate)
        ap = fitting.fit(network, learning, checking, course, told)
    if makes_words:
        fitting.tuned_prompt(network, names, tokens).save(out)
    else:
        write_folder(out, dataclasses.replace(network.config, image=size), network.state_dict(), source.vocabulary)
    if as_json:
        typer.echo(json.dumps({"mode": mode.value, "pictures": len(chosen), "ap": ap, "out": str(out)}))
    else:
        Console(soft_wrap=True).print(f"AP {ap:.3f} with {len(chosen)} pictures: {out}")


def _descriptions(given: list[str]) -> Mapping[str, str]:
    found = {}
    for one in given:
        name, equals, words = one.partition("=")
        if not equals:
            from streamer.errors import ConfigError

            raise ConfigError(f"--describe takes NAME=WORDS, such as 'stingray=, flat and round', not {one!r}")
        found[name] = words
    return found
