"""Watching cameras until told to stop: the live table, edits of the configuration, and the clean end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sinks.spool.spool import StorageStatus
from streamer.build import open_pipeline, settle
from streamer.config import Config, WebConfig, load_config, parse_config
from streamer.detector_choice import DetectorChoice
from streamer.errors import ConfigError
from streamer.pipeline import Pipeline, StreamReport
from streamer.spooling import spool_file, state_folder
from streamer.tasks.closing import ClosingGuard
from streamer.tasks.console import user_console, visible_text
from streamer.tasks.side_tasks import SideTasks

if TYPE_CHECKING:
    from streamer.web.server import WebRoom

log = logging.getLogger("groundstream")

RELOAD_EVERY_S = 1.0
TABLE_EVERY_S = 0.5
TABLE_RESTART_S = 5.0


def watch_config(
    file: Path | None,
    sources: Sequence[str],
    queries: Sequence[str],
    *,
    detector: DetectorChoice,
    tracker: str | None,
    sinks: Sequence[str],
    fps: float | None,
    udp: bool,
    metrics_port: int | None,
    web: tuple[str, int] | tuple[None, None] | None = None,
) -> Config:
    """What to watch, from a file or from options, not both. Raises `ConfigError`."""
    if file is not None:
        given = {
            "sources": sources,
            "--query": queries,
            "--sink": sinks,
            **detector.flags,
            "--tracker": tracker,
            "--fps": fps,
            "--udp": udp or None,
            "--metrics-port": metrics_port,
        }
        besides = [name for name, value in given.items() if value is not None and value != []]
        if besides:
            raise ConfigError(
                f"give either a configuration file or {', '.join(besides)}, not both: what they say belongs in the file"
            )
        return _with_page(load_config(file), web)
    if not sources:
        raise ConfigError("nothing to watch: give a source such as rtsp://camera/stream, or a configuration with -c")
    if not queries:
        raise ConfigError("nothing to look for: give at least one --query, such as --query 'a red car'")
    stream = {"transport": "udp" if udp else "tcp", "sample": {"fps": fps}}
    raw = {
        "streams": [{"source": source, **stream} for source in sources],
        "queries": list(queries),
        "detector": detector.section(),
        "tracker": tracker or "default",
        "sinks": list(sinks) or ([] if sys.stdout.isatty() else ["stdout:"]),
        "metrics_port": metrics_port,
    }
    return _with_page(parse_config(raw, "command line"), web)


def _with_page(config: Config, address: tuple[str, int] | tuple[None, None] | None) -> Config:
    """The configuration with the page at (host, port), or where it says itself, when an option asks for the page."""
    if address is None:
        return config
    settings = WebConfig() if config.web is None else config.web
    host, port = address
    if host is not None:
        settings = settings.model_copy(update={"host": host, "port": port})
    return config.model_copy(update={"web": settings})


def parse_bind(text: str) -> tuple[str, int]:
    """'HOST:PORT', 'HOST' or 'PORT' -> (host, port). Raises `ConfigError`."""
    host, separator, port = text.rpartition(":")
    if not separator:
        host, port = ("", text) if text.isdigit() else (text, "8090")
    if not port.isdigit() or int(port) > 65535 or "/" in host:
        raise ConfigError(f"--web-address {text!r} is not an address: write HOST:PORT, such as 127.0.0.1:8090")
    return host.strip("[]") or "127.0.0.1", int(port)


def run_monitor(
    config: Config, *, config_file: Path | None, spool: Path | None, duration_s: float | None, quiet: bool
) -> bool:
    """Watch until every source has ended, a signal comes or the time is over; returns whether a camera failed."""
    path = spool or spool_file(config, config_file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path.parent} for the spool: {error.strerror}") from error
    return asyncio.run(_monitor(config, config_file, path, duration_s, quiet=quiet))


async def _monitor(
    config: Config, config_file: Path | None, spool: Path, duration_s: float | None, *, quiet: bool
) -> bool:
    def read() -> Config:
        """The configuration file with the changes that the page keeps beside it."""
        assert config_file is not None
        return load_config(config_file) if room is None else room.load_config()

    with _open_room(config, config_file) as room, ClosingGuard(config.close_timeout_s) as guard:
        sinks = {} if room is None else room.sinks()
        recorders = None if room is None else room.recorders
        if room is not None:
            config = room.load_config().model_copy(update={"web": config.web})
        # An address that was just typed is told to be wrong at once; cameras of a file may be away and come back.
        async with open_pipeline(
            config, spool_path=spool, strict=config_file is None, more_sinks=sinks, recorders=recorders
        ) as pipeline:
            settle()
            async with SideTasks(pipeline.stop) as side_tasks, _serve_page(room, pipeline):
                with _metrics(pipeline, config):
                    _start_side_tasks(side_tasks, pipeline, config, config_file, duration_s, read, quiet=quiet)
                    await guard.run(pipeline)
    for stream, error in pipeline.errors.items():
        Console(stderr=True).print(f"{stream}: {error}", highlight=False, soft_wrap=True)
    return bool(pipeline.errors)


def _start_side_tasks(
    side_tasks: SideTasks,
    pipeline: Pipeline,
    config: Config,
    config_file: Path | None,
    duration_s: float | None,
    read: Callable[[], Config],
    *,
    quiet: bool,
) -> None:
    """Starts what runs beside the pipeline and ends with it."""
    if config_file is not None:
        side_tasks.start("following the configuration file", lambda: _follow_edits(pipeline, config_file, read))
    if duration_s is not None:
        side_tasks.start("the clock of --duration", lambda: _stop_after(pipeline, duration_s))
    if sys.stderr.isatty() and not quiet:
        side_tasks.start("the live table", lambda: _show(pipeline), restart_s=TABLE_RESTART_S)


async def _stop_after(pipeline: Pipeline, duration_s: float) -> None:
    await asyncio.sleep(duration_s)
    await pipeline.stop()


async def _follow_edits(pipeline: Pipeline, file: Path, read: Callable[[], Config]) -> None:
    """Apply what `read` returns whenever the file was edited; a mistake is reported and changes nothing."""
    console = user_console(stderr=True)
    seen = _modified(file)
    while True:
        await asyncio.sleep(RELOAD_EVERY_S)
        if (now := _modified(file)) == seen:
            continue
        seen = now
        try:
            sentences = await pipeline.apply(read().model_copy(update={"web": pipeline.config.web}))
        except ConfigError as error:
            console.print(f"{error}; nothing has changed", soft_wrap=True)
        except Exception as error:
            log.error("%s: the edit could not be applied: %s", file, error, exc_info=True)
        else:
            for sentence in sentences:
                console.print(sentence, soft_wrap=True)


def _modified(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@contextlib.contextmanager
def _open_room(config: Config, config_file: Path | None) -> Iterator[WebRoom | None]:
    """Opens what the page needs before the pipeline: its event store, its tokens, the recorders of live pictures."""
    if config.web is None:
        yield None
        return
    from streamer.web.config_document import ConfigDocument
    from streamer.web.server import WebRoom

    name = config_file.stem if config_file is not None else "monitor"
    document = ConfigDocument(config_file, state_folder() / f"{name}.overrides.yaml", config)
    room = WebRoom(config.web, state_folder(), document)
    try:
        yield room
    finally:
        room.close()


@contextlib.asynccontextmanager
async def _serve_page(room: WebRoom | None, pipeline: Pipeline) -> AsyncIterator[None]:
    """Serves the page and prints its address, a login link, and tokens that were generated now."""
    if room is None:
        yield
        return
    console = user_console(stderr=True)
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
def _metrics(pipeline: Pipeline, config: Config) -> Iterator[None]:
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


async def _show(pipeline: Pipeline) -> None:
    """A live table on standard error, so that events on standard output can be piped away."""
    rates = _FrameRates()
    with Live(console=Console(stderr=True), auto_refresh=False, transient=False) as live:
        while True:
            live.update(_table(pipeline.report(), rates, pipeline), refresh=True)
            await asyncio.sleep(TABLE_EVERY_S)


class _FrameRates:
    """Frames per second of each stream between two looks."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int]] = {}

    def of(self, report: StreamReport) -> float:
        now, analysed = time.monotonic(), report.tally.analysed
        then, before = self._before.get(report.stream, (now, analysed))
        if now - then >= 2 * TABLE_EVERY_S or report.stream not in self._before:
            self._before[report.stream] = (now, analysed)
        return (analysed - before) / (now - then) if now > then else 0.0


def _table(reports: Sequence[StreamReport], rates: _FrameRates, pipeline: Pipeline) -> Table:
    table = Table("stream", "state", "analysed", "per second", "age", "dropped", "tracks", "events")
    for report in reports:
        dropped = ", ".join(f"{reason} {count}" for reason, count in report.tally.dropped.items()) or "0"
        table.add_row(
            report.stream,
            report.state.value,
            str(report.tally.analysed),
            f"{rates.of(report):.1f}",
            "" if report.age_s is None else f"{report.age_s * 1000:.0f} ms",
            dropped,
            str(report.tracks),
            str(pipeline.event_counts[report.stream].total()),
        )
    caption = _storage_caption(pipeline.storage())
    table.caption = None if caption is None else Text(visible_text(caption))
    return table


def _storage_caption(storage: StorageStatus) -> str | None:
    """What a user has to know about the spool, None while all is well."""
    if storage.error:
        return f"events cannot be stored: {storage.error}"
    if storage.used_bytes > storage.max_bytes // 2:
        return f"the spool is {100 * storage.used_bytes // storage.max_bytes} % full: events wait for a sink"
    if storage.forgotten:
        return f"{storage.forgotten} events wait for sinks that are no longer configured: see groundstream spool list"
    return None
