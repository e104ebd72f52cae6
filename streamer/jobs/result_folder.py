"""Folder of results of one recording: written aside, complete when it has its name."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamer.jobs.job import StreamSummary
from streamer.recorders.text import OutputError

SUMMARY = "summary.json"
INTERRUPTED = ".interrupted"
"""Suffix of a folder that holds what an interrupted recording had so far."""
_LOCK = ".lock"
_MOST_RACES = 20


class ResultFolder:
    """Results of one recording below `out`: `path` while it is worked on, `final` once it is complete."""

    def __init__(self, out: Path, name: str) -> None:
        self.final = out / name
        self.path = out / f".{name}.{secrets.token_hex(4)}"
        self.parts = out / f".{name}.parts"
        """What was detected in parts of the recording, until it is complete."""
        self._lock: int | None = None  # held while it is worked on, so that no other run removes the folder

    def read_summary(self) -> dict[str, Any] | None:
        """Returns the summary of an earlier complete run, None where there is none."""
        try:
            found = json.loads((self.final / SUMMARY).read_text())
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def begin(self) -> None:
        """Makes the folder aside. Raises `OutputError`."""
        try:
            while self._lock is None:
                self.path.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # another run took it for a folder that was left
                    self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            with suppress(OSError):  # a file system without locks: runs at the same time are not kept apart
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"cannot write {self.final}: {error.strerror}; choose another folder") from error

    def finish(self, summary: StreamSummary) -> None:
        """Gives the folder its name and removes what earlier attempts left. Raises `OutputError`."""
        self._move_to(self.final, summary)
        self._remove_attempts()
        shutil.rmtree(self._interrupted, ignore_errors=True)

    def interrupt(self, summary: StreamSummary) -> Path:
        """Keeps what there is under another name; returns that folder. Raises `OutputError`."""
        self._move_to(self._interrupted, summary)
        return self._interrupted

    def discard(self) -> None:
        """Removes what this attempt wrote."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _interrupted(self) -> Path:
        return self.final.with_name(self.final.name + INTERRUPTED)

    def _move_to(self, target: Path, summary: StreamSummary) -> None:
        try:
            with (self.path / SUMMARY).open("w", encoding="utf-8") as file:
                json.dump(asdict(summary), file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            self._replace(target)
            (target / _LOCK).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot write {target}: {error.strerror}; free space or choose another folder"
            ) from error
        finally:
            self._unlock()

    def _replace(self, target: Path) -> None:
        """Gives the folder the name `target`. Another run may do the same at the same time: the last one stays."""
        for left in reversed(range(_MOST_RACES)):
            old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
            with suppress(FileNotFoundError):
                os.rename(target, old)
            try:
                os.rename(self.path, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not left:
                    raise
            else:
                left = 0
            shutil.rmtree(old, ignore_errors=True)
            if not left:
                return

    def _remove_attempts(self) -> None:
        attempt = re.compile(rf"\.{re.escape(self.final.name)}\.(parts|((interrupted\.)?old-)?[0-9a-f]{{8}})")
        for left in self.final.parent.iterdir():
            if attempt.fullmatch(left.name) and not _is_at_work(left):
                shutil.rmtree(left, ignore_errors=True)


def _is_at_work(attempt: Path) -> bool:
    """Whether another run, on this or another machine, still writes into the folder."""
    try:
        lock = os.open(attempt / _LOCK, os.O_RDWR)
    except OSError:
        return False  # an earlier version left it, or it is complete and was replaced
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
