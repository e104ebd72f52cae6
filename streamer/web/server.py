"""Web server of a monitor in a thread of its own, so that requests never run in the loop that follows frames."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry

from sinks.sink import Sink
from sinks.supervision import new_thread
from streamer.analysis.stream_analysis import StreamAnalysis
from streamer.config import LOOPBACK_HOSTS, Config, WebConfig
from streamer.errors import StreamerError
from streamer.pipeline.pipeline import Pipeline
from streamer.sources.source import Source
from streamer.spooling import media_store
from streamer.web.access import AccessControl, Role, load_tokens, store_tokens
from streamer.web.app import create_app
from streamer.web.config_document import ConfigDocument
from streamer.web.control import ControlRoom
from streamer.web.event_store import EventFeed, EventStore, StoreSink
from streamer.web.live_frames import LiveFrames, LiveRecorder
from streamer.web.metrics import PipelineMetrics
from streamer.web.state import NodeDirectory, WebState

log = logging.getLogger("groundstream")

STORE_SINK = "web"
_START_S = 20.0
_STOP_S = 5.0
_NO_PASSWORD = " "
"""Of an encrypted key: an error instead of a question on the terminal. Keys without a password ignore it."""


@dataclass(frozen=True, slots=True)
class WebAddress:
    """Where the page is: its address, and a login link with a one-time code behind `#`, which no server sees."""

    url: str
    login_url: str


class WebRoom:
    """The web side of one monitor: made before the pipeline, whose frames and events it needs, served beside it."""

    def __init__(
        self,
        settings: WebConfig,
        state_folder: Path,
        document: ConfigDocument,
        *,
        refusal: str = "",
        nodes: NodeDirectory | None = None,
    ) -> None:
        """Opens the event store and the access tokens in `state_folder`; `refusal` says why nothing can be changed on
        the page, if so; `nodes` share the cameras. Raises `StreamerError`, `ConfigError`."""
        self.settings = settings
        self._folder = state_folder
        self._document = document
        self._refusal = refusal
        self._nodes = nodes
        configured = {Role.VIEWER: settings.tokens.viewer, Role.OPERATOR: settings.tokens.operator}
        self._tokens_path = state_folder / "web-tokens.json"
        tokens, self.made_tokens = load_tokens(self._tokens_path, configured)
        self.access = AccessControl(tokens)
        self.store = EventStore(state_folder / f"{_store_name(document)}.events.sqlite", keep_days=settings.keep_days)
        self.frames = LiveFrames(memory_s=settings.memory_s)

    def sinks(self) -> dict[str, Sink]:
        """Returns the sink that feeds the store."""
        return {STORE_SINK: StoreSink(self.store)}

    def recorders(self, source: Source, analysis: StreamAnalysis) -> Sequence[LiveRecorder]:
        """Returns the recorder of a stream's live picture."""
        return [self.frames.new_recorder(source.name, analysis)]

    @contextlib.asynccontextmanager
    async def serve(self, pipeline: Pipeline) -> AsyncIterator[WebAddress]:
        """Serves the page while the context is open. Raises `StreamerError` when the port cannot be used."""
        control = ControlRoom(
            pipeline,
            asyncio.get_running_loop(),
            self._document,
            self.frames,
            allowed_sources=self.settings.sources,
            refusal=self._refusal,
        )
        registry = CollectorRegistry()
        registry.register(PipelineMetrics(pipeline))
        state = WebState(
            self.settings,
            self.access,
            self.store,
            EventFeed(self.store),
            self.frames,
            control,
            control=control,
            registry=registry,
            nodes=self._nodes,
            media=[media_store(pipeline.config)],
        )
        with serve_state(state) as address:
            store_tokens(self._tokens_path, self.made_tokens)  # only now: a start that fails must not use them up
            yield address

    def load_config(self) -> Config:
        """Reads the configuration with the changes of the page. Raises `ConfigError`."""
        return self._document.load()

    @property
    def is_exposed(self) -> bool:
        """Whether other machines reach the page without TLS."""
        return self.settings.host not in LOOPBACK_HOSTS and self.settings.certificate is None

    def close(self) -> None:
        """Closes store and encoder. Safe to call twice."""
        self.frames.close()
        self.store.close()


@contextlib.contextmanager
def serve_state(state: WebState) -> Iterator[WebAddress]:
    """Serves `state` from a thread until the context is left."""
    server = WebServerThread(state)
    server.start()
    try:
        yield server.address
    finally:
        server.stop()


class WebServerThread:
    """A uvicorn server in its own thread and event loop."""

    def __init__(self, state: WebState) -> None:
        settings = state.settings
        self._state = state
        self._socket = bind_socket(settings.host, settings.port)
        config = uvicorn.Config(
            create_app(state),
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=True,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
            ssl_keyfile_password=_NO_PASSWORD,
            ws="websockets-sansio",
            ws_max_size=64 * 1024,
            ws_per_message_deflate=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=32 * 1024,
            limit_concurrency=500,
        )
        try:
            config.load()
        except (OSError, ValueError) as error:
            self._socket.close()
            raise StreamerError(f"cannot use the TLS certificate {settings.certificate}: {error}") from None
        self._server = uvicorn.Server(config)
        self._thread = new_thread(self._run, name="web-server")
        self._started = threading.Event()
        self._error: BaseException | None = None

    @property
    def address(self) -> WebAddress:
        """The address of the page and a new login link for an operator."""
        settings = self._state.settings
        port = self._socket.getsockname()[1] if self._socket.fileno() != -1 else settings.port
        is_everywhere = settings.host in {"0.0.0.0", "::"}  # what the user chose is only compared  # nosec B104
        host = socket.gethostname() if is_everywhere else settings.host
        host = f"[{host}]" if ":" in host else host
        scheme = "https" if settings.certificate is not None else "http"
        url = f"{scheme}://{host}:{port}{settings.root_path}/"
        return WebAddress(url, f"{url}#code={self._state.access.codes.issue(Role.OPERATOR)}")

    def start(self) -> None:
        """Starts the server; returns once it answers. Raises `StreamerError` when it does not start."""
        self._thread.start()
        deadline = threading.Event()
        for _ in range(int(_START_S / 0.01)):
            if self._server.started or not self._thread.is_alive():
                break
            deadline.wait(0.01)
        if not self._server.started:
            raise StreamerError(f"the web server did not start: {self._error or 'it took too long'}")

    def stop(self) -> None:
        """Ends connections and the thread."""
        self._state.is_closing = True
        self._state.feed.close()
        self._server.should_exit = True
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._state.sockets.close)
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            log.warning("the web server did not stop within %g s", _STOP_S)
        self._socket.close()

    _loop: asyncio.AbstractEventLoop | None = None

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._socket])

        try:
            asyncio.run(serve())
        except BaseException as error:  # a thread must not end silently; SystemExit is uvicorn's way of giving up
            self._error = error
            if self._server.started:
                log.error("the web server failed", exc_info=error)


def bind_socket(host: str, port: int) -> socket.socket:
    """Returns a bound socket. Raises `StreamerError` when host or port cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        cause = error.strerror if isinstance(error, OSError) else str(error)
        hint = "choose another port with --web-address HOST:PORT or web.port"
        if isinstance(error, OSError) and error.errno not in {errno.EADDRINUSE, errno.EACCES}:
            hint = "web.host must be an address of this machine"
        raise StreamerError(f"cannot serve the page on {host}:{port}: {cause}; {hint}") from None
    return bound


def _store_name(document: ConfigDocument) -> str:
    return document.path.stem if document.path is not None else "monitor"
