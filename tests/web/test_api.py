"""The HTTP API: rights, errors, lists, the event feed, and requests of other sites."""

from __future__ import annotations

import json
import threading
import time

import pytest
from starlette.websockets import WebSocketDisconnect

from sinks.event import EventType
from streamer.config import WebConfig
from streamer.media.folder import MediaFolder
from streamer.web.app import create_app, openapi_document
from streamer.web.event_store import EventStore
from tests.web.rooms import HOST, OPERATOR, VIEWER, client, event, match, room, track

JSON = {"Content-Type": "application/json"}


def operations():
    """(method, path, operation) of every route in the document."""
    document = openapi_document(create_app(room()))
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def filled(count: int = 5, **parts):
    store = EventStore(None)
    store.add_events([event(number) for number in range(1, count + 1)])
    return room(store, **parts)


def concrete(path: str) -> str:
    """A path whose parameters have values."""
    values = {"stream": "gate", "query": "q", "event": "1.gate.1", "uid": "T", "sha256": "0" * 64, "index": "1"}
    values |= {"preview": "p", "sink": "s"}
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    assert "{" not in path
    return path


def test_every_operation_names_the_role_that_it_needs():
    roles = {"none", "viewer", "operator", "viewer or loopback"}
    assert [path for _, path, operation in operations() if operation.get("x-role") not in roles] == []


def test_every_change_needs_an_operator_except_the_login():
    unsafe = {path for method, path, operation in operations() if method != "get" and operation["x-role"] != "operator"}
    assert unsafe == {"/api/v1/session"}


@pytest.mark.parametrize(("method", "path", "operation"), list(operations()))
def test_no_route_answers_without_its_role(method, path, operation):
    role = operation["x-role"]
    if role not in {"viewer", "operator"}:
        return
    state = room()
    answer = client(state, None).request(method, concrete(path))
    assert answer.status_code == 401, path
    assert answer.headers["content-type"] == "application/problem+json"
    if role == "operator":
        assert client(state, VIEWER).request(method, concrete(path)).status_code == 403


def test_a_wrong_token_is_refused_and_after_a_few_the_address_waits():
    state = room()
    statuses = [client(state, "wrong").get("/api/v1/streams").status_code for _ in range(3)]
    assert statuses == [401, 429, 429]


def test_lists_have_cursors_and_bounds():
    browser = client(filled(7))
    first = browser.get("/api/v1/events?limit=5").json()
    second = browser.get(f"/api/v1/events?limit=5&after={first['next']}").json()
    assert [item["id"] for item in first["items"] + second["items"]] == [f"1.gate.{n}" for n in range(7, 0, -1)]
    assert second["next"] is None
    for query in ("limit=0", "limit=501", "limit=x", "after=", "after=%00", "since=yesterday", "tz=Mars", "tz="):
        answer = browser.get(f"/api/v1/events?{query}")
        assert answer.status_code == 422, query
        assert set(answer.json()) >= {"type", "title", "status", "detail"}


@pytest.mark.parametrize(
    "query", ["time_of_day=25:00-01:00", "time_of_day=10:00-10:00", "until=99999-01-01", "q=" + "x" * 501]
)
def test_filters_that_cannot_be_understood_are_named(query):
    assert client(filled()).get(f"/api/v1/events?{query}").status_code == 422


def test_one_event_and_its_track_are_found():
    store = EventStore(None)
    store.add_events(
        [event(1, EventType.MATCH_BEGIN, subject="TRACK", track=track(4, "TRACK"), matches=[match("red car")])]
    )
    browser = client(room(store))
    assert browser.get("/api/v1/events/1.gate.1").json()["subject"] == "TRACK"
    found = browser.get("/api/v1/tracks/TRACK").json()
    assert (found["number"], found["queries"], found["path"]) == (4, ["red car"], [[0.5, 0.8]])
    assert browser.get("/api/v1/tracks/NONE").status_code == 404
    assert browser.get("/api/v1/events/none").status_code == 404


def feed_events(lines) -> list[tuple[str, str]]:
    """(event, id) of server-sent events."""
    found, kind, number = [], "", ""
    for line in lines:
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("id: "):
            number = line[4:]
        elif line.startswith("data: "):
            found.append((kind, number))
            if len(found) >= 3:
                return found
    return found


