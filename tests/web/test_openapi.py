"""The OpenAPI document: its golden copy, its bounds, and requests that schemathesis makes of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from sinks.event import EventType
from streamer.config import load_config
from streamer.web.access import RateLimiter
from streamer.web.app import api_schema, create_app
from streamer.web.event_store import EventStore
from tests.web.rooms import OPERATOR, event, match, room, track
from tests.web.test_changes import running

GOLDEN = Path(__file__).parent / "goldens" / "openapi.json"


def test_the_document_is_that_of_the_golden_copy():
    """A change of the API is meant: write it with `groundstream schema --api > tests/web/goldens/openapi.json`."""
    golden = json.loads(GOLDEN.read_text())
    assert {**api_schema(), "info": golden["info"]} == golden


def test_every_number_text_and_list_that_a_client_sends_is_bounded():
    document = api_schema()
    open_ends = []

    def walk(node, place: str) -> None:
        if "$ref" in node:
            return
        kind = node.get("type")
        if kind == "integer" and not ({"minimum", "exclusiveMinimum"} & set(node) and "maximum" in node):
            open_ends.append(place)
        if kind == "string" and not {"maxLength", "enum", "const", "format"} & set(node):
            open_ends.append(place)
        for choice in node.get("anyOf", ()):
            walk(choice, place)
        if "items" in node:
            walk(node["items"], f"{place}[]")

    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                walk(parameter["schema"], f"{method} {path} {parameter['name']}")
    for name, schema in document["components"]["schemas"].items():
        if name.endswith(("Body", "Patch")):
            for field, node in schema.get("properties", {}).items():
                walk(node, f"{name}.{field}")
    assert open_ends == []


@pytest.mark.timeout(120)
def test_no_request_makes_the_server_fail(tmp_path):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings

    store = EventStore(tmp_path / "e.sqlite")
    seen = {"subject": "TRACK", "track": track(4, "TRACK"), "matches": [match("red car")]}
    store.add_events([event(1, EventType.MATCH_BEGIN, **seen), event(2, EventType.ZONE_ENTER, zone={"id": "yard"})])
    state = room(store)
    state.access.writes.wait_s = lambda _key: 0.0
    state.is_closing = True  # feeds end at once
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", create_app(state))
    failed = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/session"):
            continue

        @given(case=operation.as_strategy())
        @settings(
            max_examples=15,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case) -> None:
            answer = case.call(headers={"Authorization": f"Bearer {OPERATOR}"})
            if answer.status_code >= 500 and answer.status_code != 503:
                failed.append((case.method, case.formatted_path, case.query, answer.status_code))

        ask()
    assert failed == []


@pytest.mark.timeout(300)
def test_no_request_makes_a_running_monitor_fail(tmp_path, monkeypatch):
    """Changes reach the pipeline and the file, unlike above."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    monkeypatch.setattr(RateLimiter, "wait_s", lambda _self, _key: 0.0)

    async def go() -> None:
        async with running(tmp_path) as (client, file, pipeline):
            failed, statuses = await asyncio.to_thread(ask_all, f"http://127.0.0.1:{client._port}")
            assert failed == []
            assert {200, 202, 404, 422} <= statuses
            assert {report.stream: report.state.value for report in pipeline.report()} == {
                "gate": "live",
                "back": "live",
            }
            assert load_config(file).streams == pipeline.config.streams

    asyncio.run(go())


def ask_all(base: str) -> tuple[list[tuple[object, ...]], set[int]]:
    """Requests that the server failed to answer, and all statuses. Streams stay, so that their routes are reached."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    failed: list[tuple[object, ...]] = []
    statuses: set[int] = set()
    for result in schemathesis.openapi.from_url(f"{base}/api/v1/openapi.json").get_all_operations():
        operation = result.ok()
        is_endless = operation.path.endswith(("/events/stream", "/live.mjpeg"))
        removes_stream = operation.method == "delete" and operation.path.endswith("/{stream}")
        if is_endless or removes_stream or operation.path.endswith("/session"):
            continue

        @given(case=operation.as_strategy(), stream=st.sampled_from(["gate", "back", None]))
        @settings(
            max_examples=6,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case, stream) -> None:
            if stream is not None and "stream" in (case.path_parameters or {}):
                case.path_parameters["stream"] = stream
            answer = case.call(headers={"Authorization": f"Bearer {OPERATOR}", "If-Match": "*"}, timeout=60)
            statuses.add(answer.status_code)
            if answer.status_code >= 500:
                failed.append(
                    (case.method, case.formatted_path, case.query, case.body, answer.status_code, answer.text)
                )

        ask()
    return failed, statuses
