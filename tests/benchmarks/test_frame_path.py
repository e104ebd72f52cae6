"""The stress of the frame path, in short: killed workers and readers that leave cost no frame, slot or descriptor."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.frame_path import (
    CancelReport,
    KillReport,
    cancel_readers,
    kill_workers,
    measure_memory,
    watch_short_recordings,
    write_report,
)


def test_a_killed_worker_costs_no_other_stream_a_frame(tmp_path: Path) -> None:
    report = asyncio.run(kill_workers(tmp_path, 3, seed=1))
    assert report.kills == len(report.back_s) == 3
    assert report.faults == 0, report
    assert report.other_frames > 0 < report.recordings


def test_readers_that_leave_cost_no_frame_slot_or_descriptor(tmp_path: Path) -> None:
    report = asyncio.run(cancel_readers(tmp_path, 30, seed=2))
    assert report.cancellations == 30
    assert report.frames > 0
    assert report.faults == 0, report


def test_memory_is_taken_ten_times(tmp_path: Path) -> None:
    memory = asyncio.run(measure_memory(tmp_path, 200))
    assert len(memory) == 10
    assert min(min(both) for both in memory) > 1


def test_a_short_recording_does_not_stand_still_beside_a_busy_processor(tmp_path: Path) -> None:
    assert watch_short_recordings(tmp_path, 1) == 0


def test_the_report_holds_what_was_counted() -> None:
    kills, cancels = KillReport(kills=50, back_s=[0.5, 0.7], wrong_recordings=3), CancelReport(1000, kept_leases=2)
    assert (kills.faults, cancels.faults) == (3, 2)
    text = write_report(kills, cancels, [(100.0, 50.0)] * 10, 20_000, 7, 1)
    for part in ("| 50 | 0 | 0.70, 0.70 |", "| 1000 | 0 | 2 |", "20000 frames", "1 stood still"):
        assert part in text
