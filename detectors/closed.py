"""Detectors of a closed vocabulary from transformers: RF-DETR, D-FINE and RT-DETRv2, exact and fast for everyday names.

RF-DETR: arXiv:2511.09554. D-FINE: arXiv:2410.13842. RT-DETRv2: arXiv:2407.17140. Queries are mapped to the names of the
training data (COCO, Objects365) by synonyms; what a model cannot know is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from detectors.catalogue import CLOSED
from detectors.detector import Prompt, clean_queries
from detectors.device import choose_device
from detectors.pretrained import (
    IMAGENET,
    PLAIN,
    FoundBoxes,
    PicturePreparation,
    PretrainedDetector,
    PretrainedError,
    box_corners,
    find_folder,
    load_pretrained,
    read_preparation,
)
from detectors.vocabulary import ClosedVocabulary

_NETWORKS = {
    "rf-detr-": ("RfDetrForObjectDetection", PicturePreparation((560, 560), IMAGENET)),
    "d-fine-": ("DFineForObjectDetection", PicturePreparation((640, 640), PLAIN)),
    "rt-detr-v2-": ("RTDetrV2ForObjectDetection", PicturePreparation((640, 640), PLAIN)),
}
"""Network of each family, and how it wants pictures where its folder does not say."""
_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class NamePrompt(Prompt):
    """Queries and the classes that each of them means."""

    classes: tuple[tuple[int, ...], ...]


class ClosedDetector(PretrainedDetector):
    """A detector that knows the names of its training data. A query's score is that of the best of its classes."""

    prompt_type = NamePrompt

    def __init__(
        self,
        model: Any,
        device: torch.device,
        threshold: float,
        vocabulary: ClosedVocabulary,
        preparation: PicturePreparation,
    ) -> None:
        super().__init__(model, None, device, threshold)
        self._vocabulary = vocabulary
        self._preparation = preparation

    def prepare(self, queries: Sequence[str]) -> NamePrompt:
        """The classes of each query. Raises `PromptError` for one that it cannot know, and for two of one meaning."""
        cleaned = clean_queries(queries)
        return NamePrompt(cleaned, self._vocabulary.classes_of_each(cleaned))

    def _find_boxes(self, images: list[npt.NDArray[np.uint8]], prompt: NamePrompt) -> FoundBoxes:
        height, width = images[0].shape[:2]
        out = self._model(pixel_values=self._stack_pictures(images, self._preparation))
        names = out.logits.float().sigmoid()
        scores = torch.stack([names[..., list(classes)].amax(-1) for classes in prompt.classes], dim=-1)
        scale = scores.new_tensor([width, height, width, height])
        return FoundBoxes(scores, box_corners(out.pred_boxes) * scale)


def create(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    threshold: float = _THRESHOLD,
) -> ClosedDetector:
    """The released model `name`, fetched before with `groundstream models pull`, or the one in the folder `weights`, as
    the hub has it: config.json with the names of the classes, model.safetensors, preprocessor_config.json."""
    family = next(prefix for prefix in _NETWORKS if name.startswith(prefix))
    folder = find_folder(name, weights, {known: hub for known, hub in CLOSED.items() if known.startswith(family)})
    network, usual = _NETWORKS[family]
    preparation = read_preparation(folder, usual)
    model, _ = load_pretrained(folder, network, None, dtype)
    names = [str(model.config.id2label.get(number, "")) for number in range(model.config.num_labels)]
    vocabulary = ClosedVocabulary(names, name)
    if not vocabulary.known:
        raise PretrainedError(f"{folder}/config.json names no classes: expected id2label with the names of each")
    return ClosedDetector(model, choose_device(device), threshold, vocabulary, preparation)
