"""The network of NanoDet-g: a CSP backbone, a path aggregation network without weights, and one head for each level.

NanoDet: github.com/RangiLyu/nanodet. CSPNet: arXiv:1911.11929; path aggregation: arXiv:1803.01534; boxes as
distributions of distances: generalized focal loss, arXiv:2006.04388. Batch norms are folded into the convolutions, as
in the published weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (8, 16, 32)
BINS = 11  # of a side's distance, in strides: 0 to 10
CLASSES = 80
_WIDTH = 128  # channels of the levels


class NanoPredictions(NamedTuple):
    """For each of N cells (three levels one after the other, row by row)."""

    scores: Tensor  # (B, N, 80), 0..1
    boxes: Tensor  # (B, N, 4): x1, y1, x2, y2 in pixels of the input


class ConvAct(nn.Conv2d):
    """A 3x3 convolution and a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.1)


class CspStage(nn.Module):
    """One stage: a convolution that may halve the map, `pairs` of dense convolutions, and the sum of both as channels.

    Shapes: (B, inputs, h, w) -> (B, 2 * width, h / stride, w / stride).
    """

    def __init__(self, inputs: int, width: int, pairs: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self.enter = ConvAct(inputs, width, stride)
        self.first = nn.ModuleList(ConvAct(width, half) for _ in range(pairs))
        self.second = nn.ModuleList(ConvAct(half, half) for _ in range(pairs))
        self.leave = ConvAct(width, width)

    def forward(self, x: Tensor) -> Tensor:
        entered = x = self.enter(x)
        for first, second in zip(self.first, self.second, strict=True):
            half = first(x)
            x = torch.cat([second(half), half], dim=1)
        return torch.cat([self.leave(x), entered], dim=1)


class LevelHead(nn.Module):
    """Scores and box distributions of one level: (B, C, h, w) -> (B, h * w, 80 + 44)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvAct(_WIDTH, _WIDTH)
        self.out = nn.Conv2d(_WIDTH, CLASSES + 4 * BINS, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.conv(x))
        return out.flatten(2).mT


class NanoDet(nn.Module):
    """NanoDet-g: normalised BGR pictures (B, 3, H, W), H and W multiples of 32 -> predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvAct(3, 32, stride=2)
        self.stages = nn.ModuleList(
            [CspStage(32, 32, 1, 1), CspStage(64, 64, 2, 2), CspStage(128, 128, 2, 2), CspStage(256, 256, 3, 2)]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels, _WIDTH, 1) for channels in (128, 256, 512))
        self.heads = nn.ModuleList(LevelHead() for _ in STRIDES)

    def convolutions(self) -> list[nn.Conv2d]:
        """All convolutions in the order of the computation, by which published weights are assigned."""
        found: list[nn.Conv2d] = [self.stem]
        for stage in self.stages:
            assert isinstance(stage, CspStage)
            pairs = [part for pair in zip(stage.first, stage.second, strict=True) for part in pair]
            found += [stage.enter, *pairs, stage.leave]  # type: ignore[list-item]
        found += list(self.lateral)  # type: ignore[arg-type]
        for head in self.heads:
            assert isinstance(head, LevelHead)
            found += [head.conv, head.out]
        return found

    def forward(self, images: Tensor) -> NanoPredictions:
        x = F.max_pool2d(self.stem(images), 3, 2, padding=1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        fine, middle, coarse = (lateral(level) for lateral, level in zip(self.lateral, maps[1:], strict=True))
        middle = middle + _resized(coarse, 2.0)
        fine = fine + _resized(middle, 2.0)
        middle = middle + _resized(fine, 0.5)
        coarse = coarse + _resized(middle, 0.5)
        levels = (fine, middle, coarse)
        out = torch.cat([head(level) for head, level in zip(self.heads, levels, strict=True)], dim=1).float()
        scores, bins = torch.split(out, [CLASSES, 4 * BINS], dim=-1)
        centres = torch.cat([_cell_centres(level, stride) for level, stride in zip(levels, STRIDES, strict=True)])
        steps = torch.cat([out.new_full((level[0, 0].numel(), 1), s) for level, s in zip(levels, STRIDES, strict=True)])
        shares = torch.unflatten(bins, -1, (4, BINS)).softmax(-1)
        reach = shares @ torch.arange(BINS, dtype=shares.dtype, device=shares.device) * steps  # (B, N, 4)
        boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], dim=-1)
        return NanoPredictions(scores.sigmoid(), boxes)


def _resized(level: Tensor, factor: float) -> Tensor:
    return F.interpolate(level, scale_factor=factor, mode="bilinear", align_corners=False)


def _cell_centres(level: Tensor, stride: int) -> Tensor:
    """(h * w, 2): x, y of each cell of a level (B, C, h, w)."""
    height, width = level.shape[-2:]
    y = (torch.arange(height, device=level.device, dtype=torch.float32) + 0.5) * stride
    x = (torch.arange(width, device=level.device, dtype=torch.float32) + 0.5) * stride
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)
