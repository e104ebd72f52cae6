"""The benchmark for GPUs, on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_a_dry_run_measures_counts_and_compares_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = gpu.RESULTS.read_text() if gpu.RESULTS.is_file() else None
    gpu.main(["--dry", "--out", str(tmp_path / "gpu.md")])
    table = (tmp_path / "gpu.md").read_text()
    assert table in capsys.readouterr().out
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| embedding-bag |")]
    assert [row[1] for row in rows[:2]] == ["1", "2"]
    assert all(float(row[2]) > 0 for row in rows[:2])
    assert "| embedding-bag | passed | 0 | 0 |" in table, "the same computation twice differs in nothing"
    assert "| triton | triton failed in its self-test" in table or "| triton | passed" in table
    assert "dynamic head" in table
    assert (gpu.RESULTS.read_text() if gpu.RESULTS.is_file() else None) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_ways_out_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        gpu.main([])
    assert left.value.code == 2
    assert "or give --dry" in capsys.readouterr().err
