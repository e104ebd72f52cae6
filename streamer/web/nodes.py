"""Cameras of other nodes: who watches them, and the way to the page of their node."""

from __future__ import annotations

import re
from dataclasses import asdict
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from streamer.web.models import ClusterAnswer, ClusterCamera, ClusterNode
from streamer.web.problems import Problem
from streamer.web.security import find_client
from streamer.web.state import WebState

_CAMERA = re.compile(r"/(?:api/v1/streams|camera)/([^/]+)(?:/.*)?")


def describe_cluster(state: WebState) -> ClusterAnswer:
    """Returns all nodes and cameras. Raises `Problem` 404 where no cameras are shared."""
    if state.nodes is None:
        raise Problem(404, "this monitor shares its cameras with no other node: start it with --lease or --cluster")
    status = state.nodes.cluster_status()
    pages = {node.name: node.page for node in status.nodes}

    def page_of(name: str, holder: str | None) -> str:
        page = pages.get(holder or "", "")
        return f"{page}camera/{quote(name, safe='')}" if page else ""

    return ClusterAnswer(
        node=state.nodes.node,
        revision=status.revision,
        nodes=[ClusterNode(**asdict(node)) for node in status.nodes],
        cameras=[
            ClusterCamera(**asdict(camera), page=page_of(camera.name, camera.holder)) for camera in status.cameras
        ],
    )


class HolderRedirect:
    """ASGI layer that answers requests about a camera of another node with the way to that node's page.

    Only for clients that have logged in; others are asked for that first.
    """

    def __init__(self, app: ASGIApp, state: WebState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        target = self._find_target(scope) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        if target is None or find_client(Request(scope)) is None:
            await self._app(scope, receive, send)
            return
        await RedirectResponse(target, 307, {"Cache-Control": "no-store"})(scope, receive, send)

    def _find_target(self, scope: Scope) -> str | None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        found = _CAMERA.fullmatch(path)
        if found is None or self._state.nodes is None:
            return None
        status = self._state.nodes.cluster_status()
        holder = next((one.holder for one in status.cameras if one.name == found[1]), None)
        page = next((one.page for one in status.nodes if one.name == holder), "")
        if not page or holder == self._state.nodes.node:
            return None
        query = scope["query_string"].decode("latin-1")
        return f"{page.rstrip('/')}{quote(path)}{f'?{query}' if query else ''}"
