"""`groundstream mcp`: the tools of a running monitor for language models."""

from __future__ import annotations

from typing import Annotated

import typer


def mcp(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of a running monitor --web.")] = (
        "http://127.0.0.1:8090"
    ),
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve over HTTP at /mcp instead of standard input and output; each request brings its own token.",
        ),
    ] = None,
) -> None:
    """Serve a monitor's streams, events, counts and queries to language models (Model Context Protocol).

    The access token comes from GROUNDSTREAM_TOKEN, over HTTP from each request's header Authorization; a viewer's
    token may read, an operator's may also try and set queries. Needs the extra groundstream[mcp].
    """
    from streamer.tasks.mcp import serve_tools

    serve_tools(url, http)
