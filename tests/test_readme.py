"""What the README files show is what works: commands, configurations, events, examples and links."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from sinks.event import Event
from streamer.cli import SECTIONS, app
from streamer.config import load_config
from tests.support.clips import make_clip

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "*/README.md", "streamer/*/README.md")
    for path in ROOT.glob(pattern)
    if path.parent.name not in ("out", "build") and not path.parent.name.startswith(".")
)


def blocks(language: str, page: Path = ROOT / "README.md") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def of_pages(language: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}:{number}")
        for page in PAGES
        for number, text in enumerate(blocks(language, page), 1)
    ]


@pytest.mark.parametrize("text", of_pages("yaml"))
def test_every_configuration_is_one(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(name, "a secret of this page")
    raw = yaml.safe_load(text)
    if "streams" not in raw:  # an excerpt
        raw = {"streams": [{"source": "webcam:0"}], "queries": ["person"], **raw}
    file = tmp_path / "cameras.yaml"
    file.write_text(yaml.safe_dump(raw))
    load_config(file)


@pytest.mark.parametrize("text", of_pages("json"))
def test_every_event_is_one(text: str) -> None:
    value = json.loads(text)
    if "specversion" in value:
        Event.from_json(json.dumps(value))


@pytest.mark.parametrize("text", of_pages("python"))
def test_every_python_example_compiles(text: str) -> None:
    compile(text, "README", "exec", flags=0x2000)  # top-level await, as in a notebook


@pytest.mark.timeout(300)
def test_the_first_page_works_on_a_recording(tmp_path: Path) -> None:
    """Its Python example and its commands on files, as a newcomer would copy them."""
    make_clip(tmp_path / "gate.mp4", frames=30)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "groundstream.stream.online.v1" in run([sys.executable, "-c", blocks("python")[0]])
    lines = [line for block in blocks("") for line in block.splitlines()]
    ran = 0
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["groundstream"] and any(word in ("gate.mp4", "sqlite:out/events.sqlite") for word in words):
            run([sys.executable, "-m", *words])
            ran += 1
    assert ran >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_exists(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    lines = [
        line.removeprefix("$ ")
        for kind in ("", "sh", "bash")
        for text in blocks(kind, page)
        for line in text.splitlines()
    ]
    shown = [shlex.split(line, comments=True) for line in lines if line.startswith("groundstream ")]
    for words in shown:
        command, rest = group, words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        assert command is not group or rest[:1] == ["--help"], f"there is no command {words[1]!r}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        arguments = rest[: rest.index("|")] if "|" in rest else rest
        unknown = [
            word for word in arguments if word.startswith("-") and len(word) > 1 and word.split("=")[0] not in known
        ]
        assert unknown in ([], ["--help"]), f"{' '.join(words)}: no option {unknown}"


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"make (env|demo|test|lint|format|bench|clean)\b", page.read_text())
    }
    assert named <= targets
    assert {"demo", "test"} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [link for link in links if not link.startswith(("http://", "https://", "mailto:"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_table_of_commands_is_the_one_of_the_help() -> None:
    """Write it with: python -m tests.test_readme."""
    assert (ROOT / "streamer" / "README.md").read_text() == with_commands()


def with_commands() -> str:
    rows = [f"| `{name}` | {text} |" for section in SECTIONS.values() for name, text in section.items()]
    table = "\n".join(["<!-- commands -->", "| command | what it does |", "| --- | --- |", *rows, "<!-- /commands -->"])
    page = (ROOT / "streamer" / "README.md").read_text()
    return re.sub(r"<!-- commands -->.*<!-- /commands -->", table, page, flags=re.DOTALL)


if __name__ == "__main__":
    (ROOT / "streamer" / "README.md").write_text(with_commands())
