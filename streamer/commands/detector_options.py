"""Options of every command that uses a detector, as types for typer's signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DetectorName = Annotated[
    str | None,
    typer.Option(
        "--detector",
        help="coco-nano (80 everyday things), glip-tiny (any words), glip-mini (the synthetic street only), motion, "
        "grounding-dino-tiny, scripted:FILE.json, ...; by default motion for 'anything that moves', else glip-tiny.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Use this checkpoint or model folder instead of the cached weights.")
]
Tuned = Annotated[Path | None, typer.Option(help="Use prompt features made by `groundstream tune --mode prompt`.")]
Device = Annotated[str | None, typer.Option(help="Compute on cpu, cuda or cuda:1; the first GPU by default.")]
Threshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="Least score of a detection; the detector's own by default.")
]
Masks = Annotated[
    str | None, typer.Option(metavar="SAM", help="Add masks to boxes by a SAM model, such as facebook/sam-vit-base.")
]
DetectorOptions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Set an option of the detector, such as short_side=544 or dtype=float32; repeatable. "
        "`groundstream models options NAME` lists them.",
    ),
]
