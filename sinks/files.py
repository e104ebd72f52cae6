"""Events as lines of JSON, to a file or to standard output."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sinks.address import SinkAddress
from sinks.formats.choose import Encode, encode_json
from sinks.formats.onvif import OnvifFormat
from sinks.sink import ReaderGone, SinkAddressError, SinkError
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event

log = logging.getLogger("sinks")


_EVENT_BEGINS = b'{"specversion":"1.0","id":"'
_TAIL = 65536


class JsonlSink:
    """Appends one line for each event to a file that no other process writes.

    An event counts as delivered when the operating system has it under the file's name: it survives the end of this
    process. A file that is renamed, deleted or replaced is created again under its name; one that is cut goes on with
    whole lines. An event that a crash cut short is removed, all other text stays. Raises `SinkError` in a sentence
    where the file cannot be written; nothing of a batch that failed stays in the file. A named pipe takes events while
    it has a reader: without one they wait.
    """

    def __init__(self, path: str | Path, encode: Encode = encode_json) -> None:
        self._path = Path(path)
        self._encode = encode
        self._file = -1 if self._is_pipe() else self._open_file()  # a pipe is opened when its reader is there
        self._worker = SinkWorker("sink-jsonl")

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Appends the events; see `Sink.send_batch`."""
        await self._worker.call(self._append_lines, b"".join([self._encode(event)[0] + b"\n" for event in events]))

    async def aclose(self) -> None:
        """Closes the file, which lets others write it."""
        await self._worker.aclose(last=self._close_file)

    def _is_pipe(self) -> bool:
        try:
            return stat.S_ISFIFO(os.stat(self._path).st_mode)
        except OSError:
            return False

    def _open_pipe(self) -> int:
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise SinkError(f"{self._path} is a pipe without a reader: start the program that reads it") from None
            raise _cannot_write(self._path, error) from None
        os.set_blocking(file, True)
        return file

    def _open_file(self) -> int:
        if self._is_pipe():
            return self._open_pipe()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _cannot_write(self._path, error) from None
        try:
            if stat.S_ISREG(os.fstat(file).st_mode):
                _lock_file(file, self._path)
        except BaseException:
            os.close(file)
            raise
        return file

    def _close_file(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _append_lines(self, lines: bytes) -> None:
        try:
            if self._file < 0:
                self._file = self._open_file()
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                _write_all(self._file, lines)  # a pipe or a device takes what comes in its order
                return
            if not self._is_in_place():
                log.warning("%s was moved, deleted or replaced: events go to a new file of this name", self._path)
                self._close_file()
                self._file = self._open_file()
            self._append_whole(lines)
        except BrokenPipeError:
            self._close_file()
            raise SinkError(f"the reader of the pipe {self._path} is gone: start it again") from None
        except OSError as error:
            raise _cannot_write(self._path, error) from None

    def _is_in_place(self) -> bool:
        """Whether the open file is the one that others find under the path."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._file)
        return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)

    def _append_whole(self, lines: bytes) -> None:
        start = _repair_end(self._file)
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._file, lines[written:])
        except OSError:
            # A part of the batch must not stay; what another program appended behind it must.
            if os.fstat(self._file).st_size == start + written:
                os.ftruncate(self._file, start)
            raise


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


def open_onvif_file(address: SinkAddress) -> JsonlSink:
    """`onvif:PATH`: ONVIF metadata, one XML document a line."""
    address.options.finish()
    if not address.path:
        raise SinkAddressError("onvif: needs a path: write onvif:metadata.xml")
    return JsonlSink(address.path, OnvifFormat().encode)


def open_stdout(address: SinkAddress) -> StdoutSink:
    address.options.finish()
    if address.path:
        raise SinkAddressError(f"{address.public}: stdout: takes no path; to write a file, use jsonl:PATH")
    return StdoutSink()


def _lock_file(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SinkAddressError(
            f"{path} is being written by another groundstream: give each its own file, or let one of them write"
        ) from None
    except OSError as error:  # some network file systems have no locks
        log.debug("%s cannot be locked (%s)", path, error)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _repair_end(file: int) -> int:
    """Makes the file end with a whole line and returns its size.

    The beginning of an event is removed; a whole event, and text that is not ours, get their newline.
    """
    size = os.fstat(file).st_size
    if size == 0 or os.pread(file, 1, size - 1) == b"\n":
        return size
    start = size
    while start > 0:
        block = max(0, start - _TAIL)
        newline = os.pread(file, start - block, block).rfind(b"\n")
        if newline >= 0:
            start = block + newline + 1
            break
        start = block
    begin = os.pread(file, len(_EVENT_BEGINS), start)
    is_ours = _EVENT_BEGINS.startswith(begin)
    if is_ours and not _is_whole(os.pread(file, size - start, start)):
        os.ftruncate(file, start)
        return start
    os.write(file, b"\n")
    return size + 1


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _cannot_write(path: Path, error: OSError) -> SinkError:
    return SinkError(
        f"{path} cannot be written ({error.strerror}): check the path, its rights and the space on the disk"
    )
