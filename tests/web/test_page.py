"""The page in Chromium: every view in both sizes, pictures with their own boxes, credits, other origins."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sinks.event import EventType
from streamer.config import WebConfig
from streamer.media.folder import MediaFolder
from streamer.media.pictures import encode_jpeg
from streamer.sources import open_sources
from streamer.sources.packet_clips import PacketLimits
from streamer.web.event_store import EventStore
from streamer.web.live_frames import LiveFrames
from streamer.web.models import StreamStatus
from streamer.web.server import WebServerThread
from tests.support.clips import make_clip
from tests.web.browser import WatchedPage, compare_golden, open_browser
from tests.web.coded_camera import CodedCameras, box_place
from tests.web.rooms import VIEWER, FixedDirectory, client, event, match, pictured_track, room, serving, track

pytestmark = pytest.mark.timeout(180)

VIEWS = {
    "grid": "",
    "camera": "camera/gate",
    "events": "events",
    "event": "events/1.gate.1",
    "counts": "counts",
    "health": "health",
}
SIZES = {"desk": (1280, 800, "light"), "phone": (390, 844, "dark")}
PICTURES = os.environ.get("GROUNDSTREAM_SCREENSHOTS")
"""Folder in which pictures of all views are kept."""


class ManyCameras(FixedDirectory):
    """Streams with given names, all live."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    async def list_streams(self) -> list[StreamStatus]:
        first = (await super().list_streams())[0]
        return [first.model_copy(update={"name": name}) for name in self._names]


def events_of_a_day():
    """A track that entered a zone, one that crossed a line, an outage."""
    seen = {"subject": "TRACK", "track": track(4, "TRACK"), "frame": {"index": 5, "width": 640, "height": 384}}
    person, car = [match("a person")], [match("red car")]
    return [
        event(1, EventType.MATCH_BEGIN, matches=person, **seen),
        event(2, EventType.ZONE_ENTER, zone={"id": "crossing"}, matches=person, **seen),
        event(3, EventType.LINE_CROSS, line={"id": "middle", "direction": "in"}, matches=car, **seen),
        event(4, EventType.STREAM_OFFLINE, outage={"cause": "no picture came for 4 s", "since_ns": 1}),
    ]


@contextlib.contextmanager
def served(names: list[str], fps: float = 10.0) -> Iterator[str]:
    """The address of a page with live coded cameras."""
    frames, store = LiveFrames(), EventStore(None)
    store.add_events(events_of_a_day())
    state = room(store, WebConfig(port=0), frames=frames, directory=ManyCameras(names))
    state.control = None
    server = WebServerThread(state)
    server.start()
    try:
        with CodedCameras(frames, names, fps):
            yield server.address.url
    finally:
        server.stop()
        frames.close()


@pytest.mark.parametrize("size", SIZES)
def test_every_view_is_clean_and_fits_its_window(size, tmp_path):
    width, height, scheme = SIZES[size]
    folder = Path(PICTURES) if PICTURES else tmp_path
    with served(["gate", "yard"]) as base, open_browser() as browser:
        watched = WatchedPage(browser, base, width=width, height=height, scheme=scheme)
        watched.open("login", "input[name=token]")
        assert watched.check_layout() == [], "login"
        watched.log_in(VIEWER)
        for view, path in VIEWS.items():
            watched.open(path)
            watched.page.wait_for_timeout(600)
            watched.page.screenshot(path=folder / f"{view}-{size}.png", full_page=True)
            assert watched.check_layout() == [], view
            if size == "desk":
                compare_golden(f"{view}.aria.txt", watched.describe())


@pytest.mark.parametrize("kind", ["snapshot", "crop"])
def test_an_event_shows_the_picture_that_was_stored_for_it_with_the_box_of_that_picture(kind, tmp_path):
    folder = MediaFolder(tmp_path)
    stored = folder.store(encode_jpeg(np.full((90, 160, 3), 200, np.uint8), 90), ".jpg")
    seen = {"subject": "TRACK", "track": track(4, "TRACK"), "frame": {"index": 5, "width": 640, "height": 360}}
    box = {"x1": 0.1, "y1": 0.2, "x2": 0.3, "y2": 0.7}
    medium = {"kind": kind, "uri": stored.path.as_uri(), "sha256": stored.sha256, "box": box}
    store = EventStore(None)
    store.add_events(
        [
            event(1, EventType.MATCH_BEGIN, matches=[match("a person")], **seen),
            event(2, EventType.MEDIA, cause="1.gate.1", media=[medium], **seen),
        ]
    )
    with serving(room(store, WebConfig(port=0), media=[folder])) as server, open_browser() as browser:
        watched = WatchedPage(browser, server.address.url)
        watched.log_in(VIEWER)
        watched.open("events/1.gate.1", ".view img")
        watched.page.wait_for_timeout(400)
        shown = watched.page.evaluate("document.querySelector('.view img').naturalWidth")
        boxes = watched.page.evaluate(
            "[...document.querySelectorAll('.view rect')].map(box => Number(box.getAttribute('x')))"
        )
        assert shown == 160
        assert boxes == ([64] if kind == "snapshot" else [])
        assert watched.complaints == []


