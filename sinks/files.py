"""Events as lines of JSON, to a file or to standard output."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sinks.address import SinkAddress
from sinks.sink import ReaderGone, SinkAddressError, SinkError
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event


class JsonlSink:
    """Appends one line for each event; a line that a crash cut short is taken away first.

    An event counts as delivered when the operating system has it: it survives the end of this process. Raises
    `SinkError` in a sentence where the file cannot be written; nothing of a batch that failed stays in the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _cannot_write(self._path, error) from None
        # Lines go to a place in a file; a pipe or a device has none, and takes what comes in its order.
        self._has_places = stat.S_ISREG(os.fstat(self._file).st_mode)
        self._end = 0
        if self._has_places:
            self._end = _end_of_last_line(self._file)
            os.ftruncate(self._file, self._end)
        self._worker = SinkWorker("sink-jsonl")

    async def send_batch(self, events: Sequence[Event]) -> None:
        await self._worker.call(self._append, b"".join([event.to_json() + b"\n" for event in events]))

    async def aclose(self) -> None:
        await self._worker.aclose(last=lambda: os.close(self._file))

    def _append(self, lines: bytes) -> None:
        try:
            written = 0
            while written < len(lines):
                if self._has_places:
                    written += os.pwrite(self._file, lines[written:], self._end + written)
                else:
                    written += os.write(self._file, lines[written:])
        except OSError as error:
            if self._has_places:
                os.ftruncate(self._file, self._end)
            raise _cannot_write(self._path, error) from None
        self._end += len(lines)


class StdoutSink:
    """One line for each event on standard output, at once.

    Unread events are not kept for the next start. Raises `ReaderGone` when the other end of the pipe
    was closed.
    """

    durable = False

    def __init__(self) -> None:
        self._worker = SinkWorker("sink-stdout")

    async def send_batch(self, events: Sequence[Event]) -> None:
        await self._worker.call(self._write_lines, b"".join([event.to_json() + b"\n" for event in events]))

    async def aclose(self) -> None:
        await self._worker.aclose()

    def _write_lines(self, lines: bytes) -> None:
        """Past Python's own buffer, whose lock a reader that never reads would hold at the exit."""
        try:
            sys.stdout.flush()
            file, written = sys.stdout.fileno(), 0
            while written < len(lines):
                written += os.write(file, lines[written:])
        except BrokenPipeError:
            raise ReaderGone("standard output was closed by its reader") from None
        except OSError as error:
            raise SinkError(f"standard output cannot be written ({error.strerror}): check where it goes") from None


def open_jsonl(address: SinkAddress) -> JsonlSink:
    address.options.finish()
    if not address.path:
        raise SinkAddressError("jsonl: needs a path: write jsonl:events.jsonl")
    return JsonlSink(address.path)


def open_stdout(address: SinkAddress) -> StdoutSink:
    address.options.finish()
    if address.path:
        raise SinkAddressError(f"{address.public}: stdout: takes no path; to write a file, use jsonl:PATH")
    return StdoutSink()


def _end_of_last_line(file: int) -> int:
    end = size = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0 if size else size


def _cannot_write(path: Path, error: OSError) -> SinkError:
    return SinkError(
        f"{path} cannot be written ({error.strerror}): check the path, its rights and the space on the disk"
    )
