"""Folder of results of one recording: written aside, complete when it has its name."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamer.jobs.job import StreamSummary
from streamer.recorders.text import OutputError

SUMMARY = "summary.json"
INTERRUPTED = ".interrupted"
"""Suffix of a folder that holds what an interrupted recording had so far."""


class ResultFolder:
    """Results of one recording below `out`: `path` while it is worked on, `final` once it is complete."""

    def __init__(self, out: Path, name: str) -> None:
        self.final = out / name
        self.path = out / f".{name}.{secrets.token_hex(4)}"

    def read_summary(self) -> dict[str, Any] | None:
        """Returns the summary of an earlier complete run, None where there is none."""
        try:
            found = json.loads((self.final / SUMMARY).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def begin(self) -> None:
        """Makes the folder aside. Raises `OutputError`."""
        try:
            self.path.mkdir(parents=True)
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

    @property
    def _interrupted(self) -> Path:
        return self.final.with_name(self.final.name + INTERRUPTED)

    def _move_to(self, target: Path, summary: StreamSummary) -> None:
        try:
            with (self.path / SUMMARY).open("w", encoding="utf-8") as file:
                json.dump(asdict(summary), file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
            if target.exists():
                os.rename(target, old)
            os.rename(self.path, target)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise OutputError(
                f"cannot write {target}: {error.strerror}; free space or choose another folder"
            ) from error

    def _remove_attempts(self) -> None:
        for left in self.final.parent.glob(f".{_escape(self.final.name)}.*"):
            shutil.rmtree(left, ignore_errors=True)


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
