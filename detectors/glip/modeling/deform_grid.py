"""Grids and kernels of the modulated deformable convolution (DCNv2, arXiv:1811.11168) for all implementations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TAPS = 9


class Kernel(NamedTuple):
    """Weight (O, 9 * C), all channels of the first tap first, and bias (O,) of one convolution."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class SamplingGrid:
    """Where the taps of P output positions fall without offsets, and in which of the concatenated maps.

    `y`, `x` (P, 9) float32; `height`, `width`, `start` (P, 1) int32: the source map's size and its first row among the
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

    @property
    def sizes(self) -> list[int]:
        """Number of positions of each output map."""
        return [height * width for height, width in self.outputs]


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
        size = torch.tensor([[*shapes[source], starts[source]]], dtype=torch.int32, device=device)
        sizes.append(size.expand(rows * columns, 3))
    height, width, start = torch.cat(sizes)[..., None].unbind(1)  # (P, 1) each
    plan = tuple(shapes), tuple(sources), tuple(outputs), stride
    return SamplingGrid(torch.cat(ys), torch.cat(xs), height, width, start, *plan)


@dataclass(frozen=True)
class JointGrid:
    """Grids of several convolutions for a batch: Q output positions, convolution by convolution, in each output map by
    output map, in each picture by picture. What is derived from them is kept, ready for `corners`.

    `base` (2, Q, 9) float32: y and x of the taps without offsets; `size` (2, Q, 1) float32 and `last` (2, 1, Q, 1)
    int32: height and width of the source map, and its last row and column; `width` and `start` (Q, 1) int32: the source
    map's width, and its first row among the positions of all pictures. The rest are constants.
    """

    parts: tuple[SamplingGrid, ...]
    batch: int
    base: Tensor
    size: Tensor
    last: Tensor
    width: Tensor
    start: Tensor
    outside: Tensor  # (1,) float32: -1
    first: Tensor  # (1,) int32: 0
    steps: Tensor  # (2, 1, 1) int32: 0, 1
    whole: Tensor  # (2, 1, 1) float32: 1, 0
    signs: Tensor  # (2, 1, 1) float32: -1, 1

    @property
    def counts(self) -> list[int]:
        """Rows of the Q that belong to each convolution."""
        return [self.batch * len(part.y) for part in self.parts]


def join_grids(parts: Sequence[SamplingGrid], batch: int) -> JointGrid:
    """The grids of convolutions over the same levels, for `batch` pictures."""
    device = parts[0].y.device
    positions = sum(height * width for height, width in parts[0].shapes)

    def joined(name: str, step: int = 0) -> Tensor:
        maps = [
            level + step * picture
            for part in parts
            for level in torch.split(getattr(part, name), part.sizes)
            for picture in range(batch)
        ]
        return torch.cat(maps)

    size = torch.stack([joined("height"), joined("width")])

    def constants(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return JointGrid(
        parts=tuple(parts),
        batch=batch,
        base=torch.stack([joined("y"), joined("x")]),
        size=size.float(),
        last=(size - 1)[:, None].contiguous(),
        width=size[1].contiguous(),
        start=joined("start", positions),
        outside=constants(-1),
        first=constants(0, dtype=torch.int32),
        steps=constants(0, 1, dtype=torch.int32)[:, None, None],
        whole=constants(1, 0)[:, None, None],
        signs=constants(-1, 1)[:, None, None],
    )


def corners(grid: JointGrid, offsets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to read, int32, and their weights, float32, both (Q * 9, 4).

    offsets (Q, 18): dy and dx of each tap in turn; mask (Q, 9).
    """
    moves = torch.unflatten(offsets, 1, (TAPS, 2)).permute(2, 0, 1)
    moves = moves.to(torch.float32, memory_format=torch.contiguous_format)  # (2, Q, 9)
    # Beyond one pixel outside nothing is read, so a far sample may be brought near: indices stay small.
    at = torch.clamp(grid.base + moves, grid.outside, grid.size)
    near = at.detach().floor()
    cells = near.int()[:, None] + grid.steps  # (2, 2, Q, 9): y and x, near and far
    inside = torch.clamp(cells, grid.first, grid.last)
    shares = torch.addcmul(grid.whole, (at - near)[:, None], grid.signs) * (cells == inside)
    vertical, horizontal = shares[0] * mask, shares[1]
    lines = torch.addcmul(grid.start, inside[0], grid.width)
    rows, weights = lines[:, None] + inside[1], vertical[:, None] * horizontal  # (2, 2, Q, 9)
    return rows.permute(2, 3, 0, 1).reshape(-1, 4), weights.permute(2, 3, 0, 1).reshape(-1, 4)


def by_tap(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (O, 9 * C), all channels of the first tap first."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def by_channel(weight: Tensor) -> Tensor:
    """The inverse of `by_tap`."""
    return weight.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
