"""The soak of live cameras: it measures returns, accounts for every frame, and its report has a line for each fault."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.live_soak import FAULTS, soak, write_report


def test_a_short_soak_accounts_for_every_frame_and_shows_no_damage_but_overwritten_bytes(tmp_path: Path) -> None:
    report = asyncio.run(soak(tmp_path, 4, seed=1))
    assert sum(map(len, report.back_s.values())) >= 4
    assert report.received >= report.shown > 100
    assert (report.never_back, report.unaccounted, report.disordered, report.threads_left) == (0, 0, 0, 0)
    assert set(report.damaged) <= {"bytes overwritten"}
    text = write_report(report, "--seconds 4")
    assert all(f"| {fault}: " in text for fault in FAULTS)
