"""NanoDet-g behind the detector contract: 80 everyday names by their synonyms, fast enough for a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detectors.boxes import suppress
from detectors.detector import (
    DetectorError,
    OptionError,
    Prompt,
    PromptError,
    Request,
    clean_queries,
    detections,
)
from detectors.device import choose_device, has_fast_bfloat16
from detectors.images import collate, normalise, resize
from detectors.nanodet.network import NanoDet
from detectors.nanodet.vocabulary import NAMES, THRESHOLD, VOCABULARY, enough_for
from detectors.nanodet.weights import load_network

if TYPE_CHECKING:
    import supervision as sv

_OVERLAP = 0.5  # IoU above which the weaker of two boxes of one query goes
_CANDIDATES = 300  # pairs of cell and query that suppression looks at
_MOST = 100  # detections of one picture
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class ClassPrompt(Prompt):
    """Queries and the classes that each of them means."""

    classes: tuple[tuple[int, ...], ...]


class NanoDetector:
    """The detector `coco-nano`. Scores are on one scale for all names: each name's own threshold lies at `THRESHOLD`.

    Pictures are stretched to squares of `side` pixels, as in training.
    """

    def __init__(
        self,
        network: NanoDet,
        *,
        device: str | None = None,
        dtype: str | None = None,
        threshold: float = THRESHOLD,
        side: int = 416,
        largest_batch: int = 16,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise OptionError(f"threshold is {threshold}: it must lie in 0..1")
        if side % 32 or not 64 <= side <= 2048:
            raise OptionError(f"side is {side}: it must be a multiple of 32 in 64..2048 pixels")
        if largest_batch < 1:
            raise OptionError(f"largest_batch is {largest_batch}: it must be at least 1")
        if dtype is not None and dtype not in _DTYPES:
            raise OptionError(f"unknown precision {dtype!r}: use {' or '.join(_DTYPES)}")
        self.threshold = threshold
        self._device = choose_device(device)
        self._dtype = _DTYPES[dtype or _fast_precision(self._device)]
        self._network = network.to(self._device, self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._side, self._largest_batch = side, largest_batch
        self._enough = torch.tensor([enough_for(number) for number in range(len(NAMES))], device=self._device)

    def prepare(self, queries: Sequence[str]) -> ClassPrompt:
        """The classes of each query. Raises `PromptError` for one that it cannot know, and for two of one meaning."""
        cleaned = clean_queries(queries)
        return ClassPrompt(cleaned, VOCABULARY.classes_of_each(cleaned))

    @torch.inference_mode()
    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        found: list[sv.Detections] = []
        for start in range(0, len(requests), self._largest_batch):
            found += self._detect_batch(requests[start : start + self._largest_batch])
        return found

    def _detect_batch(self, requests: Sequence[Request]) -> list[sv.Detections]:
        inputs = [self._prepare_image(request.image) for request in requests]
        scores, boxes = self._network(collate(inputs).to(self._dtype))
        if not (torch.isfinite(scores).all() and torch.isfinite(boxes).all()):
            raise DetectorError(
                "the model's predictions are not numbers: use the option dtype=float32, or other weights"
            )
        scores = _calibrated(scores, self._enough)
        return [self._result(*one) for one in zip(scores, boxes, requests, strict=True)]

    def _prepare_image(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) BGR bytes -> (3, side, side)."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"the image is {image.dtype} {image.shape}; expected uint8 (height, width, 3), BGR")
        pixels = torch.from_numpy(image if image.flags.writeable and image.flags.c_contiguous else image.copy())
        return normalise(resize(pixels.to(self._device), (self._side, self._side)))

    def _result(self, scores: Tensor, boxes: Tensor, request: Request) -> sv.Detections:
        """scores (N, 80), boxes (N, 4) in pixels of the network's input."""
        if not isinstance(request.prompt, ClassPrompt):
            raise PromptError("the prompt comes from another detector: prepare the queries with this one")
        prompt = request.prompt
        by_query = torch.stack([scores[:, list(classes)].amax(-1) for classes in prompt.classes], dim=-1)
        least = by_query.new_tensor(request.least_scores(self.threshold)).clamp(min=1e-3)
        best, place = by_query.where(by_query >= least, 0.0).flatten().topk(min(_CANDIDATES, by_query.numel()))
        kept = best > 0
        best, place = best[kept], place[kept]
        cell, query = place // by_query.shape[1], place % by_query.shape[1]
        height, width = request.image.shape[:2]
        scale = boxes.new_tensor([width / self._side, height / self._side] * 2)
        limit = boxes.new_tensor([width, height, width, height])
        inside = torch.minimum((boxes[cell] * scale).clamp(min=0), limit)
        valid = (inside[:, 2:] > inside[:, :2]).all(-1)
        chosen = suppress(inside[None], query[None], valid[None], _OVERLAP)[0][0].nonzero()[:_MOST, 0]
        return detections(
            inside[chosen].cpu().numpy(), best[chosen].cpu().numpy(), query[chosen].cpu().numpy(), prompt.queries
        )


def _fast_precision(device: torch.device) -> str:
    """bfloat16 on a CPU that computes it: on PETS09-S2L1 precision and recall stay within 0.004."""
    return "bfloat16" if device.type == "cpu" and has_fast_bfloat16() else "float32"


def _calibrated(scores: Tensor, enough: Tensor) -> Tensor:
    """Scores (..., 80) stretched so that the threshold of each class comes to lie at `THRESHOLD`."""
    low = scores * (THRESHOLD / enough)
    high = 1 - (1 - scores) * ((1 - THRESHOLD) / (1 - enough))
    return torch.where(scores < enough, low, high)


def create(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threshold: float = THRESHOLD,
    side: int = 416,
    largest_batch: int = 16,
) -> NanoDetector:
    """`coco-nano` with the weights that `groundstream models pull coco-nano` fetched, or from `weights`: a model
    folder or the published file."""
    network = load_network(None if weights is None else Path(weights))
    return NanoDetector(
        network, device=device, dtype=dtype, threshold=threshold, side=side, largest_batch=largest_batch
    )
