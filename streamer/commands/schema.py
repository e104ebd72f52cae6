"""`groundstream schema`: the JSON Schema of events and of the configuration, and checks against it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SHOWN = 20


def schema(
    config: Annotated[
        bool, typer.Option("--config", help="The configuration's schema instead of the events'.")
    ] = False,
    api: Annotated[bool, typer.Option("--api", help="The OpenAPI document of the HTTP API instead.")] = False,
    asyncapi: Annotated[
        bool, typer.Option("--asyncapi", help="The AsyncAPI document of topics and payloads instead.")
    ] = False,
    validate: Annotated[
        Path | None, typer.Option("--validate", metavar="FILE", help="Check a file of events, one JSON object a line.")
    ] = None,
) -> None:
    """Print the JSON Schema (Draft 2020-12) of events, or check a file of events against it."""
    if validate is not None:
        _validate_file(validate)
        return
    import json

    if api:
        from streamer.web.app import api_schema

        typer.echo(json.dumps(api_schema(), indent=2))
        return
    if asyncapi:
        from groundstream import __version__
        from sinks.asyncapi import asyncapi_document

        typer.echo(json.dumps(asyncapi_document(__version__), indent=2))
        return
    from sinks.event import json_schema
    from streamer.config import config_schema

    typer.echo(json.dumps(config_schema() if config else json_schema(), indent=2))


def _validate_file(path: Path) -> None:
    from pydantic import ValidationError

    from sinks.event import Event
    from streamer.errors import SourceError

    try:
        lines = path.open("rb")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    good = wrong = 0
    with lines:
        for number, line in enumerate(lines, start=1):
            try:
                Event.from_json(line)
                good += 1
            except ValidationError as error:
                wrong += 1
                if wrong > _SHOWN:
                    continue
                mistake = error.errors()[0]
                place = ".".join(str(part) for part in mistake["loc"]) or "the line"
                typer.echo(f"{path}:{number}: {place}: {mistake['msg']}", err=True)
    if wrong > _SHOWN:
        typer.echo(f"{path}: and {wrong - _SHOWN} more", err=True)
    if not good + wrong:
        raise SourceError(f"{path} holds no events: give a file with one event on each line")
    typer.echo(f"{good} events are valid, {wrong} are not")
    if wrong:
        raise typer.Exit(1)
