"""From camera pictures to the network's input, on the device: resize, normalise, pad."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN_BGR = (103.53, 116.28, 123.675)  # of ImageNet, 0..255
STD_BGR = (57.375, 57.12, 58.395)
MULTIPLE = 32  # of the padded sides: the coarsest stride of the picture's encoder


def target_size(height: int, width: int, min_side: int, max_side: int) -> tuple[int, int]:
    """(height, width) with the short side at `min_side`, or smaller where the long one would pass `max_side`."""
    short, long = min(height, width), max(height, width)
    side = min_side
    if long / short * side > max_side:
        side = max(round(max_side * short / long), 1)
    if short == side:
        return height, width
    if width < height:
        return int(side * height / width), side
    return side, int(side * width / height)


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Each side rounded up to a multiple of 32."""
    return height + -height % MULTIPLE, width + -width % MULTIPLE


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased when shrinking: (H, W, 3) uint8 -> (3, h, w) of whole values 0..255.

    Equal to Pillow's within one grey level. Where the device resizes bytes the result is uint8, else float32.
    """
    pixels = image.permute(2, 0, 1)[None]
    if tuple(image.shape[:2]) == size:
        return pixels[0]
    if image.device.type == "cpu":
        return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0]
    return F.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True)[0].round_().clamp_(0, 255)


def normalise(pixels: Tensor) -> Tensor:
    """Values 0..255, BGR (3, h, w) -> float32 of mean 0 and deviation 1 over ImageNet."""
    mean, std = _pixel_statistics(pixels.device)
    return (pixels.float() - mean) / std


@lru_cache(maxsize=16)
def _pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation on the device, (3, 1, 1) each. They are uploaded once: an upload of constants for every
    picture would make the host wait for the device."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN_BGR, STD_BGR))
    return mean, std


def collate(images: Sequence[Tensor]) -> Tensor:
    """Normalised pictures (3, h, w) in one batch (B, 3, H, W), channels last, zeros to the right and below."""
    tall, wide = padded_size(max(image.shape[1] for image in images), max(image.shape[2] for image in images))
    batch = images[0].new_zeros(len(images), 3, tall, wide).contiguous(memory_format=torch.channels_last)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch
