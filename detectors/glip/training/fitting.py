"""Tuning of a GLIP to a domain from a few labelled pictures: full, head only, linear probing, or prompt only.

After GLIP, arXiv:2112.03857, section 4.3, and the recipe of its released code for "object detection in the wild": small
batches, no warm-up, the rate cut when the validation AP stands still, the best epoch kept. Different here: with linear
probing the frozen parts of the head run without dropout.
"""

from __future__ import annotations

import copy
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detectors.detector import PromptError
from detectors.evaluation import DetectionScore, coco_score
from detectors.glip.caption import BertTokenizer, CaptionTokens, category_caption, clean_name
from detectors.glip.config import ImageConfig
from detectors.glip.modeling.model import GlipModel
from detectors.glip.postprocess import find_candidates, select_boxes, token_map
from detectors.glip.training.loss import TrainingTruth
from detectors.glip.training.trainer import GlipTrainer, TrainingBatch, TrainingError, TrainingRecipe
from detectors.glip.training.tuned_prompt import TunedPrompt, add_offsets
from detectors.images import collate, normalise, resize, target_size

MODES = ("full", "head", "linear", "prompt")
_PROBED = ("bbox_pred", "centerness", "dot_product_projection_text", "log_scale", "bias_lang", "bias0")
_SCALES = (0.6, 0.7, 0.8, 0.9, 1.0)  # of the short side in use: GLIP's 480 to 800 of 800
_REPEATS = {1: 8, 3: 4, 5: 2}  # how often an epoch walks through so few pictures
log = logging.getLogger(__name__)


def choose_parameters(model: GlipModel, mode: str) -> None:
    """Make the parameters of the mode trainable and freeze the rest.

    `full`: all but the picture encoder's patches and first stage; `head`: the fusion tower and what reads it; `linear`:
    only what reads it; `prompt`: offsets to the text features, which are added here.
    """
    if mode not in MODES:
        raise PromptError(f"unknown tuning mode {mode!r}: use {', '.join(MODES)}")
    model.requires_grad_(False)
    if mode == "prompt":
        add_offsets(model, rows=model.config.text.max_length)
        return
    for name, parameter in model.named_parameters():
        if mode == "full":
            learns = not name.startswith(("backbone.body.patch_embed", "backbone.body.layers.0."))
        elif mode == "head":
            learns = name.startswith("rpn.")
        else:
            learns = name.startswith("rpn.head.") and name.split(".")[2] in _PROBED
        parameter.requires_grad_(learns and "cls_logits" not in name)


def few_shots(truth: Mapping[str, Any], shots: int, seed: int) -> list[int]:
    """Ids of pictures that hold about `shots` examples of each category, in a random order that `seed` decides.

    A picture is taken when one of its categories still lacks examples, and counts as one for each that it holds: the
    reference's rule.
    """
    by_image: dict[int, set[int]] = {image["id"]: set() for image in truth["images"]}
    for row in truth["annotations"]:
        by_image[row["image_id"]].add(row["category_id"])
    order = sorted(by_image)
    random.Random(seed).shuffle(order)
    lacking = Counter({category["id"]: shots for category in truth["categories"]})
    taken = []
    for image in order:
        if any(lacking[category] > 0 for category in by_image[image]):
            taken.append(image)
            lacking.subtract(by_image[image])
    return taken


def caption_of(
    names: Sequence[str], tokenizer: BertTokenizer, limit: int, descriptions: Mapping[str, str] | None = None
) -> CaptionTokens:
    """The one caption of a domain: all names in order, each followed by its description.

    `{"stingray": ", flat and round"}` makes "stingray, flat and round"; only the name's own tokens are its label.
    Raises `PromptError` when it is too long, or a description has no category.
    """
    for name in descriptions or {}:
        if name not in names:
            raise PromptError(f"{name!r} is described, but there is no such category: there are {', '.join(names)}")
    prompts = None
    if descriptions:
        prompts = [("", descriptions.get(name, "")) for name in names]
        names = [clean_name(name) for name in names]
    tokens = tokenizer(category_caption(names, prompts))
    for name, label in zip(names, tokens.labels, strict=True):
        if not label:
            raise PromptError(
                f"the model reads no word of the category {name!r}: parentheses are left out; rename the category"
            )
    if len(tokens.ids) > limit:
        raise PromptError(f"the categories make {len(tokens.ids)} tokens, tuning takes one caption of at most {limit}")
    return tokens


def folder_of(truth: Path, data: Mapping[str, Any]) -> Path:
    """Where a data set's pictures are: beside its file or, as `annotate` puts them, in `images` there."""
    inside = truth.parent / "images"
    names = [image["file_name"] for image in data["images"]]
    return inside if names and not (truth.parent / names[0]).is_file() and inside.is_dir() else truth.parent


def is_learned(row: Mapping[str, Any]) -> bool:
    """Whether an annotation is learned from: crowds and boxes no larger than a pixel are not."""
    return not row.get("iscrowd") and min(row["bbox"][2:]) > 1


