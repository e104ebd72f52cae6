"""Hostile input, a small share of it: seeds are read, mutations are read or refused in a sentence, defects are seen."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import fuzz

CASES = int(os.environ.get("GROUNDSTREAM_FUZZ_CASES", "250"))
SLOW = {"spool": 0.1, "http": 0.4, "rtsp": 0.1, "web sources": 0.04, "containers": 0.8}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_every_seed_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    seeds = fuzz.TARGETS[name].make_seeds(tmp_path / "made")
    assert seeds
    if name == "http":  # most requests miss what they are about in an almost empty store
        seeds = {seed: data for seed, data in seeds.items() if seed in ("get /api/v1/streams", "get /api/v1/events")}
    for seed, data in seeds.items():
        fuzz.TARGETS[name].read(seed, data, tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_mutations_are_read_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    outcomes = fuzz.run_cases(name, range(1, 1 + round(CASES * SLOW.get(name, 1.0))), tmp_path)
    assert set(outcomes) <= {"accepted", "refused"}, outcomes


def test_defects_crashes_and_hangs_are_found_and_do_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fuzz, "_LIMIT_S", 2.0)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "from benchmarks import fuzz\n"
        "seen = []\n"
        "def read(name, data, folder):\n"
        "    seen.append(data)\n"
        "    if len(seen) == 2: raise ZeroDivisionError('by\\nzero')\n"
        "    if len(seen) == 3: os.abort()\n"
        "def slow(name, data, folder):\n"
        "    time.sleep(60)\n"
        "fuzz.TARGETS['scripted'] = fuzz.Target(lambda folder: {'a': b'1'}, read)\n"
        "fuzz.TARGETS['events'] = fuzz.Target(lambda folder: {'a': b'1'}, slow)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{fuzz.ROOT}")
    state, path = fuzz.State(), tmp_path / "state.json"
    fuzz.fuzz(["scripted"], 5, state, path)
    fuzz.fuzz(["events"], 1, state, path)
    assert state.outcomes == {"scripted": {"accepted": 2, "defect": 3}, "events": {"defect": 1}}
    assert state.defects["scripted"] == {"ZeroDivisionError at sitecustomize.py:6: by": 1, "crash by SIGABRT": 2}
    assert state.defects["events"] == {"took longer than 2 s": 0}
    assert fuzz.State.load(path) == state
    assert json.loads(path.read_text())["done"] == {"scripted": 5, "events": 1}
    assert "crash by SIGABRT" in fuzz.write_report(state, "")
