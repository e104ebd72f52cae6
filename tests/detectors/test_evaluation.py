"""Detection and grounding scores: cases counted by hand, and pycocotools asked the plain way."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from detectors.evaluation import (
    TruePhrase,
    coco_score,
    lvis_score,
    pair_phrases,
    recall_of_phrases,
)


def image(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "width": 100, "height": 100, **more}


def box(image_id: int, category: int, x: float, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category, "bbox": [x, 0, 10, 10], **more}


CATEGORIES = [{"id": 1, "name": "dog", "frequency": "f"}, {"id": 2, "name": "cat", "frequency": "r"}]


def test_half_precision_after_one_of_two_is_found_gives_the_ap_counted_by_hand() -> None:
    truth = {"images": [image(1)], "annotations": [box(1, 1, 0), box(1, 1, 50)], "categories": CATEGORIES}
    results = [box(1, 1, 30, score=0.9), box(1, 1, 0, score=0.8)]
    # The first is wrong, the second right: precision 1/2 at recall 1/2; 51 of the 101 recall points lie at or below.
    assert coco_score(truth, results).ap50 == pytest.approx(51 / 101 / 2)


def test_all_found_is_one_and_nothing_found_is_zero() -> None:
    truth = {"images": [image(1)], "annotations": [box(1, 1, 0)], "categories": CATEGORIES}
    assert coco_score(truth, [box(1, 1, 0, score=0.3)]).ap == pytest.approx(1)
    assert coco_score(truth, []).ap == 0
    assert np.isnan(coco_score(truth, []).categories["cat"])


def test_it_agrees_with_pycocotools_on_noisy_boxes() -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dice = np.random.default_rng(2)
    rows, results = [], []
    for number in range(1, 13):
        for category in dice.integers(1, 3, 5):
            place = dice.uniform(0, 60, 2)
            size = dice.uniform(8, 40, 2)
            rows.append({"image_id": number, "category_id": int(category), "bbox": [*place, *size]})
            for _ in range(2):
                shaken = [*(place + dice.normal(0, 3, 2)), *(size * dice.uniform(0.8, 1.2, 2))]
                score = float(dice.uniform())
                results.append({"image_id": number, "category_id": int(category), "bbox": shaken, "score": score})
    truth = {"images": [image(n) for n in range(1, 13)], "annotations": rows, "categories": CATEGORIES}
    score = coco_score(truth, results)

    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            **truth,
            "annotations": [
                {**row, "id": n, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} for n, row in enumerate(rows, 1)
            ],
        }
        data.createIndex()
        reference = COCOeval(data, data.loadRes(results), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    ours = [score.ap, score.ap50, score.ap75, score.small, score.medium]
    assert ours == pytest.approx(list(reference.stats[:5]))
    assert score.recall == pytest.approx(reference.stats[8])


def test_lvis_counts_a_class_only_where_it_was_searched_for() -> None:
    images = [image(1, neg_category_ids=[2], not_exhaustive_category_ids=[]), image(2, neg_category_ids=[])]
    truth = {"images": images, "annotations": [box(1, 1, 0), box(2, 2, 0)], "categories": CATEGORIES}
    right = [box(1, 1, 0, score=0.5), box(2, 2, 0, score=0.5)]
    assert lvis_score(truth, right).ap == pytest.approx(1)
    unsearched = [*right, box(2, 1, 40, score=0.9)]
    assert lvis_score(truth, unsearched).ap == pytest.approx(1)
    wrong = [*right, box(1, 2, 40, score=0.9)]
    score = lvis_score(truth, wrong)
    assert score.frequencies == {"rare": pytest.approx(0.5), "frequent": pytest.approx(1)}


def test_lvis_forgives_what_meets_no_box_where_not_all_are_annotated() -> None:
    images = [image(1, neg_category_ids=[], not_exhaustive_category_ids=[1])]
    truth = {"images": images, "annotations": [box(1, 1, 0)], "categories": CATEGORIES}
    assert lvis_score(truth, [box(1, 1, 40, score=0.9), box(1, 1, 0, score=0.5)]).ap == pytest.approx(1)


def test_fixed_ap_has_no_limit_an_image() -> None:
    truth = {"images": [image(1)], "annotations": [box(1, 1, 0)], "categories": CATEGORIES}
    crowd = [box(1, 2, 40, score=0.9) for _ in range(150)] + [box(1, 1, 0, score=0.1)]
    assert lvis_score(truth, crowd).categories["dog"] == pytest.approx(1)


def phrase(boxes: list[list[float]], found: list[list[float]]) -> TruePhrase:
    return TruePhrase(np.array(boxes, np.float64).reshape(-1, 4), np.array(found, np.float64).reshape(-1, 4))


def test_any_box_will_do_for_one_protocol_and_the_box_around_all_for_the_other() -> None:
    pair = [[0, 0, 10, 10], [90, 0, 100, 10]]
    one, around = phrase(pair, [[0, 0, 10, 10]]), phrase(pair, [[0, 0, 100, 10]])
    assert recall_of_phrases([one, around], "any").at_1 == 0.5
    assert recall_of_phrases([one, around], "merged").at_1 == 0.5
    assert recall_of_phrases([one], "any").at_1 == 1
    assert recall_of_phrases([around], "merged").at_1 == 1


def test_recall_grows_with_the_boxes_looked_at() -> None:
    wrong, right = [50.0, 50, 60, 60], [0.0, 0, 10, 10]
    score = recall_of_phrases([phrase([right], [wrong] * 3 + [right]), phrase([right], [wrong] * 9 + [right])])
    assert (score.at_1, score.at_5, score.at_10, score.phrases) == (0, 0.5, 1, 2)


def test_a_phrase_is_read_from_the_caption_by_its_characters() -> None:
    truth = {
        "images": [image(1, caption="a dog and a cat")],
        "annotations": [{"image_id": 1, "bbox": [0, 0, 10, 10], "tokens_positive": [[0, 5]]}],
    }
    results = [{"image_id": 1, "phrase": "a dog", "bbox": [0, 0, 10, 10], "score": 1.0}]
    assert recall_of_phrases(pair_phrases(truth, results)).at_1 == 1
