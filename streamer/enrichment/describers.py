"""Describers: what the enricher calls to get words and a mask for a box, or words for a scene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sinks.event import Description, Span

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from detectors.glamm.box_masks import BoxMasks
    from detectors.glamm.segmenter import Glamm

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2: fractions of the frame in requests, pixels inside this module."""


class Describer(Protocol):
    """Describes a part of a picture; returns None where it has nothing to say. Called in the enricher's thread only.

    `image` is BGR, (height, width, 3), uint8; `box` in fractions or None for the whole scene; `phrase` the words that
    the object was found by.
    """

    def __call__(self, image: npt.NDArray[np.uint8], box: Box | None, phrase: str) -> Description | None: ...


class GlammDescriber:
    """Describes with GLaMM: the object in a box with its mask, a scene with a grounded text."""

    def __init__(self, glamm: Glamm) -> None:
        from detectors.glamm.box_masks import BoxMasks

        self._glamm = glamm
        self._masks = BoxMasks(glamm.model.sam)

    def __call__(self, image: npt.NDArray[np.uint8], box: Box | None, phrase: str) -> Description:
        from streamer.enrichment.grounded import event_description

        if box is None:
            return event_description(self._glamm.describe(image), self._glamm.name)
        pixels = _pixel_box(box, image)
        text = self._glamm.caption_region(image, pixels)
        return _describe_object(self._masks, image, pixels, text, phrase, self._glamm.name)


class MaskDescriber:
    """Gives an object its mask with SAM alone; the text is the phrase it was found by. Returns None for a scene."""

    def __init__(self, masks: BoxMasks, name: str = "sam") -> None:
        self._masks = masks
        self._name = name

    def __call__(self, image: npt.NDArray[np.uint8], box: Box | None, phrase: str) -> Description | None:
        if box is None:
            return None
        return _describe_object(self._masks, image, _pixel_box(box, image), phrase, phrase, self._name)


def _pixel_box(box: Box, image: npt.NDArray[np.uint8]) -> Box:
    """A box in pixels, at least one wide and high."""
    height, width = image.shape[:2]
    x1, y1 = min(box[0] * width, width - 1.0), min(box[1] * height, height - 1.0)
    return x1, y1, max(box[2] * width, x1 + 1), max(box[3] * height, y1 + 1)


def _describe_object(
    masks: BoxMasks, image: npt.NDArray[np.uint8], pixels: Box, text: str, phrase: str, model: str
) -> Description:
    """A description with one span over the whole text, tied to the mask of the object."""
    import numpy as np

    from streamer.rules.mask_rle import mask_model

    found, _ = masks.masks(image, np.array([pixels]))
    span = Span(start=0, end=len(text), phrase=phrase or text, mask=mask_model(found[0]))
    return Description(text=text, spans=[span], model=model)
