"""Everything that the routes of one web server share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from fastapi import Request
from prometheus_client import CollectorRegistry

from streamer.config import WebConfig
from streamer.media.folder import MediaStore
from streamer.web.access import AccessControl
from streamer.web.control import ControlRoom, unknown_stream
from streamer.web.event_store import EventFeed, EventStore
from streamer.web.live_frames import LiveFrames
from streamer.web.live_socket import SocketGroup
from streamer.web.models import SinkState, StreamStatus
from streamer.web.preview import PreviewRuns
from streamer.web.problems import Problem

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.cluster.cluster_status import ClusterStatus


class StreamDirectory(Protocol):
    """What every server can say about its streams, live ones and finished recordings alike."""

    async def list_streams(self) -> list[StreamStatus]:
        """Returns the state of every stream."""
        ...

    async def list_sinks(self) -> list[SinkState]:
        """Returns the state of every sink."""
        ...


class ResultVideos(Protocol):
    """The annotated videos of finished jobs."""

    def find_video(self, stream: str) -> Path | None:
        """Returns a stream's video, None where there is none."""
        ...


class NodeDirectory(Protocol):
    """The nodes that share cameras with this one."""

    node: str

    def cluster_status(self) -> ClusterStatus:
        """Returns the present state of all nodes and cameras."""
        ...


@dataclass(slots=True)
class WebState:
    """What the routes work with. `control` is None where nothing can be changed, as with results of a job; `nodes` is
    None where no cameras are shared."""

    settings: WebConfig
    access: AccessControl
    store: EventStore
    feed: EventFeed
    frames: LiveFrames
    directory: StreamDirectory
    control: ControlRoom | None = None
    registry: CollectorRegistry | None = None
    media: Sequence[MediaStore] = ()
    videos: ResultVideos | None = None
    nodes: NodeDirectory | None = None
    sockets: SocketGroup = field(default_factory=SocketGroup)
    previews: PreviewRuns = field(default_factory=PreviewRuns)
    feed_readers: int = 0
    is_closing: bool = False

    def controlled(self) -> ControlRoom:
        """Returns the control room. Raises `Problem` 403 where nothing can be changed."""
        if self.control is None:
            raise Problem(403, "these are the results of a finished job: nothing can be changed here")
        return self.control

    async def find_stream(self, name: str) -> StreamStatus:
        """Returns one stream's state. Raises `Problem` 404 for an unknown one."""
        for status in await self.directory.list_streams():
            if status.name == name:
                return status
        raise unknown_stream(name)


def web_state(request: Request) -> WebState:
    """Returns the state of the server that answers a request."""
    return cast("WebState", request.app.state.web)
