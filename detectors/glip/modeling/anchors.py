"""Anchors and the box coder relative to them, as in Faster R-CNN, arXiv:1506.01497."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of dx, dy, dw, dh
LARGEST_GROWTH = math.log(1000 / 16)


def cell_anchor(size: int, stride: int) -> Tensor:
    """The square anchor of the first location: (1, 4), centred on its cell."""
    centre, half = (stride - 1) / 2, (size - 1) / 2
    with torch.device("cpu"):
        return torch.tensor([[centre - half, centre - half, centre + half, centre + half]])


class CellAnchors(nn.Module):
    """One (1, 4) buffer for each level, named by its number as in the checkpoints."""

    def __init__(self, sizes: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        for level, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
            self.register_buffer(str(level), cell_anchor(size, stride))


class AnchorGenerator(nn.Module):
    """One anchor for each location of each level, row by row."""

    def __init__(self, sizes: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.cell_anchors = CellAnchors(sizes, strides)

    def forward(self, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Each level's (height, width) -> each level's anchors (height * width, 4)."""
        anchors = []
        for cell, stride, (height, width) in zip(self.cell_anchors.buffers(), self.strides, shapes, strict=True):
            y = torch.arange(height, device=cell.device, dtype=cell.dtype) * stride
            x = torch.arange(width, device=cell.device, dtype=cell.dtype) * stride
            y, x = torch.meshgrid(y, x, indexing="ij")
            anchors.append((torch.stack([x, y, x, y], dim=-1) + cell).flatten(0, 1))
        return anchors


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes relative to anchors, (..., 4) each -> (..., 4): dx, dy, dw, dh, weighted."""
    size, anchor_size = boxes[..., 2:] - boxes[..., :2] + 1, anchors[..., 2:] - anchors[..., :2] + 1
    centre, anchor_centre = (boxes[..., 2:] + boxes[..., :2]) / 2, (anchors[..., 2:] + anchors[..., :2]) / 2
    shift = (centre - anchor_centre) / anchor_size
    growth = torch.log(size / anchor_size)
    return torch.cat([WEIGHTS[0] * shift, WEIGHTS[2] * growth], dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `encode`; a box grows to at most 1000 / 16 of its anchor."""
    anchor_size = anchors[..., 2:] - anchors[..., :2] + 1
    anchor_centre = (anchors[..., 2:] + anchors[..., :2]) / 2
    centre = deltas[..., :2] / WEIGHTS[0] * anchor_size + anchor_centre
    reach = (torch.exp((deltas[..., 2:] / WEIGHTS[2]).clamp(max=LARGEST_GROWTH)) * anchor_size - 1) / 2
    return torch.cat([centre - reach, centre + reach], dim=-1)
