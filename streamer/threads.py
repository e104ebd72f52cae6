"""Thread counts of the process and its decode workers: one rule for torch, OpenCV, BLAS and decoding.

The cores are shared by these rules:

* the model (torch, OpenMP) may use every core that the process may use, and waits passively for its next work;
* decoding runs in worker processes, one for each core up to `MOST_WORKERS`, one thread for each source, of which
  only as many decode at a time as the worker's share of the cores: many cameras do not starve the rest; a recording
  that is read beside few others gets several threads, so that one long file uses the machine;
* OpenCV and NumPy's BLAS compute in the calling thread: their inputs are small, and their pools wait by spinning.

More threads than cores do no harm as long as none of them spins; a spinning pool makes a model beside it 3 to 6 times
slower. Environment variables that the user has set always win.
"""

from __future__ import annotations

import os
import platform
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

MOST_WORKERS = 16
"""Decode workers at most: each serves several sources, and FFmpeg decodes without the interpreter lock."""

MOST_RECORDING_THREADS = 4
"""Threads that decode one recording at most: more make little faster and hold more pictures in memory."""

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """How many threads or processes each part may use on `cores` cores; all at least 1."""

    cores: int
    model: int
    decode_workers: int
    decoding: int = 1  # threads of one worker that decode at a time
    opencv: int = 1
    blas: int = 1

    def recording_threads(self, sources: int) -> int:
        """Returns the threads that may decode a recording, where `sources` are read in all: one core is left to the
        analysis."""
        return max(1, min(MOST_RECORDING_THREADS, (self.cores - 1) // max(1, sources)))

    def __str__(self) -> str:
        return (
            f"{self.cores} cores: model {self.model}, decode workers {self.decode_workers}, "
            f"OpenCV {self.opencv}, BLAS {self.blas}"
        )


def plan_threads(cores: int | None = None) -> ThreadPlan:
    """Returns the plan for `cores` cores, by default those that this process may use."""
    cores = usable_cores() if cores is None else max(1, cores)
    workers = min(cores, MOST_WORKERS)
    return ThreadPlan(cores, model=cores, decode_workers=workers, decoding=-(-cores // workers))


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Returns the cores that this process may use: its CPU affinity, bounded by a container's CPU quota."""
    cores = _allowed_cores()
    quota = _quota_cores(cgroup)
    return cores if quota is None else max(1, min(cores, round(quota)))


def set_environment() -> None:
    """Set what OpenMP and BLAS libraries read when they are loaded: call it before torch or NumPy is imported.

    Later calls do no harm and have no effect on libraries that are already loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    plan = plan_threads()
    if plan.cores < _allowed_cores():  # OpenMP knows the affinity, but not a container's quota
        os.environ.setdefault("OMP_NUM_THREADS", str(plan.model))
    if platform.machine() in ("x86_64", "AMD64"):  # elsewhere torch computes with this library, too
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(plan.blas))


def limit_opencv() -> None:
    """Let OpenCV compute in the calling thread, in this process."""
    import cv2

    cv2.setNumThreads(plan_threads().opencv)


def limit_decoding() -> None:
    """Let only the planned number of threads of this process decode at a time."""
    global _turns
    _turns = threading.Semaphore(plan_threads().decoding)


def decoding_turn() -> AbstractContextManager[object]:
    """Waits, when entered, until this thread may decode."""
    return _turns


_turns: AbstractContextManager[object] = nullcontext()


def describe_threads() -> tuple[bool, str]:
    """Returns whether the plan is in force, and one sentence on it for people."""
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "PASSIVE":
        return True, f"{plan_threads()}; OpenMP waits passively"
    return False, (
        f"{plan_threads()}; OpenMP threads may spin while they wait (OMP_WAIT_POLICY={policy or 'unset'}): "
        "set OMP_WAIT_POLICY=PASSIVE, or a model shares the cores badly with decoding"
    )


def _allowed_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota_cores(cgroup: Path) -> float | None:
    """The CPU quota of this process's control group in cores, None where there is none or it cannot be read."""
    try:
        if (cgroup / "cpu.max").exists():  # version 2: "200000 100000" or "max 100000"
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # ValueError: "max"
        return None
    return cores if cores > 0 else None