def cut_clip(folder: Path) -> Path:
    """A clip made of the packets of a recording, as those of events are."""

    async def cut() -> Path:
        path = make_clip(folder / "source.mp4", 100)
        (source,) = open_sources(str(path), start_time_ns=0)
        cutter = source.keep_packets(PacketLimits(60))
        async for _ in source:
            source.account.analyse()
        done = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        cutter.cut(
            10**9,
            3 * 10**9,
            folder / "clip.mp4",
            lambda result: loop.call_soon_threadsafe(done.set_result, result),
        )
        assert not (await done).error
        cutter.release()
        return folder / "clip.mp4"

    return asyncio.run(cut())


def test_an_event_plays_its_own_clip_and_ranges_of_it_are_served(tmp_path):
    """Not that of another event of the same track; the clip came after the end of the track."""
    folder = MediaFolder(tmp_path / "media")
    clip = cut_clip(tmp_path).read_bytes()
    stored, other = folder.store(clip, ".mp4"), folder.store(b"another", ".mp4")
    seen = {"subject": "TRACK", "track": track(4, "TRACK")}

    def medium(file) -> dict[str, object]:
        return {"kind": "clip", "uri": file.path.as_uri(), "sha256": file.sha256, "begin_ns": 1, "end_ns": 2}

    store = EventStore(None)
    store.add_events(
        [
            event(1, EventType.MATCH_BEGIN, matches=[match("a person")], **seen),
            event(2, EventType.ZONE_ENTER, zone={"id": "door"}, **seen),
            event(3, EventType.MEDIA, subject="TRACK", cause="1.gate.1", media=[medium(other)]),
            event(4, EventType.MEDIA, subject="TRACK", cause="1.gate.2", media=[medium(stored)]),
        ]
    )
    state = room(store, WebConfig(port=0), media=[folder])
    part = client(state).get("/api/v1/events/1.gate.2/clip.mp4", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, clip[100:200])
    assert part.headers["content-type"] == "video/mp4"
    assert client(state).get("/api/v1/events/1.gate.2/clip.mp4").content == clip
    assert client(state, None).get("/api/v1/events/1.gate.2/clip.mp4").status_code == 401
    with serving(state) as server, open_browser() as browser:
        watched = WatchedPage(browser, server.address.url)
        watched.log_in(VIEWER)
        watched.open("events/1.gate.2", "video")
        for _ in range(80):
            watched.page.wait_for_timeout(100)
            if watched.page.evaluate("document.querySelector('video').readyState >= 3"):
                break
        playing = "(async () => { const video = document.querySelector('video'); video.muted = true; "
        playing += "await video.play(); return [video.videoWidth, video.duration]; })()"
        width, seconds = watched.page.evaluate(playing)
        assert width == 320
        assert 1.9 < seconds < 2.3
        assert watched.complaints == []


def test_the_login_link_opens_the_page_and_leaves_no_secret_in_the_address():
    store = EventStore(None)
    with serving(room(store, WebConfig(port=0))) as server, open_browser() as browser:
        address = server.address
        watched = WatchedPage(browser, address.url)
        watched.page.goto(address.login_url, wait_until="commit")
        watched.page.wait_for_selector("nav")
        assert "code" not in watched.page.url
        assert watched.complaints == []


def test_a_page_whose_server_was_restarted_asks_for_a_login():
    store = EventStore(None)
    first = WebServerThread(room(store, WebConfig(port=0)))
    first.start()
    url = first.address.url
    settings = WebConfig(port=int(url.rstrip("/").rpartition(":")[2]))
    with open_browser() as browser:
        watched = WatchedPage(browser, url)
        watched.log_in(VIEWER)
        first.stop()
        watched.page.wait_for_selector("#banner >> text=is lost", timeout=60_000)
        second = WebServerThread(room(store, settings))
        second.start()
        try:
            watched.page.wait_for_selector("text=Your session has ended", timeout=60_000)
            watched.page.fill("input[name=token]", VIEWER)
            watched.page.click("button.primary")
            watched.page.wait_for_selector("nav", timeout=60_000)
            watched.page.wait_for_selector("#banner", state="hidden", timeout=60_000)
        finally:
            second.stop()


