"""MCP server over a running monitor: a language model lists streams, reads events, counts, and tries and sets queries.

It speaks the Model Context Protocol (through the official `mcp` package) and calls the monitor's HTTP API, whose roles
hold: on standard input and output with one access token, over HTTP with the token that each request brings.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from urllib.parse import quote

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from streamer import __version__
from streamer.web.client import ApiError, MonitorClient

_INSTRUCTIONS = (
    "groundstream watches cameras and recordings for things named in plain words. List the streams first. Events carry "
    "the words that matched, the stream, the time and the id of the track as subject; describe_track shows a track "
    "with its picture. Try words with preview_query before set_query switches them on."
)

_Stream = Annotated[str, Field(min_length=1, max_length=200, description="Name of a stream, as list_streams gives it.")]
_Words = Annotated[str, Field(min_length=1, max_length=500, description="What to detect, in plain words.")]
_Time = Annotated[str | None, Field(max_length=40, description="RFC 3339, such as 2026-05-04T12:00:00Z.")]
_BUCKET_S = Literal[60, 300, 900, 3600, 86_400]
_HIDDEN = ("producer", "run")


class MonitorTools:
    """The tools over a monitor at `url`. `token` is for callers that bring none; without it each must."""

    def __init__(self, url: str, token: str | None) -> None:
        """Raises `ApiError` for an address that cannot be used."""
        self._url = url
        self._token = token
        MonitorClient(url, token=token or "-")

    async def list_streams(self, context: Context[Any, Any]) -> dict[str, Any]:
        """Lists the cameras and recordings with their state, sizes, rates and queries."""
        streams = []
        for stream in (await self._call(context, "GET", "/streams"))["items"]:
            queries = await self._call(context, "GET", f"/streams/{quote(stream['name'], safe='')}/queries")
            streams.append({**stream, "queries": queries})
        return {"streams": streams}

    async def find_events(
        self,
        context: Context[Any, Any],
        words: Annotated[str, Field(max_length=500, description="Words that the event contains; empty: any.")] = "",
        stream: Annotated[str | None, Field(max_length=200, description="Only this stream.")] = None,
        kind: Annotated[
            str | None, Field(max_length=200, description="match.begin, zone.*, line.cross, track.begin, ...")
        ] = None,
        since: _Time = None,
        until: _Time = None,
        limit: Annotated[int, Field(ge=1, le=200)] = 20,
        after: Annotated[str | None, Field(max_length=100, description="`next` of the page before.")] = None,
    ) -> dict[str, Any]:
        """Finds events by words and time, the newest first, a page at a time."""
        filters = {"q": words, "stream": stream, "type": kind, "since": since, "until": until}
        filters |= {"limit": str(limit), "after": after}
        page = await self._call(context, "GET", "/events", filters)
        return {"events": [_shorten(event) for event in page["items"]], "next": page["next"]}

    async def count_events(
        self,
        context: Context[Any, Any],
        words: Annotated[str, Field(max_length=500, description="Words that the events contain; empty: any.")] = "",
        stream: Annotated[str | None, Field(max_length=200, description="Only this stream.")] = None,
        kind: Annotated[str | None, Field(max_length=200, description="match.begin, zone.enter, line.cross.")] = None,
        place: Annotated[str | None, Field(max_length=200, description="Id of a zone or line.")] = None,
        since: _Time = None,
        until: _Time = None,
        bucket_s: Annotated[_BUCKET_S, Field(description="Seconds of a bucket.")] = 3600,
    ) -> dict[str, Any]:
        """Counts events and different tracks for each bucket of time, kind and direction."""
        filters = {"q": words, "stream": stream, "type": kind, "of": place, "since": since, "until": until}
        counted: dict[str, Any] = await self._call(context, "GET", "/counts", {**filters, "bucket": str(bucket_s)})
        return counted

    async def describe_track(
        self,
        context: Context[Any, Any],
        track: Annotated[str, Field(min_length=1, max_length=64, description="The subject of an event.")],
    ) -> list[Any]:
        """Describes one object: when and where it was seen, what it matched, its events, and its best picture."""
        found = await self._call(context, "GET", f"/tracks/{quote(track, safe='')}")
        found["events"] = [_shorten(event) for event in found["events"]]
        media = found.pop("media")
        pictures = [one for kind in ("crop", "snapshot") for one in media if one["kind"] == kind]
        answer: list[Any] = [json.dumps(found, ensure_ascii=False)]
        if pictures:
            try:
                data = await self._call(context, "GET", f"/media/{pictures[0]['sha256']}")
            except ToolError as error:
                return [*answer, f"The picture cannot be shown: {error}"]
            answer.append(Image(data=data, format="jpeg"))
        return answer

    async def preview_query(
        self,
        context: Context[Any, Any],
        stream: _Stream,
        text: _Words,
        seconds: Annotated[float, Field(ge=1, le=600, description="How far back to try.")] = 60,
        unless: Annotated[list[str], Field(max_length=20, description="Words that veto a match.")] = [],  # noqa: B006
    ) -> list[Any]:
        """Tries words on the last minute of a live stream without switching them on (operators only): how many
        detections there are from each threshold on, the suggested threshold, and the picture of the best one."""
        path = f"/streams/{quote(stream, safe='')}/queries/preview"
        ticket = await self._call(context, "POST", path, body={"text": text, "unless": unless, "seconds": seconds})
        raw = await self._call(context, "GET", f"{path}/{ticket['id']}")
        frames, end = _read_results(raw)
        answer: list[Any] = [json.dumps({"frames": len(frames), **end}, ensure_ascii=False)]
        best = max(frames, key=_best_score, default=None)
        if best is not None and _best_score(best) > 0:
            where = f"/streams/{quote(stream, safe='')}/memory/{best['index']}.jpg"
            answer.append(Image(data=await self._call(context, "GET", where, {"width": "640"}), format="jpeg"))
        return answer

    async def set_query(
        self,
        context: Context[Any, Any],
        stream: _Stream,
        query: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\x00-\x1f]+$", description="Its id.")],
        text: _Words,
        threshold: Annotated[
            float | None, Field(ge=0, le=1, description="Least score; the detector's if absent.")
        ] = None,
        unless: Annotated[list[str], Field(max_length=20, description="Words that veto a match.")] = [],  # noqa: B006
        paused: bool = False,
    ) -> dict[str, Any]:
        """Adds or replaces a query of a stream while it runs (operators only)."""
        body = {"text": text, "threshold": threshold, "unless": unless, "paused": paused}
        path = f"/streams/{quote(stream, safe='')}/queries/{quote(query, safe='')}"
        await self._call(context, "PUT", path, body=body)
        return {"queries": await self._call(context, "GET", f"/streams/{quote(stream, safe='')}/queries")}

    async def remove_query(
        self,
        context: Context[Any, Any],
        stream: _Stream,
        query: Annotated[str, Field(min_length=1, max_length=200, description="Its id.")],
    ) -> dict[str, Any]:
        """Removes a query of a stream while it runs (operators only)."""
        await self._call(context, "DELETE", f"/streams/{quote(stream, safe='')}/queries/{quote(query, safe='')}")
        return {"queries": await self._call(context, "GET", f"/streams/{quote(stream, safe='')}/queries")}

    async def _call(
        self,
        context: Context[Any, Any],
        method: str,
        path: str,
        parameters: dict[str, str | None] | None = None,
        body: Any = None,
    ) -> Any:
        given = {name: value for name, value in (parameters or {}).items() if value}
        client = MonitorClient(self._url, token=self._find_token(context))
        try:
            return await client.request(method, path, parameters=given, body=body)
        except ApiError as error:
            raise ToolError(str(error)) from None

    def _find_token(self, context: Context[Any, Any]) -> str:
        """The token of the request where it came over HTTP: a server's own would give every caller its rights."""
        headers = context.headers
        if headers is None:
            if self._token is None:
                raise ToolError("no access token is set: set GROUNDSTREAM_TOKEN for the MCP server")
            return self._token
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise ToolError("the request carries no access token: send the header Authorization: Bearer TOKEN")
        return token.strip()