@dataclass(frozen=True)
class TrainingExamples:
    """Labelled pictures of a data set in COCO's format, as batches by number."""

    truth: Mapping[str, Any]
    folder: Path
    images: Sequence[int]
    tokens: CaptionTokens
    size: ImageConfig
    batch: int
    seed: int
    repeats: int = 1
    as_stored: Mapping[int, bool] = field(default_factory=dict)
    """Images that are read without turning them by their EXIF data (`coco_data.check_pictures`)."""

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self.images) * self.repeats / self.batch)

    def __call__(self, number: int) -> TrainingBatch:
        epoch, place = divmod(number, self.steps)
        order = [image for _ in range(self.repeats) for image in self.images]
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        dice = random.Random(f"{self.seed} {number} pictures")
        chosen = order[place * self.batch : (place + 1) * self.batch]
        pictures, boxes = zip(*(self._augment_picture(image, dice) for image in chosen), strict=True)
        ids = torch.tensor([self.tokens.ids]).expand(len(chosen), -1)
        truths = [TrainingTruth(own, self._row_words(image)) for own, image in zip(boxes, chosen, strict=True)]
        return TrainingBatch(collate([normalise(picture) for picture in pictures]), ids, torch.ones_like(ids), truths)

    def _augment_picture(self, image: int, dice: random.Random) -> tuple[Tensor, Tensor]:
        """A picture at a random size, mirrored half of the time, and its boxes there."""
        pixels = self.pixels(image)
        short = round(self.size.min_side * dice.choice(_SCALES))
        height, width = pixels.shape[:2]
        tall, wide = target_size(height, width, short, self.size.max_side)
        picture = resize(pixels, (tall, wide))
        boxes = torch.tensor([row["bbox"] for row in self.rows(image)], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2] - 1
        boxes *= torch.tensor([wide / width, tall / height] * 2)
        if dice.random() < 0.5:
            picture = picture.flip(-1)
            boxes[:, 0], boxes[:, 2] = wide - 1 - boxes[:, 2], wide - 1 - boxes[:, 0].clone()
        return picture, boxes

    def pixels(self, image: int) -> Tensor:
        """(H, W, 3) BGR. Raises `TrainingError` for a file that is no picture."""
        import cv2

        path = self.folder / self._file_names[image]
        turning = cv2.IMREAD_IGNORE_ORIENTATION if self.as_stored.get(image) else 0
        read = cv2.imread(str(path), cv2.IMREAD_COLOR | turning)
        if read is None:
            raise TrainingError(f"cannot read the picture {path}: the data set names it, relative to {self.folder}")
        return torch.from_numpy(read)

    def rows(self, image: int) -> Sequence[Mapping[str, Any]]:
        return self._rows_by_image.get(image, [])

    @cached_property
    def _file_names(self) -> dict[int, str]:
        return {image["id"]: image["file_name"] for image in self.truth["images"]}

    @cached_property
    def _rows_by_image(self) -> dict[int, list[Mapping[str, Any]]]:
        """The annotations that teach, by picture."""
        found: dict[int, list[Mapping[str, Any]]] = {}
        for row in self.truth["annotations"]:
            if is_learned(row):
                found.setdefault(row["image_id"], []).append(row)
        return found

    def _row_words(self, image: int) -> Tensor:
        """(boxes, L) bool."""
        order = [category["id"] for category in self.truth["categories"]]
        rows = self.rows(image)
        words = torch.zeros(len(rows), len(self.tokens.ids), dtype=torch.bool)
        for place, row in enumerate(rows):
            words[place, list(self.tokens.labels[order.index(row["category_id"])])] = True
        return words


@torch.inference_mode()
def score_model(model: GlipModel, examples: TrainingExamples) -> DetectionScore:
    """COCO's average precision of the model over the examples' pictures, at the size in use."""
    model.eval()
    device = model.rpn.head.bias0.device
    ids = torch.tensor([examples.tokens.ids], device=device)
    text = model.encode_text(ids, torch.ones_like(ids))
    tokens = token_map(examples.tokens.labels, ids.shape[1]).to(device)[None]
    rule, categories = model.config.postprocess, [category["id"] for category in examples.truth["categories"]]
    results = []
    for image in examples.images:
        pixels = examples.pixels(image)
        height, width = pixels.shape[:2]
        size = target_size(height, width, examples.size.min_side, examples.size.max_side)
        predictions = model(collate([normalise(resize(pixels, size))]).to(device), text)
        sizes = torch.tensor([size], device=device)
        found = find_candidates(predictions, model.anchors(predictions.shapes), tokens, sizes, rule)
        kept, _ = select_boxes(found, rule.nms_iou, rule.detections_per_image, found.scores.shape[1])
        valid = kept.valid[0]
        scale = torch.tensor([width / size[1], height / size[0]] * 2)
        boxes = (kept.boxes[0][valid].cpu() * scale).numpy()
        for box, score, label in zip(
            boxes, kept.scores[0][valid].tolist(), kept.labels[0][valid].tolist(), strict=True
        ):
            corner, far = box[:2].tolist(), (box[2:] - box[:2] + np.float32(1)).tolist()
            results.append(
                {"image_id": image, "category_id": categories[label], "bbox": [*corner, *far], "score": score}
            )
    chosen = set(examples.images)
    part = {
        "images": [image for image in examples.truth["images"] if image["id"] in chosen],
        "annotations": [row for row in examples.truth["annotations"] if row["image_id"] in chosen],
        "categories": examples.truth["categories"],
    }
    return coco_score(part, results)