def test_lists_show_the_pictures_that_were_stored_for_an_event_later(tmp_path):
    folder = MediaFolder(tmp_path)
    seen, medium = pictured_track(folder)
    store = EventStore(None)
    store.add_events(
        [
            event(1, EventType.MATCH_BEGIN, matches=[match("a person")], **seen),
            event(2, EventType.ZONE_ENTER, zone={"id": "door"}, **seen),
            event(3, EventType.MEDIA, cause="1.gate.1", media=[medium], **seen),
        ]
    )
    state = room(store, WebConfig(port=0), media=[folder])
    listed = client(state).get("/api/v1/events?type=match.begin&type=zone.enter").json()["items"]
    assert [item["data"].get("media", []) != [] for item in listed] == [False, True]
    with serving(state) as server, open_browser() as browser:
        watched = WatchedPage(browser, server.address.url)
        watched.log_in(VIEWER)
        watched.open("events", "img.thumb")
        watched.page.wait_for_timeout(400)
        assert watched.page.evaluate("[...document.querySelectorAll('img.thumb')].map(i => i.naturalWidth)") == [160]
        assert watched.complaints == []


def test_a_wrong_token_is_reported_on_the_form():
    with served(["gate"]) as base, open_browser() as browser:
        watched = WatchedPage(browser, base)
        watched.open("login", "input[name=token]")
        watched.page.fill("input[name=token]", "wrong")
        watched.page.click("button.primary")
        watched.page.wait_for_selector("text=the token is not valid")


def test_boxes_are_those_of_their_own_picture():
    with served(["gate"], fps=50) as base, open_browser() as browser:
        watched = WatchedPage(browser, base)
        watched.log_in(VIEWER)
        watched.page.evaluate(COMPARE)
        for _ in range(400):  # waiting by a function in the page is forbidden by its own security policy
            watched.page.wait_for_timeout(250)
            if watched.page.evaluate("window.compared.length") >= 1000:
                break
        compared = watched.page.evaluate("window.compared")
    assert len(compared) >= 1000
    assert [each for each in compared if each[0] != each[1] or each[2] != box_place(each[1])] == []


COMPARE = """() => {
  window.compared = [];
  const canvas = new OffscreenCanvas(320, 192), context = canvas.getContext('2d', {willReadFrequently: true});
  for (const view of [...window.groundstreamLive.views.keys()]) window.groundstreamLive.views.delete(view);
  window.groundstreamLive.watch('gate', {width: 320, fps: 60, draw(header, bitmap) {
    context.drawImage(bitmap, 0, 0, 320, 192);
    const row = context.getImageData(0, 20, 320, 1).data;
    let index = 0;
    for (let bit = 0; bit < 16; bit += 1) index = index * 2 + (row[(bit * 20 + 10) * 4] > 128 ? 1 : 0);
    window.compared.push([index, header.index, header.tracks[0].box[0]]);
  }});
}"""


def test_a_slow_page_with_nine_cameras_shows_fresh_pictures():
    names = [f"cam{number}" for number in range(9)]
    with served(names) as base, open_browser() as browser:
        watched = WatchedPage(browser, base)
        watched.log_in(VIEWER)
        session = watched.page.context.new_cdp_session(watched.page)
        session.send("Emulation.setCPUThrottlingRate", {"rate": 8})
        watched.page.evaluate(AGES)
        watched.page.wait_for_timeout(10_000)
        ages = watched.page.evaluate("window.ages.slice(-30)")
    assert len(ages) >= 9
    assert sorted(ages)[len(ages) // 2] < 500


AGES = """() => {
  window.ages = [];
  for (const name of Array.from({length: 9}, (_, at) => `cam${at}`)) window.groundstreamLive.watch(name, {
    width: 320, fps: 10, draw(header) { window.ages.push(Date.now() - header.time); }});
}"""


def test_a_page_of_another_origin_gets_nothing():
    with served(["gate"]) as base, open_browser() as browser, foreign_site() as foreign:
        watched = WatchedPage(browser, base)
        watched.log_in(VIEWER)
        watched.page.goto(foreign)
        socket, read, change = watched.page.evaluate(ATTACK, base)
    assert socket == "refused"
    assert read == "blocked"
    assert change == "blocked"


ATTACK = """async base => [
  await new Promise(done => { const s = new WebSocket(base.replace('http', 'ws') + 'api/v1/live');
    s.onmessage = () => done('read'); s.onerror = () => done('refused'); }),
  await fetch(base + 'api/v1/streams', {credentials: 'include'}).then(a => a.text(), () => 'blocked'),
  await fetch(base + 'api/v1/sinks', {method: 'POST', credentials: 'include', body: '{"address": "kafka://h/t"}',
    headers: {'Content-Type': 'text/plain'}}).then(a => a.text(), () => 'blocked')]"""


@contextlib.contextmanager
def foreign_site() -> Iterator[str]:
    """A page on another port of the same host, to which a SameSite cookie is sent."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>foreign</title>")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