def create_server(url: str, token: str | None = None) -> MCPServer[Any]:
    """Returns the MCP server of the monitor at `url`; nothing is sent yet. Raises `ApiError`."""
    tools = MonitorTools(url, token)
    server: MCPServer[Any] = MCPServer(
        "groundstream", instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING"
    )
    for tool in (tools.list_streams, tools.find_events, tools.count_events, tools.set_query, tools.remove_query):
        server.add_tool(tool)
    for with_picture in (tools.describe_track, tools.preview_query):
        server.add_tool(with_picture, structured_output=False)
    return server


def serve_http(url: str, host: str, port: int) -> None:
    """Serves the tools at `http://HOST:PORT/mcp` until it is interrupted; every request brings its own token."""
    create_server(url).run("streamable-http", host=host, port=port, stateless_http=True)


def serve_stdio(url: str, token: str | None) -> None:
    """Serves the tools on standard input and output until the input ends. Raises `ApiError`."""
    create_server(url, token).run("stdio")


def _shorten(event: dict[str, Any]) -> dict[str, Any]:
    """What a reader needs of an event."""
    data = {key: value for key, value in event["data"].items() if key not in _HIDDEN}
    return {"id": event["id"], "type": event["type"], "time": event["time"], "subject": event["subject"], "data": data}


def _read_results(raw: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The frames and the summary of a trial, from its server-sent events. Raises `ToolError` where it failed."""
    frames: list[dict[str, Any]] = []
    end: dict[str, Any] = {}
    for block in raw.decode().split("\n\n"):
        kind, _, data = block.partition("\ndata: ")
        if kind == "event: error":
            raise ToolError(f"the trial ended early: {json.loads(data)['detail']}")
        if kind == "event: frame":
            frames.append(json.loads(data))
        elif kind == "event: end":
            end = json.loads(data)
    return frames, end


def _best_score(frame: dict[str, Any]) -> float:
    return max((float(found["score"]) for found in frame["detections"]), default=0.0)
