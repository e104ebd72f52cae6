"""The help of the command line: complete, grouped and readable at 80 columns."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from streamer.cli import SECTIONS, app


def command_paths() -> list[tuple[str, ...]]:
    def walk(command: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        inner = getattr(command, "commands", {})
        return [path, *(found for name in inner for found in walk(inner[name], (*path, name)))]

    return walk(typer.main.get_command(app), ())


def help_of(*path: str) -> str:
    done = CliRunner().invoke(app, [*path, "--help"], terminal_width=80, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.output


def test_every_command_stands_in_one_section() -> None:
    visible = [name for name, command in typer.main.get_command(app).commands.items() if not command.hidden]  # type: ignore[attr-defined]
    listed = [name for rows in SECTIONS.values() for name in rows]
    assert sorted(listed) == sorted(visible)


def test_summaries_are_one_line_each() -> None:
    lines = help_of().splitlines()
    for rows in SECTIONS.values():
        for name, summary in rows.items():
            assert any(re.fullmatch(rf"  {name} +{re.escape(summary)}", line) for line in lines), name


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_values_are_words_and_nothing_is_cut(path: tuple[str, ...]) -> None:
    text = help_of(*path)
    assert re.findall(r"<(?:str|int|float|path|list)|list\[", text) == []
    assert re.findall(r"\w\.\.\.$", text, re.MULTILINE) == []
