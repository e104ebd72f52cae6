"""Request checks of the web server: login, role, cross-site requests, proxies, sizes and security headers."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import Depends, Request, WebSocket
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from streamer.web.access import AccessControl, Role
from streamer.web.problems import Problem, problem_answers, problem_response

MOST_BODY = 64 * 1024
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_COOKIE = "groundstream"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'self'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class ApiClient:
    """The author of a request: its role, a name for rate limits, and whether a cookie vouches for it."""

    role: Role
    name: str
    by_cookie: bool


class RequestGuard:
    """Outermost ASGI layer: trusted proxies, security headers, the size of bodies."""

    def __init__(self, app: ASGIApp, trusted_proxies: Sequence[Any] = (), root_path: str = "") -> None:
        self._app = app
        self._root_path = root_path
        self._trusted = [ipaddress.ip_network(network) for network in trusted_proxies]
        self._proxied: Any = app
        if self._trusted:
            self._proxied = ProxyHeadersMiddleware(
                cast("Any", app), trusted_hosts=[str(network) for network in self._trusted]
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        app = self._app
        if self._root_path:
            scope = _place_under(scope, self._root_path)
        if self._is_trusted(scope):
            app = self._proxied
            host = Headers(scope=scope).get("x-forwarded-host")
            if host:
                headers = [(key, value) for key, value in scope["headers"] if key != b"host"]
                scope = {**scope, "headers": [*headers, (b"host", host.split(",")[0].strip().encode("latin-1"))]}

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope.get("scheme") == "https":
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        if scope["type"] == "websocket":
            await app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length")
        if length is not None and (not length.isdigit() or int(length) > MOST_BODY):
            await _refuse_size(scope, receive, send_guarded)
            return
        await _limit_body(app, scope, receive, send_guarded)

    def _is_trusted(self, scope: Scope) -> bool:
        client = scope.get("client")
        if not self._trusted or client is None:
            return False
        try:
            address = ipaddress.ip_address(client[0])
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _place_under(scope: Scope, root_path: str) -> Scope:
    """The scope of a request below `root_path`, which a proxy may have cut off the path or not."""
    path = scope["path"]
    if path != root_path and not path.startswith(f"{root_path}/"):
        path = f"{root_path}{path}"
    return {**scope, "root_path": root_path, "path": path}


class _BodyTooLarge(Exception):
    """A body without a declared length grew beyond the limit."""


async def _limit_body(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Runs the application; a body that grows beyond the limit is answered with 413 whatever it makes of that."""
    received = 0
    is_started = False

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MOST_BODY:
            raise _BodyTooLarge
        return message

    async def send_allowed(message: Message) -> None:
        nonlocal is_started
        if received > MOST_BODY and not is_started:
            return
        is_started = True
        await send(message)

    with contextlib.suppress(_BodyTooLarge):
        await app(scope, receive_limited, send_allowed)
    if received > MOST_BODY and not is_started:
        await _refuse_size(scope, receive, send)


async def _refuse_size(scope: Scope, receive: Receive, send: Send) -> None:
    answer = problem_response(413, f"the body is larger than {MOST_BODY} bytes: send less at once")
    await answer(scope, receive, send)


def cookie_name(connection: HTTPConnection) -> str:
    """Returns the name of the session cookie; `__Host-` needs HTTPS."""
    return f"__Host-{_COOKIE}" if connection.url.scheme in {"https", "wss"} else _COOKIE


