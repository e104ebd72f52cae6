"""The `doctor` command: checks of this machine, of sources and of sinks, one result a line with its remedy."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from groundstream import __version__, foreign_package
from streamer.spooling import state_folder
from streamer.tasks.console import user_console
from streamer.threads import describe_threads

if TYPE_CHECKING:
    from sinks.event import Event
    from streamer.config import StreamConfig
    from streamer.sources import StateChange

_NEEDED = ("av", "numpy", "opencv-python", "pydantic", "scipy", "supervision", "torch", "transformers")
_OPTIONAL = {
    "lap": "fast assignment; without it SciPy is used",
    "kafka-python": "the Kafka sink",
    "crc32c": "four times faster Kafka",
    "paho-mqtt": "the MQTT sink: pip install 'groundstream[mqtt]'",
    "pyarrow": "the Parquet sink: pip install 'groundstream[parquet]'",
    "redis": "the Redis sink: pip install 'groundstream[redis]'",
    "sentencepiece": "GLaMM: pip install 'groundstream[glamm]'",
    "trackeval": "groundstream evaluate tracking: pip install 'groundstream[eval]'",
}
_LEAST_DISK = 2 * 1024**3
_SOURCE_WAIT_S = 15.0
_SOURCES_AT_ONCE = 8
_LEASE_SLOW_S = 0.5
_FILE_SINKS = ("jsonl", "sqlite", "parquet")

State = Literal["works", "missing", "broken"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of one check. `missing`: groundstream runs without it; `broken`: it does not."""

    what: str
    state: State
    detail: str


def run_checks(
    sinks: Sequence[str] = (),
    sources: Sequence[str] = (),
    *,
    config: Path | None = None,
    lease: str | None = None,
    send_test: bool = False,
) -> list[CheckResult]:
    """Runs all checks; changes nothing except a probe file in the state folder.

    The streams of the `config` file are opened with their own settings (TLS, transport, track); its sinks are checked,
    too, and the store of leases at `lease`. Raises `ConfigError` for a file that is no configuration.
    """
    from streamer.config import StreamConfig, load_config

    streams = [StreamConfig(source=address) for address in sources]
    if config is not None:
        loaded = load_config(config)
        streams += [stream for stream in loaded.streams if not stream.paused]
        sinks = [*sinks, *loaded.sinks]
    checks: list[Callable[[], Iterator[CheckResult]]] = [
        _check_python,
        _check_libraries,
        _check_codecs,
        _check_devices,
        _check_hardware_decoding,
        _check_threads,
        _check_models,
        _check_disk,
        _check_spools,
    ]
    findings = [finding for run_check in checks for finding in run_check()]
    findings += [_check_sink(address, send_test=send_test) for address in sinks]
    if lease is not None:
        findings.append(_check_lease(lease))
    with ThreadPoolExecutor(_SOURCES_AT_ONCE) as pool:
        findings += pool.map(_check_source, streams)
    return findings


def show_results(findings: Sequence[CheckResult], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))  # noqa: T201
        return
    colors = {"works": "green", "missing": "yellow", "broken": "red"}
    table = Table("what", "state", "")
    for finding in findings:
        color = colors[finding.state]
        table.add_row(finding.what, Text(finding.state, style=color), finding.detail)
    user_console().print(table)


def _check_python() -> Iterator[CheckResult]:
    yield CheckResult("groundstream", "works", __version__)
    yield CheckResult("Python", "works", platform.python_version())
    problem = foreign_package()
    ours = "streamer, detectors, trackers, sinks"
    yield CheckResult("packages", "works" if problem is None else "broken", problem or ours)


