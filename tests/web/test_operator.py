"""The whole path of an operator in the browser, on a running monitor: from the login to the file on the disk."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer.config import load_config
from tests.support.clips import make_clip
from tests.support.rtsp_server import RtspServer
from tests.web.browser import WatchedPage, compare_golden, open_browser
from tests.web.rooms import OPERATOR
from tests.web.test_changes import TEXT, running

pytestmark = pytest.mark.timeout(600)


def test_an_operator_adds_a_camera_a_query_and_a_zone_finds_the_event_and_removes_the_camera(tmp_path):
    async def go() -> None:
        async with running(tmp_path) as (client, file, _pipeline):
            await asyncio.to_thread(walk, f"http://127.0.0.1:{client._port}/", file)
        # The only difference to the file before: nothing.
        assert file.read_text() == TEXT

    asyncio.run(go())


def walk(base: str, file: Path) -> None:
    with open_browser() as browser:
        watched = WatchedPage(browser, base)
        page = watched.page
        page.set_default_timeout(90_000)
        watched.log_in(OPERATOR)
        add_camera(page)
        add_query(page)
        assert yaml.safe_load(file.read_text())["streams"][2]["queries"][-1]["text"] == "a dog on a lead"
        draw_zone(page)
        zones = yaml.safe_load(file.read_text())["streams"][2]["zones"]
        assert [zone["id"] for zone in zones] == ["door"]
        assert len(zones[0]["polygon"]) == 4
        find_event(page)
        remove_camera(page)
        expected = "the server responded with a status of 422"  # for the address of this machine
        assert [complaint for complaint in watched.complaints if expected not in complaint] == []
        assert any(expected in complaint for complaint in watched.complaints)


def add_camera(page: Any) -> None:
    page.click("text=Add a camera")
    page.fill("dialog input[name=name]", "lane")
    page.fill("dialog input[name=source]", "/etc/passwd")
    page.click("dialog button.primary")
    page.wait_for_selector("dialog >> text=is not allowed here")
    page.fill("dialog input[name=source]", "synthetic:street?seed=3&fps=15&live=1")
    page.click("dialog button.primary")
    page.wait_for_selector("text=live ·")


def add_query(page: Any) -> None:
    try_words(page, "a dog on a lead")
    assert page.locator(".past img").count() >= 1
    page.click("text=Watch for it")
    page.wait_for_selector(".query .words:has-text('a dog on a lead')")


def try_words(page: Any, text: str) -> None:
    """Tries a query on the last minute, again while no picture is in memory yet."""
    page.fill("input[aria-label='New query']", text)
    for _ in range(60):
        page.click("button:has-text('Try')")
        page.wait_for_selector("text=/In the last minute|in memory yet/")
        if page.locator("text=In the last minute").count():
            return
        page.wait_for_timeout(500)
    raise AssertionError("no picture came into memory")


def draw_zone(page: Any) -> None:
    page.click("text=Edit zones")
    page.click("text=New zone")
    page.fill("dialog input[name=id]", "door")
    page.click("dialog button.primary")
    box = page.locator("svg.editor").bounding_box()
    for x, y in ((0.02, 0.02), (0.98, 0.02), (0.98, 0.96), (0.02, 0.96)):
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.keyboard.press("Enter")
    page.wait_for_selector("text=would have entered door")
    page.locator("[data-corner='0']").focus()
    page.keyboard.press("ArrowRight")
    page.click("button:has-text('Save')")
    page.wait_for_selector("svg.editor", state="detached")


def find_event(page: Any) -> None:
    page.fill("header input[type=search]", "lane dog lead")
    page.keyboard.press("Enter")
    page.wait_for_selector(".event")
    page.click(".event >> nth=0")
    page.wait_for_selector("text=Why this event exists")


def remove_camera(page: Any, name: str = "lane") -> None:
    page.click("main a:has-text('Go to the camera')")
    page.click("section.panel:has-text('Change the address') button.danger")
    page.wait_for_selector(f"dialog >> text=Remove {name}?")
    page.click("dialog button.primary")
    page.wait_for_selector("text=2 of 2 cameras live")


def test_an_operator_adds_an_rtsp_camera_and_plays_the_clip_of_its_event(tmp_path):
    text = TEXT + "  sources: [127.0.0.0/8]\n"
    text += f"media: {{folder: {tmp_path / 'media'}, clips: {{before_s: 1, after_s: 1}}}} # kept for a week\n"
    path = make_clip(tmp_path / "source.mp4", 100)

    async def go(address: str) -> None:
        async with running(tmp_path, text) as (client, file, pipeline):
            await asyncio.to_thread(walk_to_clip, f"http://127.0.0.1:{client._port}/", file, address)
            tally = pipeline.clips()
        assert tally.written >= 1
        assert file.read_text() == text

    with RtspServer({"cam": path}) as server:
        asyncio.run(go(server.url()))


def walk_to_clip(base: str, file: Path, address: str) -> None:
    with open_browser() as browser:
        watched = WatchedPage(browser, base)
        page = watched.page
        page.set_default_timeout(90_000)
        watched.log_in(OPERATOR)
        page.click("text=Add a camera")
        page.fill("dialog input[name=name]", "door")
        page.fill("dialog input[name=source]", address)
        page.click("dialog button.primary")
        page.wait_for_selector("text=live ·")
        try_words(page, "a cat")
        page.click("text=Watch for it")
        page.wait_for_selector(".query .words:has-text('a cat')")
        assert yaml.safe_load(file.read_text())["streams"][2]["queries"][-1]["text"] == "a cat"
        open_match(page)
        for _ in range(100):  # the clip ends a second after the event
            if page.locator("video").count():
                break
            page.wait_for_timeout(200)
            page.reload(wait_until="commit")
            page.wait_for_selector("text=Why this event exists")
        playing = "(async () => { const video = document.querySelector('video'); video.muted = true; "
        playing += "await video.play(); return [video.videoWidth, video.duration]; })()"
        width, seconds = page.evaluate(playing)
        assert width == 320
        assert 0.5 < seconds < 15
        remove_camera(page, "door")
        assert watched.complaints == []


def open_match(page: Any) -> None:
    for _ in range(60):
        page.fill("header input[type=search]", "cat match")
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)
        found = page.locator(".event:has-text('cat')")
        if found.count():
            found.last.click()
            page.wait_for_selector("text=Why this event exists")
            return
    raise AssertionError("no event came")


SIZES = {"desk-light": (1280, 800, "light"), "desk-dark": (1280, 800, "dark"), "phone-light": (390, 844, "light")}
SIZES["phone-dark"] = (390, 844, "dark")


@pytest.mark.parametrize("size", SIZES)
def test_every_view_of_an_operator_is_clean_and_fits_its_window(size, tmp_path):
    async def go() -> None:
        async with running(tmp_path) as (client, _file, _pipeline):
            await asyncio.to_thread(visit_views, f"http://127.0.0.1:{client._port}/", *SIZES[size])

    asyncio.run(go())


def visit_views(base: str, width: int, height: int, scheme: str) -> None:
    with open_browser() as browser:
        watched = WatchedPage(browser, base, width=width, height=height, scheme=scheme)
        page = watched.page
        page.set_default_timeout(90_000)
        watched.log_in(OPERATOR)
        page.wait_for_selector("text=2 of 2 cameras live")
        assert watched.check_layout() == [], "grid"
        page.click("text=Add a camera")
        assert watched.check_layout() == [], "dialog"
        page.click("dialog >> text=Cancel")
        watched.open("camera/gate", ".event")
        page.wait_for_selector("text=live ·")
        try_words(page, "a dog")
        assert watched.check_layout() == [], "camera with a trial"
        compare_golden(
            "queries-operator.aria.txt", queries_alone(watched.describe("section.panel:has-text('Queries')"))
        )
        page.click("text=Edit zones")
        page.wait_for_selector("text=would have entered yard")
        page.click("text=Corners of yard as numbers")
        assert watched.check_layout() == [], "editor"
        text = watched.describe("section[aria-label^='Editor']")
        compare_golden("editor-operator.aria.txt", re.sub("N tracks? ", "N tracks ", text))
        watched.open("events", ".event")
        assert watched.check_layout() == [], "events"
        page.click(".event >> nth=0")
        page.wait_for_selector("text=Why this event exists")
        assert watched.check_layout() == [], "event"
        watched.open("counts", ".chart")
        assert watched.check_layout() == [], "counts"
        watched.open("health", "table")
        page.click("text=Effective configuration")
        assert watched.check_layout() == [], "health"


def queries_alone(text: str) -> str:
    """The tree of the panel of queries without what depends on how much has been seen."""
    lines = [line for line in text.splitlines() if not re.search("track|figure|- img|object|uggested|picture", line)]
    lines = [line.replace(" · N today", "") for line in lines]
    return "\n".join(lines) + "\n"


def test_a_change_of_the_file_reaches_the_open_page(tmp_path):
    """Without a change through the page: the zone comes from an editor of the file."""

    async def go() -> None:
        async with running(tmp_path) as (client, file, pipeline):
            ready, changed = asyncio.Event(), asyncio.Event()
            loop = asyncio.get_running_loop()
            seen = asyncio.create_task(
                asyncio.to_thread(watch_zone, f"http://127.0.0.1:{client._port}/", loop, ready, changed)
            )
            await ready.wait()
            file.write_text(TEXT.replace("      - id: yard", "      - id: garden"))
            await pipeline.apply(load_config(file).model_copy(update={"web": pipeline.config.web}))
            changed.set()
            assert await seen == ["garden"]

    asyncio.run(go())


def watch_zone(base: str, loop: Any, ready: asyncio.Event, changed: asyncio.Event) -> list[str]:
    """The names of the zones that the page knows after a change."""
    with open_browser() as browser:
        watched = WatchedPage(browser, base)
        page = watched.page
        watched.log_in(OPERATOR)
        watched.open("camera/gate", ".query")
        page.evaluate(NOTE_ZONES)
        page.wait_for_timeout(5000)  # two messages of health, so that the server knows the state before
        loop.call_soon_threadsafe(ready.set)
        asyncio.run_coroutine_threadsafe(changed.wait(), loop).result()
        for _ in range(300):
            if found := page.evaluate("window.zoneNames"):
                return found
            page.wait_for_timeout(200)
        return []


NOTE_ZONES = """() => window.groundstreamLive.on('zones', async ({stream}) => {
  const answer = await fetch(`/api/v1/streams/${stream}/zones`);
  window.zoneNames = (await answer.json()).map(zone => zone.id);
}) && null"""


def test_logging_out_ends_the_live_pictures_of_that_login(tmp_path):
    async def go() -> None:
        async with running(tmp_path) as (client, _file, _pipeline):
            await asyncio.to_thread(log_out_elsewhere, f"http://127.0.0.1:{client._port}/")

    asyncio.run(go())


def log_out_elsewhere(base: str) -> None:
    with open_browser() as browser:
        watched = WatchedPage(browser, base)
        watched.page.set_default_timeout(90_000)
        watched.log_in(OPERATOR)
        other = watched.page.context.new_page()
        other.goto(base, wait_until="commit")
        other.click("button[aria-label='Log out']")
        watched.page.wait_for_selector("text=Your session has ended")
