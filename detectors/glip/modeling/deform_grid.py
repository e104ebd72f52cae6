"""Sampling grid of the modulated deformable convolution (DCNv2, arXiv:1811.11168), shared by its implementations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TAPS = 9


@dataclass(frozen=True)
class SamplingGrid:
    """Where the taps of P output positions fall without offsets, and in which of the concatenated maps.

    `y`, `x` (P, 9) float32; `height`, `width`, `start` (P, 1) int64: the source map's size and its first row among the
    concatenated positions of all levels. The rest is what `make_grid` was given.
    """

    y: Tensor
    x: Tensor
    height: Tensor
    width: Tensor
    start: Tensor
    shapes: tuple[tuple[int, int], ...]
    sources: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    stride: int


def make_grid(
    shapes: Sequence[tuple[int, int]],
    sources: Sequence[int],
    outputs: Sequence[tuple[int, int]],
    stride: int,
    device: torch.device | None = None,
) -> SamplingGrid:
    """`shapes` of all levels; output map i, of size `outputs[i]`, samples level `sources[i]`."""
    starts = [0]
    for tall, wide in shapes:
        starts.append(starts[-1] + tall * wide)

    def numbers(count: int) -> Tensor:
        return torch.arange(count, dtype=torch.float32, device=device)

    tap = numbers(3) - 1
    ys, xs, sizes = [], [], []
    for source, (rows, columns) in zip(sources, outputs, strict=True):
        y = numbers(rows)[:, None, None, None] * stride + tap[None, None, :, None]
        x = numbers(columns)[None, :, None, None] * stride + tap[None, None, None, :]
        ys.append(y.expand(rows, columns, 3, 3).reshape(-1, TAPS))
        xs.append(x.expand(rows, columns, 3, 3).reshape(-1, TAPS))
        size = torch.tensor([[*shapes[source], starts[source]]], device=device)
        sizes.append(size.expand(rows * columns, 3))
    height, width, start = torch.cat(sizes)[..., None].unbind(1)  # (P, 1) each
    plan = tuple(shapes), tuple(sources), tuple(outputs), stride
    return SamplingGrid(torch.cat(ys), torch.cat(xs), height, width, start, *plan)


def corners(grid: SamplingGrid, offsets: Tensor, mask: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Rows to read and their weights, both (B * P * 9, 4).

    offsets (B, P, 18): dy and dx of each tap in turn; mask (B, P, 9); `positions` is the number of rows of one picture.
    """
    offsets, mask = offsets.float(), mask.float()
    # Beyond one pixel outside nothing is read, so a far sample may be brought near: indices stay small.
    y = torch.minimum((grid.y + offsets[..., 0::2]).clamp(min=-1), grid.height.float())  # (B, P, 9)
    x = torch.minimum((grid.x + offsets[..., 1::2]).clamp(min=-1), grid.width.float())
    top, left = y.detach().floor(), x.detach().floor()
    dy, dx = y - top, x - left
    row, column = top.long(), left.long()
    picture = torch.arange(offsets.shape[0], device=offsets.device)[:, None, None] * positions + grid.start
    rows, weights = [], []
    for r, wy in ((row, 1 - dy), (row + 1, dy)):
        inside_y = (r >= 0) & (r < grid.height)
        line = picture + torch.minimum(r.clamp(min=0), grid.height - 1) * grid.width
        for c, wx in ((column, 1 - dx), (column + 1, dx)):
            inside = inside_y & (c >= 0) & (c < grid.width)
            rows.append(line + torch.minimum(c.clamp(min=0), grid.width - 1))
            weights.append(wy * wx * mask * inside)
    return torch.stack(rows, -1).view(-1, 4), torch.stack(weights, -1).view(-1, 4)


def by_tap(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (O, 9 * C), all channels of the first tap first."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
