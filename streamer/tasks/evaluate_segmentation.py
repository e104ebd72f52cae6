"""Scores of masks and captions, as GLaMM's papers count them: grounded captions, referring segmentation, regions."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision as sv
from rich.console import Console
from rich.table import Table

from detectors.coco_data import fold_name
from detectors.data_files import DataSetError
from detectors.glamm import metrics
from streamer.enrichment import grounded
from streamer.enrichment.loading import GlammLoading
from streamer.errors import ConfigError, StreamerError
from streamer.rules.mask_rle import mask_model
from streamer.sources.picture import read_picture
from streamer.tasks.mask_records import BoolMask, MaskRecord, decode_mask, read_records

_SCORERS = {"cider.cider": "Cider", "meteor.meteor": "Meteor", "tokenizer.ptbtokenizer": "PTBTokenizer"}

Similarity = Callable[[Sequence[str], Sequence[str]], npt.NDArray[np.float64]]


class SegmentationBenchmark(StrEnum):
    """What is scored: grounded conversation generation, referring segmentation, region captions."""

    GCG = "gcg"
    REFSEG = "refseg"
    REGCAP = "regcap"


def score_benchmark(
    benchmark: SegmentationBenchmark,
    truth: Mapping[str, MaskRecord],
    predicted: Mapping[str, MaskRecord],
    similarity: Similarity | None,
) -> dict[str, float | int | str | None]:
    """The scores by name. What cannot be had is None, with the reason under `NAME_missing`."""
    answers = {identity: predicted.get(identity, MaskRecord(identity, "", (), ())) for identity in truth}
    found: dict[str, float | int | str | None] = {
        "images": len(truth),
        "without_answer": sum(identity not in predicted for identity in truth),
    }
    if benchmark is SegmentationBenchmark.REFSEG:
        return found | _score_referring(truth, answers)
    if benchmark is SegmentationBenchmark.GCG:
        found |= {"ap50": average_precision(truth, answers), "miou": _mean_iou(truth, answers)}
        found |= _score_recall(truth, answers, similarity)
    return found | caption_scores(truth, answers)


def _mean_iou(truth: Mapping[str, MaskRecord], answers: Mapping[str, MaskRecord]) -> float:
    ious = [
        metrics.mean_iou(record.masks(), answers[identity].masks()) if answers[identity].rles else 0.0
        for identity, record in truth.items()
    ]
    return float(np.mean(ious)) if ious else 0.0


def _score_recall(
    truth: Mapping[str, MaskRecord], answers: Mapping[str, MaskRecord], similarity: Similarity | None
) -> dict[str, float | str | None]:
    """Where phrases and masks of an answer differ in number, its image counts as missed, as in the paper's script."""
    if similarity is None:
        return {"recall": None, "recall_missing": "no text model"}
    hits = []
    for identity, record in truth.items():
        answer = answers[identity]
        whole = answer.rles and len(answer.rles) == len(answer.phrases)
        alike = similarity(record.phrases, answer.phrases) if whole else None
        hits.append(0 if alike is None else len(metrics.recall_matches(record.masks(), answer.masks(), alike)))
    return {"recall": metrics.average_recall(hits, [len(record.phrases) for record in truth.values()])}


def _score_referring(truth: Mapping[str, MaskRecord], answers: Mapping[str, MaskRecord]) -> dict[str, float | int]:
    """A phrase without an answer counts with an empty mask, and is counted."""
    total, unanswered = metrics.ReferringScore(), 0
    for identity, record in truth.items():
        wanted = record.masks()
        ordered = _answers_in_order(record, answers[identity], wanted.shape[1:])
        unanswered += int((~ordered.any(axis=(1, 2))).sum())
        total.add(wanted, ordered)
    return {"ciou": total.ciou, "giou": total.giou, "empty_answers": unanswered}


def _answers_in_order(record: MaskRecord, answer: MaskRecord, shape: tuple[int, ...]) -> BoolMask:
    """(K, H, W): the answer's mask for each mask of the record.

    They belong together by phrase, the n-th of equal phrases to the n-th, or by order where phrases are missing.
    """
    given = answer.masks() if answer.rles else np.zeros((0, *shape), dtype=bool)
    ordered = np.zeros((len(record.rles), *shape), dtype=bool)
    if not len(given) or not len(ordered):
        return ordered
    if given.shape[1:] != shape:
        raise DataSetError(
            f"image {record.image_id!r} has masks of {given.shape[2]}x{given.shape[1]} pixels in the predictions, of "
            f"{shape[1]}x{shape[0]} in the truth: predict masks at the size of the image"
        )
    if len(record.phrases) != len(record.rles) or len(answer.phrases) != len(given):
        shared = min(len(given), len(ordered))
        ordered[:shared] = given[:shared]
        return ordered
    waiting: dict[str, list[int]] = defaultdict(list)
    for place, phrase in enumerate(answer.phrases):
        waiting[fold_name(phrase)].append(place)
    for row, phrase in enumerate(record.phrases):
        if places := waiting[fold_name(phrase)]:
            ordered[row] = given[places.pop(0)]
    return ordered


