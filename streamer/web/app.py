"""Web application of a monitor: the page, health, metrics, login and the routes of the HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
from collections.abc import AsyncIterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.staticfiles import StaticFiles

from groundstream import __version__
from sinks.supervision import keep_running, start_task
from streamer.web import event_routes, stream_routes
from streamer.web.access import SESSION_S, Role
from streamer.web.event_store import EventQuery, compact_event
from streamer.web.live_socket import LiveSocket
from streamer.web.models import ClusterAnswer, HealthAnswer, LoginBody, ServerInfo, SessionAnswer
from streamer.web.nodes import HolderRedirect, describe_cluster
from streamer.web.problems import Problem, ProblemDetails, handle_problems
from streamer.web.security import (
    RequestGuard,
    check_cross_site,
    check_login,
    cookie_name,
    find_client,
    find_socket_client,
    is_own_origin,
    public,
    secured,
)
from streamer.web.state import WebState, web_state

log = logging.getLogger("groundstream")

HEALTH_EVERY_S = 2.0
_QUIET_KINDS = frozenset({"coverage", "track.update", "count", "detections"})
_PAGES = ("/", "/camera/{name}", "/events", "/events/{name}", "/counts", "/health", "/login")
_RESTART_S = 1.0
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "testserver"})


def create_app(state: WebState) -> FastAPI:
    """Returns the ASGI application that serves `state`."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        posts = {"web-health": _post_health, "web-events": _post_events}
        tasks = [
            start_task(keep_running(partial(post, state), name=name, pause_s=_RESTART_S), name=name)
            for name, post in posts.items()
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            state.previews.close()

    app = _new_app(lifespan)
    app.state.web = state
    handle_problems(app)
    _add_live(app)
    _add_page(app)
    settings = state.settings
    if state.nodes is not None:
        app.add_middleware(HolderRedirect, state=state)
    app.add_middleware(RequestGuard, trusted_proxies=settings.trusted_proxies, root_path=settings.root_path)
    return app


def _new_app(lifespan: Any = None) -> FastAPI:
    """An application with the routes of the API alone."""
    app = FastAPI(
        title="groundstream",
        version=__version__,
        description="Cameras, queries, events and counts of a running groundstream monitor.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_health(app)
    _add_session(app)
    app.include_router(event_routes.router)
    app.include_router(stream_routes.router)
    _add_document(app)
    return app


def api_schema() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the HTTP API."""
    return openapi_document(_new_app())


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz", **public())
    async def healthz() -> HealthAnswer:
        """The process lives."""
        return HealthAnswer(status="ok")

    @app.get("/readyz", response_model=HealthAnswer, **public(503))
    async def readyz(request: Request) -> Response:
        """Events can be stored and sent, and at least one stream has not failed."""
        state = web_state(request)
        if state.control is not None:
            is_ready = await state.control.is_ready()
        else:
            is_ready = bool(await state.directory.list_streams())
        return JSONResponse({"status": "ok" if is_ready else "not ready"}, 200 if is_ready else 503)

    @app.get("/metrics", response_class=Response, openapi_extra={"x-role": "viewer or loopback"})
    def metrics(request: Request) -> Response:
        """Metrics for Prometheus: with a token, or without one from this machine."""
        if not _is_local(request) and find_client(request) is None:
            raise Problem(
                401, "metrics need a bearer token from another machine", headers={"WWW-Authenticate": "Bearer"}
            )
        registry = web_state(request).registry or CollectorRegistry()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})


def _is_local(request: Request) -> bool:
    """Whether the request comes from this machine and names it: another name in Host is that of a foreign page."""
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    host = request.headers.get("host", "").rsplit(":", 1)[0] if request.headers.get("host", "")[-1:] != "]" else "[::1]"
    return address.is_loopback and host in _LOOPBACK_HOSTS


def _add_session(app: FastAPI) -> None:
    @app.post("/api/v1/session", **public(401, 403, 422, 429))
    async def login(request: Request, response: Response, body: LoginBody) -> SessionAnswer:
        """Logs in with a token or the code of a login link; answers with a session cookie."""
        access = web_state(request).access
        if request.headers.get("origin") is not None and not is_own_origin(request):
            raise Problem(403, "the login comes from another site: its Origin header is not that of this server")
        if (body.token is None) == (body.code is None):
            raise Problem(422, "give either token or code")

        def find() -> Role | None:
            if body.token is not None:
                return access.tokens.find_role(body.token.strip())
            return access.codes.redeem(body.code or "")

        role = check_login(request, access, find)
        if role is None:
            raise Problem(401, "the token is not valid" if body.code is None else "the link was used or has expired")
        is_secure = request.url.scheme == "https"
        response.set_cookie(
            cookie_name(request),
            access.sessions.start(role),
            max_age=int(SESSION_S),
            path="/",
            secure=is_secure,
            httponly=True,
            samesite="strict",
        )
        response.headers["Cache-Control"] = "no-store"
        return SessionAnswer(role=role.value)

    @app.delete("/api/v1/session", status_code=204, **public(403))
    async def logout(request: Request) -> Response:
        """Ends the session of the cookie."""
        session_id = request.cookies.get(cookie_name(request))
        answer = Response(status_code=204)
        if session_id is not None:
            check_cross_site(request)
            web_state(request).access.sessions.end(session_id)
            answer.delete_cookie(cookie_name(request), path="/")
        return answer

    @app.get("/api/v1/server", **secured(Role.VIEWER))
    async def server(request: Request) -> ServerInfo:
        """Returns version, role and what this server offers."""
        state = web_state(request)
        role: Role = request.state.client.role
        return ServerInfo(
            version=__version__,
            role=role.value,
            live=state.control is not None,
            editable=state.control is not None and role is Role.OPERATOR,
            memory_s=state.settings.memory_s,
            node=None if state.nodes is None else state.nodes.node,
        )

    @app.get("/api/v1/cluster", **secured(Role.VIEWER, 404))
    async def cluster(request: Request) -> ClusterAnswer:
        """Returns the nodes that share the cameras, and who watches each camera."""
        return describe_cluster(web_state(request))


def _add_live(app: FastAPI) -> None:
    @app.websocket("/api/v1/live")
    async def live(websocket: WebSocket) -> None:
        """Pictures with boxes, states, events and health; see `live_socket`."""
        state: WebState = websocket.app.state.web
        client = find_socket_client(websocket)
        if client is None or state.sockets.is_full or state.is_closing:
            await websocket.close(1008)
            return
        await websocket.accept()
        # A token holds as long as the server lives; a session ends by logging out or after its time.
        socket = LiveSocket(
            websocket, state.frames, lambda: not client.by_cookie or find_socket_client(websocket) is not None
        )
        with state.sockets.joined(socket):
            socket.post(json.dumps({"type": "health", **await _health_message(state)}))
            await socket.run()


async def _post_health(state: WebState) -> None:
    """Sends states, health and what has changed in the configuration to all viewers every two seconds."""
    before: dict[str, tuple[str, str]] = {}
    tags_before: dict[tuple[str, str], str] = {}
    while True:
        await asyncio.sleep(HEALTH_EVERY_S)
        state.sockets.close_refused()
        try:
            message = await _health_message(state)  # without viewers, too: frames per second need two readings
            if not len(state.sockets):
                continue
            tags = {} if state.control is None else await state.control.section_tags()
        except Problem:  # the monitor is shutting down
            continue
        for (name, section), tag in tags.items():
            if tags_before.get((name, section), tag) != tag:
                kind = "masks" if section == "ignore" else section
                state.sockets.post({"type": kind, "stream": name, "etag": tag})
        tags_before = tags
        for stream in message["streams"]:
            now = (stream["state"], stream["cause"])
            if before.get(stream["name"], now) != now:
                state.sockets.post({"type": "stream", "stream": stream["name"], "state": now[0], "cause": now[1]})
            before[stream["name"]] = now
        state.sockets.post({"type": "health", **message})


async def _health_message(state: WebState) -> dict[str, Any]:
    streams = await state.directory.list_streams()
    sinks = await state.directory.list_sinks()
    return {
        "streams": [stream.model_dump(mode="json") for stream in streams],
        "sinks": [sink.model_dump(mode="json") for sink in sinks],
    }


async def _post_events(state: WebState) -> None:
    """Sends new events to all viewers in short form."""
    row = await asyncio.to_thread(state.store.newest_row)
    while not state.feed.closed:
        if not await state.feed.wait_beyond(row, 30.0):
            continue
        found, row = await asyncio.to_thread(state.store.read_after, row, EventQuery(), limit=200)
        if not len(state.sockets):
            continue
        for event in found:
            compact = compact_event(event.line)
            if compact["type"].removeprefix("groundstream.").rpartition(".")[0] not in _QUIET_KINDS:
                state.sockets.post({"type": "event", "event": compact})


def _add_document(app: FastAPI) -> None:
    @app.get("/api/v1/openapi.json", **public())
    async def openapi() -> JSONResponse:
        """The OpenAPI 3.1 document of this API."""
        return JSONResponse(openapi_document(app), headers={"Cache-Control": "no-cache"})

    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the application."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            openapi_version="3.1.0",
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {})["ProblemDetails"] = ProblemDetails.model_json_schema()
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": "groundstream"},
        }
        for path in document["paths"].values():
            for operation in path.values():
                answer = operation.get("responses", {}).get("422")
                if answer is not None:
                    answer["content"] = {
                        "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
                    }
        app.openapi_schema = document
    return app.openapi_schema


def _add_page(app: FastAPI) -> None:
    folder = static_folder()
    text = (folder / "index.html").read_text()

    async def page(request: Request) -> Response:
        root = request.scope.get("root_path", "").rstrip("/")
        return HTMLResponse(text.replace("{{ROOT}}", root), headers={"Cache-Control": "no-cache"})

    for path in _PAGES:
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/favicon.ico", lambda: Response(status_code=204), methods=["GET"], include_in_schema=False)
    app.mount("/static", _StaticFiles(directory=folder), name="static")


class _StaticFiles(StaticFiles):
    """The page's files; browsers ask each time whether they have changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Returns a file's response."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def static_folder() -> Path:
    """Returns the folder of the page's files in the package."""
    return Path(str(resources.files("streamer.web") / "static"))
