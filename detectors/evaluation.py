"""Scores of detections by the measures of the field: COCO's AP, LVIS's fixed AP, recall of grounded phrases.

Boxes are `x, y, width, height` in COCO's files and `x1, y1, x2, y2` everywhere else. The counting is pycocotools'.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.detector import DetectorError
from detectors.overlap import ious

Floats = npt.NDArray[np.float64]
_RESULT_KEYS = ("image_id", "category_id", "bbox", "score")
FIXED_LIMIT = 10_000  # detections of a class over the whole data set that fixed AP looks at
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


class DetectionEvaluationError(DetectorError, ValueError):
    """An evaluation that is impossible: a wrong protocol, a missing package, an annotation without a phrase."""


@dataclass(frozen=True)
class DetectionScore:
    """Average precision, 0..1, NaN where there is nothing to find; `categories` by name."""

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    recall: float
    categories: Mapping[str, float] = field(default_factory=dict)
    frequencies: Mapping[str, float] = field(default_factory=dict)  # LVIS: rare, common, frequent


def coco_score(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> DetectionScore:
    """COCO's AP: IoU 0.50 to 0.95, at most 100 detections an image. `truth` as `coco_data.read_data_set` gives it."""
    return _score(_prepared(truth), results, limit=100)


def lvis_score(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> DetectionScore:
    """LVIS's AP in its fixed form, arXiv:2102.01066: no limit an image, the 10,000 best detections of each class.

    A class counts only in images that were searched for it: where it is annotated, or listed in the image's
    `neg_category_ids`. In images that list it in `not_exhaustive_category_ids` a detection that meets no box counts
    neither way. Data without these lists is taken as searched for everything. `frequencies` holds the mean over the
    categories whose `frequency` is r, c or f.
    """
    data = _prepared(truth)
    searched: dict[int, set[int]] = {}
    for image in data["images"]:
        if "neg_category_ids" in image:
            searched[image["id"]] = set(image["neg_category_ids"])
    for row in data["annotations"]:
        if row["image_id"] in searched:
            searched[row["image_id"]].add(row["category_id"])
    kept = [
        row for row in results if row["image_id"] not in searched or row["category_id"] in searched[row["image_id"]]
    ]
    by_class: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in kept:
        by_class[row["category_id"]].append(row)
    best = [row for rows in by_class.values() for row in sorted(rows, key=lambda row: -row["score"])[:FIXED_LIMIT]]
    for image in data["images"]:
        for category in image.get("not_exhaustive_category_ids", ()):
            # A crowd over the whole picture swallows what meets no box.
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [-1e5, -1e5, 3e5, 3e5],
                    "area": 9e10,
                    "iscrowd": 1,
                }
            )
    return _score(data, best, limit=FIXED_LIMIT)


