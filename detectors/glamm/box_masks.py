"""Masks for boxes: SAM led by a detector's boxes, without any language model (Grounded SAM, arXiv:2401.14159)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision as sv
import torch
import transformers

from detectors.detector import Detector, Prompt, Request
from detectors.device import choose_device
from detectors.glamm.processor import inner_size, sam_pixels
from detectors.glamm.sam import decode_boxes, resize_masks
from detectors.glamm.weights import WeightsError
from detectors.phrases import Span, locate_phrases, place_phrases, prepare_sentence

DEFAULT_SAM = "facebook/sam-vit-base"
_MASKS_AT_ONCE = 16


class BoxMasks:
    """Turns boxes into masks with a SAM: one of its own, or the one inside a GLaMM."""

    def __init__(self, sam: transformers.SamModel) -> None:
        self._sam = sam.eval()
        self._side = int(sam.config.vision_config.image_size)

    @classmethod
    def load(cls, name: str = DEFAULT_SAM, device: str | None = None) -> BoxMasks:
        """A SAM of transformers by its name on the hub, or from a folder. Raises `WeightsError`."""
        place = choose_device(device)
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise WeightsError(f"{name} holds no SAM: a folder with config.json and model.safetensors is needed")
        try:
            sam = transformers.SamModel.from_pretrained(name, use_safetensors=True)  # safetensors run nothing  # nosec B615
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"SAM {name!r} is neither in a folder nor cached nor to be had from the hub: connect to it, "
                "or give a folder with config.json and model.safetensors"
            ) from error
        return cls(sam.to(place, torch.bfloat16 if place.type == "cuda" else torch.float32))

    @torch.inference_mode()
    def add_masks(self, image: npt.NDArray[np.uint8], found: sv.Detections) -> sv.Detections:
        """The same detections or tracks with a mask each, cut from `image` (BGR, uint8); nothing else changes."""
        return replace(found, mask=self.masks(image, found.xyxy)[0])

    @torch.inference_mode()
    def masks(
        self, image: npt.NDArray[np.uint8], xyxy: npt.NDArray[np.number[Any]]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        """Masks (N, H, W) for boxes (N, 4) in pixels of `image` (BGR), and SAM's estimate of their IoU (N,)."""
        height, width = image.shape[:2]
        weight = self._sam.mask_decoder.iou_token.weight
        if not len(xyxy):
            return np.zeros((0, height, width), dtype=bool), np.zeros(0, dtype=np.float32)
        pixels = sam_pixels(np.ascontiguousarray(image[..., ::-1]), self._side)[None]
        embedding = self._sam.get_image_embeddings(pixels.to(weight.device, weight.dtype))
        inner = inner_size(height, width, self._side)
        scale = torch.tensor([inner[1] / width, inner[0] / height] * 2)
        boxes = (torch.as_tensor(np.asarray(xyxy, dtype=np.float32)) * scale).to(weight.device)
        masks, ious = [], []
        for some in boxes.split(_MASKS_AT_ONCE):  # type: ignore[no-untyped-call]
            logits, iou = decode_boxes(self._sam, embedding, some)
            masks.append((resize_masks(logits, self._side, inner, (height, width)) > 0).cpu().numpy())
            ious.append(iou.clamp(0, 1).cpu().numpy())
        return np.concatenate(masks), np.concatenate(ious)


class WithMasks:
    """A `Detector` whose boxes get masks: those of the queries named in `only`, or all.

    Masks stay with their boxes: trackers keep them with the rows, renderers draw them. Every frame with boxes costs one
    pass of SAM's image encoder.
    """

    def __init__(self, detector: Detector, masks: BoxMasks, only: Sequence[str] | None = None) -> None:
        self._detector = detector
        self._masks = masks
        self._only = None if only is None else frozenset(only)

    @property
    def threshold(self) -> float:
        return self._detector.threshold

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return self._detector.prepare(queries)

    def prepare_text(self, text: str, phrases: Sequence[str], spans: Sequence[Sequence[Span]] | None = None) -> Prompt:
        """A sentence and phrases in it; for a detector that reads no sentences each phrase is a query."""
        named = locate_phrases(text, phrases) if spans is None else place_phrases(phrases, spans)
        return prepare_sentence(self._detector, text, named)

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        """As the detector's own, each with `mask`; an empty one where no mask is wanted."""
        found = self._detector.detect(requests)
        return [self._with_masks(request, each) for request, each in zip(requests, found, strict=True)]

    def _with_masks(self, request: Request, found: sv.Detections) -> sv.Detections:
        if not len(found):
            return found
        image = request.image
        names = found.data["class_name"]
        wanted = np.array([self._only is None or name in self._only for name in names], dtype=np.bool_)
        masks = np.zeros((len(found), *image.shape[:2]), dtype=np.bool_)
        masks[wanted], _ = self._masks.masks(image, found.xyxy[wanted])
        return replace(found, mask=masks)
