"""OmDet-Turbo of transformers behind the detector contract: free words at the speed of a closed detector.

arXiv:2403.06892. Every query is encoded alone, all queries together make the task: "Detect person, red car.".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detectors.catalogue import OMDET
from detectors.detector import Prompt, clean_queries
from detectors.device import choose_device
from detectors.pretrained import (
    IMAGENET,
    FoundBoxes,
    PicturePreparation,
    PretrainedDetector,
    box_corners,
    find_folder,
    load_pretrained,
    read_preparation,
    read_short_queries,
)

_USUAL = PicturePreparation((640, 640), IMAGENET)
_THRESHOLD = 0.3


@dataclass(frozen=True, eq=False)
class TaskPrompt(Prompt):
    """Tokens of each query (K, 77), and of the task (1, 77), with their masks."""

    classes: Tensor
    class_mask: Tensor
    task: Tensor
    task_mask: Tensor


class OmDetTurbo(PretrainedDetector):
    """OmDet-Turbo. Its network keeps the encoded words of earlier calls."""

    prompt_type = TaskPrompt
    overlap = 0.5

    def __init__(
        self, model: Any, tokenizer: Any, device: torch.device, threshold: float, preparation: PicturePreparation
    ) -> None:
        super().__init__(model, tokenizer, device, threshold)
        self._preparation = preparation
        self._limit = int(model.config.text_config.max_position_embeddings)

    def prepare(self, queries: Sequence[str]) -> TaskPrompt:
        """Raises `PromptError` for a query that is too long. A task that is too long is cut, as in training."""
        cleaned = clean_queries(queries)
        words = read_short_queries(self._tokenizer, cleaned, self._limit, "OmDet-Turbo")
        classes, class_mask = self._encode_words(words)
        task, task_mask = self._encode_words([f"Detect {', '.join(words)}."])
        return TaskPrompt(cleaned, classes, class_mask, task, task_mask)

    def _encode_words(self, words: list[str]) -> tuple[Tensor, Tensor]:
        encoded = self._tokenizer(
            words, padding="max_length", truncation=True, max_length=self._limit, return_tensors="pt"
        )
        return encoded["input_ids"].to(self._device), encoded["attention_mask"].to(self._device)

    def _find_boxes(self, images: list[npt.NDArray[np.uint8]], prompt: TaskPrompt) -> FoundBoxes:
        height, width = images[0].shape[:2]
        count = len(images)
        out = self._model(
            pixel_values=self._stack_pictures(images, self._preparation),
            classes_input_ids=prompt.classes.repeat(count, 1),
            classes_attention_mask=prompt.class_mask.repeat(count, 1),
            tasks_input_ids=prompt.task.repeat(count, 1),
            tasks_attention_mask=prompt.task_mask.repeat(count, 1),
            classes_structure=torch.full((count,), len(prompt.queries), device=self._device),
        )
        scores = out.decoder_class_logits.float().sigmoid()[..., : len(prompt.queries)]
        scale = scores.new_tensor([width, height, width, height])
        return FoundBoxes(scores, box_corners(out.decoder_coord_logits) * scale)


def create(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    threshold: float = _THRESHOLD,
) -> OmDetTurbo:
    """The released model `name`, fetched before with `groundstream models pull`, or the one in the folder `weights`.

    The released tiny model has a backbone of timm, which must be installed.
    """
    folder = find_folder(name, weights, OMDET)
    preparation = read_preparation(folder, _USUAL)
    model, tokenizer = load_pretrained(folder, "OmDetTurboForObjectDetection", "CLIPTokenizer", dtype)
    return OmDetTurbo(model, tokenizer, choose_device(device), threshold, preparation)
