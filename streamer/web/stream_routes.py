"""Routes of streams, their queries, zones, lines and counts, sinks and the configuration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import cv2
import numpy as np
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from sinks.address import redact
from sinks.registry import open_sink
from streamer.media.pictures import cut_around, encode_jpeg
from streamer.rules.places import Line, Zone
from streamer.web.access import Role
from streamer.web.control import check_match, entity_tag, redacted_config
from streamer.web.live_frames import JPEG_QUALITY, resize, round_width
from streamer.web.models import (
    PLAIN_ID,
    ConfigAnswer,
    CountBody,
    LineBody,
    MaskBody,
    PreviewBody,
    PreviewTicket,
    QueryBody,
    QueryList,
    QueryPatch,
    SinkBody,
    SinkList,
    StreamBody,
    StreamList,
    StreamPatch,
    StreamStatus,
    TryPlaceAnswer,
    TryPlaceBody,
    ZoneBody,
)
from streamer.web.parameters import parse_time
from streamer.web.problems import Problem
from streamer.web.security import secured
from streamer.web.state import WebState, web_state

router = APIRouter(prefix="/api/v1")

StreamName = Annotated[str, Path(min_length=1, max_length=200, description="Name of the stream.")]
QueryId = Annotated[str, Path(min_length=1, max_length=200, pattern=PLAIN_ID, description="Id of the query.")]
IfMatch = Annotated[str | None, Header(max_length=500, description="ETag of the value that was read, or `*`.")]
Width = Annotated[int, Query(ge=16, le=1920, description="Most pixels across.")]
NEAREST_MS = 2000
_BOX = r"^[01](\.\d+)?(,[01](\.\d+)?){3}$"
NO_STORE = {"Cache-Control": "no-store"}


@router.get("/streams", **secured(Role.VIEWER))
async def list_streams(request: Request) -> StreamList:
    """Lists streams with state, pace, dropped frames by reason, age and clock."""
    return StreamList(items=await web_state(request).directory.list_streams())


@router.post("/streams", status_code=201, **secured(Role.OPERATOR, 409))
async def add_stream(request: Request, response: Response, body: StreamBody) -> StreamStatus:
    """Adds a camera. One that does not answer is added too and shown as `waiting` with its cause."""
    value: dict[str, Any] = {"source": body.source, "name": body.name, "transport": body.transport}
    if body.queries is not None:
        value["queries"] = [_plain_query(query) for query in body.queries]
    if body.fps is not None:
        value["sample"] = {"fps": body.fps}
    if body.transport == "tcp":
        del value["transport"]
    status, etag = await web_state(request).controlled().add_stream(value)
    response.headers["ETag"] = etag
    return status


@router.get("/streams/{stream}", **secured(Role.VIEWER, 404))
async def read_stream(request: Request, response: Response, stream: StreamName) -> StreamStatus:
    """Returns the state of one stream; the ETag is that of its settings."""
    state = web_state(request)
    if state.control is None:
        return await state.find_stream(stream)
    status, response.headers["ETag"] = await state.control.read_stream(stream)
    return status


@router.patch("/streams/{stream}", **secured(Role.OPERATOR, 404, 412, 428))
async def change_stream(
    request: Request, response: Response, stream: StreamName, body: StreamPatch, if_match: IfMatch = None
) -> StreamStatus:
    """Changes the source, pace or transport of a camera, or pauses it."""
    given = body.model_dump(exclude_unset=True)
    changes = {key: given[key] for key in ("source", "transport", "paused") if given.get(key) is not None}
    if "fps" in given:
        changes["sample"] = {"fps": given["fps"]} if given["fps"] is not None else {}
    control = web_state(request).controlled()
    status, response.headers["ETag"] = await control.change_stream(stream, changes, if_match)
    return status


@router.delete("/streams/{stream}", status_code=204, **secured(Role.OPERATOR, 404, 409, 412, 428))
async def remove_stream(request: Request, stream: StreamName, if_match: IfMatch = None) -> Response:
    """Removes a camera; its open tracks end."""
    await web_state(request).controlled().remove_stream(stream, if_match)
    return Response(status_code=204)


@router.get("/streams/{stream}/snapshot.jpg", response_class=Response, **(secured(Role.VIEWER, 404)))
async def read_snapshot(request: Request, stream: StreamName, width: Width = 1280, boxes: bool = False) -> Response:
    """Returns the newest frame as JPEG."""
    state = web_state(request)
    live = state.frames.newest(stream)
    if live is None:
        await state.find_stream(stream)
        raise Problem(404, f"there is no picture of {stream!r} yet: try again when it is live")
    etag = entity_tag([stream, live.index, round_width(width), boxes])
    headers = {**NO_STORE, "ETag": etag, "X-Frame-Index": str(live.index)}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(await state.frames.encode(stream, live, width, boxes=boxes), 200, headers, "image/jpeg")


@router.get("/streams/{stream}/live.mjpeg", response_class=StreamingResponse, **secured(Role.VIEWER, 404))
async def read_mjpeg(
    request: Request,
    stream: StreamName,
    width: Width = 640,
    boxes: bool = True,
    fps: Annotated[float, Query(ge=0.1, le=30)] = 10.0,
) -> Response:
    """Streams JPEG pictures for other programs; the page uses the live socket."""
    state = web_state(request)
    await state.find_stream(stream)
    return StreamingResponse(
        _mjpeg_parts(state, request, stream, width, boxes, fps),
        200,
        NO_STORE,
        "multipart/x-mixed-replace; boundary=frame",
    )


async def _mjpeg_parts(
    state: WebState, request: Request, stream: str, width: int, boxes: bool, fps: float
) -> AsyncIterator[bytes]:
    sent = None
    while not state.is_closing and not await request.is_disconnected():
        live = state.frames.newest(stream)
        if live is not None and live is not sent:
            sent = live
            picture = await state.frames.encode(stream, live, width, boxes=boxes)
            yield b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(picture), picture)
        await asyncio.sleep(1 / fps)


@router.get("/streams/{stream}/memory/{index}.jpg", response_class=Response, **secured(Role.VIEWER, 404))
async def read_remembered(
    request: Request, stream: StreamName, index: Annotated[int, Path(ge=0, le=2**53)], width: Width = 320
) -> Response:
    """Returns a frame of the last minute as JPEG."""
    state = web_state(request)
    kept = state.previews.find_picture(stream, index)
    if kept is None:
        kept = next((frame.picture for frame in state.frames.remembered(stream) if frame.index == index), None)
    if kept is None:
        raise Problem(404, f"frame {index} of {stream!r} is not in memory any more")
    picture = await asyncio.to_thread(_shrink, kept, width)
    return Response(picture, 200, {"Cache-Control": "private, max-age=300"}, "image/jpeg")


@router.get("/streams/{stream}/memory.jpg", response_class=Response, **secured(Role.VIEWER, 404))
async def read_nearest_remembered(
    request: Request,
    stream: StreamName,
    time: Annotated[str, Query(min_length=1, max_length=40, description="Capture time, RFC 3339.")],
    width: Width = 320,
    crop: Annotated[
        str | None, Query(max_length=80, pattern=_BOX, description="x1,y1,x2,y2 as fractions: cut out around this box.")
    ] = None,
) -> Response:
    """Returns the frame in memory whose capture time is nearest, within two seconds; 204 where there is none."""
    wanted_ms = parse_time("time", time)
    frames = web_state(request).frames.remembered(stream)
    frame = min(frames, key=lambda kept: abs(kept.time_ns / 1e6 - wanted_ms), default=None)
    if frame is None or abs(frame.time_ns / 1e6 - wanted_ms) > NEAREST_MS:
        return Response(status_code=204, headers=NO_STORE)
    box = None if crop is None else [float(value) for value in crop.split(",")]
    picture = await asyncio.to_thread(_shrink, frame.picture, width, box)
    return Response(picture, 200, {"Cache-Control": "private, max-age=300"}, "image/jpeg")


@router.get("/streams/{stream}/video.mp4", response_class=FileResponse, **secured(Role.VIEWER, 404))
async def read_video(request: Request, stream: StreamName) -> Response:
    """Returns the annotated video of a finished job; ranges are served."""
    videos = web_state(request).videos
    path = None if videos is None else videos.find_video(stream)
    if path is None:
        raise Problem(404, f"there is no video of {stream!r}")
    return FileResponse(path, media_type="video/mp4")


@router.get("/streams/{stream}/queries", **secured(Role.VIEWER, 404))
async def list_queries(request: Request, response: Response, stream: StreamName) -> QueryList:
    """Lists the queries of a stream with matching tracks and the histogram of their track scores."""
    state = web_state(request)
    if state.control is None:
        await state.find_stream(stream)
        return QueryList(items=[], shared=False, overridden=False)
    items, section = await state.control.list_queries(stream)
    response.headers["ETag"] = section.etag
    return QueryList(items=items, shared=section.shared, overridden=section.overridden)


@router.put("/streams/{stream}/queries", **secured(Role.OPERATOR, 404, 412, 428))
async def write_queries(
    request: Request,
    response: Response,
    stream: StreamName,
    body: Annotated[list[QueryBody], "at least one"],
    if_match: IfMatch = None,
) -> QueryList:
    """Replaces the queries of a stream, from the next frame on; ids of tracks stay."""
    if len(body) > 100:
        raise Problem(422, f"{len(body)} queries are too many: a stream may have 100")
    return await _write_queries(request, response, stream, [query.model_dump() for query in body], if_match)


@router.put("/streams/{stream}/queries/{query}", **secured(Role.OPERATOR, 404, 412, 428))
async def write_query(
    request: Request, response: Response, stream: StreamName, query: QueryId, body: QueryBody, if_match: IfMatch = None
) -> QueryList:
    """Adds or replaces one query."""
    items = await _query_items(request, stream, if_match)
    new = {**body.model_dump(), "id": query}
    changed = [new if item["id"] == query else item for item in items]
    if all(item["id"] != query for item in items):
        changed.append(new)
    return await _write_queries(request, response, stream, changed, entity_tag(items))


@router.patch("/streams/{stream}/queries/{query}", **secured(Role.OPERATOR, 404, 412, 428))
async def change_query(
    request: Request, response: Response, stream: StreamName, query: QueryId, body: QueryPatch, if_match: IfMatch = None
) -> QueryList:
    """Changes fields of one query, or pauses and resumes it."""
    items = await _query_items(request, stream, if_match)
    _find_item(items, query)
    changes = body.model_dump(exclude_unset=True)
    changed = [{**item, **changes} if item["id"] == query else item for item in items]
    return await _write_queries(request, response, stream, changed, entity_tag(items))


@router.delete("/streams/{stream}/queries/{query}", **secured(Role.OPERATOR, 404, 412, 428))
async def remove_query(
    request: Request, response: Response, stream: StreamName, query: QueryId, if_match: IfMatch = None
) -> QueryList:
    """Removes one query."""
    items = await _query_items(request, stream, if_match)
    _find_item(items, query)
    rest = [item for item in items if item["id"] != query]
    return await _write_queries(request, response, stream, rest, entity_tag(items))


@router.post("/streams/{stream}/queries/preview", status_code=202, **secured(Role.OPERATOR, 404, 409))
async def start_preview(request: Request, stream: StreamName, body: PreviewBody) -> PreviewTicket:
    """Tries words on the pictures of the recent past, without switching them on."""
    state = web_state(request)
    control = state.controlled()
    await control.read_section(stream, "queries")
    frames = state.frames.remembered(stream)
    if frames:
        oldest_ns = frames[-1].time_ns - int(body.seconds * 1e9)
        frames = [frame for frame in frames if frame.time_ns >= oldest_ns]
    run = state.previews.start(control, stream, request.state.client.name, frames, body.text, body.unless)
    return PreviewTicket(id=run.id, frames=run.frames)


@router.get(
    "/streams/{stream}/queries/preview/{preview}", response_class=StreamingResponse, **secured(Role.OPERATOR, 404)
)
async def follow_preview(
    request: Request, stream: StreamName, preview: Annotated[str, Path(min_length=1, max_length=40)]
) -> Response:
    """Streams the results of a trial as server-sent events: `frame` for each picture, then `end` or `error`."""
    run = web_state(request).previews.find(stream, preview)

    async def lines() -> AsyncIterator[str]:
        async for kind, data in run.follow():
            yield f"event: {kind}\ndata: {json.dumps(data)}\n\n"

    return StreamingResponse(lines(), 200, {**NO_STORE, "X-Accel-Buffering": "no"}, "text/event-stream")


@router.delete("/streams/{stream}/queries/preview/{preview}", status_code=204, **secured(Role.OPERATOR, 404))
async def cancel_preview(
    request: Request, stream: StreamName, preview: Annotated[str, Path(min_length=1, max_length=40)]
) -> Response:
    """Cancels a trial."""
    previews = web_state(request).previews
    previews.cancel(previews.find(stream, preview).id)
    return Response(status_code=204)


@router.get("/streams/{stream}/zones", **secured(Role.VIEWER, 404))
async def list_zones(request: Request, response: Response, stream: StreamName) -> list[ZoneBody]:
    """Lists the zones of a stream."""
    return [ZoneBody.model_construct(**item) for item in await _read_section(request, response, stream, "zones")]


@router.put("/streams/{stream}/zones", **secured(Role.OPERATOR, 404, 412, 428))
async def write_zones(
    request: Request, response: Response, stream: StreamName, body: list[ZoneBody], if_match: IfMatch = None
) -> list[ZoneBody]:
    """Replaces the zones of a stream."""
    value = [zone.model_dump() for zone in body]
    return [
        ZoneBody.model_construct(**item)
        for item in await _write_section(request, response, stream, "zones", value, if_match)
    ]


@router.post("/streams/{stream}/zones/try", **secured(Role.OPERATOR, 404))
async def try_place(request: Request, stream: StreamName, body: TryPlaceBody) -> TryPlaceAnswer:
    """Returns how many tracks of the last hour would have entered a zone or crossed a line; nothing is detected."""
    history = web_state(request).frames.history(stream)
    if history is None:
        await web_state(request).find_stream(stream)
        return TryPlaceAnswer(tracks=0)
    if (body.polygon is None) == (body.points is None):
        raise Problem(422, "give either polygon, for a zone, or points, for a line")
    if body.polygon is not None:
        zone = Zone("trial", body.polygon)
        return TryPlaceAnswer(tracks=await asyncio.to_thread(history.try_zone, zone))
    assert body.points is not None
    line = Line("trial", body.points)
    return TryPlaceAnswer(tracks=await asyncio.to_thread(history.try_line, line))


@router.get("/streams/{stream}/lines", **secured(Role.VIEWER, 404))
async def list_lines(request: Request, response: Response, stream: StreamName) -> list[LineBody]:
    """Lists the lines of a stream."""
    return [LineBody.model_construct(**item) for item in await _read_section(request, response, stream, "lines")]


@router.put("/streams/{stream}/lines", **secured(Role.OPERATOR, 404, 412, 428))
async def write_lines(
    request: Request, response: Response, stream: StreamName, body: list[LineBody], if_match: IfMatch = None
) -> list[LineBody]:
    """Replaces the lines of a stream."""
    value = [line.model_dump() for line in body]
    return [
        LineBody.model_construct(**item)
        for item in await _write_section(request, response, stream, "lines", value, if_match)
    ]


@router.get("/streams/{stream}/masks", **secured(Role.VIEWER, 404))
async def list_masks(request: Request, response: Response, stream: StreamName) -> list[MaskBody]:
    """Lists the masks of a stream."""
    return [MaskBody.model_construct(**item) for item in await _read_section(request, response, stream, "ignore")]


@router.put("/streams/{stream}/masks", **secured(Role.OPERATOR, 404, 412, 428))
async def write_masks(
    request: Request, response: Response, stream: StreamName, body: list[MaskBody], if_match: IfMatch = None
) -> list[MaskBody]:
    """Replaces the masks of a stream."""
    value = [mask.model_dump() for mask in body]
    return [
        MaskBody.model_construct(**item)
        for item in await _write_section(request, response, stream, "ignore", value, if_match)
    ]


@router.get("/streams/{stream}/counts", **secured(Role.VIEWER, 404))
async def list_counts(request: Request, response: Response, stream: StreamName) -> list[CountBody]:
    """Lists the windowed counts of a stream."""
    return [CountBody.model_construct(**item) for item in await _read_section(request, response, stream, "counts")]


@router.put("/streams/{stream}/counts", **secured(Role.OPERATOR, 404, 412, 428))
async def write_counts(
    request: Request, response: Response, stream: StreamName, body: list[CountBody], if_match: IfMatch = None
) -> list[CountBody]:
    """Replaces the windowed counts of a stream."""
    value = [count.model_dump() for count in body]
    return [
        CountBody.model_construct(**item)
        for item in await _write_section(request, response, stream, "counts", value, if_match)
    ]


@router.get("/sinks", **secured(Role.VIEWER))
async def list_sinks(request: Request) -> SinkList:
    """Lists sinks with state, backlog and error; addresses are redacted."""
    return SinkList(items=await web_state(request).directory.list_sinks())


@router.post("/sinks", status_code=201, **secured(Role.OPERATOR, 409))
async def add_sink(request: Request, body: SinkBody) -> SinkList:
    """Adds a sink in the network (kafka, mqtt, redis, https)."""
    scheme = body.address.partition(":")[0].lower()
    if scheme not in {"kafka", "kafkas", "mqtt", "mqtts", "redis", "rediss", "https"}:
        raise Problem(422, f"sink {redact(body.address)!r} is not allowed here: use kafka, mqtt, redis or https")
    checked = await asyncio.to_thread(open_sink, body.address)
    await checked.aclose()

    def add(present: list[str]) -> list[str]:
        if redact(body.address) in map(redact, present):
            raise Problem(409, f"sink {redact(body.address)} exists")
        return [*present, body.address]

    return SinkList(items=await web_state(request).controlled().write_sinks(add))


@router.delete("/sinks/{sink:path}", **secured(Role.OPERATOR, 404))
async def remove_sink(request: Request, sink: Annotated[str, Path(min_length=1, max_length=2000)]) -> SinkList:
    """Removes a sink by its redacted address."""

    def remove(present: list[str]) -> list[str]:
        rest = [address for address in present if redact(address) != sink]
        if len(rest) == len(present):
            raise Problem(404, "there is no such sink in the configuration: GET /api/v1/sinks lists them")
        return rest

    return SinkList(items=await web_state(request).controlled().write_sinks(remove))


@router.get("/config", **secured(Role.OPERATOR))
async def read_config(request: Request) -> ConfigAnswer:
    """Returns the effective configuration without secrets, and where its values come from."""
    control = web_state(request).controlled()
    document = control.document
    return ConfigAnswer(
        config=redacted_config(control.config),
        file=None if document.path is None else document.path.name,
        writable=not document.obstacle(),
        reason=document.obstacle(),
        overridden=[".".join(map(str, override.path)) for override in document.overrides],
        yaml=document.overridden_yaml(),
    )


async def _read_section(request: Request, response: Response, stream: str, section: str) -> list[dict[str, Any]]:
    state = web_state(request)
    if state.control is None:
        await state.find_stream(stream)
        return []
    found = await state.control.read_section(stream, section)
    response.headers["ETag"] = found.etag
    return found.value


async def _write_section(
    request: Request,
    response: Response,
    stream: str,
    section: str,
    value: Sequence[dict[str, Any]],
    if_match: str | None,
) -> list[dict[str, Any]]:
    state = web_state(request)
    if len(value) > 200:
        raise Problem(422, f"{len(value)} {section} are too many: a stream may have 200")
    written = await state.controlled().write_section(stream, section, value, if_match)
    response.headers["ETag"] = written.etag
    state.sockets.post({"type": "masks" if section == "ignore" else section, "stream": stream, "etag": written.etag})
    return written.value


async def _query_items(request: Request, stream: str, if_match: str | None) -> list[dict[str, Any]]:
    section = await web_state(request).controlled().read_section(stream, "queries")
    check_match(section.etag, if_match, section.value)
    return section.value


async def _write_queries(
    request: Request, response: Response, stream: str, value: Sequence[dict[str, Any]], if_match: str | None
) -> QueryList:
    await _write_section(request, response, stream, "queries", value, if_match)
    return await list_queries(request, response, stream)


def _find_item(items: Sequence[dict[str, Any]], query: str) -> None:
    if all(item["id"] != query for item in items):
        known = ", ".join(item["id"] for item in items) or "none"
        raise Problem(404, f"there is no query {query!r}: its stream has {known}")


def _plain_query(query: QueryBody) -> dict[str, Any]:
    return query.model_dump(exclude_defaults=True)


def _shrink(picture: bytes, width: int, box: Sequence[float] | None = None) -> bytes:
    image = np.asarray(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR), np.uint8)
    if box is not None:
        image = cut_around(image, box)
    return encode_jpeg(resize(image, round_width(width)), JPEG_QUALITY)
