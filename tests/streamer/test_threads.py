"""The one rule for thread counts: how cores are counted, what the environment gets, what `doctor` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from streamer import threads

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (16, 16), (64, threads.MOST_WORKERS), (0, 1)])
def test_the_plan_gives_every_part_at_least_one_thread(cores: int, workers: int):
    plan = threads.plan_threads(cores)
    assert (plan.model, plan.decode_workers, plan.opencv, plan.blas) == (max(1, cores), workers, 1, 1)


def test_only_as_many_threads_decode_at_a_time_as_the_worker_s_share_of_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "_turns", threads.nullcontext())
    monkeypatch.setattr(threads, "usable_cores", lambda: 40)
    assert threads.plan_threads(2).decoding == 1
    threads.limit_decoding()
    inside: list[int] = []
    most: list[int] = []

    def decode() -> None:
        with threads.decoding_turn():
            inside.append(1)
            time.sleep(0.01)
            most.append(len(inside))
            inside.pop()

    workers = [threading.Thread(target=decode) for _ in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert max(most) == 3  # 40 cores, 16 workers


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "garbage"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({}, 8),
    ],
)
def test_a_container_s_quota_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
):
    monkeypatch.setattr(threads, "_allowed_cores", lambda: 8)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.usable_cores(tmp_path) == expected


def test_openmp_gets_a_thread_count_only_where_it_cannot_know_it(monkeypatch: pytest.MonkeyPatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that the test's end restores what was there
        monkeypatch.delenv(name)
    monkeypatch.setattr(threads, "_allowed_cores", lambda: 8)
    monkeypatch.setattr(threads, "_quota_cores", lambda cgroup: None)
    threads.set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr(threads, "_quota_cores", lambda cgroup: 2.0)
    threads.set_environment()
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    threads.set_environment()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["OPENBLAS_NUM_THREADS"]) == ("ACTIVE", "3")
    in_force, sentence = threads.describe_threads()
    assert not in_force
    assert "OMP_WAIT_POLICY=ACTIVE" in sentence


def clean_environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "OPENBLAS_"))} | more


def test_the_command_line_sets_the_environment_before_numpy_and_torch_are_loaded():
    code = (
        "import os, sys\n"
        "from streamer import cli\n"
        "assert not {'numpy', 'torch'} & set(sys.modules)\n"
        "sys.argv = ['groundstream', '--version']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=clean_environment()
    )
    assert done.stdout.splitlines()[-1] == "PASSIVE"


@pytest.mark.parametrize(("more", "state"), [({}, "works"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "missing")])
def test_doctor_states_the_plan(more: dict[str, str], state: str):
    command = [sys.executable, "-m", "streamer.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean_environment(**more))
    finding = next(row for row in json.loads(done.stdout) if row["what"] == "threads")
    assert finding["state"] == state
    assert f"decode workers {threads.plan_threads().decode_workers}" in finding["detail"]
