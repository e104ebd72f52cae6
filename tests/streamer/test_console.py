"""The consoles of the commands: user text is shown as it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.table import Table

from streamer.errors import StreamerError
from streamer.tasks.console import UserConsole, make_folder, user_console, visible_text, write_text


@pytest.mark.parametrize("text", ["a [/b] van", "[red] car", "pip install 'groundstream[mqtt]'", ":car: http://h/1"])
def test_user_text_is_never_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    user_console().print(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    user_console().print("a\x1b[2J\x9b1m\u202ecar")
    assert capsys.readouterr().out == "a\\x1b[2J\\x9b1m\\u202ecar\n"
    assert visible_text("two\nlines\tand a tab") == "two\nlines\tand a tab"


def test_long_lines_are_left_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    user_console().print("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_a_table_cuts_no_cell_and_obeys_no_control_character() -> None:
    names = ["2026-11-24T10-00-00-camera-at-the-northern-entrance (complete before)", "gate \x1b[31m [/b]"]
    table = Table("video", "dropped", "length")
    for name in names:
        table.add_row(name, "overload 1234, not_sampled 5678, corrupt 9", "12345.6 s")
    output = io.StringIO()
    UserConsole(file=output, width=60, markup=False, highlight=False).print(table)
    lines = output.getvalue().splitlines()
    assert all(len(line) <= 60 for line in lines)
    shown = "".join(line.split("│")[1] for line in lines if line.startswith("│"))
    assert "".join(shown.split()) == "".join(visible_text("".join(names)).split())
    assert "…" not in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StreamerError, match="a file has that name"):
        make_folder(tmp_path / "taken")
    with pytest.raises(StreamerError, match="cannot"):
        write_text(tmp_path / "taken" / "inner.txt", "text")