def test_the_feed_resumes_behind_the_last_event_id():
    state = filled(5)
    with client(state).stream("GET", "/api/v1/events/stream?follow=false", headers={"Last-Event-ID": "2"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert feed_events(answer.iter_lines()) == [("track.begin", "3"), ("track.begin", "4"), ("track.begin", "5")]


def test_the_feed_sends_events_as_they_are_stored():
    state = filled(1)

    def add() -> None:
        while not state.feed_readers:
            time.sleep(0.01)
        state.store.add_events([event(2), event(3)])
        time.sleep(2.0)
        state.is_closing = True
        state.feed.close()

    threading.Thread(target=add).start()
    with client(state).stream("GET", "/api/v1/events/stream") as answer:
        assert feed_events(answer.iter_lines()) == [("track.begin", "2"), ("track.begin", "3")]


def test_the_feed_reports_a_gap_when_the_last_event_has_expired():
    state = filled(5)
    state.store._db.execute("DELETE FROM events WHERE row <= 3")
    with client(state).stream("GET", "/api/v1/events/stream?after=1&follow=false") as answer:
        assert [kind for kind, _ in feed_events(answer.iter_lines())] == ["gap", "track.begin", "track.begin"]


def test_a_last_event_id_of_another_feed_is_refused():
    assert client(filled()).get("/api/v1/events/stream", headers={"Last-Event-ID": "x"}).status_code == 422


def test_counts_per_bucket():
    found = client(filled(5)).get("/api/v1/counts?bucket=60&since=2026-01-01T00:00:00Z").json()
    assert sum(item["events"] for item in found["items"]) == 5
    assert client(filled()).get("/api/v1/counts?bucket=7").status_code == 422


def test_health_needs_no_login_and_says_nothing_else():
    browser = client(room(), None)
    assert browser.get("/healthz").json() == {"status": "ok"}
    assert browser.get("/readyz").json() == {"status": "ok"}


def test_errors_show_no_address_with_credentials():
    answer = client(room(), OPERATOR).post("/api/v1/sinks", json={"address": "kafak://me:secret@host/t"})
    assert answer.status_code == 422
    assert "secret" not in answer.text


def login(browser, token: str = OPERATOR) -> None:
    assert browser.post("/api/v1/session", json={"token": token}).status_code == 200


def test_a_login_sets_a_cookie_that_scripts_and_other_sites_do_not_get():
    answer = client(room(), None).post("/api/v1/session", json={"token": VIEWER})
    cookie = answer.headers["set-cookie"]
    assert answer.json() == {"role": "viewer"}
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"))
    secure = client(room(), None, base_url="https://testserver").post("/api/v1/session", json={"token": VIEWER})
    assert secure.headers["set-cookie"].startswith("__Host-groundstream=")
    assert "Secure" in secure.headers["set-cookie"]


def test_a_login_link_works_once():
    state = room()
    from streamer.web.access import Role

    code = state.access.codes.issue(Role.OPERATOR)
    assert client(state, None).post("/api/v1/session", json={"code": code}).json() == {"role": "operator"}
    assert client(state, None).post("/api/v1/session", json={"code": code}).status_code == 401


def test_a_change_with_a_cookie_needs_our_origin_and_json_or_our_header():
    browser = client(room(), None)
    login(browser)
    body = json.dumps({"address": "kafka://h:9092/t"})

    def status(**headers) -> int:
        return browser.post(
            "/api/v1/sinks", content=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
        ).status_code

    foreign = [
        status(content_type="application/json"),
        status(content_type="application/json", origin="http://evil.example"),
        status(content_type="application/json", origin="http://testserver:81"),
        status(content_type="application/json", origin="null"),
        status(content_type="text/plain", origin=HOST),
    ]
    assert foreign == [403] * 5
    # With our origin it reaches the handler, which has no pipeline to change here.
    assert "other site" not in browser.post("/api/v1/sinks", content=body, headers={**JSON, "Origin": HOST}).text
    assert "another site" not in browser.post("/api/v1/sinks", content=body, headers={**JSON, "Origin": HOST}).text


def test_logging_out_ends_the_session():
    browser = client(room(), None)
    login(browser, VIEWER)
    assert browser.get("/api/v1/streams").status_code == 200
    assert browser.delete("/api/v1/session", headers={"Origin": "http://evil.example"}).status_code == 403
    assert browser.delete("/api/v1/session", headers={"Origin": HOST, "X-Groundstream": "1"}).status_code == 204
    assert browser.get("/api/v1/streams").status_code == 401


@pytest.mark.parametrize("origin", ["http://evil.example", "http://testserver:81", "null", None])
def test_a_page_of_another_site_cannot_open_the_live_socket(origin):
    with client(room(), None) as browser:
        login(browser, VIEWER)
        headers = {} if origin is None else {"Origin": origin}
        with pytest.raises(WebSocketDisconnect), browser.websocket_connect("/api/v1/live", headers=headers):
            pass


def test_our_page_opens_the_live_socket_and_gets_health():
    with client(room(), None) as browser:
        login(browser, VIEWER)
        with browser.websocket_connect("/api/v1/live", headers={"Origin": HOST}) as socket:
            message = socket.receive_json()
    assert message["type"] == "health"
    assert [stream["name"] for stream in message["streams"]] == ["gate", "yard"]


def read_all(socket) -> None:
    """Reads until the server ends the connection."""
    while True:
        socket.receive_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"op":"erase"}',
        '{"op":"ack","count":-1}',
        '{"op":"watch"}',
        '{"op":"watch","streams":{"g":{"fps":0}}}',
    ],
)
def test_a_message_that_the_socket_does_not_know_ends_it(text):
    with client(room()) as browser, browser.websocket_connect("/api/v1/live") as socket:
        socket.receive_json()
        socket.send_text(text)
        with pytest.raises(WebSocketDisconnect) as caught:
            read_all(socket)
    assert caught.value.code == 1008