def _check_libraries() -> Iterator[CheckResult]:
    for name in _NEEDED:
        version = _installed_version(name)
        if version is None:
            yield CheckResult(name, "broken", "not installed: run pip install groundstream again")
        else:
            yield CheckResult(name, "works", version)
    for name, use in _OPTIONAL.items():
        version = _installed_version(name)
        yield CheckResult(name, "missing" if version is None else "works", use if version is None else version)


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_codecs() -> Iterator[CheckResult]:
    from streamer.sources.decode import codecs_available

    for codec, available in codecs_available(("h264", "hevc", "av1", "mjpeg")).items():
        detail = "decodes" if available else "this build of FFmpeg cannot decode it: pip install --upgrade av"
        yield CheckResult(f"codec {codec}", "works" if available else "missing", detail)


def _check_devices() -> Iterator[CheckResult]:
    from detectors.device import describe_devices

    for name, detail in describe_devices():
        yield CheckResult(name, "works", detail)


def _check_hardware_decoding() -> Iterator[CheckResult]:
    from streamer.sources.hardware import describe_decoding

    is_possible, sentence = describe_decoding()
    yield CheckResult("hardware decoding", "works" if is_possible else "missing", sentence)


def _check_threads() -> Iterator[CheckResult]:
    in_force, sentence = describe_threads()
    yield CheckResult("threads", "works" if in_force else "missing", sentence)


def _check_models() -> Iterator[CheckResult]:
    from detectors.catalogue import catalogue

    here = [model for model in catalogue() if model.is_here]
    if all(model.name == "glip-mini" for model in here):  # it is in the package and knows the synthetic street only
        detail = "none downloaded yet; for words on real footage: groundstream models pull coco-nano, or glip-tiny"
        yield CheckResult("models", "missing", detail)
    for model in here:
        yield CheckResult(f"model {model.name}", "works", str(model.folder))


def _check_disk() -> Iterator[CheckResult]:
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"groundstream")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield CheckResult("state folder", "broken", f"cannot write to {folder}: {error.strerror}")
        return
    detail = f"{folder}, {free / 1024**3:.0f} GiB free"
    yield CheckResult("state folder", "works" if free > _LEAST_DISK else "broken", detail)


def _check_spools() -> Iterator[CheckResult]:
    """Spools in the state folder in which events wait, or that cannot be read."""
    from streamer.errors import StreamerError
    from streamer.tasks.spool import find_spools, read_summary

    for file in find_spools(None):
        try:
            summary = read_summary(file)
        except StreamerError as error:
            yield CheckResult(f"spool {file.name}", "broken", str(error))
            continue
        waiting = [f"{cursor.waiting} events wait for {cursor.sink}" for cursor in summary.cursors if cursor.waiting]
        damaged = [f"a damaged file was kept: {summary.damaged}"] if summary.damaged else []
        if waiting or damaged:
            yield CheckResult(f"spool {file.name}", "works", "; ".join([*waiting, *damaged]))


def _check_sink(text: str, *, send_test: bool = False) -> CheckResult:
    from sinks.address import parse_address, redact
    from sinks.registry import open_sink
    from sinks.sink import SinkError

    async def try_it() -> str:
        if text.startswith("video:"):
            _check_writable(Path(text.removeprefix("video:")), is_folder=False)
            return "can be written"
        address = parse_address(text)
        if address.scheme in _FILE_SINKS and address.path:
            return await _file_sink(address.scheme, address.path, text.partition(":")[2])
        sink = open_sink(text)
        try:
            check = getattr(sink, "check", None)
            detail = await check() if check is not None else ""
            if send_test and (send := getattr(sink, "send_test", None)) is not None:
                detail = await send(_test_event())
        finally:
            await sink.aclose()
        return str(detail) or "can be opened"

    name = f"sink {redact(text)}"
    try:
        return CheckResult(name, "works", asyncio.run(try_it()))
    except SinkError as error:
        return CheckResult(name, "broken", str(error))
    except OSError as error:
        return CheckResult(name, "broken", f"cannot be reached: {error.strerror or error}")


