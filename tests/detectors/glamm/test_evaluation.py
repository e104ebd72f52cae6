"""Scores of masks and captions, from files and from the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import transformers
import typer
from typer.testing import CliRunner

from detectors.data_files import DataSetError
from detectors.glamm.similarity import TextSimilarity
from streamer.commands.evaluate_segmentation import SegmentationTask, evaluate_segmentation
from streamer.errors import ConfigError
from streamer.rules.mask_rle import mask_model
from streamer.tasks import evaluate_segmentation as mask_scores
from streamer.tasks.evaluate_segmentation import MaskRecord, SegmentationBenchmark, score_benchmark

app = typer.Typer()
app.command()(evaluate_segmentation)


def box_mask(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((60, 90), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def record(identity: str, caption: str = "", **phrases: np.ndarray) -> MaskRecord:
    rles = tuple(mask_model(mask).model_dump() for mask in phrases.values())
    return MaskRecord(identity, caption, tuple(phrases), rles)


def exactly(first: Any, second: Any) -> np.ndarray:
    """Phrases are alike when they are the same."""
    return np.array([[float(a == b) for b in second] for a in first])


def test_the_golden_cases_give_the_papers_totals(shared: Path) -> None:
    reference = json.loads((shared / "goldens/glamm/metrics/metrics.json").read_text())
    truth, predicted, similarities = {}, {}, {}
    for number, case in enumerate(reference["cases"]):
        names = tuple(f"{number}-{i}" for i in range(len(case["gt_masks"])))
        found = tuple(f"{number}:{i}" for i in range(len(case["pred_masks"])))
        for into, phrases, masks in ((truth, names, "gt_masks"), (predicted, found, "pred_masks")):
            rles = tuple(mask_model(np.array(mask, bool)).model_dump() for mask in case[masks])
            into[str(number)] = MaskRecord(str(number), "", phrases, rles)
        similarities[names] = np.array(case["text_similarity"])
    scores = score_benchmark(
        SegmentationBenchmark.GCG, truth, predicted, lambda first, second: similarities[tuple(first)]
    )
    assert scores["miou"] == pytest.approx(reference["totals"]["mean_miou"], abs=1e-6)
    assert scores["recall"] == pytest.approx(reference["totals"]["recall"], abs=1e-6)


def test_a_perfect_answer_scores_one_and_a_missing_one_nothing() -> None:
    truth = {"a": record("a", cat=box_mask(5, 5, 30, 30)), "b": record("b", dog=box_mask(40, 10, 80, 50))}
    perfect = score_benchmark(SegmentationBenchmark.GCG, truth, truth, exactly)
    assert (perfect["ap50"], perfect["miou"], perfect["recall"]) == (1.0, 1.0, 1.0)
    half = score_benchmark(SegmentationBenchmark.GCG, truth, {"a": truth["a"]}, exactly)
    assert (half["miou"], half["recall"], half["without_answer"]) == (0.5, 0.5, 1)
    assert 0 < half["ap50"] < 1


def test_no_masks_on_either_side_score_nothing() -> None:
    from detectors.glamm.metrics import ReferringScore, mean_iou, recall_matches

    some, none = box_mask(0, 0, 9, 9)[None], np.zeros((0, 60, 90), bool)
    assert (mean_iou(some, none), mean_iou(none, some), mean_iou(none, none)) == (0, 0, 0)
    assert recall_matches(none, none, np.zeros((0, 0))) == []
    assert (ReferringScore().ciou, ReferringScore().giou) == (0, 0)


def test_an_answer_with_more_phrases_than_masks_is_missed() -> None:
    truth = {"a": record("a", cat=box_mask(5, 5, 30, 30))}
    odd = {"a": MaskRecord("a", "", ("cat", "dog"), truth["a"].rles)}
    assert score_benchmark(SegmentationBenchmark.GCG, truth, odd, exactly)["recall"] == 0


def test_referring_masks_are_paired_in_order() -> None:
    truth = {"a": record("a", cat=box_mask(0, 0, 20, 20), dog=box_mask(40, 0, 60, 20))}
    first = {"a": record("a", cat=box_mask(0, 0, 20, 20))}
    scores = score_benchmark(SegmentationBenchmark.REFSEG, truth, first, None)
    assert scores["ciou"] == pytest.approx(0.5)
    assert scores["giou"] == pytest.approx(0.5, abs=1e-4)


def test_missing_packages_leave_a_reason_in_place_of_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_scores, "_no_captions", lambda: "pycocoevalcap needs Java")
    scores = score_benchmark(
        SegmentationBenchmark.REGCAP, {"a": record("a", "a cat")}, {"a": record("a", "a cat")}, None
    )
    assert (scores["meteor"], scores["meteor_missing"]) == (None, "pycocoevalcap needs Java")


def test_captions_reach_the_package_in_its_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Scorer:
        def compute_score(self, truth: Any, answers: Any) -> tuple[float, list[float]]:
            asked.append((truth, answers))
            return 0.5, []

    class Tokenizer:
        def tokenize(self, captions: Any) -> Any:
            return {key: [entry["caption"].lower() for entry in entries] for key, entries in captions.items()}

    for name, member, value in (
        ("cider.cider", "Cider", Scorer),
        ("meteor.meteor", "Meteor", Scorer),
        ("tokenizer.ptbtokenizer", "PTBTokenizer", Tokenizer),
    ):
        module = ModuleType(f"pycocoevalcap.{name}")
        setattr(module, member, value)
        for parent in ("pycocoevalcap", f"pycocoevalcap.{name.partition('.')[0]}"):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, f"pycocoevalcap.{name}", module)
    monkeypatch.setattr(mask_scores, "_no_captions", lambda: "")
    scores = score_benchmark(
        SegmentationBenchmark.REGCAP, {"a": record("a", "A cat")}, {"a": record("a", "A dog")}, None
    )
    assert (scores["meteor"], scores["cider"]) == (0.5, 0.5)
    assert asked[0] == ({"a": ["a cat"]}, {"a": ["a dog"]})


def test_the_model_is_scored_on_pictures(hub: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    rle = mask_model(box_mask(0, 0, 90, 60)).model_dump()
    truth = [{"file_name": "a.png", "caption": "cat", "groundings": {"cat": {"rle_masks": [rle]}}}]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    where = ["--images", str(tmp_path), "--model", str(hub / "glamm"), "--clip", str(hub / "clip"), "--device", "cpu"]
    for task, wanted in (("gcg", "miou"), ("refseg", "ciou")):
        arguments = [str(tmp_path / "truth.json"), "--task", task, "--text-model", "none", "--json", *where]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        assert 0 < json.loads(result.stdout)[wanted] < 1


@pytest.mark.parametrize("text", ["[{}]", "{", "nothing"])
def test_a_file_without_records_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(DataSetError, match=r"truth\.json"):
        mask_scores.read_records(tmp_path / "truth.json")


def test_something_must_be_scored(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text("[]")
    error = CliRunner().invoke(app, [str(tmp_path / "truth.json"), "--text-model", "none"]).exception
    assert isinstance(error, ConfigError)
    assert "--images" in str(error)


def test_phrases_are_compared_by_the_means_of_their_states(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "red"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    matrix = TextSimilarity(model, tokenizer).matrix(["a cat", "dog"], ["a cat", "a red dog"])
    assert matrix[0, 0] == pytest.approx(1.0, abs=1e-5)

    def mean(text: str) -> torch.Tensor:
        with torch.inference_mode():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    expected = torch.cosine_similarity(mean("dog"), mean("a red dog"), dim=0)
    assert matrix[1, 1] == pytest.approx(float(expected), abs=1e-5)


def test_the_commands_tasks_are_the_modules() -> None:
    assert [task.value for task in SegmentationTask] == [benchmark.value for benchmark in SegmentationBenchmark]
