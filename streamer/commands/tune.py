"""`groundstream tune`: fit a GLIP to a domain from labelled pictures, or from better words."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
    from streamer.tasks import tune as work

    task = work.TuneTask(
        truth,
        out,
        images=images,
        val=val,
        val_images=val_images,
        mode=mode.value,
        shots=shots,
        describe=describe or (),
        model=model,
        weights=weights,
        short_side=short_side,
        epochs=epochs,
        batch=batch,
        rate=rate,
        seed=seed,
        device=device,
    )
    raise typer.Exit(work.run_tune(task, as_json=as_json))
