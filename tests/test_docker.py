"""Checks of the container files, the Kubernetes manifests and the systemd units, without an engine of their own."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from streamer.cli import app
from streamer.config import load_config

DOCKER = Path(__file__).resolve().parents[1] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
CLUSTER = yaml.safe_load((DOCKER / "cluster.yaml").read_text())
UNITS = sorted((DOCKER / "systemd").glob("*.service"))


def resources() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted((DOCKER / "kubernetes").glob("*.yaml")):
        for resource in yaml.safe_load_all(file.read_text()):
            yield file.name, resource


RESOURCES = [pytest.param(file, one, id=f"{file} {one['kind']}") for file, one in resources()]
WORKLOADS = [pytest.param(file, one, id=file) for file, one in resources() if one["kind"] in ("StatefulSet", "Job")]


def parse_command(arguments: list[str]) -> dict[str, Any]:
    """The options of a command of groundstream, where a wrong one is an error; nothing is run."""
    name, *options = arguments
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return dict(command.make_context(name, options).params)


def shell_command(text: str, **variables: str) -> list[str]:
    """The arguments that a shell gives to the groundstream that `text` starts."""
    assert text.startswith("exec groundstream ")
    done = subprocess.run(
        ["/bin/sh", "-c", text.replace("exec groundstream", r"exec printf '%s\n'")],
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


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


@pytest.mark.parametrize("compose", [COMPOSE, CLUSTER], ids=["compose", "cluster"])
def test_the_compose_files_are_whole(compose: dict[str, Any]):
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        volumes = [volume.partition(":")[0] for volume in service.get("volumes", ())]
        assert {volume for volume in volumes if not volume.startswith(".")} <= compose["volumes"].keys()
        assert all((DOCKER / volume).exists() for volume in volumes if volume.startswith("."))
        if (build := service.get("build")) is not None:
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
    assert any("build" in service for service in services.values())


def test_the_commands_of_the_compose_files_exist():
    assert parse_command(COMPOSE["services"]["groundstream"]["command"])["config"] == Path("/config/groundstream.yaml")
    for node in ("north", "south"):
        service = CLUSTER["services"][node]
        assert parse_command(service["command"])["config"] == Path("/config/cameras.yaml")
        assert service["environment"]["GROUNDSTREAM_NODE"] == node
        assert "@leases/" in service["environment"]["GROUNDSTREAM_LEASE"]


def test_the_configurations_point_at_the_other_services():
    config = load_config(DOCKER / "groundstream.yaml")
    assert "//media:8554/street" in config.streams[0].source
    assert any("//broker:9092/" in sink for sink in config.sinks)
    shared = load_config(DOCKER / "cameras.yaml")
    assert {stream.name for stream in shared.streams} == {"street", "yard"} <= CLUSTER["services"].keys()
    assert all(f"//media:8554/{stream.name}" in stream.source for stream in shared.streams)
    assert config.metrics_port == shared.metrics_port == 9100


@pytest.mark.parametrize(("file", "resource"), RESOURCES)
def test_the_kubernetes_examples_follow_the_schema(file: str, resource: dict[str, Any]):
    for version in ("1.31", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_mistake_in_a_kubernetes_example_would_be_found():
    resource = next(resource for _, resource in resources() if resource["kind"] == "StatefulSet")
    resource["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(("file", "resource"), WORKLOADS)
def test_the_kubernetes_examples_are_whole(file: str, resource: dict[str, Any]):
    template = resource["spec"]["template"]
    spec = template["spec"]
    claims = resource["spec"].get("volumeClaimTemplates", ())
    volumes = {one["name"] for one in spec["volumes"]} | {one["metadata"]["name"] for one in claims}
    (container,) = spec["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    for index in ("0", "2"):
        if "command" in container:
            arguments = shell_command(*container["args"], INDEX=index, JOB_COMPLETION_INDEX=index)
        else:
            arguments = container["args"]
        count = resource["spec"].get("replicas", resource["spec"].get("completions"))
        expected = None if "leases" in file else f"{int(index) + 1}/{count}"
        assert parse_command(arguments)["shard"] == expected
    if "selector" in resource["spec"]:
        assert resource["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]


def test_the_cameras_of_the_kubernetes_example_are_a_configuration(tmp_path: Path):
    (text,) = [one["data"]["cameras.yaml"] for _, one in resources() if one["kind"] == "ConfigMap"]
    (tmp_path / "cameras.yaml").write_text(text)
    config = load_config(tmp_path / "cameras.yaml")
    assert all(stream.name for stream in config.streams)
    assert config.metrics_port == 9100


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_systemd_units_start_commands_that_exist(unit: Path):
    parser = configparser.RawConfigParser(strict=False)
    parser.read(unit)
    program, *arguments = shlex.split(parser["Service"]["ExecStart"].replace("%I", "2/4"))
    assert program.endswith("/bin/groundstream")
    assert parse_command(arguments)["shard"] == ("2/4" if "shard" in unit.name else None)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian package systemd)")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path):
    copy = tmp_path / unit.name.replace("@", "@2-4")
    copy.write_text(unit.read_text().replace("/opt/groundstream/bin/groundstream", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert copy.name not in done.stderr