def find_client(connection: HTTPConnection) -> ApiClient | None:
    """Returns the client that a bearer token or the session cookie stands for, None without either.

    Raises `Problem` 401 for a bearer token that is wrong, 429 after too many wrong ones.
    """
    access: AccessControl = connection.app.state.web.access
    header = connection.headers.get("authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        role = None
        if scheme.lower() == "bearer":
            role = check_login(connection, access, lambda: access.tokens.find_role(token.strip()))
        if role is None:
            raise Problem(401, "the token is not valid", headers={"WWW-Authenticate": "Bearer"})
        return ApiClient(role, f"token:{role.value}", by_cookie=False)
    session_id = connection.cookies.get(cookie_name(connection))
    session = None if session_id is None else access.sessions.find(session_id)
    return None if session is None else ApiClient(session.role, session.name, by_cookie=True)


def check_login(connection: HTTPConnection, access: AccessControl, find: Callable[[], Role | None]) -> Role | None:
    """Looks up a token or code, counting failures of the client's address. Raises `Problem` 429 at the limit."""
    address = connection.client.host if connection.client else "unknown"
    wait_s = access.failed_logins.wait_s(address)
    if wait_s > 0:
        raise Problem(
            429,
            f"too many failed logins from this address: try again in {int(wait_s) + 1} s",
            headers={"Retry-After": str(int(wait_s) + 1)},
        )
    role = find()
    if role is None:
        access.failed_logins.record(address)
    return role


def is_own_origin(connection: HTTPConnection) -> bool:
    """Returns whether the request's `Origin` is this server's own, or one of `web.origins`."""
    origin = connection.headers.get("origin")
    if origin is None:
        return False
    scheme = {"ws": "http", "wss": "https"}.get(connection.url.scheme, connection.url.scheme)
    own = f"{scheme}://{connection.headers.get('host', '')}"
    return origin.lower() == own.lower() or origin in connection.app.state.web.settings.origins


def check_cross_site(request: Request) -> None:
    """Raises `Problem` 403 for an unsafe request that a page of another site could have made with a cookie."""
    if not is_own_origin(request):
        raise Problem(403, "the request comes from another site: its Origin header is not that of this server")
    is_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    if not is_json and request.headers.get("x-groundstream") != "1":
        raise Problem(403, "a change needs Content-Type: application/json or the header X-Groundstream: 1")


def require_role(needed: Role) -> Callable[[Request], Awaitable[ApiClient]]:
    """Returns the dependency that lets only clients with a role through: the one place where rights are checked."""

    async def check(request: Request) -> ApiClient:
        client = find_client(request)
        if client is None:
            raise Problem(
                401, "a login is needed: send a bearer token or log in", headers={"WWW-Authenticate": "Bearer"}
            )
        if request.method not in SAFE_METHODS and client.by_cookie:
            check_cross_site(request)
        if not client.role.covers(needed):
            raise Problem(403, f"this needs the role {needed.value}, the login has the role {client.role.value}")
        if request.method not in SAFE_METHODS:
            writes = request.app.state.web.access.writes
            wait_s = writes.wait_s(client.name)
            if wait_s > 0:
                raise Problem(
                    429,
                    f"too many changes in a minute: try again in {int(wait_s) + 1} s",
                    headers={"Retry-After": str(int(wait_s) + 1)},
                )
            writes.record(client.name)
        request.state.client = client
        return client

    return check


def find_socket_client(websocket: WebSocket) -> ApiClient | None:
    """Returns the client of a WebSocket that may be opened, None for one that must be refused.

    Browsers let every page open a WebSocket and send the cookie with it, so the origin is checked before.
    """
    try:
        client = find_client(websocket)
    except Problem:
        return None
    if client is not None and client.by_cookie and not is_own_origin(websocket):
        return None
    return client


VIEWER = Depends(require_role(Role.VIEWER))
OPERATOR = Depends(require_role(Role.OPERATOR))


def secured(role: Role, *statuses: int) -> dict[str, Any]:
    """Returns the options of a route that needs `role` and may answer with the error `statuses` besides."""
    return {
        "dependencies": [VIEWER if role is Role.VIEWER else OPERATOR],
        "openapi_extra": {"x-role": role.value, "security": [{"bearer": []}, {"session": []}]},
        "responses": problem_answers(400, 401, 403, 422, 429, 503, *statuses),
    }


def public(*statuses: int) -> dict[str, Any]:
    """Returns the options of a route that needs no login."""
    return {"openapi_extra": {"x-role": "none"}, "responses": problem_answers(*statuses)}
