"""`groundstream models`: which models there are, and how their weights come here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.groups import CommandGroup

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="A name from `groundstream models list`.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Every released model, and whether it is on this machine."""
    from streamer.tasks import models as model_store

    model_store.show_list(as_json=as_json)


@app.command()
def pull(names: Annotated[list[str], typer.Argument(metavar="NAME", help="Models to fetch.")]) -> None:
    """Fetch models from the Hugging Face hub, once; a broken download is taken up again."""
    from streamer.tasks import models as model_store

    model_store.pull_models(names)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of GLIP as it was released (.pth).")],
    name: Annotated[
        str | None, typer.Option("--as", help="Which GLIP it is, such as glip-tiny; by the file's name when absent.")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="bert-base-uncased's vocab.txt; looked for beside the file when absent.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The model folder to write; the cache when absent.")] = None,
) -> None:
    """Turn a checkpoint of GLIP into a model folder with safetensors."""
    from streamer.tasks import models as model_store

    model_store.convert_checkpoint(checkpoint, name, vocabulary, out)


@app.command()
def options(
    name: Annotated[str, typer.Argument(metavar="DETECTOR", help="A detector, such as glip-tiny or motion.")],
    as_json: AsJson = False,
) -> None:
    """List the options of a detector, for --detector-option and the detector section of a configuration."""
    from streamer.tasks import models as model_store

    model_store.show_options(name, as_json=as_json)


@app.command()
def info(name: Name, as_json: AsJson = False) -> None:
    """What is known of a model: where it comes from, how large it is, where it lies."""
    from streamer.tasks import models as model_store

    model_store.show_model(name, as_json=as_json)
