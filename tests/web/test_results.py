"""The results of a finished job in the page."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi.testclient import TestClient

from sinks.event import EventType
from streamer.config import WebConfig
from streamer.errors import ConfigError
from streamer.web.app import create_app
from streamer.web.event_store import EventStore
from streamer.web.results import FinishedResults, serve_results
from tests.web.rooms import OPERATOR, access, event, match, room, track


@pytest.fixture
def folder(tmp_path):
    video = tmp_path / "gate"
    video.mkdir()
    summary = {
        "stream": "gate",
        "frames": 96,
        "analysed": 32,
        "dropped": {"not_sampled": 64},
        "seconds": 8,
        "tracks": 3,
    }
    (video / "summary.json").write_text(json.dumps(summary))
    (video / "video.mp4").write_bytes(b"0123456789")
    seen = {"subject": "T", "track": track(1, "T"), "matches": [match("red car")]}
    lines = [event(1, EventType.MATCH_BEGIN, **seen), event(2, EventType.ZONE_ENTER, zone={"id": "yard"}, **seen)]
    for path in (tmp_path, video):  # the job writes them for all recordings, and for each
        (path / "events.jsonl").write_bytes(b"".join(each.to_json() + b"\n" for each in lines) + b"{broken\n")
    return tmp_path


def test_recordings_and_their_events_are_read_once(folder):
    results = FinishedResults(folder)
    (status,) = asyncio.run(results.list_streams())
    assert (status.name, status.received, status.tracks, status.seconds) == ("gate", 96, 3, 8.0)
    store = EventStore(None)
    store.add_events(list(results.read_events()))
    assert store.newest_row() == 2


def test_the_video_is_served_in_ranges_and_nothing_can_be_changed(folder):
    results = FinishedResults(folder)
    state = room(settings=WebConfig(memory_s=0), directory=results, videos=results, access=access())
    browser = TestClient(create_app(state), headers={"Authorization": f"Bearer {OPERATOR}"})
    part = browser.get("/api/v1/streams/gate/video.mp4", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert browser.get("/api/v1/server").json()["editable"] is False
    answer = browser.post("/api/v1/streams", json={"name": "x", "source": "rtsp://camera/x"})
    assert answer.status_code == 403
    assert "finished job" in answer.json()["detail"]


def test_the_page_of_results_opens_with_its_link(folder):
    with serve_results(folder, "127.0.0.1", 0) as address:
        assert "#code=" in address.login_url


@pytest.mark.parametrize("what", ["empty", "file", "absent"])
def test_a_folder_without_results_is_named(tmp_path, what):
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_text("x")
    with pytest.raises(ConfigError, match="--out folder"):
        FinishedResults(path)