def _prepared(truth: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with what pycocotools needs: ids from 1 on, areas, crowd flags, categories."""
    rows = [
        {"iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row, "id": number}
        for number, row in enumerate(truth["annotations"], 1)
    ]
    for number, row in enumerate(rows):
        if "category_id" not in row:
            raise DetectionEvaluationError(f"annotations[{number}] has no category_id: it cannot be scored")
    ids = _sorted_ids({row["category_id"] for row in rows}, "categories")
    named = truth.get("categories") or [{"id": number, "name": str(number)} for number in ids]
    categories = [
        {
            "id": one["id"],
            "name": one["name"],
            "frequency": next((letter for letter in FREQUENCIES if one.get("frequency") == letter), None),
        }
        for one in named
    ]
    _sorted_ids((one["id"] for one in categories), "categories")
    _sorted_ids((image["id"] for image in truth["images"]), "images")
    return {"images": list(truth["images"]), "annotations": rows, "categories": categories}


def _sorted_ids(ids: Iterable[Any], table: str) -> list[Any]:
    """Ids in their order. Raises `DetectionEvaluationError` where some are texts and others numbers."""
    found = list(ids)
    if len({isinstance(one, str) for one in found}) > 1:
        raise DetectionEvaluationError(f"some ids of {table} are texts and others numbers: write all in one way")
    return sorted(found)


def _score(truth: dict[str, Any], results: Sequence[Mapping[str, Any]], limit: int) -> DetectionScore:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise DetectionEvaluationError(
            "scoring detections needs pycocotools: pip install 'groundstream[eval]'"
        ) from None

    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = truth
        data.createIndex()
        boxes = [{key: row[key] for key in _RESULT_KEYS if key in row} for row in results]
        found = data.loadRes(boxes) if boxes else COCO()
        evaluation = COCOeval(data, found, "bbox")
        evaluation.params.imgIds = sorted(image["id"] for image in truth["images"])
        evaluation.params.catIds = sorted(category["id"] for category in truth["categories"])
        evaluation.params.maxDets = [limit]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]  # (T, R, K, A, 1), (T, K, A, 1)
    names = [c["name"] for c in sorted(truth["categories"], key=lambda category: category["id"])]
    frequency = {c["name"]: c.get("frequency") for c in truth["categories"]}
    each = {name: _mean(precision[:, :, index, 0]) for index, name in enumerate(names)}
    groups = {
        group: float(np.mean([each[name] for name in names if frequency[name] == letter and each[name] == each[name]]))
        for letter, group in FREQUENCIES.items()
        if any(frequency[name] == letter and each[name] == each[name] for name in names)
    }
    return DetectionScore(
        ap=_mean(precision[:, :, :, 0]),
        ap50=_mean(precision[0, :, :, 0]),
        ap75=_mean(precision[5, :, :, 0]),
        small=_mean(precision[:, :, :, 1]),
        medium=_mean(precision[:, :, :, 2]),
        large=_mean(precision[:, :, :, 3]),
        recall=_mean(recall[:, :, 0]),
        categories=each,
        frequencies=groups,
    )


def _mean(values: Floats) -> float:
    """Of what is defined: pycocotools writes -1 where a category has no box."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


# -- grounding -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TruePhrase:
    """What a phrase of an image's caption stands for: boxes (G, 4), and what was found for it, best first, (N, 4)."""

    boxes: Floats
    found: Floats


@dataclass(frozen=True)
class GroundingScore:
    """The share of phrases, 0..1, for which one of the 1, 5, 10 best boxes is right, and of how many phrases."""

    at_1: float
    at_5: float
    at_10: float
    phrases: int


def recall_of_phrases(phrases: Iterable[TruePhrase], protocol: str = "any", least_iou: float = 0.5) -> GroundingScore:
    """Recall as on Flickr30k Entities, arXiv:1505.04870.

    `any`: a box is right when it meets one of the phrase's boxes; `merged`: when it meets the box around them all.
    """
    if protocol not in ("any", "merged"):
        raise DetectionEvaluationError(f"the protocol is 'any' or 'merged', not {protocol!r}")
    hits, count = np.zeros(3), 0
    for phrase in phrases:
        if not len(phrase.boxes):
            continue
        boxes = phrase.boxes
        if protocol == "merged":
            boxes = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None]
        best = ious(phrase.found, boxes).max(axis=1)
        hits += [bool((best[:k] >= least_iou).any()) for k in (1, 5, 10)]
        count += 1
    shares = hits / count if count else np.full(3, np.nan)
    return GroundingScore(float(shares[0]), float(shares[1]), float(shares[2]), count)


def pair_phrases(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[TruePhrase]:
    """Phrases of a data set as MDETR and `annotate` write it, with what was found for each.

    An annotation's phrase is its `phrase`, or the piece of the image's `caption` that its `tokens_positive` mark;
    a result's likewise, or it names its `category_id`, when that is the phrase's. Where all have `tokens_positive`,
    these distinguish equal phrases of one caption.
    Raises `DetectionEvaluationError` for an annotation that names none.
    """
    captions = {image["id"]: image.get("caption", "") for image in truth["images"]}
    names = {category["id"]: category["name"] for category in truth.get("categories", ())}
    placed = all(row.get("tokens_positive") for rows in (truth["annotations"], results) for row in rows)

    def key_of(row: Mapping[str, Any]) -> tuple[Any, Any]:
        phrase = _phrase(row, captions, names)
        return row["image_id"], tuple(map(tuple, row["tokens_positive"])) if placed else phrase

    boxes: dict[tuple[Any, Any], list[list[float]]] = defaultdict(list)
    for row in truth["annotations"]:
        boxes[key_of(row)].append(row["bbox"])
    found: dict[tuple[Any, Any], list[Mapping[str, Any]]] = defaultdict(list)
    for row in results:
        found[key_of(row)].append(row)
    pairs = []
    for key, own in boxes.items():
        ordered = sorted(found[key], key=lambda row: -row["score"])
        pairs.append(TruePhrase(_corners(own), _corners([row["bbox"] for row in ordered])))
    return pairs


def _phrase(row: Mapping[str, Any], captions: Mapping[Any, str], names: Mapping[int, str]) -> str:
    if "phrase" in row:
        return str(row["phrase"])
    if row.get("tokens_positive"):
        caption = captions[row["image_id"]]
        if max(end for _, end in row["tokens_positive"]) > len(caption):
            raise DetectionEvaluationError(
                f"tokens_positive {row['tokens_positive']} reach beyond the caption of image {row['image_id']!r}: "
                f"expected [begin, end] within its {len(caption)} characters"
            )
        return " ".join(caption[begin:end] for begin, end in row["tokens_positive"])
    if row.get("category_id") in names:
        return names[row["category_id"]]
    raise DetectionEvaluationError(
        f"this names no phrase: 'phrase', 'tokens_positive' or a category is expected: {dict(row)}"
    )


def _corners(boxes: Sequence[Sequence[float]]) -> Floats:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners
