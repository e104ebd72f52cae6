"""Measuring how many cameras a machine carries: real cameras over HTTP, and a search that ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streamer.errors import ConfigError
from streamer.sources.loop_camera import cut_stream
from streamer.tasks.bench_cameras import CameraBench, CamerasPace, draw_camera, search_capacity
from tests.support.clips import make_clip

ROOT = Path(__file__).resolve().parents[2]


class ScriptedBench(CameraBench):
    """A machine that carries `carried` cameras."""

    def __init__(self, carried: int) -> None:
        self.carried = carried

    def measure(self, cameras: int) -> CamerasPace:
        age_ms = 20.0 if cameras <= self.carried else 2000.0
        return CamerasPace(cameras, 5.0 * cameras, 5.0 * cameras, age_ms, age_ms, 1.0, 0.0, (0.1, 0.2))


@pytest.mark.parametrize("carried", [0, 1, 3, 4, 5, 17, 64, 100, 255, 1000])
def test_the_search_finds_about_how_many_cameras_are_carried(carried: int):
    paces = list(search_capacity(ScriptedBench(carried), 256))
    found = max((pace.cameras for pace in paces if pace.is_enough), default=0)
    assert found <= carried
    assert found >= min(carried, 256) * 0.75 - 1
    assert len(paces) <= 12


def test_a_recording_is_repeated_with_rising_times(tmp_path: Path):
    pieces, fps = cut_stream(str(make_clip(tmp_path / "clip.mp4", 10)), 2.0)
    assert (len(pieces), fps) == (50, 25.0)
    assert all(pieces)


def test_a_size_that_is_none_is_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"size 'big' is not WIDTHxHEIGHT"):
        draw_camera(tmp_path / "camera.mp4", "big", 25)


def test_bench_cameras_measures_real_cameras():
    command = [sys.executable, "-m", "streamer.cli", "bench", "cameras", "--size", "320x192", "--fps", "10"]
    command += ["--cameras", "2", "--seconds", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=55, check=True)
    (measured,) = json.loads(done.stdout)["measured"]
    assert measured["cameras"] == 2
    assert measured["wanted_per_s"] == 10.0
    assert measured["analysed_per_s"] > 0
    assert measured["age_p95_ms"] > 0
