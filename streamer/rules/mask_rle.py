"""Run-length encoding of masks in COCO's format."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sinks.event import Mask


def mask_model(mask: npt.NDArray[np.bool_]) -> Mask:
    """One mask (H, W) as COCO run lengths."""
    import supervision as sv

    height, width = mask.shape
    return Mask(size=(height, width), counts=str(sv.mask_to_rle(mask, compressed=True)))
