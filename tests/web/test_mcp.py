"""The MCP server over a running monitor, by the official client: on standard input and output, over HTTP, by roles."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("mcp")
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from sinks.event import EventType
from streamer.config import WebConfig
from streamer.media.folder import MediaFolder
from streamer.web.event_store import EventStore
from streamer.web.mcp_server import create_server
from tests.web.rooms import OPERATOR, VIEWER, event, match, pictured_track, room, serving
from tests.web.test_changes import running

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {
    "list_streams",
    "find_events",
    "count_events",
    "describe_track",
    "preview_query",
    "set_query",
    "remove_query",
}


@pytest.fixture
def served(tmp_path):
    """A server with five matches of one track, which has a picture."""
    folder = MediaFolder(tmp_path)
    seen, medium = pictured_track(folder)
    store = EventStore(None)
    store.add_events(
        [event(n, EventType.MATCH_BEGIN, matches=[match("a red car")], **seen) for n in range(1, 6)]
        + [event(6, EventType.MEDIA, cause="1.gate.1", media=[medium], **seen), event(7, EventType.ZONE_ENTER)]
    )
    with serving(room(store, WebConfig(port=0), media=[folder])) as server:
        yield server.address.url


def content(result):
    """The parsed first part of an answer; fails for an error."""
    assert not result.is_error, result.content
    return json.loads(result.content[0].text)


def refusal(result) -> str:
    assert result.is_error
    return result.content[0].text


def test_events_are_found_counted_and_described_with_a_picture(served):
    async def go() -> None:
        async with Client(create_server(served, VIEWER)) as client:
            listed = (await client.list_tools()).tools
            assert {tool.name for tool in listed} == TOOLS
            assert all(tool.description for tool in listed)
            streams = content(await client.call_tool("list_streams"))["streams"]
            assert [stream["name"] for stream in streams] == ["gate", "yard"]
            found = content(await client.call_tool("find_events", {"words": "red car", "limit": 2}))
            assert [one["id"] for one in found["events"]] == ["1.gate.5", "1.gate.4"]
            rest = await client.call_tool("find_events", {"words": "red car", "after": found["next"]})
            assert len(content(rest)["events"]) == 3
            late = await client.call_tool("find_events", {"since": found["events"][1]["time"], "kind": "match.*"})
            assert [one["id"] for one in content(late)["events"]] == ["1.gate.5", "1.gate.4"]
            counted = content(await client.call_tool("count_events", {"words": "red car", "bucket_s": 86400}))
            assert [(one["kind"], one["events"], one["tracks"]) for one in counted["items"]] == [("match.begin", 5, 1)]
            described = await client.call_tool("describe_track", {"track": "TRACK"})
            assert content(described)["queries"] == ["a red car"]
            assert described.content[1].type == "image"
            assert described.content[1].mime_type == "image/jpeg"
            assert "there is no track" in refusal(await client.call_tool("describe_track", {"track": "NONE"}))
            assert "since" in refusal(await client.call_tool("find_events", {"since": "yesterday"}))

    asyncio.run(asyncio.wait_for(go(), 50))


def test_the_roles_of_the_monitor_hold(served):
    async def go() -> None:
        change = {"stream": "gate", "query": "dog", "text": "a dog"}
        async with Client(create_server(served, VIEWER)) as client:
            assert "operator" in refusal(await client.call_tool("set_query", change))
            assert "operator" in refusal(await client.call_tool("preview_query", {"stream": "gate", "text": "a dog"}))
        async with Client(create_server(served, "wrong-token-0123456789")) as client:
            assert "token" in refusal(await client.call_tool("list_streams"))
        async with Client(create_server(served)) as client:
            assert "GROUNDSTREAM_TOKEN" in refusal(await client.call_tool("list_streams"))

    asyncio.run(asyncio.wait_for(go(), 50))


@pytest.mark.timeout(120)
def test_an_operator_tries_and_sets_a_query_which_the_file_then_says(tmp_path):
    async def go() -> None:
        async with running(tmp_path) as (monitor, file, _pipeline):
            url = f"http://127.0.0.1:{monitor._port}"
            async with Client(create_server(url, OPERATOR)) as client:
                for _ in range(200):
                    tried = await client.call_tool("preview_query", {"stream": "gate", "text": "a dog"})
                    if not (tried.is_error and "in memory yet" in refusal(tried)):
                        break
                    await asyncio.sleep(0.2)
                assert content(tried)["frames"] >= 1
                assert content(tried)["counts"][0]["threshold"] == 0.05
                assert tried.content[1].mime_type == "image/jpeg"
                made = {"stream": "gate", "query": "dog", "text": "a dog", "threshold": 0.4}
                queries = content(await client.call_tool("set_query", made))["queries"]
                assert [query["id"] for query in queries["items"]] == ["a-person", "dog"]
                assert "a dog" in file.read_text()
                await client.call_tool("remove_query", {"stream": "gate", "query": "dog"})
                assert "a dog" not in file.read_text()

    asyncio.run(asyncio.wait_for(go(), 100))


@pytest.mark.timeout(120)
def test_the_command_serves_on_standard_input_and_output(served):
    async def go() -> None:
        environment = {**os.environ, "GROUNDSTREAM_TOKEN": VIEWER, "PYTHONPATH": str(ROOT)}
        command = StdioServerParameters(
            command=sys.executable, args=["-m", "groundstream", "mcp", served], env=environment, cwd=str(ROOT)
        )
        async with Client(command) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            found = content(await client.call_tool("find_events", {"words": "car"}))
            assert len(found["events"]) == 5

    asyncio.run(asyncio.wait_for(go(), 100))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def http_server(monitor: str):
    """The command over HTTP in a process of its own, which has an operator's token that it must not use."""
    port = free_port()
    environment = {**os.environ, "GROUNDSTREAM_TOKEN": OPERATOR, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "groundstream", "mcp", monitor, "--http", f"127.0.0.1:{port}"],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.timeout(120)
def test_over_http_every_request_has_the_rights_of_its_own_token(served):
    async def go() -> None:
        for headers, words in (({"Authorization": f"Bearer {VIEWER}"}, ""), ({}, "Authorization: Bearer")):
            async with (
                httpx2.AsyncClient(headers=headers, timeout=30) as http,
                Client(streamable_http_client(url, http_client=http)) as client,
            ):
                answer = await client.call_tool("find_events", {"words": "car"})
                if words:
                    assert words in refusal(answer)
                else:
                    assert len(content(answer)["events"]) == 5

    with http_server(served) as url:
        asyncio.run(asyncio.wait_for(go(), 100))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["ftp://somewhere"], "write http://HOST:8090"), (["--http", "here:there"], "--http 'here:there' is not")],
)
def test_a_wrong_address_is_one_sentence(arguments, words):
    done = subprocess.run(
        [sys.executable, "-m", "groundstream", "mcp", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode in {1, 2}
    assert words in done.stderr
    assert "Traceback" not in done.stderr
