"""Consoles and output files of the commands: user text is printed as it is, never interpreted as markup."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamer.errors import StreamerError

PIPE_COLUMNS = 1000
"""Width of tables where no terminal sets a limit."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible_text(text: str) -> str:
    """Text with its control characters (escape sequences, direction marks) written as `\\x1b`, so that none acts on a
    terminal. Line feeds and tabs stay."""
    return _CONTROL.sub(
        lambda found: f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}", text
    )


class UserConsole(Console):
    """A rich console for text that comes from users, files and cameras: no markup, no emoji codes, no highlighting."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints objects; strings are wrapped by the terminal alone, and no cell of a table is cut."""
        options.setdefault("soft_wrap", all(isinstance(item, str) for item in objects))
        for item in objects:
            if isinstance(item, Table):
                fold_columns(item)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders a string, also a cell of a table, without the effect of its control characters."""
        return super().render_str(visible_text(text), **options)


def fold_columns(table: Table) -> Table:
    """Lets cells that are too long for their column go on in the next line instead of being cut."""
    for column in table.columns:
        if column.overflow == "ellipsis":
            column.overflow = "fold"
    return table


def user_console(*, stderr: bool = False, quiet: bool = False) -> UserConsole:
    """The console of a command. Tables are as wide as they need to be where the output is not a terminal."""
    options: dict[str, Any] = {
        "stderr": stderr,
        "quiet": quiet,
        "markup": False,
        "emoji": False,
        "highlight": False,
    }
    console = UserConsole(**options)
    return console if console.is_terminal else UserConsole(width=PIPE_COLUMNS, **options)


def report_line(text: str) -> None:
    """Writes one line to standard error."""
    sys.stderr.write(f"{visible_text(text)}\n")


def make_folder(path: Path) -> Path:
    """Makes an output folder with its parents. Raises `StreamerError` when that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StreamerError(f"cannot create the folder {path}: a file has that name; choose another folder") from error
    except OSError as error:
        raise StreamerError(f"cannot create the folder {path}: {error.strerror}; choose a writable folder") from error
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes an output file, making its folder. Raises `StreamerError` when that fails."""
    make_folder(path.parent)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StreamerError(f"cannot write {path}: {error.strerror}; free space or choose another path") from error
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes an output file as UTF-8, making its folder. Raises `StreamerError` when that fails."""
    return write_bytes(path, text.encode())