def average_precision(truth: Mapping[str, MaskRecord], answers: Mapping[str, MaskRecord]) -> float:
    """COCO's AP at IoU 0.5 over masks of one class, every score 1, as the paper has it."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise StreamerError("AP50 needs pycocotools: pip install 'groundstream[eval]'") from None
    numbers = {identity: number for number, identity in enumerate(truth, 1)}
    sizes = {i: rle["size"] for records in (answers, truth) for i, rle in _phrase_pairs(records)}
    wanted = [
        {**_coco_annotation(numbers[i], rle), "id": number, "iscrowd": 0, "area": int(decode_mask(rle).sum())}
        for number, (i, rle) in enumerate(_phrase_pairs(truth), 1)
    ]
    given = [{**_coco_annotation(numbers[i], rle), "score": 1.0} for i, rle in _phrase_pairs(answers)]
    if not wanted or not given:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": numbers[i], "height": size[0], "width": size[1]} for i, size in sizes.items()]
        coco.dataset = {"info": {}, "images": images, "annotations": wanted, "categories": [{"id": 1, "name": "thing"}]}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(given), "segm")
        evaluation.params.catIds = [1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def _phrase_pairs(records: Mapping[str, MaskRecord]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for identity, record in records.items():
        for rle in record.rles:
            yield identity, rle


def _coco_annotation(image: int, rle: Mapping[str, Any]) -> dict[str, Any]:
    """With compressed run lengths, whatever form the file has them in."""
    counts = rle["counts"]
    if not isinstance(counts, str):
        counts = sv.mask_to_rle(decode_mask(rle), compressed=True)
    segmentation = {"size": list(rle["size"]), "counts": str(counts)}
    return {"image_id": image, "category_id": 1, "segmentation": segmentation}


def caption_scores(truth: Mapping[str, MaskRecord], answers: Mapping[str, MaskRecord]) -> dict[str, float | str | None]:
    """METEOR and CIDEr by pycocoevalcap, the package behind every published figure; it runs Java programs."""
    reason = _no_captions()
    if reason:
        return {"meteor": None, "cider": None, "meteor_missing": reason, "cider_missing": reason}
    package = {name: import_module(f"pycocoevalcap.{name}") for name in _SCORERS}
    cider_scorer, meteor_scorer, ptb = (getattr(package[name], member)() for name, member in _SCORERS.items())
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = ptb.tokenize({i: [{"caption": record.caption}] for i, record in truth.items()})
        given = ptb.tokenize({i: [{"caption": answers[i].caption}] for i in truth})
        meteor, _ = meteor_scorer.compute_score(wanted, given)
        cider, _ = cider_scorer.compute_score(wanted, given)
    return {"meteor": float(meteor), "cider": float(cider)}


def _no_captions() -> str:
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "pip install pycocoevalcap"
    return "" if shutil.which("java") else "pycocoevalcap needs Java"


def predict_masks(
    benchmark: SegmentationBenchmark, truth: Mapping[str, MaskRecord], images: Path, loading: GlammLoading
) -> dict[str, MaskRecord]:
    """What GLaMM answers to the images of `truth`, `image` or `file_name` below `images`.

    Captions are asked for in the wording behind the published figures. Referring answers are teacher-forced with one
    fixed question and answer for every phrase, where the released script draws them at random.
    """
    from detectors.glamm import prompts

    glamm = loading.load()
    answers = {}
    for identity, record in truth.items():
        image = read_picture(images / (record.image or identity))
        if benchmark is SegmentationBenchmark.GCG:
            answer = glamm.describe(image, prompts.DESCRIBE_AS_PUBLISHED)
            phrases = tuple(span.phrase for span in answer.spans)
            answers[identity] = MaskRecord(identity, answer.text, phrases, _encode_masks(answer.masks))
        elif benchmark is SegmentationBenchmark.REFSEG:
            found = glamm.segment(image, record.phrases)
            assert found.class_id is not None
            masks = np.zeros((len(record.phrases), *image.shape[:2]), dtype=bool)
            masks[found.class_id] = grounded.masks_of(found)
            answers[identity] = MaskRecord(identity, "", record.phrases, _encode_masks(masks))
        else:
            answers[identity] = MaskRecord(identity, glamm.caption_region(image, record.box), (), ())
    return answers


def _encode_masks(masks: BoolMask) -> tuple[dict[str, Any], ...]:
    return tuple(mask_model(mask).model_dump(include={"size", "counts"}) for mask in masks)


def run_evaluation(
    benchmark: SegmentationBenchmark,
    truth_file: Path,
    predictions: Path | None,
    images: Path | None,
    text_model: str,
    loading: GlammLoading,
    *,
    as_json: bool,
) -> None:
    """Score a file of predictions, or what the model says to the images, and print the scores."""
    truth = read_records(truth_file)
    if predictions is None and images is None:
        raise ConfigError("nothing to score: give a file of predictions, or --images to have them made")
    similarity: Similarity | None = None
    if benchmark is SegmentationBenchmark.GCG and text_model != "none":
        from detectors.glamm.similarity import TextSimilarity

        similarity = TextSimilarity.load(text_model).matrix
    if predictions is not None:
        answers = read_records(predictions)
    else:
        assert images is not None
        answers = predict_masks(benchmark, truth, images, loading)
    scores = score_benchmark(benchmark, truth, answers, similarity)
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps({"benchmark": benchmark.value, **scores}))
    else:
        table = Table("score", "")
        for name, value in scores.items():
            table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
        Console().print(table)
