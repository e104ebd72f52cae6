"""Tuning: what learns in each mode, which pictures are taken, and that the result is what any command reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detectors.detector import PromptError, Request
from detectors.glip.caption import BertTokenizer
from detectors.glip.detector import create
from detectors.glip.model_files import VOCABULARY, find_files
from detectors.glip.modeling.model import GlipModel
from detectors.glip.training.fitting import (
    FittingCourse,
    TrainingExamples,
    caption_of,
    choose_parameters,
    few_shots,
    fit,
    score_model,
    tuned_prompt,
)
from detectors.glip.training.trainer import TrainingError
from tests.detectors.glip.conftest import CONFIG, tiny_model

NAMES = ["red car", "dog"]


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> BertTokenizer:
    return BertTokenizer(folder / VOCABULARY)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Six pictures, each with a red square and a grey one."""
    folder = tmp_path_factory.mktemp("pictures")
    dice = np.random.default_rng(3)
    images, rows = [], []
    for number in range(1, 7):
        picture = np.full((64, 96, 3), 40, np.uint8)
        for category, (colour, left) in enumerate((((30, 30, 230), 0), ((200, 200, 200), 48)), 1):
            x, y = left + int(dice.integers(0, 16)), int(dice.integers(0, 32))
            cv2.rectangle(picture, (x, y), (x + 31, y + 31), colour, -1)
            rows.append({"image_id": number, "category_id": category, "bbox": [x, y, 32, 32]})
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    return {"images": images, "annotations": rows, "categories": categories}, folder


def examples(truth: tuple[dict[str, Any], Path], tokenizer: BertTokenizer, **more: Any) -> TrainingExamples:
    data, folder = truth
    tokens = caption_of(NAMES, tokenizer, CONFIG.text.max_length)
    values = {"images": [image["id"] for image in data["images"]], "batch": 3, "seed": 1, **more}
    return TrainingExamples(data, folder, tokens=tokens, size=CONFIG.image, **values)