def _check_lease(address: str) -> CheckResult:
    """Whether nodes can share cameras there, and how long one request takes of the time in which leases are renewed."""
    from sinks.address import redact
    from streamer.cluster.lease_address import open_lease_store
    from streamer.cluster.lease_book import FENCE_S, LeaseError
    from streamer.errors import ConfigError

    name = f"lease {redact(address)}"
    try:
        store = open_lease_store(address)
        try:
            store.check()  # connects
            began_s = time.monotonic()
            detail = store.check()
        finally:
            store.close()
    except (ConfigError, LeaseError) as error:
        return CheckResult(name, "broken", str(error))
    seconds = time.monotonic() - began_s
    if seconds > _LEASE_SLOW_S:
        detail += f"; slow: leases last {FENCE_S:g} s, and every renewal is one such request"
    return CheckResult(name, "works", f"answers in {1000 * seconds:.0f} ms; {detail}")


def _test_event() -> Event:
    """An event of no stream that is watched, for sinks that are asked to take one."""
    from sinks.event import (
        Clock,
        CoverageInfo,
        Event,
        EventData,
        EventType,
        Producer,
        event_id,
        format_sequence,
        rfc3339,
    )

    now, stream = time.time_ns(), "groundstream-doctor"
    run = now // 1_000_000
    return Event(
        id=event_id(run, stream, 1),
        source=f"/streams/{stream}",
        type=EventType.COVERAGE,
        subject=stream,
        time=rfc3339(now),
        partitionkey=stream,
        sequence=format_sequence(1),
        data=EventData(
            stream=stream,
            run=run,
            clock=Clock(basis="arrival", captured_ns=now),
            coverage=CoverageInfo(from_ns=now, to_ns=now, state="seeing", received=0, analysed=0),
            producer=Producer(
                version=_installed_version("groundstream") or "", detector="", tracker="", config_hash=""
            ),
        ),
    )


async def _file_sink(scheme: str, path: str, rest: str) -> str:
    """Whether the sink could write there: it is opened elsewhere, so nothing is left behind. Raises `SinkError`.

    `rest` is the path with the options behind it.
    """
    from sinks.registry import open_sink

    with tempfile.TemporaryDirectory() as folder:
        await open_sink(f"{scheme}:{folder}/events{rest.removeprefix(path)}").aclose()
    _check_writable(Path(path), is_folder=scheme == "parquet")
    return "can be written"


def _check_writable(path: Path, *, is_folder: bool) -> None:
    from sinks.sink import SinkError

    if path.exists() and path.is_dir() != is_folder:
        raise SinkError(f"{path} cannot be written: it is a {'file' if is_folder else 'folder'}")
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if nearest != path and not nearest.is_dir():
        raise SinkError(f"{path} cannot be written: {nearest} is no folder")
    if not os.access(nearest, os.W_OK):
        raise SinkError(f"{path} cannot be written: {nearest} may not be changed by this user")


def _check_source(stream: StreamConfig) -> CheckResult:
    from sinks.address import redact
    from streamer.errors import SourceError

    name = f"source {redact(stream.source)}" if stream.name is None else f"source {stream.name}"
    causes: list[str] = []
    try:
        return CheckResult(name, "works", asyncio.run(_first_frame(stream, causes)))
    except SourceError as error:
        return CheckResult(name, "broken", str(error))
    except TimeoutError:
        cause = f": {causes[-1]}" if causes else ""
        return CheckResult(name, "broken", f"no picture within {_SOURCE_WAIT_S:.0f} s{cause}")


async def _first_frame(stream: StreamConfig, causes: list[str]) -> str:
    """What the first frame of a stream shows; `causes` gets each outage before it. Raises `SourceError`."""
    from streamer.assembly import open_stream

    def note(change: StateChange) -> None:
        if change.cause:
            causes.append(change.cause)

    opened = await asyncio.to_thread(open_stream, stream, on_state=note, strict=True)
    source = opened[0]
    unverified = ", its certificate is not verified (tls.insecure)" if stream.tls.insecure else ""
    try:
        async with asyncio.timeout(_SOURCE_WAIT_S):
            async for frame in source:
                return f"{frame.width}x{frame.height}, clock {frame.clock.basis}{unverified}"
    finally:
        await source.aclose()
    return "it ended without a picture"
