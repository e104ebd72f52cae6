"""The `monitor` command: options, reload of the configuration, log, and the parts that run beside the pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinks.address import redact
from sinks.sink import Sink
from streamer.build import open_pipeline, settle
from streamer.config import Config, WebConfig, load_config, parse_config, read_config
from streamer.detector_choice import DetectorChoice
from streamer.errors import ConfigError
from streamer.jobs.job import parse_place, tracker_setting
from streamer.jobs.units import shard_of
from streamer.pipeline import Pipeline
from streamer.spooling import spool_file, state_folder
from streamer.tasks.closing import ClosingDeadline, run_until_stopped
from streamer.tasks.console import UserConsole, make_folder, user_console
from streamer.tasks.json_log import JsonConsole, JsonFormatter, is_json_log
from streamer.tasks.live_table import LatestEvents, LiveTable
from streamer.tasks.side_tasks import SideTasks

if TYPE_CHECKING:
    from streamer.cluster.camera_holder import CameraHolder
    from streamer.web.server import WebRoom

log = logging.getLogger("groundstream")

RELOAD_EVERY_S = 1.0
TABLE_RESTART_S = 5.0
_SHARED = "several nodes share these cameras: edit the configuration file of any node, all of them follow it"
_SHARDED = "this monitor watches a part of the cameras of its file: edit the file"
UNDELIVERED = "undelivered events stay in the spool"


@dataclass(frozen=True)
class MonitorOptions:
    """Options of the command: a configuration file, or everything else on its own.

    `web` is the address of the page, (None, None) for the configured one, None for no page unless the file has one.
    `lease` is where several nodes share the cameras of the file, `node` the name of this one (None: of the machine),
    `capacity` the most cameras that it watches at a time. `shard` (number from 1, count) is the part of the cameras of
    the file to watch, None for all.
    """

    detector: DetectorChoice
    file: Path | None = None
    sources: Sequence[str] = ()
    queries: Sequence[str] = ()
    names: Sequence[str] = ()
    zones: Sequence[str] = ()
    lines: Sequence[str] = ()
    tracker: str | None = None
    reid: str | None = None
    sinks: Sequence[str] = ()
    fps: float | None = None
    udp: bool = False
    metrics_port: int | None = None
    web: tuple[str, int] | tuple[None, None] | None = None
    close_timeout_s: float | None = None
    lease: str | None = None
    node: str | None = None
    capacity: int | None = None
    shard: tuple[int, int] | None = None

    def load_config(self) -> Config:
        """The configuration that the options name. Raises `ConfigError`."""
        if self.lease is None and (self.node is not None or self.capacity is not None):
            raise ConfigError(
                "--node and --capacity are of use with --lease alone: give it an address, or leave them out"
            )
        if self.lease is not None and self.file is None:
            raise ConfigError("--lease needs a configuration file, which all nodes share: give one with -c")
        if self.shard is not None and self.file is None:
            raise ConfigError("--shard divides the cameras of a configuration file: give one with -c")
        if self.shard is not None and self.lease is not None:
            raise ConfigError("--shard and --lease divide the cameras in two ways: give one of them")
        if self.file is not None:
            self._refuse_beside_file()
            return self.add_to(load_config(self.file))
        if not self.sources:
            raise ConfigError("no source is given: give one such as rtsp://camera/stream, or a configuration with -c")
        if not self.queries:
            raise ConfigError("no query is given: give at least one --query, such as --query 'a red car'")
        if len(self.names) > len(self.sources):
            raise ConfigError(
                f"--name is given {len(self.names)} times for {len(self.sources)} sources: give one name for each "
                "source, in their order"
            )
        return self.add_to(parse_config(self._option_sections(), "command line"))

    def add_to(self, config: Config) -> Config:
        """The configuration with the options that may stand beside a file."""
        config = _with_page(config, self.web)
        if self.close_timeout_s is not None:
            config = config.model_copy(update={"close_timeout_s": self.close_timeout_s})
        if self.shard is not None:
            number, count = self.shard
            kept = [one for one in config.streams if shard_of(one.name or one.source, count) == number - 1]
            config = config.model_copy(update={"streams": kept})
        return config

    @property
    def node_name(self) -> str | None:
        """The name of this process among those of the same file, None for a single one. Raises `ConfigError`."""
        if self.shard is not None:
            return "shard-{}-of-{}".format(*self.shard)
        if self.lease is None:
            return None
        name = self.node if self.node is not None else os.environ.get("GROUNDSTREAM_NODE") or socket.gethostname()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise ConfigError(
                f"the name of this node is {name!r}: give one of letters, digits and . _ - with --node, at most 63"
            )
        return name

    @property
    def refusal(self) -> str:
        """Why the page changes nothing; empty where it may."""
        return _SHARED if self.lease is not None else _SHARDED if self.shard is not None else ""

    def _option_sections(self) -> dict[str, Any]:
        stream = {
            "transport": "udp" if self.udp else "tcp",
            "sample": {"fps": self.fps},
            "zones": [{"id": name, "polygon": points} for name, points in map(parse_place, self.zones)],
            "lines": [{"id": name, "points": points} for name, points in map(parse_place, self.lines)],
        }
        names = [*self.names, *[None] * (len(self.sources) - len(self.names))]
        return {
            "streams": [
                {"source": source, "name": name, **stream} for source, name in zip(self.sources, names, strict=True)
            ],
            "queries": list(self.queries),
            "detector": self.detector.section(),
            "tracker": tracker_setting(self.tracker or "default", self.reid),
            "sinks": list(self.sinks) or ([] if sys.stdout.isatty() else ["stdout:"]),
            "metrics_port": self.metrics_port,
        }

    def _refuse_beside_file(self) -> None:
        given = {
            "sources": self.sources,
            "--query": self.queries,
            "--name": self.names,
            "--zone": self.zones,
            "--line": self.lines,
            "--sink": self.sinks,
            **self.detector.flags,
            "--tracker": self.tracker,
            "--reid": self.reid,
            "--fps": self.fps,
            "--udp": self.udp or None,
            "--metrics-port": self.metrics_port,
        }
        besides = [name for name, value in given.items() if value is not None and (value or value == 0)]
        if besides:
            raise ConfigError(
                f"{', '.join(besides)} cannot stand beside a configuration file: write the settings into the file"
            )


def _with_page(config: Config, address: tuple[str, int] | tuple[None, None] | None) -> Config:
    """The configuration with the page at (host, port), or where it says itself, when an option asks for the page."""
    if address is None:
        return config
    settings = WebConfig() if config.web is None else config.web
    host, port = address
    if host is not None:
        settings = settings.model_copy(update={"host": host, "port": port})
    return config.model_copy(update={"web": settings})


def parse_bind(text: str, option: str = "--web-address") -> tuple[str, int]:
    """'HOST:PORT', 'HOST' or 'PORT' -> (host, port). Raises `ConfigError`, which names the `option`."""
    host, separator, port = text.rpartition(":")
    if not separator:
        host, port = ("", text) if text.isdigit() else (text, "8090")
    if not port.isdigit() or int(port) > 65535 or "/" in host:
        raise ConfigError(f"{option} {text!r} is not an address: write HOST:PORT, such as 127.0.0.1:8090")
    return host.strip("[]") or "127.0.0.1", int(port)


def log_console() -> UserConsole:
    """The console for log lines on standard error: text, or JSON where that was asked for."""
    return JsonConsole(stderr=True) if is_json_log() else user_console(stderr=True)


def run_monitor(
    options: MonitorOptions,
    *,
    spool: Path | None,
    duration_s: float | None,
    quiet: bool,
    on_begin: Callable[[ClosingDeadline], object] = lambda _: None,
) -> bool:
    """Watch until every source has ended, a signal comes or the time is over; returns whether a camera failed.

    `on_begin` gets what can stop it from another thread.
    """
    config = options.load_config()
    node = options.node_name
    path = spool or spool_file(config, options.file, node)
    make_folder(path.parent)
    is_json = is_json_log()
    console = log_console()
    with log_to(console), ClosingDeadline(config.close_timeout_s, kept=UNDELIVERED) as deadline:
        on_begin(deadline)
        shows_table = not (quiet or is_json)
        return deadline.run(_run_monitor(options, config, path, deadline, duration_s, console, shows_table=shows_table))


async def _run_monitor(
    options: MonitorOptions,
    config: Config,
    spool: Path,
    deadline: ClosingDeadline,
    duration_s: float | None,
    console: UserConsole,
    *,
    shows_table: bool,
) -> bool:
    shows_table = shows_table and sys.stderr.isatty()
    latest = LatestEvents() if shows_table and not config.sinks else None
    async with _join_cameras(options, config) as holder:
        if holder is not None:
            config = holder.begin_config()
        with _open_room(config, options, holder) as room:
            sinks: dict[str, Sink] = {}
            if room is not None:
                sinks.update(room.sinks())
                if holder is None:  # the page keeps changes that were made on it
                    config = options.add_to(room.load_config())
            if latest is not None:
                sinks["the live table"] = latest
            # A wrong address of the command line is an error at once; cameras of a file may be away and come back.
            async with open_pipeline(
                config,
                spool_path=spool,
                strict=options.file is None,
                more_sinks=sinks,
                recorders=None if room is None else room.recorders,
                terms=holder,
                hold_open=options.shard is not None,
            ) as pipeline:
                settle()
                async with SideTasks(pipeline.stop) as side_tasks, _serve_page(room, pipeline, console):
                    with _serve_metrics(pipeline, config):
                        _start_following(side_tasks, options, pipeline, room, holder)
                        if duration_s is not None:
                            side_tasks.start("the clock of --duration", lambda: _stop_after(pipeline, duration_s))
                        if shows_table:
                            table = LiveTable(pipeline, latest)
                            side_tasks.start("the live table", lambda: table.show(console), restart_s=TABLE_RESTART_S)
                        _log_start(pipeline, spool, options.node_name)
                        await run_until_stopped(pipeline, deadline)
                        if holder is not None:
                            await holder.leave()
    for stream, error in pipeline.errors.items():
        console.print(f"{stream}: {error}")
    return bool(pipeline.errors)


def _start_following(
    side_tasks: SideTasks,
    options: MonitorOptions,
    pipeline: Pipeline,
    room: WebRoom | None,
    holder: CameraHolder | None,
) -> None:
    """Start what changes the pipeline while it runs: edits of the file, and the leases of a node."""
    file = options.file
    if holder is not None:
        side_tasks.start("renewing the leases", holder.renew_leases)
        side_tasks.start("holding the cameras", lambda: holder.hold_cameras(pipeline))
        side_tasks.start("following the configuration file", lambda: holder.follow_file(pipeline, RELOAD_EVERY_S))
    elif file is not None:
        load = options.load_config if room is None else lambda: options.add_to(room.load_config())
        side_tasks.start("following the configuration file", lambda: follow_edits(pipeline, file, load))


@contextlib.asynccontextmanager
async def _join_cameras(options: MonitorOptions, config: Config) -> AsyncIterator[CameraHolder | None]:
    """Opens the leases by which several nodes share the cameras, None without."""
    file, node = options.file, options.node_name
    if options.lease is None or file is None or node is None:
        yield None
        return
    from streamer.cluster.camera_holder import CameraHolder
    from streamer.cluster.lease_address import open_lease_store

    def read_text(text: str) -> Config:
        return options.add_to(read_config(text, str(file)))

    holder = CameraHolder(
        open_lease_store(options.lease),
        node,
        file,
        read_text,
        capacity=options.capacity,
        page="" if config.web is None else config.web.page_address(),
    )
    try:
        await holder.begin()
        yield holder
    finally:
        await holder.aclose()


def _log_start(pipeline: Pipeline, spool: Path, node: str | None) -> None:
    """Log what is watched, for what, and where events go."""
    if not pipeline.streams and node is not None:
        log.info("%s has no cameras yet", node)
    for stream in pipeline.streams:
        words = ", ".join(repr(query.text) for query in stream.analysis.queries.at() if not query.is_denial)
        source = stream.name if stream.section is None else redact(stream.section.source)
        state = "paused" if stream.is_paused else "watching"
        log.info("%s: %s %s for %s", stream.name, state, source, words or "nothing: every query is paused")
    sinks = [status.name for status in pipeline.sinks()]
    log.info("events go to %s, through the spool %s", ", ".join(sinks) or "no sink", spool)


async def _stop_after(pipeline: Pipeline, duration_s: float) -> None:
    await asyncio.sleep(duration_s)
    await pipeline.stop()


async def follow_edits(pipeline: Pipeline, file: Path, load: Callable[[], Config]) -> None:
    """Apply the configuration whenever the file was edited; a mistake is reported and changes nothing."""
    seen = _modified_ns(file)
    while True:
        await asyncio.sleep(RELOAD_EVERY_S)
        if (now := _modified_ns(file)) == seen:
            continue
        seen = now
        try:
            sentences = await pipeline.apply(await asyncio.to_thread(load))
        except ConfigError as error:
            log.error("%s; nothing has changed", error)
        except Exception as error:
            log.error("%s: the edit could not be applied: %s", file, error, exc_info=True)
        else:
            for sentence in sentences:
                log.info("%s", sentence)


def _modified_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@contextlib.contextmanager
def _open_room(config: Config, options: MonitorOptions, nodes: CameraHolder | None) -> Iterator[WebRoom | None]:
    """Opens what the page needs before the pipeline: its event store, its tokens, the recorders of live pictures."""
    if config.web is None:
        yield None
        return
    from streamer.web.config_document import ConfigDocument
    from streamer.web.server import WebRoom

    file, node = options.file, options.node_name
    name = file.stem if file is not None else "monitor"
    folder = state_folder() if node is None else state_folder() / node
    make_folder(folder)
    document = ConfigDocument(file, folder / f"{name}.overrides.yaml", config)
    room = WebRoom(config.web, folder, document, refusal=options.refusal, nodes=nodes)
    try:
        yield room
    finally:
        room.close()


@contextlib.asynccontextmanager
async def _serve_page(room: WebRoom | None, pipeline: Pipeline, console: UserConsole) -> AsyncIterator[None]:
    """Serves the page and prints its address, a login link, and tokens that were generated now."""
    if room is None:
        yield
        return
    async with room.serve(pipeline) as address:
        console.print(f"page      {address.url}")
        console.print(f"log in    {address.login_url}  (works once, for 15 minutes)")
        for role, token in room.made_tokens.items():
            console.print(f"{role.value:9} {token}  (access token, shown only now)")
        if room.is_exposed:
            console.print(
                "warning   the page is reachable from other machines without TLS: set web.certificate and web.key"
            )
        yield


@contextlib.contextmanager
def _serve_metrics(pipeline: Pipeline, config: Config) -> Iterator[None]:
    if config.metrics_port is None:
        yield
        return
    from streamer.web.metrics import serve_metrics

    server, thread = serve_metrics(pipeline, config.metrics_port, config.metrics_host)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def log_to(console: UserConsole) -> Iterator[None]:
    """Write the log with times and through the console, so that it does not tear the live table; JSON as it is."""
    root = logging.getLogger()
    streams = [one for one in root.handlers if type(one) is logging.StreamHandler and one.stream is sys.stderr]
    replaced = [one for one in streams if not isinstance(one.formatter, JsonFormatter)]
    handler = _ConsoleHandler(console)
    level = log.level
    log.setLevel(min(logging.INFO, root.level or logging.INFO))
    for one in replaced:
        root.removeHandler(one)
    if replaced:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for one in replaced:
            root.addHandler(one)
        log.setLevel(level)


class _ConsoleHandler(logging.Handler):
    """Prints log records with a console."""

    def __init__(self, console: UserConsole) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.print(self.format(record))
        except Exception:
            self.handleError(record)
