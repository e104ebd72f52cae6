"""Dynamic head: Dai et al., arXiv:2106.08322, as GLIP's checkpoints have it ("DyConv").

Regions are (B, N, C): the five levels one after the other, row by row; `shapes` gives each level's (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.glip.modeling.deform import Implementation, by_embedding_bag
from detectors.glip.modeling.deform_grid import TAPS, SamplingGrid, make_grid

Shapes = tuple[tuple[int, int], ...]


@lru_cache(maxsize=64)
def sampling_grids(
    shapes: Shapes, device: torch.device, learning: bool
) -> tuple[SamplingGrid, SamplingGrid, SamplingGrid]:
    """Sampling grids for: every level from the coarser one, from itself, from the finer one.

    `learning` only keeps apart in the cache what autograd may use and what was made in inference mode.
    """
    last = len(shapes)
    coarser = make_grid(shapes, range(1, last), shapes[1:], stride=1, device=device)
    same = make_grid(shapes, range(last), shapes, stride=1, device=device)
    finer = make_grid(shapes, range(last - 1), shapes[1:], stride=2, device=device)
    return coarser, same, finer


class ConvAndNorm(nn.Module):
    """A deformable convolution and the GroupNorm behind it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.bn = nn.GroupNorm(groups, channels)  # "bn" in the checkpoints
        self.implementation: Implementation = by_embedding_bag

    def forward(
        self, regions: Tensor, grid: SamplingGrid, offsets: Tensor, mask: Tensor, sizes: Sequence[int]
    ) -> list[Tensor]:
        """(B, N, C) -> for each output level (B, P, C), `sizes` giving the P; each level is normed by itself."""
        assert self.conv.bias is not None
        found = self.implementation(regions, grid, offsets, mask, self.conv.weight, self.conv.bias)
        return [norm_regions(level, self.bn) for level in torch.split(found, list(sizes), dim=1)]


class DyReLU(nn.Module):
    """Dynamic ReLU, arXiv:2003.10027: the larger of two lines whose slopes and heights the map itself decides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.ReLU(), nn.Linear(channels // 4, 4 * channels), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C)."""
        a1, b1, a2, b2 = (self.fc(x.mean(1)) - 0.5)[:, None].chunk(4, dim=-1)
        return torch.maximum(x * (2 * a1 + 1) + b1, x * (2 * a2) + b2)


class DyConv(nn.Module):
    """Each level gathers from itself and its neighbours by deformable convolution, weighs and sums, and is rectified.

    All three convolutions of level i take offsets and mask from level i. The one from the coarser level i + 1 works on
    that level's smaller grid, and the released models read the offset buffer of level i there as if it had the smaller
    shape: the first values of the row-major buffer, not a crop. They were trained so, and are only right so.
    Shapes: (B, N, C) -> (B, N, C).
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.DyConv = nn.ModuleList(ConvAndNorm(channels, groups) for _ in range(3))  # from coarser, same, finer
        self.AttnConv = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1, 1), nn.ReLU())
        self.relu = DyReLU(channels)
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)

    def forward(self, regions: Tensor, shapes: Shapes) -> Tensor:
        sizes = [height * width for height, width in shapes]
        levels = torch.split(regions, sizes, dim=1)
        motions = [self.offset(as_map(level, shape)) for level, shape in zip(levels, shapes, strict=True)]
        coarser_grid, same_grid, finer_grid = sampling_grids(shapes, regions.device, torch.is_grad_enabled())

        motion = torch.cat([m.flatten(2).mT for m in motions], dim=1)  # (B, N, 27)
        offsets, mask = motion[..., : 2 * TAPS], motion[..., 2 * TAPS :].sigmoid()
        reread = torch.cat([reread_motion(m, size) for m, size in zip(motions, sizes[1:], strict=False)], dim=1)
        from_coarser, from_same, from_finer = self.DyConv

        same = from_same(regions, same_grid, offsets, mask, sizes)
        finer = from_finer(regions, finer_grid, offsets[:, sizes[0] :], mask[:, sizes[0] :], sizes[1:])
        far_offsets, far_mask = reread[..., : 2 * TAPS], reread[..., 2 * TAPS :].sigmoid()
        coarser = from_coarser(regions, coarser_grid, far_offsets, far_mask, sizes[1:])

        outputs = []
        for i, shape in enumerate(shapes):
            found = [same[i]]
            if i > 0:
                found.append(finer[i - 1])
            if i < len(shapes) - 1:
                found.append(enlarge_map(coarser[i], shapes[i + 1], shape))
            outputs.append(self._merge_candidates(found))
        return torch.cat(outputs, dim=1)

    def _merge_candidates(self, found: Sequence[Tensor]) -> Tensor:
        """The candidates of one level, each (B, P, C), weighed by scale attention, averaged, rectified."""
        conv = self.AttnConv.get_parameter("1.weight").flatten(1), self.AttnConv.get_parameter("1.bias")
        total = torch.zeros_like(found[0])
        for x in found:
            score = F.linear(x.mean(1), *conv)  # (B, 1)
            total = total + F.hardsigmoid(F.relu(score))[:, None] * x
        out: Tensor = self.relu(total / len(found))
        return out


def as_map(regions: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W), channels last in memory: no copy."""
    return torch.unflatten(regions, 1, shape).permute(0, 3, 1, 2)


def as_regions(level: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return level.flatten(2).mT


def norm_regions(x: Tensor, norm: nn.Module) -> Tensor:
    """GroupNorm over positions and a group's channels: (B, P, C) -> (B, P, C)."""
    return as_regions(norm(as_map(x, (x.shape[1], 1))))


def enlarge_map(x: Tensor, shape: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners: (B, h * w, C) -> (B, H * W, C)."""
    return as_regions(F.interpolate(as_map(x, shape), size=to, mode="bilinear", align_corners=True))


def reread_motion(motion: Tensor, size: int) -> Tensor:
    """A level's offsets and mask logits read through the next level's smaller shape.

    (B, 27, H, W) -> (B, size, 27): of the 18 offset channels, flattened row by row, the first 18 * size values, and of
    the 9 mask channels the first 9 * size.
    """
    motion = motion.contiguous().flatten(2)  # row-major, as the reference's buffer is
    offsets = motion[:, : 2 * TAPS].flatten(1)[:, : 2 * TAPS * size].reshape(-1, 2 * TAPS, size)
    mask = motion[:, 2 * TAPS :].flatten(1)[:, : TAPS * size].reshape(-1, TAPS, size)
    return torch.cat([offsets, mask], dim=1).mT
