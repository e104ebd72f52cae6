"""Modulated deformable convolution: DCNv2, arXiv:1811.11168, over several levels at once.

    out[o, y, x] = bias[o] + sum over channels c and taps k of weight[o, c, k] * mask[k, y, x] * sample(c, k)
    sample(c, k) = in[c] at (y * stride - 1 + row_k + dy[k, y, x], x * stride - 1 + column_k + dx[k, y, x]), bilinear

A sample outside the map is 0, and so are the corners of one that lies across its edge. Kernel 3 x 3, padding 1.

There is one definition and several implementations, by name in `IMPLEMENTATIONS`; all equal the reference tensors.
Each computes several convolutions over the same regions at once. It takes regions (B, N, C), all levels' maps one after
the other, the convolutions' joint grid of Q positions, offsets (Q, 18): dy and dx of each tap in turn, mask (Q, 9), and
the kernel of each convolution. It returns for each convolution its share of the Q positions, (rows, O), in the order of
the grid. Positions and weights of samples are always computed in single precision; the samples themselves have the
precision of the computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.glip.modeling.deform_grid import TAPS, JointGrid, Kernel, by_channel, corners
from detectors.glip.modeling.linear import linear


def by_embedding_bag(
    regions: Tensor, grid: JointGrid, offsets: Tensor, mask: Tensor, kernels: Sequence[Kernel]
) -> list[Tensor]:
    """One sample is a weighted sum of four rows of the map laid out as (positions, channels): an embedding bag.

    So all taps of all positions of all convolutions, levels and pictures are one call, and one matrix product for each
    convolution follows.
    """
    channels = regions.shape[-1]
    precision = compute_precision(regions)
    table = regions.to(precision).reshape(-1, channels)
    rows, weights = corners(grid, offsets, mask)
    columns = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights.to(precision))  # (Q * 9, C)
    parts = torch.split(columns.view(-1, TAPS * channels), grid.counts)
    return [
        linear(part, kernel.weight.to(precision), kernel.bias.to(precision))
        for part, kernel in zip(parts, kernels, strict=True)
    ]


def compute_precision(regions: Tensor) -> torch.dtype:
    """That of autocast where it is on: columns in single precision would be written, then copied to half. Learning
    keeps single precision."""
    device = regions.device.type
    if torch.is_autocast_enabled(device) and not torch.is_grad_enabled():
        return torch.get_autocast_dtype(device)
    return torch.float32


def by_torchvision(
    regions: Tensor, grid: JointGrid, offsets: Tensor, mask: Tensor, kernels: Sequence[Kernel]
) -> list[Tensor]:
    """torchvision's operator, one call for each output map; it wants channels first."""
    from torchvision.ops import deform_conv2d

    maps = torch.split(regions.float(), [height * width for height, width in grid.parts[0].shapes], dim=1)
    moves, strengths = torch.split(offsets.float(), grid.counts), torch.split(mask.float(), grid.counts)
    results = []
    for part, offset, m, kernel in zip(grid.parts, moves, strengths, kernels, strict=True):
        sizes = [grid.batch * size for size in part.sizes]
        weight, bias = by_channel(kernel.weight.float()), kernel.bias.float()
        found = []
        for source, shape, *moved in zip(
            part.sources, part.outputs, torch.split(offset, sizes), torch.split(m, sizes), strict=True
        ):
            x = torch.unflatten(maps[source].mT, 2, part.shapes[source])
            dyx, strength = (
                torch.unflatten(torch.unflatten(values, 0, (grid.batch, -1)).mT, 2, shape) for values in moved
            )
            out = deform_conv2d(
                x.contiguous(),
                dyx.contiguous(),
                weight,
                bias,
                stride=part.stride,
                padding=1,
                mask=strength.contiguous(),
            )
            found.append(out.flatten(2).mT.flatten(0, 1))
        results.append(torch.cat(found))
    return results


def by_triton(
    regions: Tensor, grid: JointGrid, offsets: Tensor, mask: Tensor, kernels: Sequence[Kernel]
) -> list[Tensor]:
    """One fused kernel for NVIDIA GPUs, without columns in memory; inference only."""
    from detectors.glip.modeling.deform_triton import fused

    return fused(regions, grid, offsets, mask, kernels)


Implementation = Callable[[Tensor, JointGrid, Tensor, Tensor, Sequence[Kernel]], list[Tensor]]
IMPLEMENTATIONS: dict[str, Implementation] = {
    "embedding-bag": by_embedding_bag,
    "torchvision": by_torchvision,
    "triton": by_triton,
}
