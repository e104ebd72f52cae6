"""The stress of the frame path, in short: killed workers and readers that leave cost no frame, slot or descriptor."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.frame_path import cancel_readers, kill_workers, measure_memory, watch_short_recordings, write_report


def test_kills_and_cancellations_cost_no_frame_slot_or_descriptor(tmp_path: Path) -> None:
    kills = asyncio.run(kill_workers(tmp_path, 4, seed=1))
    assert kills.kills == len(kills.back_s) == 4
    assert kills.faults == 0, kills
    assert kills.other_frames > 0 < kills.recordings
    cancels = asyncio.run(cancel_readers(tmp_path, 40, seed=2))
    assert cancels.cancellations == 40
    assert cancels.frames > 0
    assert cancels.faults == 0, cancels
    memory = asyncio.run(measure_memory(tmp_path, 1000))
    assert len(memory) == 10
    still = watch_short_recordings(tmp_path, 2)
    assert still == 0
    text = write_report(kills, cancels, memory, 1000, 2, still)
    assert "| 4 | 0 | " in text
    assert "| 40 | " in text
