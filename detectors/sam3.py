"""SAM 3 of transformers behind the detector contract: boxes and masks for short phrases.

arXiv:2511.16719. A picture passes the vision encoder once; the small decoder answers for each query by itself.
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

from detectors.catalogue import SAM3
from detectors.detector import Prompt, clean_queries
from detectors.device import choose_device
from detectors.pretrained import (
    FoundBoxes,
    PicturePreparation,
    PretrainedDetector,
    find_folder,
    load_pretrained,
    read_preparation,
    read_short_queries,
)

_HALF = (0.5, 0.5, 0.5)
_THRESHOLD = 0.5
_QUERIES_AT_ONCE = 8  # copies of a picture's features in a pass of the decoder


@dataclass(frozen=True, eq=False)
class PhrasePrompt(Prompt):
    """Text features of each query, (K, L, D), and the mask of its tokens, (K, L)."""

    features: Tensor
    mask: Tensor


class Sam3Detector(PretrainedDetector):
    """SAM 3. A query's score for a box is that of the box times that of the query's presence in the picture."""

    prompt_type = PhrasePrompt
    most = 100  # masks of whole pictures are large

    def __init__(
        self, model: Any, tokenizer: Any, device: torch.device, threshold: float, preparation: PicturePreparation
    ) -> None:
        super().__init__(model, tokenizer, device, threshold)
        self._preparation = preparation
        self._limit = int(model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def prepare(self, queries: Sequence[str]) -> PhrasePrompt:
        """Raises `PromptError` for a query that is too long."""
        cleaned = clean_queries(queries)
        words = read_short_queries(self._tokenizer, cleaned, self._limit, "SAM 3")
        encoded = self._tokenizer(words, padding="max_length", max_length=self._limit, return_tensors="pt")
        ids, mask = encoded["input_ids"].to(self._device), encoded["attention_mask"].to(self._device)
        features = self._model.get_text_features(input_ids=ids, attention_mask=mask, return_dict=True).pooler_output
        return PhrasePrompt(cleaned, features, mask)

    def _find_boxes(self, images: list[npt.NDArray[np.uint8]], prompt: PhrasePrompt) -> FoundBoxes:
        seen = self._model.get_vision_features(pixel_values=self._stack_pictures(images, self._preparation))
        found = [self._ground_phrases(seen, row, prompt, image) for row, image in enumerate(images)]
        scores, boxes, masks = (torch.stack(parts) for parts in zip(*found, strict=True))
        return FoundBoxes(scores, boxes, masks)

    def _ground_phrases(
        self, seen: Any, row: int, prompt: PhrasePrompt, image: npt.NDArray[np.uint8]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One picture's scores (K N, K), boxes (K N, 4) and mask logits (K N, h, w): N boxes for each query alone."""
        count, (height, width) = len(prompt.queries), image.shape[:2]
        scores, boxes, masks = [], [], []
        for start in range(0, count, _QUERIES_AT_ONCE):
            features = prompt.features[start : start + _QUERIES_AT_ONCE]
            out = self._model(
                vision_embeds=_repeat_picture(seen, row, len(features)),
                text_embeds=_TextFeatures(features),
                attention_mask=prompt.mask[start : start + _QUERIES_AT_ONCE],
            )
            scores.append(out.pred_logits.float().sigmoid() * out.presence_logits.float().sigmoid())
            boxes.append(out.pred_boxes.float())
            masks.append(out.pred_masks)
        own = torch.cat(scores)  # (K, N)
        spread = own.new_full((count, own.shape[1], count), -1.0)
        spread[torch.arange(count), :, torch.arange(count)] = own
        scale = own.new_tensor([width, height, width, height])
        return spread.flatten(0, 1), torch.cat(boxes).flatten(0, 1) * scale, torch.cat(masks).flatten(0, 1)


@dataclass(frozen=True)
class _TextFeatures:
    """Encoded text as the network takes it."""

    pooler_output: Tensor


def _repeat_picture(seen: Any, row: int, times: int) -> Any:
    """The features of one picture of a batch, once for each of `times` queries; no copies."""

    def repeat(levels: Any) -> tuple[Tensor, ...]:
        return tuple(level[row : row + 1].expand(times, *level.shape[1:]) for level in levels)

    return type(seen)(
        fpn_hidden_states=repeat(seen.fpn_hidden_states), fpn_position_encoding=repeat(seen.fpn_position_encoding)
    )


def create(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    threshold: float = _THRESHOLD,
) -> Sam3Detector:
    """`sam3`, fetched before with `groundstream models pull sam3`, or from the folder `weights`, as the hub has it."""
    folder = find_folder(name, weights, SAM3)
    model, tokenizer = load_pretrained(folder, "Sam3Model", "CLIPTokenizer", dtype)
    side = int(model.config.vision_config.image_size)
    preparation = read_preparation(folder, PicturePreparation((side, side), (_HALF, _HALF)))
    return Sam3Detector(model, tokenizer, choose_device(device), threshold, preparation)
