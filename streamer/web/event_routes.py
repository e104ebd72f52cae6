"""Routes of stored events: lists, the live feed, counts, tracks and media."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from sinks.event import rfc3339
from streamer.media.folder import SHA256, find_media
from streamer.web.access import Role
from streamer.web.event_store import (
    EventQuery,
    EventStore,
    StoredEvent,
    compact_event,
    decode_cursor,
    encode_cursor,
    utc_offset_minutes,
)
from streamer.web.models import BucketCount, BucketList, EventPage, TrackAnswer
from streamer.web.parameters import parse_time
from streamer.web.problems import Problem
from streamer.web.security import secured
from streamer.web.state import WebState, web_state

router = APIRouter(prefix="/api/v1")

_NAMES = Query(max_length=50)
_MOST_BEHIND = 1000
_KEEP_ALIVE_S = 15.0
_BATCH = 200
_MOST_READERS = 64
_DAY_TIME = r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$"
_BUCKETS_S = (1, 10, 60, 300, 900, 3600, 21_600, 86_400, 604_800)

EventId = Annotated[str, Path(min_length=1, max_length=300, description="Id of the event.")]
Names = list[Annotated[str, Query(min_length=1, max_length=200)]]


def event_filter(
    stream: Annotated[Names, _NAMES] = [],  # noqa: B006 - FastAPI copies it for each request
    type: Annotated[Names, Query(max_length=50, description="track.begin, zone.*, ...")] = [],  # noqa: B006
    query: Annotated[Names, Query(max_length=50, description="Ids or words of queries.")] = [],  # noqa: B006
    zone: Annotated[str | None, Query(max_length=200, description="Id of a zone, line or count.")] = None,
    subject: Annotated[str | None, Query(max_length=200, description="A track's ULID, or a stream.")] = None,
    since: Annotated[str | None, Query(max_length=40, description="RFC 3339, inclusive.")] = None,
    until: Annotated[str | None, Query(max_length=40, description="RFC 3339, exclusive.")] = None,
    time_of_day: Annotated[
        str | None, Query(pattern=_DAY_TIME, max_length=11, description="22:00-06:00, local time of `tz`.")
    ] = None,
    tz: Annotated[str, Query(min_length=1, max_length=64, description="Time zone such as Europe/Berlin.")] = "UTC",
    q: Annotated[str, Query(max_length=500, description="Words; the last may be the beginning of one.")] = "",
) -> EventQuery:
    """Returns the choice of events that the parameters of a request describe."""
    utc_offset_minutes(0, tz)
    kinds = [kind.removeprefix("groundstream.") for kind in type]
    return EventQuery(
        streams=stream,
        kinds=[re.sub(r"\.v1$", "", kind) for kind in kinds],
        queries=query,
        place=zone,
        subject=subject,
        since_ms=None if since is None else parse_time("since", since),
        until_ms=None if until is None else parse_time("until", until),
        day_minutes=_parse_day_time(time_of_day),
        zone_name=tz,
        words=q,
    )


Filter = Annotated[EventQuery, Depends(event_filter)]


@router.get("/events", **secured(Role.VIEWER))
def list_events(
    request: Request,
    wanted: Filter,
    order: Literal["newest", "oldest"] = "newest",
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    after: Annotated[str | None, Query(min_length=1, max_length=100, description="`next` of the page before.")] = None,
) -> EventPage:
    """Lists events in order of capture time, each with the pictures and clips that were stored for it later.

    A cursor stays valid while events come and expire.
    """
    cursor = None if after is None else decode_cursor(after)
    found = web_state(request).store.find_page(wanted, limit=limit + 1, newest_first=order == "newest", after=cursor)
    page = found[:limit]
    items = [json.loads(event.line) for event in page]
    _add_later_media(web_state(request).store, items)
    return EventPage(
        items=items,
        next=encode_cursor(page[-1]) if len(found) > limit else None,
    )


@router.get("/events/stream", response_class=StreamingResponse, **secured(Role.VIEWER, 404))
async def stream_events(
    request: Request,
    wanted: Filter,
    after: Annotated[int | None, Query(ge=0, le=2**53, description="Resume behind this id.")] = None,
    after_event: Annotated[
        str | None, Query(min_length=1, max_length=300, description="Begin behind the event with this id.")
    ] = None,
    follow: Annotated[bool, Query(description="Wait for what comes; false ends at the present end.")] = True,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:
    """Streams events as they are stored (server-sent events), from the end, or behind `Last-Event-ID` or `after`.

    `event: gap` with the oldest stored id comes first when events behind that id have expired.
    """
    state = web_state(request)
    if state.feed_readers >= _MOST_READERS:
        raise Problem(503, f"{_MOST_READERS} clients read the event feed already: try again later")
    start = after
    if last_event_id is not None:
        if not last_event_id.isdigit() or int(last_event_id) > 2**53:
            raise Problem(
                422, f"Last-Event-ID {last_event_id!r} is not an id of this feed: use the last `id:` received"
            )
        start = int(last_event_id)
    elif after_event is not None:
        found = await asyncio.to_thread(state.store.find_event, after_event)
        if found is None:
            raise Problem(404, f"there is no event {after_event!r}: it never existed or has expired")
        start = found.row
    oldest, newest = await asyncio.to_thread(lambda: (state.store.oldest_row(), state.store.newest_row()))
    gap = None
    if start is None:
        start = newest
    elif start > newest or (oldest and start < oldest - 1) or (not oldest and start > 0):
        gap, start = oldest, max(0, oldest - 1)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _feed(state, request, wanted, start, gap, follow=follow), 200, headers, "text/event-stream"
    )


async def _feed(
    state: WebState, request: Request, wanted: EventQuery, row: int, gap: int | None, *, follow: bool
) -> AsyncIterator[str]:
    state.feed_readers += 1
    try:
        yield "retry: 2000\n\n"
        if gap is not None:
            yield f"event: gap\ndata: {json.dumps({'oldest': gap})}\n\n"
        last_sent = time.monotonic()
        while not state.is_closing:
            began = row
            found, row = await asyncio.to_thread(state.store.read_after, row, wanted, limit=_BATCH)
            for event in found:
                yield format_feed_event(event)
                last_sent = time.monotonic()
            if row > began:
                continue
            if not follow or await request.is_disconnected():
                return
            if not await state.feed.wait_beyond(row, _KEEP_ALIVE_S) or time.monotonic() - last_sent > _KEEP_ALIVE_S:
                yield ": waiting\n\n"
                last_sent = time.monotonic()
    finally:
        state.feed_readers -= 1


def format_feed_event(event: StoredEvent) -> str:
    """Returns an event as one server-sent event, its kind as event type and its row as id."""
    kind = json.loads(event.line)["type"].removeprefix("groundstream.").rpartition(".")[0]
    return f"id: {event.row}\nevent: {kind}\ndata: {event.line}\n\n"


@router.get("/events/{event}", **secured(Role.VIEWER, 404))
def read_event(request: Request, event: EventId) -> dict[str, Any]:
    """Returns one event as it was sent."""
    return _load_event(web_state(request), event)


@router.get("/events/{event}/snapshot.jpg", response_class=FileResponse, **secured(Role.VIEWER, 404))
def read_event_snapshot(
    request: Request,
    event: EventId,
    kind: Literal["snapshot", "crop"] = "snapshot",
    boxes: Annotated[
        bool, Query(description="The full frame with the box of the track, where that is stored.")
    ] = False,
) -> Response:
    """Returns the picture of an event."""
    kinds = ("snapshot", "crop") if kind == "snapshot" else ("crop", "snapshot")
    return _media_of_event(web_state(request), event, kinds, is_boxed=boxes)


@router.get("/events/{event}/clip.mp4", response_class=FileResponse, **secured(Role.VIEWER, 404))
def read_event_clip(request: Request, event: EventId) -> Response:
    """Returns the clip of an event; ranges are served."""
    return _media_of_event(web_state(request), event, ("clip",))


@router.get("/media/{sha256}", response_class=FileResponse, **secured(Role.VIEWER, 404))
def read_media(
    request: Request, sha256: Annotated[str, Path(pattern=SHA256, min_length=64, max_length=64)]
) -> Response:
    """Returns a stored picture or clip by its content hash."""
    return _media_response(web_state(request), sha256)


@router.get("/counts", **secured(Role.VIEWER))
def count_events(
    request: Request,
    wanted: Filter,
    of: Annotated[str | None, Query(max_length=200, description="Id of a zone or line; everything else too.")] = None,
    bucket: Annotated[int, Query(ge=1, le=604_800, description="Seconds of a bucket.")] = 3600,
) -> BucketList:
    """Counts events and tracks for each bucket of time, kind and direction."""
    if bucket not in _BUCKETS_S:
        raise Problem(422, f"bucket {bucket} is not offered: use one of {', '.join(map(str, _BUCKETS_S))} seconds")
    if of is not None:
        wanted = EventQuery(**{**_fields(wanted), "place": of})
    now_ms = wanted.until_ms if wanted.until_ms is not None else int(time.time() * 1000)
    offset_ms = utc_offset_minutes(max(0, min(now_ms, 4_000_000_000_000)), wanted.zone_name) * 60_000
    rows = web_state(request).store.count_buckets(wanted, bucket_ms=bucket * 1000, offset_ms=offset_ms)
    items = [
        BucketCount(
            time=rfc3339(max(0, row["time_ms"]) * 1_000_000),
            kind=row["kind"],
            direction=row["direction"],
            events=row["events"],
            tracks=row["tracks"],
        )
        for row in rows
    ]
    return BucketList(bucket_s=bucket, items=items)


@router.get("/tracks/{uid}", **secured(Role.VIEWER, 404))
def read_track(request: Request, uid: Annotated[str, Path(min_length=1, max_length=64)]) -> TrackAnswer:
    """Returns everything stored about one track: its events, path, pictures and descriptions."""
    found = web_state(request).store.find_page(EventQuery(subject=uid), limit=500, newest_first=False)
    events = [compact_event(event.line) for event in found]
    with_track = [event for event in events if event["data"].get("track")]
    if not with_track:
        raise Problem(404, f"there is no track {uid!r}")
    last = with_track[-1]["data"]["track"]
    words = [match["text"] for event in events for match in event["data"].get("matches") or ()]
    boxes = [event["data"]["track"]["box"] for event in with_track]
    return TrackAnswer(
        uid=uid,
        stream=with_track[-1]["data"]["stream"],
        number=last["number"],
        first_seen=rfc3339(last["first_seen_ns"]),
        last_seen=rfc3339(last["last_seen_ns"]),
        queries=list(dict.fromkeys(words)),
        path=[[round((box["x1"] + box["x2"]) / 2, 5), box["y2"]] for box in boxes],
        descriptions=[event["data"]["description"]["text"] for event in events if event["data"].get("description")],
        media=[medium for event in events for medium in event["data"].get("media") or ()],
        events=[dict(event) for event in events],
    )


def _add_later_media(store: EventStore, events: Sequence[dict[str, Any]]) -> None:
    """Gives events the media of the `media` events that name them as their cause."""
    lacking = [event for event in events if event["data"].get("track") and not event["data"].get("media")]
    media = store.find_media(list(dict.fromkeys(event["subject"] for event in lacking)))
    for event in lacking:
        if event["id"] in media:
            event["data"]["media"] = media[event["id"]]


def _load_event(state: WebState, event_id: str) -> dict[str, Any]:
    found = state.store.find_event(event_id)
    if found is None:
        raise Problem(404, "there is no such event: it never existed or has expired")
    event: dict[str, Any] = json.loads(found.line)
    return event


def _media_of_event(state: WebState, event_id: str, kinds: tuple[str, ...], *, is_boxed: bool = False) -> Response:
    """The medium of an event: its own, else that of a later event which names it as its cause, else of its track."""
    event = _load_event(state, event_id)
    wanted = EventQuery(subject=event["subject"], kinds=["media"])
    followers = state.store.find_page(wanted, limit=500, newest_first=False)
    others: list[Mapping[str, Any]] = [json.loads(stored.line) for stored in followers]
    caused = [other for other in others if other["data"].get("cause") == event_id]
    sha256 = find_media([event, *map(dict, caused)], kinds, is_boxed=is_boxed)
    if sha256 is None and "clip" not in kinds:
        sha256 = find_media(map(dict, others), kinds, is_boxed=is_boxed)
    if sha256 is None:
        raise Problem(404, "this event has no such picture or clip")
    return _media_response(state, sha256)


def _media_response(state: WebState, sha256: str) -> Response:
    for folder in state.media:
        found = folder.find(sha256)
        if found is not None:
            headers = {"Cache-Control": "private, max-age=31536000, immutable", "ETag": f'"{sha256}"'}
            return FileResponse(found.path, headers=headers, media_type=found.media_type)
    raise Problem(404, "there is no such picture or clip: it has expired or was never stored")


def _fields(query: EventQuery) -> dict[str, Any]:
    return {name: getattr(query, name) for name in EventQuery.__slots__}


def _parse_day_time(text: str | None) -> tuple[int, int] | None:
    """'22:00-06:00' -> (1320, 360)."""
    if text is None:
        return None
    first, last = (int(part[:2]) * 60 + int(part[3:]) for part in text.split("-"))
    if first == last:
        raise Problem(422, f"time_of_day {text!r} has no length: give two different times")
    return first, last
