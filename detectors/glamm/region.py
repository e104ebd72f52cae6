"""The region encoder: one vector for each box, from four layers of CLIP.

GPT4RoI's multi-level extractor (Zhang et al., arXiv:2307.03601) as GLaMM was trained with it. Two of its habits look
like mistakes and stay, because the released weights have learned them: boxes are scaled by 224 although the map
stands for 336 pixels, so a box over the whole image reads only its top-left two thirds; and one set of fusing
convolutions serves all four levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.glamm.config import RegionConfig


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with aligned corners, computed in float32: (B, C, h, w) -> (B, C, *size)."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps.float(), size=tuple(size), mode="bilinear", align_corners=True).to(maps.dtype)


def _axis_weights(start: Tensor, length: Tensor, size: int, bins: int, samples: int) -> Tensor:
    """How much each of `size` cells counts for each bin along one axis: (N, bins, size), float32.

    Bilinear sampling is separable, so RoIAlign is two matrix products. A sample beyond one cell outside counts
    nothing, one just outside is moved onto the border.
    """
    offsets = (torch.arange(bins * samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    places = start[:, None] + offsets * (length[:, None] / bins)  # (N, bins * samples)
    inside = ((places >= -1) & (places <= size)).to(start.dtype)
    places = places.clamp(0, size - 1)
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    weights = (1 - (places[..., None] - cells).abs()).clamp(min=0) * inside[..., None]
    return weights.reshape(len(start), bins, samples, size).mean(2)


def roi_align(maps: Tensor, boxes: Tensor, scale: float, bins: int, samples: int) -> Tensor:
    """Average of samples x samples bilinear samples in each bin of each box, half a cell shifted ("aligned").

    Shapes: maps (C, H, W), boxes (N, 4) xyxy -> (N, C, bins, bins), float32. Mask R-CNN, arXiv:1703.06870, section 3.
    """
    x1, y1, x2, y2 = (boxes.float() * scale - 0.5).unbind(-1)
    rows = _axis_weights(y1, y2 - y1, maps.shape[-2], bins, samples)
    columns = _axis_weights(x1, x2 - x1, maps.shape[-1], bins, samples)
    return torch.einsum("nqw,ncpw->ncpq", columns, torch.einsum("nph,chw->ncpw", rows, maps.float()))


class FuseConv(nn.Module):
    """3x3 convolution, group norm, ReLU."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.gn = nn.GroupNorm(groups, dim)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.gn(self.conv(maps)))


class LevelFusion(nn.Module):
    """Makes a pyramid of the levels and lets neighbours exchange channels: half own, a quarter from each side."""

    def __init__(self, dim: int, levels: int, rounds: int, groups: int) -> None:
        super().__init__()
        self.input_conv = nn.ModuleList(nn.Conv2d(dim + 2, dim, 1) for _ in range(levels))
        self.fuse_convs = nn.ModuleList(FuseConv(dim, groups) for _ in range(rounds))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Each (B, C, h, w), largest first -> the same shapes."""
        maps = [conv(_with_coordinates(level)) for conv, level in zip(self.input_conv, levels, strict=True)]
        for conv in self.fuse_convs:
            maps = [conv(self._exchange_channels(maps, level)) for level in range(len(maps))]
        return maps

    @staticmethod
    def _exchange_channels(maps: Sequence[Tensor], level: int) -> Tensor:
        own, size = maps[level], maps[level].shape[-2:]
        above, below = maps[min(level + 1, len(maps) - 1)], maps[max(level - 1, 0)]
        half, quarter = own.shape[1] // 2, own.shape[1] // 4
        return torch.cat(
            # the order is trained: the upper neighbour's last quarter, then the lower one's third
            [own[:, :half], resize(above[:, half + quarter :], size), resize(below[:, half : half + quarter], size)],
            dim=1,
        )


def _with_coordinates(maps: Tensor) -> Tensor:
    """Two more channels, x and y from -1 to 1: (B, C, H, W) -> (B, C + 2, H, W)."""
    height, width = maps.shape[-2:]
    x = torch.linspace(-1, 1, width, device=maps.device, dtype=maps.dtype).expand(len(maps), 1, height, width)
    y = torch.linspace(-1, 1, height, device=maps.device, dtype=maps.dtype)[:, None].expand_as(x)
    return torch.cat([maps, x, y], dim=1)


class RegionPooling(nn.Module):
    """Pools each box from every level, adds the levels, and adds what the box itself says."""

    def __init__(self, config: RegionConfig) -> None:
        super().__init__()
        self.bins, self.samples = config.roi_output_size, config.roi_sampling_ratio
        self.strides, self.base_size = config.roi_strides, config.roi_base_size
        self.pconvs = nn.ModuleList(
            nn.Conv2d(config.embed_dims, config.embed_dims, 3, padding=1) for _ in range(config.num_levels)
        )
        self.pos_embedd = nn.Sequential(
            nn.Linear(4, config.pos_hidden),
            nn.ReLU(),
            nn.LayerNorm(config.pos_hidden),
            nn.Linear(config.pos_hidden, config.mid_dim),
            nn.ReLU(),
            nn.LayerNorm(config.mid_dim),
        )
        self.flatten_linear = nn.Linear(config.embed_dims * self.bins**2, config.mid_dim)
        self.updims = nn.Linear(config.mid_dim, config.out_dim)

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Levels (B, C, h, w) and one (n_i, 4) xyxy in 0..1 for each image -> (sum of n_i, D), in the boxes' order."""
        together = torch.cat(list(boxes)).to(maps[0].dtype)
        # the product is rounded to the model's precision, as in the released run
        scaled = torch.split(together * self.base_size, [len(rows) for rows in boxes])
        pooled = sum(
            conv(torch.cat([self._pool_boxes(level[i], rows, stride) for i, rows in enumerate(scaled)]).to(level.dtype))
            for conv, level, stride in zip(self.pconvs, maps, self.strides, strict=True)
        )
        region: Tensor = self.updims(self.flatten_linear(F.relu(pooled).flatten(1)) + self.pos_embedd(together))
        return region

    def _pool_boxes(self, level: Tensor, boxes: Tensor, stride: float) -> Tensor:
        return roi_align(level, boxes, 1 / stride, self.bins, self.samples)


class RegionEncoder(nn.Module):
    def __init__(self, config: RegionConfig) -> None:
        super().__init__()
        self.fuse = LevelFusion(config.embed_dims, config.num_levels, config.num_fuse, config.group_norm_groups)
        self.roi = RegionPooling(config)

    def pyramid(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Fused maps of CLIP layers (B, C, g, g), shallowest first; that one becomes the largest map."""
        top = len(levels) - 1
        fused: list[Tensor] = self.fuse(
            [resize(maps, [side << (top - i) for side in maps.shape[-2:]]) for i, maps in enumerate(levels)]
        )
        return fused

    def forward(self, pyramid: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """One (n_i, D) for each image: what the language model reads in place of `<bbox>`."""
        counts = [len(rows) for rows in boxes]
        return list(torch.split(self.roi(pyramid, boxes), counts))


def layer_indices(config: RegionConfig, select_layer: int, num_layers: int) -> list[int]:
    """Which hidden states feed the levels, ascending; 0 is the embedding. 24 layers, -2, step 3: 14, 17, 20, 23."""
    last = select_layer % (num_layers + 1)
    indices = [last - config.feature_layer_step * level for level in reversed(range(config.num_levels))]
    if any(later <= earlier for earlier, later in pairwise(indices)) or indices[0] < 0:
        raise ValueError(f"the region encoder would read CLIP layers {indices}: its step or levels do not fit CLIP")
    return indices
