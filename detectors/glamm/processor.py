"""Pictures as CLIP and SAM were trained to see them: Pillow's resampling, to the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = npt.NDArray[np.uint8]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)


def _resize_pillow(rgb: Picture) -> Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(rgb))


def _to_tensor(image: Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)


def _normalise_pixels(values: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def clip_pixels(rgb: Picture, side: int) -> Tensor:
    """Short side to `side`, then the centre square: (H, W, 3) -> (3, side, side) float32.

    The ends of a long picture are lost to the language model, as in the released code, while boxes count from the
    whole picture.
    """
    from PIL import Image

    height, width = rgb.shape[:2]
    short, long = sorted((height, width))
    length = int(side * long / short)
    size = (side, length) if width <= height else (length, side)
    image = _resize_pillow(rgb).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return _normalise_pixels(_to_tensor(image.crop((left, top, left + side, top + side))) / 255, CLIP_MEAN, CLIP_STD)


def inner_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) of a picture whose long side became `side`."""
    scale = side / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def sam_pixels(rgb: Picture, side: int) -> Tensor:
    """Long side to `side`, normalised, then zeros on the right and below: (H, W, 3) -> (3, side, side) float32."""
    from PIL import Image

    height, width = inner_size(rgb.shape[0], rgb.shape[1], side)
    image = _resize_pillow(rgb).resize((width, height), Image.Resampling.BILINEAR)
    padded = torch.zeros(3, side, side)
    padded[:, :height, :width] = _normalise_pixels(_to_tensor(image), SAM_MEAN, SAM_STD)
    return padded
