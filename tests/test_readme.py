"""What the README shows is what works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import typer.main

from streamer.cli import app
from streamer.config import load_config
from tests.support.clips import make_clip

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def test_the_configuration_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CAMERA_PASSWORD", "secret")
    (text,) = blocks("yaml")
    file = tmp_path / "cameras.yaml"
    file.write_text(text)
    assert [stream.name for stream in load_config(file).streams] == ["gate", None]


def test_the_python_example_runs(tmp_path):
    make_clip(tmp_path / "gate.mp4", frames=30)
    code = blocks("python")[0]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert "groundstream.stream.online.v1" in done.stdout


def test_every_command_and_option_exists():
    group = typer.main.get_command(app)
    lines = [line.removeprefix("$ ") for block in blocks("") for line in block.splitlines()]
    shown = [shlex.split(line, comments=True) for line in lines if line.removeprefix("$ ").startswith("groundstream ")]
    assert len(shown) >= 4
    for words in shown:
        command, rest = group, words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        assert command is not group, f"there is no command {words[1]!r}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        unknown = [word for word in rest if word.startswith("-") and word not in known]
        assert not unknown, f"{' '.join(words)}: no option {unknown}"


def test_the_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w+)", README)) <= targets
