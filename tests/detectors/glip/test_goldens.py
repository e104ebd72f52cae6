"""Every stage against the reference implementation's tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detectors.glip import check
from detectors.glip.modeling import dyhead
from detectors.glip.modeling.dyhead import TAPS

FOLDERS = {
    "fused": ("tower.5.dyconv.visual.4", "head.dot_product_logits.0", "post.1.final.boxes", "grad rpn.head.log_scale"),
    "unfused": ("swin.stage5", "head.cls_logits.3", "loss.atss.1.matched_gt_plus1", "prompt tuning grad"),
    "preprocess": ("size 300x900", "2.resized", "batch"),
    "captions": ("coco80.tokens", "noun phrases.1.spans", "strip '(cat)'"),
}


@pytest.fixture
def golden(shared: Path, request: pytest.FixtureRequest) -> Path:
    return shared / "goldens" / "glip" / str(request.param)


@pytest.mark.parametrize("golden", FOLDERS, indirect=True)
def test_every_stage_equals_the_reference(golden: Path) -> None:
    report = check.check(golden)
    assert [row for row in report.rows if not row.passed] == []
    assert set(FOLDERS[golden.name]) <= {row.stage for row in report.rows}


@pytest.mark.parametrize("golden", ["fused"], indirect=True)
def test_cropping_the_offsets_instead_of_reading_them_again_is_noticed(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cropped(motion: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        return motion[..., : shape[0], : shape[1]].flatten(2).mT

    sizes = {12 * 14: (12, 14), 6 * 7: (6, 7), 3 * 4: (3, 4), 2 * 2: (2, 2)}
    monkeypatch.setattr(dyhead, "reread_motion", lambda motion, size: cropped(motion, sizes[size]))
    report = check.check(golden)
    worst = max(row.worst for row in report.rows if row.stage.startswith("head.dot_product_logits"))
    assert worst > 1, "the reference text measured 4.5"
    assert not report.passed


def test_offsets_are_read_again_as_if_the_buffer_had_the_smaller_shape() -> None:
    height, width, smaller = 4, 6, (2, 3)
    size = smaller[0] * smaller[1]
    motion = torch.arange(3 * TAPS * height * width, dtype=torch.float32).view(1, 3 * TAPS, height, width)
    again = dyhead.reread_motion(motion, size)[0].mT  # (27, 6)
    offsets = motion[0, :18].reshape(-1)[: 18 * size].view(18, size)
    mask = motion[0, 18:].reshape(-1)[: 9 * size].view(9, size)
    assert torch.equal(again, torch.cat([offsets, mask]))
    assert again[1, 0] == size, "the second channel starts within the first one's map"


@pytest.mark.parametrize("golden", ["captions"], indirect=True)
def test_the_command_prints_a_table_and_succeeds(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(golden)]) == 0
    assert "coco80.tokens" in capsys.readouterr().out


@pytest.mark.parametrize("golden", ["preprocess"], indirect=True)
def test_the_command_fails_when_a_stage_is_beyond_its_tolerance(
    golden: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.model, "normalise", lambda pixels: pixels.float() / 255)
    assert check.main([str(golden)]) == 1
    assert "beyond" in capsys.readouterr().out


def test_a_folder_with_nothing_to_compare_says_what_was_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([str(tmp_path)]) == 1
    assert "nothing to compare" in capsys.readouterr().out


@pytest.mark.parametrize("golden", ["fused", "unfused"], indirect=True)
@pytest.mark.parametrize(("dtype", "pixels", "score"), [("float16", 2.0, 0.02), ("bfloat16", 8.0, 0.1)])
def test_half_precision_stays_near_single_precision(golden: Path, dtype: str, pixels: float, score: float) -> None:
    drift = check.measure_drift(golden, dtype)
    assert drift.box_worst < pixels
    assert drift.score_worst < score
    assert drift.kept > 0.9
