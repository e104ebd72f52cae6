"""The MCP server of `groundstream mcp`, on standard input and output or over HTTP."""

from __future__ import annotations

import os

from sinks.http_reader import TOKEN_VARIABLE
from streamer.errors import ConfigError
from streamer.tasks.monitor import parse_bind


def serve_tools(url: str, http: str | None) -> None:
    """Serves the tools of the monitor at `url` until the input ends or an interrupt comes. Raises `ConfigError`,
    `ApiError`."""
    try:
        from streamer.web.mcp_server import serve_http, serve_stdio
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mcp":
            raise
        raise ConfigError("the MCP server needs the mcp package: pip install 'groundstream[mcp]'") from error
    if http is None:
        serve_stdio(url, os.environ.get(TOKEN_VARIABLE) or None)
        return
    host, port = parse_bind(http, "--http")
    serve_http(url, host, port)
