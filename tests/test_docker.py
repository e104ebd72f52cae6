"""Checks of the container files by a linter and a parser, without a container engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer.main
import yaml

from streamer.cli import app
from streamer.config import load_config

DOCKER = Path(__file__).resolve().parents[1] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_the_linter_finds_nothing_in_the_dockerfile():
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True
    )
    assert done.stdout == ""


def test_both_targets_run_as_no_one_special_and_watch_their_health():
    text = (DOCKER / "Dockerfile").read_text()
    stages = {stage.split(None, 3)[2].split()[0]: stage for stage in text.split("\nFROM ")[1:] if " AS " in stage}
    assert {"cpu", "cuda"} <= stages.keys()
    assert all("USER 1000" in stages[target] for target in ("cpu", "cuda"))
    assert "HEALTHCHECK" in text


def test_the_compose_file_is_whole():
    services = COMPOSE["services"]
    assert {"broker", "camera", "groundstream"} <= services.keys()
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        named = {volume.partition(":")[0] for volume in service.get("volumes", ()) if not volume.startswith(".")}
        assert named <= COMPOSE["volumes"].keys()
    build = services["groundstream"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()


def test_the_command_it_runs_exists():
    name, *options = COMPOSE["services"]["groundstream"]["command"]
    command = typer.main.get_command(app).commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {option for option in options if option.startswith("-")} <= known


def test_its_configuration_points_at_the_other_services():
    config = load_config(DOCKER / "groundstream.yaml")
    assert "//media:8554/street" in config.streams[0].source
    assert any("//broker:9092/" in sink for sink in config.sinks)
    assert config.metrics_port == 9100