def test_too_many_messages_end_the_socket():
    with client(room()) as browser, browser.websocket_connect("/api/v1/live") as socket:
        socket.receive_json()
        for _ in range(25):
            socket.send_text('{"op":"pause"}')
        with pytest.raises(WebSocketDisconnect):
            read_all(socket)


def test_every_answer_has_the_security_headers():
    browser = client(room(), None)
    for path in ("/", "/healthz", "/api/v1/streams", "/static/app.js", "/nothing"):
        headers = browser.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_a_large_body_is_refused_before_it_is_read():
    big = {"text": "x" * 100_000}
    browser = client(room(), OPERATOR)
    assert browser.post("/api/v1/streams/gate/queries/preview", json=big).status_code == 413
    chunks = (b'{"text": "' if n == 0 else b"x" * 1000 for n in range(200))
    assert browser.post("/api/v1/streams/gate/queries/preview", content=chunks, headers=JSON).status_code == 413


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e%2fsecret", "..%2f..%2fetc%2fpasswd", "%00", "A" * 64, "0" * 63, "0" * 65]
)
def test_media_are_found_by_their_hash_only(tmp_path, name):
    (tmp_path / "secret").write_text("x")
    answer = client(room(media=[MediaFolder(tmp_path / "media")])).get(f"/api/v1/media/{name}")
    assert answer.status_code in {404, 422}


def test_a_stored_picture_of_an_event_is_served_and_cached(tmp_path):
    digest = "ab" * 32
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / f"{digest}.jpg").write_bytes(b"\xff\xd8jpeg")
    store = EventStore(None)
    store.add_events([event(1, media=[{"kind": "snapshot", "uri": "file:x", "sha256": digest}]), event(2)])
    browser = client(room(store, media=[MediaFolder(tmp_path)]))
    answer = browser.get("/api/v1/events/1.gate.1/snapshot.jpg")
    assert answer.content == b"\xff\xd8jpeg"
    assert "immutable" in answer.headers["cache-control"]
    assert browser.get(f"/api/v1/media/{digest}", headers={"Range": "bytes=0-1"}).status_code == 206
    assert browser.get("/api/v1/events/1.gate.1/clip.mp4").status_code == 404


def test_metrics_need_a_token_from_other_machines_and_from_pages_of_other_names():
    app = create_app(room())
    from fastapi.testclient import TestClient

    def status(address: str, **headers) -> int:
        return (
            TestClient(app, client=(address, 5), base_url="http://127.0.0.1:8090")
            .get("/metrics", headers=headers)
            .status_code
        )

    assert status("127.0.0.1") == 200
    assert status("127.0.0.1", Host="evil.example:8090") == 401
    assert status("10.0.0.9") == 401
    assert status("10.0.0.9", Authorization=f"Bearer {VIEWER}") == 200


def test_forwarded_headers_count_only_from_trusted_proxies():
    from fastapi.testclient import TestClient

    def cookie(settings: WebConfig, proxy: str) -> str:
        browser = TestClient(create_app(room(settings=settings)), client=(proxy, 5))
        headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "1.2.3.4", "X-Forwarded-Host": "video.example"}
        headers["Origin"] = "https://video.example"
        return browser.post("/api/v1/session", json={"token": VIEWER}, headers=headers).headers.get("set-cookie", "")

    trusting = WebConfig.model_validate({"trusted_proxies": ["10.0.0.0/8"]})
    assert cookie(trusting, "10.1.1.1").startswith("__Host-")
    assert cookie(trusting, "11.1.1.1") == ""
    assert cookie(WebConfig(), "10.1.1.1") == ""


@pytest.mark.parametrize("path", ["/", "/video/"])
def test_the_page_is_served_under_the_path_of_a_proxy_that_cuts_it_off_or_not(path):
    browser = client(room(settings=WebConfig(root_path="/video")))
    text = browser.get(path).text
    assert 'src="/video/static/app.js"' in text
    assert "{{ROOT}}" not in text
    for address in ("static/app.js", "api/v1/streams", "camera/gate"):
        assert browser.get(path + address).status_code == 200
