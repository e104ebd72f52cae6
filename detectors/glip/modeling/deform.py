"""Modulated deformable convolution: DCNv2, arXiv:1811.11168, over several levels at once.

    out[o, y, x] = bias[o] + sum over channels c and taps k of weight[o, c, k] * mask[k, y, x] * sample(c, k)
    sample(c, k) = in[c] at (y * stride - 1 + row_k + dy[k, y, x], x * stride - 1 + column_k + dx[k, y, x]), bilinear

A sample outside the map is 0, and so are the corners of one that lies across its edge. Kernel 3 x 3, padding 1.

There is one definition and several implementations, by name in `IMPLEMENTATIONS`; all equal the reference tensors.
Each takes regions (B, N, C), all levels' maps one after the other, a grid, offsets (B, P, 18): dy and dx of each tap in
turn, mask (B, P, 9), weight (O, C, 3, 3), bias (O,), and returns (B, P, O). Positions and weights of samples are always
computed in single precision; the samples themselves have the precision of the computation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.glip.modeling.deform_grid import TAPS, SamplingGrid, by_tap, corners
from detectors.glip.modeling.linear import linear


def by_embedding_bag(
    regions: Tensor, grid: SamplingGrid, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """One sample is a weighted sum of four rows of the map laid out as (positions, channels): an embedding bag.

    So all taps of all positions of all levels and pictures are one call, and one matrix product follows.
    """
    batch, positions, channels = regions.shape
    precision = _sample_precision(regions)
    table = regions.to(precision).reshape(batch * positions, channels)
    rows, weights = corners(grid, offsets, mask, positions)
    columns = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights.to(precision))  # (B * P * 9, C)
    return linear(columns.view(batch, -1, TAPS * channels), by_tap(weight.to(precision)), bias.to(precision))


def _sample_precision(regions: Tensor) -> torch.dtype:
    """That of autocast where it is on: columns in single precision would be written, then copied to half. Learning
    keeps single precision."""
    device = regions.device.type
    if torch.is_autocast_enabled(device) and not torch.is_grad_enabled():
        return torch.get_autocast_dtype(device)
    return torch.float32


def by_torchvision(
    regions: Tensor, grid: SamplingGrid, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """torchvision's operator, one call for each output map; it wants channels first."""
    from torchvision.ops import deform_conv2d

    sizes = [height * width for height, width in grid.outputs]
    maps = torch.split(regions.float(), [height * width for height, width in grid.shapes], dim=1)
    found = []
    for source, shape, offset, m in zip(
        grid.sources, grid.outputs, torch.split(offsets, sizes, dim=1), torch.split(mask, sizes, dim=1), strict=True
    ):
        x, offset, m = (
            part.mT.reshape(len(part), -1, *size)
            for part, size in ((maps[source], grid.shapes[source]), (offset.float(), shape), (m.float(), shape))
        )
        out = deform_conv2d(x, offset, weight.float(), bias.float(), stride=grid.stride, padding=1, mask=m)
        found.append(out.flatten(2).mT)
    return torch.cat(found, dim=1)


def by_triton(
    regions: Tensor, grid: SamplingGrid, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """One fused kernel for NVIDIA GPUs, without columns in memory; inference only."""
    from detectors.glip.modeling.deform_triton import fused

    return fused(regions, grid, offsets, mask, weight, bias)


Implementation = Callable[[Tensor, SamplingGrid, Tensor, Tensor, Tensor, Tensor], Tensor]
IMPLEMENTATIONS: dict[str, Implementation] = {
    "embedding-bag": by_embedding_bag,
    "torchvision": by_torchvision,
    "triton": by_triton,
}
