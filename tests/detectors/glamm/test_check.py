from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from detectors.glamm import check


@pytest.mark.parametrize("name", ["full", "noregion", "prompts", "metrics"])
def test_the_released_models_numbers_are_reproduced(shared: Path, name: str) -> None:
    rows = check.check(shared / "goldens/glamm" / name)
    assert [row for row in rows if not row.ok] == []
    assert len(rows) > 8


def test_every_stage_of_a_model_is_compared(shared: Path) -> None:
    stages = {row.stage for row in check.check(shared / "goldens/glamm/full")}
    assert stages == {
        "preprocessing", "clip", "projector", "regions", "language model", "mask vectors", "sam image", "decoder",
        "masks", "generation", "losses",
    }  # fmt: skip


def test_a_wrong_weight_is_found(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(shared / "goldens/glamm/noregion", folder)
    weights = load_file(folder / "weights.safetensors")
    weights["model.text_hidden_fcs.0.2.bias"] += 0.1
    save_file(weights, folder / "weights.safetensors")
    failed = {row.stage for row in check.check(folder) if not row.ok}
    assert {"mask vectors", "decoder"} <= failed
    assert "clip" not in failed
    monkeypatch.setattr("sys.argv", ["check", str(folder)])
    assert check.main() == 1


def test_a_folder_without_references_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["check", str(tmp_path)])
    assert check.main() == 2
    assert "has no config.json" in capsys.readouterr().err


def test_wrong_metrics_are_found(shared: Path, tmp_path: Path) -> None:
    reference = json.loads((shared / "goldens/glamm/metrics/metrics.json").read_text())
    reference["cases"][0]["miou"] += 0.01
    (tmp_path / "metrics.json").write_text(json.dumps(reference))
    assert [row.what for row in check.check(tmp_path) if not row.ok] == ["miou"]


def test_nothing_passes_for_a_number() -> None:
    assert not check.CheckRow("stage", "what", float("nan"), 1.0).ok
    assert check.relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")


def test_in_half_precision_the_drift_is_reported_and_nothing_fails(shared: Path) -> None:
    rows = check.check(shared / "goldens/glamm/noregion", dtype=torch.bfloat16)
    assert all(row.ok for row in rows)
    flipped = [row.error for row in rows if row.what.endswith("share of pixels")]
    assert 0 < max(flipped) < 0.1
