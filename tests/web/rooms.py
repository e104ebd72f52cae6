"""Web servers around fake parts: streams that are listed, a store with events, known tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from fastapi.testclient import TestClient

from sinks.event import Event, EventType, format_sequence, rfc3339
from streamer.config import WebConfig
from streamer.media.folder import MediaFolder
from streamer.media.pictures import encode_jpeg
from streamer.web.access import AccessControl, AccessTokens, Role, hash_secret
from streamer.web.app import create_app
from streamer.web.event_store import EventFeed, EventStore
from streamer.web.live_frames import LiveFrames
from streamer.web.models import SinkState, StreamStatus
from streamer.web.server import WebServerThread
from streamer.web.state import WebState

VIEWER, OPERATOR = "viewer-token-0123456789", "operator-token-0123456789"
HOST = "http://testserver"
START_NS = 1_770_000_000_000_000_000
SECOND = 1_000_000_000


class FixedDirectory:
    """Two streams, of which one is away, and one sink."""

    async def list_streams(self) -> list[StreamStatus]:
        plain = {
            "live": True,
            "source": "rtsp://camera/stream",
            "received": 100,
            "analysed": 40,
            "dropped": {"stale": 60},
        }
        rest = {"width": 640, "height": 384, "fps_received": 10.0, "fps_analysed": 4.0, "tracks": 1, "clock": None}
        return [
            StreamStatus(name="gate", state="live", cause="", age_ms=80.0, last_frame=None, **plain, **rest),
            StreamStatus(name="yard", state="waiting", cause="no route", age_ms=None, last_frame=None, **plain, **rest),
        ]

    async def list_sinks(self) -> list[SinkState]:
        numbers = {"delivered": 5, "dead": 0, "failures": 0, "backlog": 0}
        return [SinkState(name="jsonl:e.jsonl", state="up", since=rfc3339(START_NS), error="", **numbers)]


def event(number: int, kind: EventType = EventType.TRACK_BEGIN, *, stream: str = "gate", **data) -> Event:
    """The `number`-th event of a stream, one second after the one before."""
    time_ns = START_NS + number * SECOND
    raw = {
        "id": f"1.{stream}.{number}",
        "source": f"/streams/{stream}",
        "type": kind,
        "subject": data.pop("subject", stream),
        "time": rfc3339(time_ns),
        "partitionkey": stream,
        "sequence": format_sequence(number),
        "data": {
            "stream": stream,
            "run": 1,
            "clock": {"basis": "arrival", "captured_ns": time_ns},
            "producer": {"version": "0", "detector": "fake", "tracker": "fake", "config_hash": "0"},
            **data,
        },
    }
    if "epoch" in Event.model_fields:
        raw["epoch"] = "0" * 15 + "1"
    return Event.model_validate(raw)


def match(text: str, query_id: str = "", score: float = 0.8) -> dict[str, object]:
    """One entry of an event's matches."""
    return {
        "query_id": query_id or text.replace(" ", "-"),
        "query_rev": 1,
        "text": text,
        "score": score,
        "threshold": 0.5,
    }


def track(number: int, uid: str) -> dict[str, object]:
    """A track in the middle of the frame."""
    return {
        "uid": uid,
        "number": number,
        "state": "confirmed",
        "revision": 1,
        "first_seen_ns": START_NS,
        "last_seen_ns": START_NS + SECOND,
        "box": {"x1": 0.4, "y1": 0.4, "x2": 0.6, "y2": 0.8},
        "score": 0.8,
    }


def pictured_track(folder: MediaFolder) -> tuple[dict[str, object], dict[str, object]]:
    """Parts of the events of track 4, and the medium of a crop of it, 160 pixels wide, that is stored in the folder."""
    stored = folder.store(encode_jpeg(np.full((90, 160, 3), 200, np.uint8), 90), ".jpg")
    seen: dict[str, object] = {"subject": "TRACK", "track": track(4, "TRACK")}
    return seen, {"kind": "crop", "uri": stored.path.as_uri(), "sha256": stored.sha256}


@contextlib.contextmanager
def serving(state: WebState) -> Iterator[WebServerThread]:
    """A server over a state, with its own thread."""
    server = WebServerThread(state)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def access() -> AccessControl:
    """Access control with the two known tokens."""
    return AccessControl(AccessTokens({Role.VIEWER: hash_secret(VIEWER), Role.OPERATOR: hash_secret(OPERATOR)}))


def room(store: EventStore | None = None, settings: WebConfig | None = None, **parts) -> WebState:
    """The state of a server over fake parts."""
    store = store or EventStore(None)
    return WebState(
        settings or WebConfig(),
        parts.pop("access", None) or access(),
        store,
        EventFeed(store),
        parts.pop("frames", None) or LiveFrames(),
        parts.pop("directory", None) or FixedDirectory(),
        **parts,
    )


def client(state: WebState, token: str | None = VIEWER, *, raise_errors: bool = True, **options) -> TestClient:
    """A client with a bearer token; without one where `token` is None."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return TestClient(create_app(state), headers=headers, raise_server_exceptions=raise_errors, **options)
