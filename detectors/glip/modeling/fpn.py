"""Feature pyramid, arXiv:1612.03144, with two coarser levels as in RetinaNet, arXiv:1708.02002."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def drop_block(x: Tensor, probability: float = 0.3, block: int = 3) -> Tensor:
    """DropBlock, arXiv:1810.12890: squares of `block` positions become zero, the rest is scaled up. (B, C, H, W)."""
    gamma = probability / block**2
    seeds = (torch.rand(x.shape[0], *x.shape[2:], device=x.device) < gamma).to(x.dtype)
    kept = 1 - F.max_pool2d(seeds[:, None], block, stride=1, padding=block // 2)
    return x * kept * (kept.numel() / kept.sum().clamp(min=1))


class CoarseLevels(nn.Module):
    """Two more levels from the pyramid's coarsest output; the ReLU stands only before the second."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, p5: Tensor) -> tuple[Tensor, Tensor]:
        p6 = self.p6(p5)
        return p6, self.p7(F.relu(p6))


class Fpn(nn.Module):
    """Maps of strides 8, 16, 32 -> maps of strides 8, 16, 32, 64, 128 with equal channels.

    In training DropBlock is applied before the last convolutions of the two finer levels, as in the reference.
    Shapes: 3 x (B, c_i, h_i, w_i) -> 5 x (B, C, h_i, w_i).
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        for level, width in zip((2, 3, 4), widths, strict=True):
            self.add_module(f"fpn_inner{level}", nn.Conv2d(width, channels, 1))
            self.add_module(f"fpn_layer{level}", nn.Conv2d(channels, channels, 3, padding=1))
        self.top_blocks = CoarseLevels(channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        c3, c4, c5 = maps
        merged = self.get_submodule("fpn_inner4")(c5)
        outputs = [self.get_submodule("fpn_layer4")(merged)]
        for level, finer in ((3, c4), (2, c3)):
            lateral = self.get_submodule(f"fpn_inner{level}")(finer)
            merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            kept = drop_block(merged) if self.training else merged
            outputs.insert(0, self.get_submodule(f"fpn_layer{level}")(kept))
        return [*outputs, *self.top_blocks(outputs[-1])]
