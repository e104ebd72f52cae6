"""Open-vocabulary detectors of transformers behind the detector contract.

Grounding DINO: arXiv:2303.05499. MM Grounding DINO: arXiv:2401.02361. LLMDet (the network of MM Grounding DINO):
arXiv:2501.18954. OWLv2: arXiv:2306.09683. The networks are transformers' implementations; words and pictures are
prepared here, as its processors do (they want torchvision), but for OWLv2's resizing, which is antialiased bilinear
instead of Gaussian blur and interpolation.
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
from torch.nn import functional as F

from detectors.catalogue import ZERO_SHOT
from detectors.detector import Prompt, PromptError, clean_queries, read_words
from detectors.device import choose_device
from detectors.images import target_size
from detectors.phrases import Span, locate_phrases, place_phrases
from detectors.pretrained import (
    CLIP,
    IMAGENET,
    FoundBoxes,
    PicturePreparation,
    PretrainedDetector,
    box_corners,
    find_folder,
    load_pretrained,
    read_short_queries,
)

_NETWORKS = {
    "grounding-dino-": ("GroundingDinoForObjectDetection", "BertTokenizer"),
    "mm-grounding-dino-": ("MMGroundingDinoForObjectDetection", "BertTokenizer"),
    "llmdet-": ("MMGroundingDinoForObjectDetection", "BertTokenizer"),
    "owlv2-": ("Owlv2ForObjectDetection", "CLIPTokenizer"),
}
"""Network and tokenizer of each family."""


@dataclass(frozen=True, eq=False)
class TokenPrompt(Prompt):
    """Words as token ids: one row and the token positions of each query (Grounding DINO), or a row each (OWLv2)."""

    input_ids: Tensor
    attention_mask: Tensor
    spans: tuple[tuple[int, ...], ...] = ()


class GroundingDino(PretrainedDetector):
    """Grounding DINO and MM Grounding DINO. All queries stand in one caption, "person. red car."

    A query's score for a box is that of its best token. `min_side` and `max_side` are those of the resized picture.
    """

    prompt_type = TokenPrompt

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: torch.device,
        threshold: float,
        min_side: int = 800,
        max_side: int = 1333,
    ) -> None:
        super().__init__(model, tokenizer, device, threshold)
        self._sides = (min_side, max_side)

    def prepare(self, queries: Sequence[str]) -> TokenPrompt:
        cleaned = clean_queries(queries)
        caption, spans = "", []
        for query in cleaned:
            # Dots and question marks part phrases in a caption.
            words = " ".join(read_words(query).lower().replace(".", " ").replace("?", " ").split())
            spans.append(((len(caption), len(caption) + len(words)),))
            caption += f"{words}. "
        return self._encode_caption(caption.rstrip(), cleaned, spans)

    def prepare_text(
        self, text: str, phrases: Sequence[str], spans: Sequence[Sequence[Span]] | None = None
    ) -> TokenPrompt:
        """A sentence and phrases of it as queries; `spans` are their places, all where they stand when absent."""
        if spans is None:
            named = locate_phrases(text, clean_queries(phrases, free_words=False))
        else:
            named = place_phrases(phrases, spans)
        queries = tuple(phrase.text for phrase in named)
        caption = text.rstrip()
        if not caption.endswith("."):
            caption += "."  # as the model was trained
        return self._encode_caption(caption, queries, [phrase.spans for phrase in named])

    def _encode_caption(self, caption: str, queries: tuple[str, ...], spans: Sequence[Sequence[Span]]) -> TokenPrompt:
        """Raises `PromptError` for a query without tokens, or beyond the most that the model reads."""
        encoded = self._tokenizer(caption, return_offsets_mapping=True)
        limit = self._model.config.max_text_len
        tokens = tuple(
            tuple(
                position
                for position, (first, last) in enumerate(encoded["offset_mapping"])
                if any(start <= first < last <= end for start, end in places)
            )
            for places in spans
        )
        for query, own in zip(queries, tokens, strict=True):
            if not own:
                raise PromptError(f"query {query!r} holds no word that the model can read: write it in letters")
            if own[-1] >= limit - 2:  # a dot and the end mark must follow
                raise PromptError(
                    f"the prompt has {len(encoded['input_ids'])} tokens, Grounding DINO reads at most {limit}: "
                    f"drop the queries from {query!r} on, or give them to a second detector"
                )
        ids = torch.tensor([encoded["input_ids"][:limit]], device=self._device)
        return TokenPrompt(queries, ids, torch.ones_like(ids), tokens)

    def _find_boxes(self, images: list[npt.NDArray[np.uint8]], prompt: TokenPrompt) -> FoundBoxes:
        height, width = images[0].shape[:2]
        size = target_size(height, width, *self._sides)
        # A strip thinner than the coarsest stride would vanish on the way: it is widened with emptiness, masked out.
        margin = (0, max(32 - size[1], 0), 0, max(32 - size[0], 0))
        pixels = torch.stack([F.pad(self._load_pixels(image, size, IMAGENET), margin) for image in images])
        mask = F.pad(torch.ones(len(images), *size, dtype=torch.long, device=self._device), margin)
        out = self._model(
            pixel_values=pixels,
            pixel_mask=mask,
            input_ids=prompt.input_ids.expand(len(images), -1),
            attention_mask=prompt.attention_mask.expand(len(images), -1),
        )
        tokens = out.logits.float().sigmoid()
        scores = torch.stack([tokens[..., list(span)].amax(-1) for span in prompt.spans], dim=-1)
        scale = out.pred_boxes.new_tensor([width, height, width, height])
        stretch = scale.new_tensor([pixels.shape[3] / size[1], pixels.shape[2] / size[0]]).repeat(2)
        return FoundBoxes(scores, box_corners(out.pred_boxes) * scale * stretch)


class Owlv2Detector(PretrainedDetector):
    """OWLv2: every query is read alone, pictures are padded to squares."""

    prompt_type = TokenPrompt

    def __init__(self, model: Any, tokenizer: Any, device: torch.device, threshold: float) -> None:
        super().__init__(model, tokenizer, device, threshold)
        self._side = int(model.config.vision_config.image_size)
        self._limit = int(model.config.text_config.max_position_embeddings)

    def prepare(self, queries: Sequence[str]) -> TokenPrompt:
        cleaned = clean_queries(queries)
        words = read_short_queries(self._tokenizer, cleaned, self._limit, "OWLv2")
        encoded = self._tokenizer(words, padding="max_length", max_length=self._limit, return_tensors="pt")
        return TokenPrompt(cleaned, encoded["input_ids"].to(self._device), encoded["attention_mask"].to(self._device))

    def _find_boxes(self, images: list[npt.NDArray[np.uint8]], prompt: TokenPrompt) -> FoundBoxes:
        height, width = images[0].shape[:2]
        longest = max(height, width)
        square = (self._side, self._side)
        padding = ((0, longest - height), (0, longest - width), (0, 0))
        padded = (np.pad(image, padding) for image in images)
        pixels = self._stack_pictures(padded, PicturePreparation(square, CLIP))
        out = self._model(
            pixel_values=pixels,
            input_ids=prompt.input_ids.repeat(len(images), 1),
            attention_mask=prompt.attention_mask.repeat(len(images), 1),
        )
        return FoundBoxes(out.logits.float().sigmoid(), box_corners(out.pred_boxes) * longest)


def create(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    threshold: float | None = None,
) -> GroundingDino | Owlv2Detector:
    """The released model `name`, fetched before with `groundstream models pull`, or the one in the folder `weights`.

    The folder is as the hub has it: config.json, model.safetensors and the tokenizer's files.
    """
    family = next(prefix for prefix in _NETWORKS if name.startswith(prefix))
    released = {known: hub for known, hub in ZERO_SHOT.items() if known.startswith(family)}
    folder = find_folder(name, weights, released)
    model, tokenizer = load_pretrained(folder, *_NETWORKS[family], dtype)
    place = choose_device(device)
    if family == "owlv2-":
        return Owlv2Detector(model, tokenizer, place, 0.2 if threshold is None else threshold)
    return GroundingDino(model, tokenizer, place, 0.35 if threshold is None else threshold)
