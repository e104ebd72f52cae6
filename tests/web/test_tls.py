"""The page and the API over TLS: in the browser, for programs, and with certificates that cannot be used."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("trustme", reason="trustme is not installed")

import groundstream
from sinks.event import EventType
from sinks.tls import TlsOptions
from streamer.config import WebConfig
from streamer.errors import StreamerError
from streamer.web.client import ApiError
from streamer.web.event_store import EventStore
from streamer.web.live_frames import LiveFrames
from streamer.web.server import WebServerThread
from tests.sinks.authority import Authority
from tests.web.browser import WatchedPage, open_browser
from tests.web.coded_camera import CodedCameras
from tests.web.rooms import VIEWER, event, room, serving

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_pictures_and_login_work_over_tls_in_the_browser(authority):
    certificate, key = authority.issue("127.0.0.1")
    frames = LiveFrames()
    server = WebServerThread(room(settings=WebConfig(port=0, certificate=certificate, key=key), frames=frames))
    server.start()
    try:
        with CodedCameras(frames, ["gate"], 10), open_browser() as browser:
            assert server.address.url.startswith("https://")
            watched = WatchedPage(browser, server.address.url, ignore_https_errors=True)
            watched.log_in(VIEWER)
            watched.page.evaluate(WATCH)
            for _ in range(300):
                if watched.page.evaluate("window.drawn") >= 5:
                    break
                watched.page.wait_for_timeout(200)
            assert watched.page.evaluate("window.drawn") >= 5
            (cookie,) = watched.page.context.cookies()
            assert cookie["name"] == "__Host-groundstream"
            assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
            assert watched.complaints == []
    finally:
        server.stop()
        frames.close()


WATCH = """() => {
  window.drawn = 0;
  window.groundstreamLive.watch('gate', {width: 320, fps: 10, draw() { window.drawn += 1; }});
}"""


def test_programs_trust_the_authority_that_they_are_given_and_no_other(authority):
    certificate, key = authority.issue("127.0.0.1")
    store = EventStore(None)
    store.add_events([event(1, EventType.TRACK_BEGIN)])
    with serving(room(store, WebConfig(port=0, certificate=certificate, key=key))) as server:
        trusting = TlsOptions(cafile=str(authority.certificate))
        monitor = groundstream.connect(server.address.url, token=VIEWER, tls=trusting)

        async def read() -> tuple[list[str], list[str]]:
            names = [stream["name"] for stream in await monitor.list_streams()]
            return names, [one.id async for one in monitor.subscribe()]

        assert asyncio.run(read()) == (["gate", "yard"], ["1.gate.1"])
        with pytest.raises(ApiError, match="certificate"):
            asyncio.run(groundstream.connect(server.address.url, token=VIEWER).list_streams())


@pytest.mark.parametrize("fault", ["missing", "no PEM", "another key", "key with a password"])
def test_a_certificate_that_cannot_be_used_is_one_sentence_and_asks_for_nothing(authority, tmp_path, fault):
    certificate, key = authority.issue("127.0.0.1")
    if fault == "missing":
        certificate = tmp_path / "none.pem"
    elif fault == "no PEM":
        certificate.write_text("nothing")
    elif fault == "another key":
        key = authority.issue("127.0.0.1")[1]
    else:
        key = authority.lock(key, "secret")
    with pytest.raises(StreamerError, match="cannot use the TLS certificate") as caught:
        WebServerThread(room(settings=WebConfig(port=0, certificate=certificate, key=key)))
    assert "\n" not in str(caught.value)