@dataclass(frozen=True)
class FittingCourse:
    """Length and rates of tuning; None stands for the reference's value for the mode and the number of shots."""

    mode: str = "prompt"
    shots: int | None = None  # examples of each category; None: all there are
    seed: int = 10
    epochs: int = 200
    batch: int = 4
    rate: float | None = None
    patience: int | None = None

    @property
    def recipe(self) -> TrainingRecipe:
        prompt = self.mode == "prompt"
        rate = self.rate if self.rate is not None else 0.05 if prompt else 1e-4
        decay = 0.25 if prompt else 0.05
        # The rate is cut by the plateau rule, not by the recipe.
        return TrainingRecipe(rate=rate, text_rate=rate / 10, weight_decay=decay, warm_up=0.0, steps=10**9)


class FittingResult(NamedTuple):
    """The validation AP of the best epoch, its number (0: no epoch was better than the model as it came), and whether
    the course was interrupted."""

    ap: float
    epoch: int
    interrupted: bool


def fit(
    model: GlipModel,
    training: TrainingExamples,
    validation: TrainingExamples,
    course: FittingCourse,
    after: Callable[[int, float, float], None] = lambda epoch, loss, ap: None,
    stopped: Callable[[], bool] = lambda: False,
) -> FittingResult:
    """Tunes the model in place, to its best epoch.

    `after` is called with the epoch, its mean loss and AP; epoch 0 is the model as it came. `stopped` is asked after
    every step: once it returns true, the best epoch so far stays. Raises `TrainingError`.
    """
    if not any(training.rows(image) for image in training.images):
        raise TrainingError("no labelled picture to learn from: expected annotations with boxes larger than a pixel")
    if not any(validation.rows(image) for image in validation.images):
        raise TrainingError("the validation set has no box, so that no epoch can be chosen by it: add annotations")
    choose_parameters(model, course.mode)
    few = course.shots is not None
    training = replace(training, repeats=_REPEATS.get(course.shots or 0, 1))
    trainer = GlipTrainer(model, course.recipe, model.rpn.head.bias0.device, course.seed)
    patience, end = (3, 8) if few else (2, 4)
    plateau = _PlateauRule(trainer, course.patience or patience, end)
    best_ap, best, best_epoch = score_model(model, validation).ap, _learned_weights(model), 0
    after(0, float("nan"), best_ap)
    number = 0
    for epoch in range(1, course.epochs + 1):
        trainer.training()
        total = 0.0
        for _ in range(training.steps):
            total += trainer.learn(training(number).to(trainer.device)).total
            number += 1
            if stopped():
                break
        if stopped():
            break
        ap = score_model(model, validation).ap
        after(epoch, total / training.steps, ap)
        if ap > best_ap:
            best_ap, best, best_epoch = ap, _learned_weights(model), epoch
        if plateau.epoch_ended(ap) or stopped():
            break
    model.load_state_dict(best, strict=False)
    model.requires_grad_(False).eval()
    return FittingResult(best_ap, best_epoch, interrupted=stopped())


def _learned_weights(model: GlipModel) -> dict[str, Tensor]:
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: copy.deepcopy(value) for name, value in model.state_dict().items() if name in learning}


class _PlateauRule:
    """Cuts the rate by ten when the AP has not risen for more than `patience` epochs, and ends after `end` of them."""

    def __init__(self, trainer: GlipTrainer, patience: int, end: int, least: float = 1e-6) -> None:
        self._trainer, self._patience, self._end, self._least = trainer, patience, end, least
        self._best, self._waited, self._still = -1.0, 0, 0

    def epoch_ended(self, ap: float) -> bool:
        if ap > self._best:
            self._best, self._waited, self._still = ap, 0, 0
            return False
        self._waited += 1
        self._still += 1
        if self._waited > self._patience:
            self._waited = 0
            for group in self._trainer.groups:
                group["rate"] = max(group["rate"] / 10, self._least)
        return self._still >= self._end


def tuned_prompt(model: GlipModel, names: Sequence[str], tokens: CaptionTokens) -> TunedPrompt:
    """What `--tuned` reads: the caption's features as the model, its offsets included, makes them."""
    return TunedPrompt.of(model, names, tokens)
