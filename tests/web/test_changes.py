"""Changes through the HTTP API of a running pipeline: what is in force, what the file says, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from streamer.build import open_pipeline
from streamer.config import load_config
from streamer.web.client import ApiError, MonitorClient, connect
from streamer.web.config_document import ConfigDocument
from streamer.web.server import WebRoom
from tests.support.fakes import FakeDetector
from tests.web.rooms import OPERATOR, VIEWER

pytestmark = pytest.mark.timeout(240)

TEXT = f"""# Cameras of the yard
streams:
  - source: synthetic:street?seed=5&fps=20&live=1 # the gate
    name: gate
    queries:
      - a person # who comes
    zones:
      - id: yard
        polygon: [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]

  - source: synthetic:street?seed=6&fps=20&live=1
    name: back
queries: [a car]
sinks: [] # the page alone
web:
  port: 0
  tokens:
    viewer: {VIEWER}
    operator: {OPERATOR}
"""


@contextlib.asynccontextmanager
async def running(folder: Path, text: str = TEXT) -> AsyncIterator[tuple[MonitorClient, Path, object]]:
    """A monitor of two synthetic streets whose configuration is `text`; its client, its file and its pipeline."""
    file = folder / "cameras.yaml"
    if not file.exists():
        file.write_text(text)
    document = ConfigDocument(file, folder / "state" / "overrides.yaml")
    config = document.load()
    room = WebRoom(config.web, folder / "state", document)
    async with open_pipeline(
        config, detector=FakeDetector(), more_sinks=room.sinks(), recorders=room.recorders
    ) as pipeline:
        task = asyncio.create_task(pipeline.run())
        async with room.serve(pipeline) as address:
            yield connect(address.url, token=OPERATOR), file, pipeline
        await pipeline.stop()
        await task
    room.close()


def run(folder: Path, story: Callable[..., Awaitable[None]], text: str = TEXT) -> None:
    """Runs a story in front of a running monitor."""

    async def go() -> None:
        async with asyncio.timeout(200), running(folder, text) as (client, file, pipeline):
            await story(client, file, pipeline)

    asyncio.run(go())


async def until(read: Callable[[], Awaitable[bool]]) -> None:
    """Waits until something is so."""
    for _ in range(1000):
        if await read():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it never happened")


async def status_of(call: Awaitable[object]) -> int:
    """The status with which a call is refused."""
    with pytest.raises(ApiError) as caught:
        await call
    return caught.value.status


def test_a_query_that_is_added_is_in_force_in_the_file_and_in_an_event(tmp_path):
    async def story(client, file, pipeline) -> None:
        await client.set_query("gate", "red-car", "a red car", threshold=0.4)
        assert [query["text"] for query in await client.list_queries("gate")] == ["a person", "a red car"]
        text = file.read_text()
        assert text.startswith("# Cameras of the yard")
        assert all(comment in text for comment in ("# the gate", "# the page alone"))
        saved = load_config(file).streams[0].queries
        assert [(query.text, query.threshold) for query in saved] == [("a person", None), ("a red car", 0.4)]
        await until(lambda: has_event(client, type="query", q="red car"))

    run(tmp_path, story)


async def has_event(client: MonitorClient, **filters: str) -> bool:
    return bool(await client.list_events(**filters))


def test_a_write_needs_the_tag_of_what_was_read(tmp_path):
    async def story(client, file, pipeline) -> None:
        path = "/streams/gate/zones"
        zones = [{"id": "door", "polygon": [[0, 0], [1, 0], [1, 1]]}]
        assert await status_of(client.request("PUT", path, body=zones, etag='"old"')) == 412
        assert "yard" in file.read_text()
        await client.request("PUT", path, body=zones)
        assert [zone["id"] for zone in await client.request("GET", path)] == ["door"]
        assert [zone.id for zone in load_config(file).streams[0].zones] == ["door"]

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("zones", [{"id": "bow", "polygon": [[0.1, 0.1], [0.9, 0.9], [0.9, 0.1], [0.1, 0.9]]}]),
        ("zones", [{"id": "a", "polygon": [[0, 0], [1, 0], [1, 1]]}, {"id": "a", "polygon": [[0, 0], [1, 0], [1, 1]]}]),
        ("lines", [{"id": "point", "points": [[0.5, 0.5], [0.5, 0.5]]}]),
        ("queries", []),
        ("queries", [{"text": "a dog"}, {"text": "a dog"}]),
        ("queries", [{"text": "   "}]),
        ("counts", [{"of": "nothing"}]),
    ],
)
def test_a_change_that_cannot_be_used_is_refused_whole(tmp_path, path, body):
    async def story(client, file, pipeline) -> None:
        before = pipeline.config
        assert await status_of(client.request("PUT", f"/streams/gate/{path}", body=body)) == 422
        assert pipeline.config == before
        assert file.read_text() == TEXT

    run(tmp_path, story)


def test_a_query_is_paused_and_resumed(tmp_path):
    async def story(client, file, pipeline) -> None:
        await client.set_query("gate", "dog", "a dog")
        paused = await client.request("PATCH", "/streams/gate/queries/dog", body={"paused": True})
        assert [query["paused"] for query in paused["items"]] == [False, True]
        assert load_config(file).streams[0].queries[1].paused
        await client.request("PATCH", "/streams/gate/queries/dog", body={"paused": False})
        await client.remove_query("gate", "dog")
        assert [query["text"] for query in await client.list_queries("gate")] == ["a person"]

    run(tmp_path, story)


def test_a_camera_is_added_watched_and_removed_while_the_others_go_on(tmp_path):
    async def story(client, file, pipeline) -> None:
        body = {"name": "new", "source": "synthetic:street?seed=9&fps=20&live=1"}
        await client.request("POST", "/streams", body=body)

        async def is_live() -> bool:
            return any(s["name"] == "new" and s["analysed"] > 3 for s in await client.list_streams())

        await until(is_live)
        assert len(await client.read_snapshot("new")) > 1000
        assert await status_of(client.request("POST", "/streams", body=body)) == 409
        await client.request("DELETE", "/streams/new")
        assert [stream["name"] for stream in await client.list_streams()] == ["gate", "back"]
        assert file.read_text().rstrip("\n") == TEXT.rstrip("\n")

    run(tmp_path, story)


@pytest.mark.parametrize(
    "source",
    [
        "/etc/passwd",
        "file:/etc/passwd",
        "video.mp4",
        "rtsp://127.0.0.1/x",
        "http://localhost:8090/",
        "rtsp://169.254.169.254/",
    ],
)
def test_a_source_through_which_this_machine_would_be_read_is_refused(tmp_path, source):
    async def story(client, file, pipeline) -> None:
        assert await status_of(client.request("POST", "/streams", body={"name": "x", "source": source})) == 422

    run(tmp_path, story)


def test_changes_are_kept_beside_a_file_that_cannot_be_written_until_the_file_changes(tmp_path):
    odd = TEXT.replace("    name: gate", "    name:   gate")  # ruamel would write it otherwise

    async def change(client, file, pipeline) -> None:
        await client.set_query("gate", "dog", "a dog")
        assert file.read_text() == odd
        config = await client.request("GET", "/config")
        assert config["overridden"] == ["streams.0.queries"]
        assert not config["writable"]

    async def still_there(client, file, pipeline) -> None:
        assert [query["text"] for query in await client.list_queries("gate")] == ["a person", "a dog"]

    async def file_wins(client, file, pipeline) -> None:
        assert [query["text"] for query in await client.list_queries("gate")] == ["a bird"]

    run(tmp_path, change, odd)
    assert stat.S_IMODE((tmp_path / "state" / "overrides.yaml").stat().st_mode) == 0o600
    run(tmp_path, still_there)
    (tmp_path / "cameras.yaml").write_text(odd.replace("- a person # who comes", "- a bird"))
    run(tmp_path, file_wins)


def test_a_query_is_tried_on_the_last_minute_before_it_is_switched_on(tmp_path):
    async def story(client, file, pipeline) -> None:
        async def begins() -> bool:
            try:
                begun.append(await client.request("POST", "/streams/gate/queries/preview", body={"text": "a dog"}))
            except ApiError as error:
                if error.status != 409:  # nothing is in memory yet
                    raise
            return bool(begun)

        begun: list[dict] = []
        await until(begins)
        text = (await client.request("GET", f"/streams/gate/queries/preview/{begun[0]['id']}")).decode()
        assert text.count("event: frame") == begun[0]["frames"] > 0
        assert '"suggested_threshold"' in text
        assert [query["text"] for query in await client.list_queries("gate")] == ["a person"]

    run(tmp_path, story)


def test_the_configuration_is_shown_without_secrets(tmp_path):
    async def story(client, file, pipeline) -> None:
        shown = str(await client.request("GET", "/config"))
        assert OPERATOR not in shown
        assert VIEWER not in shown

    run(tmp_path, story)


def test_what_the_file_says_is_listed_even_where_the_api_would_not_take_it(tmp_path):
    long = "a person " * 80
    text = TEXT.replace("      - a person # who comes", f"      - text: {long.strip()}\n        id: a/b").replace(
        "      - id: yard", f"      - id: {'z' * 300}\n        dwell_s: [100000]"
    )

    async def story(client, file, pipeline) -> None:
        assert [query["id"] for query in await client.list_queries("gate")] == ["a/b"]
        assert [zone["dwell_s"] for zone in await client.request("GET", "/streams/gate/zones")] == [[100000]]
        await client.set_query("gate", "dog", "a dog")
        assert [query["id"] for query in await client.list_queries("gate")] == ["a/b", "dog"]

    run(tmp_path, story, text)


def test_words_with_control_characters_are_refused(tmp_path):
    async def story(client, file, pipeline) -> None:
        for query, words in (("dog\x06", "a dog"), ("dog", "a dog\x06"), ("dog", "a dog\nand a cat")):
            with pytest.raises(ApiError) as caught:
                await client.set_query("gate", query, words)
            assert caught.value.status == 422
        assert file.read_text() == TEXT

    run(tmp_path, story)