def learning(model: GlipModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_prompt_tuning_teaches_the_offsets_alone() -> None:
    model = tiny_model()
    choose_parameters(model, "prompt")
    assert learning(model) == {"rpn.tunable_linear.weight"}


def test_linear_probing_teaches_what_reads_the_tower() -> None:
    model = tiny_model()
    choose_parameters(model, "linear")
    assert {name.split(".")[2] for name in learning(model)} == {
        "bbox_pred",
        "centerness",
        "dot_product_projection_text",
        "log_scale",
        "bias_lang",
        "bias0",
    }


def test_full_tuning_leaves_the_first_stage_and_the_unused_branch_alone() -> None:
    model = tiny_model()
    choose_parameters(model, "full")
    frozen = {name for name, _ in model.named_parameters()} - learning(model)
    assert all(
        name.startswith(("backbone.body.patch_embed", "backbone.body.layers.0.")) or "cls_logits" in name
        for name in frozen
    )
    assert any(name.startswith("language_backbone") for name in learning(model))
    choose_parameters(model, "head")
    assert all(name.startswith("rpn.") for name in learning(model))


def test_an_unknown_mode_is_reported() -> None:
    with pytest.raises(PromptError, match=r"unknown tuning mode .*: use full, head, linear, prompt"):
        choose_parameters(tiny_model(), "everything")


def test_few_shots_hold_enough_of_each_category_and_depend_on_the_seed() -> None:
    rows = [{"image_id": n, "category_id": 1 + (n % 5 == 0)} for n in range(1, 41)]
    data = {"images": [{"id": n} for n in range(1, 41)], "annotations": rows, "categories": [{"id": 1}, {"id": 2}]}
    taken = few_shots(data, 3, seed=30)
    assert sorted(1 + (n % 5 == 0) for n in taken) == [1, 1, 1, 2, 2, 2]
    assert taken == few_shots(data, 3, seed=30) != few_shots(data, 3, seed=3)


def test_a_description_stands_behind_its_name_and_speaks_for_nobody(tokenizer: BertTokenizer) -> None:
    plain = caption_of(NAMES, tokenizer, 24)
    reported = caption_of(NAMES, tokenizer, 24, {"red car": ", a light"})
    assert len(reported.ids) == len(plain.ids) + 3
    assert [len(label) for label in reported.labels] == [len(label) for label in plain.labels]
    with pytest.raises(PromptError, match="no such category"):
        caption_of(NAMES, tokenizer, 24, {"cat": ", small"})
    with pytest.raises(PromptError, match="one caption of at most 4"):
        caption_of(NAMES, tokenizer, 4)


def test_boxes_stay_on_their_squares_whatever_the_size_and_side(
    truth: tuple[dict[str, Any], Path], tokenizer: BertTokenizer
) -> None:
    shown = examples(truth, tokenizer)
    for number in range(4):
        batch = shown(number)
        assert torch.equal(batch.images, shown(number).images)
        for image, one in zip(batch.images, batch.truths, strict=True):
            for box, words in zip(one.boxes, one.tokens, strict=True):
                x, y = (int(v) for v in (box[:2] + box[2:]) / 2)
                is_red = bool(image[2, y, x] > image[0, y, x] + 1)
                assert is_red == bool(words[list(shown.tokens.labels[0])].all())


def test_full_tuning_lowers_the_loss_and_keeps_the_best_epoch(
    truth: tuple[dict[str, Any], Path], tokenizer: BertTokenizer
) -> None:
    model, shown = tiny_model(), examples(truth, tokenizer)
    reported: list[tuple[int, float, float]] = []
    best = fit(model, shown, shown, FittingCourse("full", epochs=12, rate=3e-3), lambda *row: reported.append(row))
    assert reported[0][0] == 0
    assert reported[-1][1] < 0.7 * reported[1][1], "the loss falls"
    assert best.ap == max(ap for _, _, ap in reported) == reported[best.epoch][2]
    assert score_model(model, shown).ap == pytest.approx(best.ap, abs=1e-6), "the best epoch is what is kept"


def test_tuned_words_are_a_small_file_that_the_detector_reads(
    truth: tuple[dict[str, Any], Path], tokenizer: BertTokenizer, folder: Path, tmp_path: Path
) -> None:
    model, _ = find_files("glip-mini", folder).load()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shown = examples(truth, tokenizer)
    fit(model, shown, shown, FittingCourse("prompt", shots=1, epochs=2))
    for key, value in before.items():
        assert torch.equal(value, model.state_dict()[key]), key
    tuned_prompt(model, NAMES, shown.tokens).save(tmp_path / "words.safetensors")
    detector = create("glip-mini", weights=folder, tuned=tmp_path / "words.safetensors")
    picture = np.zeros((64, 96, 3), np.uint8)
    found = detector.detect([Request(picture, detector.prepare(NAMES))])[0]
    assert set(found.data["class_name"]) <= set(NAMES)
    with pytest.raises(PromptError, match="tuned for red car, dog"):
        detector.prepare(["bus"])


def test_a_missing_picture_and_no_picture_are_reported(
    truth: tuple[dict[str, Any], Path], tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    lost = examples((truth[0], tmp_path), tokenizer)
    with pytest.raises(TrainingError, match=r"cannot read the picture .*1\.png"):
        lost.pixels(1)
    with pytest.raises(TrainingError, match="no labelled picture"):
        fit(tiny_model(), examples(truth, tokenizer, images=[]), lost, FittingCourse())
    with pytest.raises(TrainingError, match="validation set has no box"):
        fit(tiny_model(), examples(truth, tokenizer), examples(truth, tokenizer, images=[]), FittingCourse())


def test_a_stopped_course_keeps_its_best_epoch(truth: tuple[dict[str, Any], Path], tokenizer: BertTokenizer) -> None:
    model, shown = tiny_model(), examples(truth, tokenizer)
    epochs: list[int] = []
    result = fit(
        model,
        shown,
        shown,
        FittingCourse("full", epochs=50, rate=3e-3),
        lambda epoch, _loss, _ap: epochs.append(epoch),
        lambda: len(epochs) == 4,
    )
    assert result.interrupted
    assert epochs == [0, 1, 2, 3]
    assert score_model(model, shown).ap == pytest.approx(result.ap, abs=1e-6)
