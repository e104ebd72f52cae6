"""`groundstream evaluate`: results against the truth, by the measures of the field."""

from __future__ import annotations

import typer

from streamer.commands.evaluate_segmentation import evaluate_segmentation
from streamer.commands.evaluate_tracking import tracking

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command("tracking")(tracking)
app.command("segmentation")(evaluate_segmentation)
