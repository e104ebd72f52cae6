"""What the measurement of speed reports; not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from detectors.glip import bench as speed
from detectors.glip.detector import create
from streamer.commands import bench_detector


def test_a_measurement_accounts_for_the_time_of_every_stage(folder: Path) -> None:
    found = speed.measure_speed(create("glip-mini", weights=folder), width=96, height=64, batch=2, asked=3, rounds=3)
    assert found.frames_per_s == pytest.approx(2 / found.latency_p50_s)
    assert found.latency_p99_s >= found.latency_p50_s
    assert set(found.shares) == {*speed.STAGES.values(), speed.REST}
    assert sum(found.shares.values()) == pytest.approx(1, abs=0.05)
    assert found.flops_per_frame is not None
    assert found.flops_per_frame > 1e6
    assert found.share_of_peak is not None
    assert 0 < found.share_of_peak < 1


def test_queries_to_measure_with_are_all_different() -> None:
    assert len(set(speed.sample_queries(37))) == 37


def test_random_weights_are_of_released_sizes_only() -> None:
    with pytest.raises(ValueError, match="not for 'glip-mini'"):
        speed.random_glip("glip-mini")


def run(*arguments: str) -> None:
    app = typer.Typer()
    app.command()(bench_detector.detector)
    app(list(arguments), standalone_mode=False)


def test_the_command_prints_a_table_or_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["glip-mini", "--weights", str(folder), "--size", "96x64", "--rounds", "2"]
    run(*arguments)
    table = capsys.readouterr().out
    assert "frames/s" in table
    assert "time in dynamic head" in table
    run(*arguments, "--json")
    assert json.loads(capsys.readouterr().out)["frames_per_s"] > 0


def test_the_command_refuses_what_it_cannot_measure(folder: Path) -> None:
    with pytest.raises(ValueError, match="give WIDTHxHEIGHT"):
        run("glip-mini", "--size", "96")
    with pytest.raises(ValueError, match="exclude each other"):
        run("glip-tiny", "--random-weights", "--weights", str(folder))
