"""Dynamic head: Dai et al., arXiv:2106.08322, as GLIP's checkpoints have it ("DyConv").

Regions are (B, N, C): the five levels one after the other, row by row; `shapes` gives each level's (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.glip.modeling.deform import Implementation, by_embedding_bag, compute_precision
from detectors.glip.modeling.deform_grid import TAPS, JointGrid, Kernel, by_tap, join_grids, make_grid

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs to know of the sizes of its maps, on the device.

    Candidates are all maps that the three convolutions make: of every level from itself, of levels 1.. from the finer
    one, and for levels 0.. from the coarser one, S in all, one after the other: R positions. `averages` (S, R) holds a
    power of two for each position of a candidate, exact in half precision, and `scales` (S, 1) what makes the sum a
    mean. Candidates from the coarser level are averaged as they will be after their enlargement.
    """

    grid: JointGrid
    reread: Tensor  # int64: `reread_motion` of all levels and pictures, as places among all offsets and masks
    averages: Tensor
    scales: Tensor  # float32
    shares: Tensor  # (S, 1) float32: one over the number of candidates of its level
    levels: Tensor  # (number of levels, S): 1 where the candidate is of that level
    owners: Tensor  # (R,) int64: the candidate of each position
    slopes: Tensor  # (4, 1): what DyReLU multiplies its coefficients by
    heights: Tensor  # (4, 1): and what it adds to them


Reread = Callable[[Tensor, int], Tensor]


@lru_cache(maxsize=16)
def plan_stage(
    shapes: Shapes, batch: int, device: torch.device, dtype: torch.dtype, learning: bool, reread: Reread
) -> StagePlan:
    """The plan for maps of these shapes, computed in `dtype`.

    `learning` only keeps apart in the cache what autograd may use and what was made in inference mode.
    """
    last = len(shapes)
    same = make_grid(shapes, range(last), shapes, stride=1, device=device)
    finer = make_grid(shapes, range(last - 1), shapes[1:], stride=2, device=device)
    coarser = make_grid(shapes, range(1, last), shapes[1:], stride=1, device=device)
    owners = [*range(last), *range(1, last), *range(last - 1)]
    outputs = [*shapes, *shapes[1:], *shapes[1:]]
    sizes = [height * width for height, width in outputs]
    rows, scales = [], []
    for number, size in enumerate(sizes):
        ones = torch.ones(1, size, 1, device=device)
        if number >= 2 * last - 1:  # from the coarser level
            level = number - (2 * last - 1)
            ones = _enlarged_weights(shapes[level + 1], shapes[level], device) * (size / math.prod(shapes[level]))
        exact = 2.0 ** -math.ceil(math.log2(size))
        rows.append(F.pad(ones.flatten() * exact, (sum(sizes[:number]), sum(sizes[number + 1 :]))))
        scales.append(1 / (size * exact))
    counts = [owners.count(owner) for owner in owners]

    def column(values: Sequence[float], precision: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, device=device, dtype=precision)[:, None]

    return StagePlan(
        grid=join_grids((same, finer, coarser), batch),
        reread=_reread_places(shapes, batch, reread, device),
        averages=torch.stack(rows).to(dtype),
        scales=column(scales),
        shares=column([1 / count for count in counts]),
        levels=(column(range(last)) == torch.tensor(owners, device=device)).to(dtype),
        owners=torch.cat([torch.full((size,), number, device=device) for number, size in enumerate(sizes)]),
        slopes=column((2, 1, 2, 1), dtype),
        heights=column((0, -0.5, -1, -0.5), dtype),
    )


def _enlarged_weights(shape: tuple[int, int], to: tuple[int, int], device: torch.device) -> Tensor:
    """How often each position of a map counts in its enlargement: (1, h * w, 1)."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x = torch.zeros(1, math.prod(shape), 1, device=device, requires_grad=True)
        (counts,) = torch.autograd.grad(enlarge_map(x, shape, to).sum(), x)
    return counts


def _reread_places(shapes: Shapes, batch: int, reread: Reread, device: torch.device) -> Tensor:
    """For each value of `reread`, level by level, its place among offsets and masks that lie level by level, in each
    picture by picture, as rows of 27."""
    places, start = [], 0
    for (height, width), smaller in pairwise(shapes):
        rows = torch.arange(batch * height * width, device=device).view(batch, 1, -1) + start
        channels = torch.arange(3 * TAPS, device=device)[:, None]
        buffer = (rows * 3 * TAPS + channels).view(batch, 3 * TAPS, height, width)
        places.append(reread(buffer, math.prod(smaller)).flatten())
        start += batch * height * width
    return torch.cat(places)


class ConvAndNorm(nn.Module):
    """Parameters of a deformable convolution and of the GroupNorm behind it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.bn = nn.GroupNorm(groups, channels)  # "bn" in the checkpoints

    def kernel(self) -> Kernel:
        assert self.conv.bias is not None
        return Kernel(by_tap(self.conv.weight), self.conv.bias)


class DyReLU(nn.Module):
    """Dynamic ReLU, arXiv:2003.10027: the larger of two lines whose slopes and heights the map itself decides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.ReLU(), nn.Linear(channels // 4, 4 * channels), nn.Hardsigmoid()
        )

    def forward(self, levels: Sequence[Tensor], means: Tensor, plan: StagePlan) -> Tensor:
        """Levels (B, P, C) and their means (B, levels, C) -> (B, N, C)."""
        decided = self.fc(means).unflatten(-1, (4, -1))  # (B, levels, 4, C), each 0..1
        lines = torch.addcmul(plan.heights, decided, plan.slopes).to(levels[0].dtype)
        outputs = []
        for level, (a1, b1, a2, b2) in zip(levels, (line.unbind(1) for line in lines.unbind(1)), strict=True):
            first = torch.addcmul(b1[:, None], level, a1[:, None])
            outputs.append(torch.maximum(first, torch.addcmul(b2[:, None], level, a2[:, None])))
        return torch.cat(outputs, dim=1)


class DyConv(nn.Module):
    """Each level gathers from itself and its neighbours by deformable convolution, weighs and sums, and is rectified.

    All three convolutions of level i take offsets and mask from level i. The one from the coarser level i + 1 works on
    that level's smaller grid, and the released models read the offset buffer of level i there as if it had the smaller
    shape: the first values of the row-major buffer, not a crop. They were trained so, and are only right so.

    On a GPU a stage of this size costs mostly launches, so what can be done for all levels and convolutions at once is:
    samples, scale attention, and what decides the dynamic ReLU. Shapes: (B, N, C) -> (B, N, C).
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.DyConv = nn.ModuleList(ConvAndNorm(channels, groups) for _ in range(3))  # from coarser, same, finer
        self.AttnConv = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1, 1), nn.ReLU())
        self.relu = DyReLU(channels)
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        self.implementation: Implementation = by_embedding_bag
        self._prepared: tuple[object, list[Kernel], list[Tensor]] | None = None

    def forward(self, regions: Tensor, shapes: Shapes) -> Tensor:
        sizes = [height * width for height, width in shapes]
        dtype, learning = compute_precision(regions), torch.is_grad_enabled()
        plan = plan_stage(shapes, len(regions), regions.device, dtype, learning, reread_motion)
        candidates = self._find_candidates(regions.to(dtype), shapes, sizes, plan)

        means = torch.matmul(plan.averages.expand(len(regions), -1, -1), candidates) * plan.scales  # (B, S, C)
        conv = self.AttnConv.get_parameter("1.weight").flatten(1), self.AttnConv.get_parameter("1.bias")
        strengths = F.hardsigmoid(F.relu(F.linear(means, *conv))) * plan.shares  # (B, S, 1)
        weighed = candidates * strengths.to(candidates.dtype).index_select(1, plan.owners)

        all_levels, others = sum(sizes), sum(sizes[1:])
        weighed[:, sizes[0] : all_levels].add_(weighed[:, all_levels : all_levels + others])  # from the finer level
        start, source = 0, all_levels + others
        for to, shape in pairwise(shapes):
            coarser = weighed[:, source : source + math.prod(shape)]
            weighed[:, start : start + math.prod(to)].add_(enlarge_map(coarser, shape, to))
            start, source = start + math.prod(to), source + math.prod(shape)
        levels = torch.split(weighed[:, :all_levels], sizes, dim=1)
        out: Tensor = self.relu(levels, torch.matmul(plan.levels, means * strengths), plan)
        return out

    def _find_candidates(self, regions: Tensor, shapes: Shapes, sizes: list[int], plan: StagePlan) -> Tensor:
        """All candidates, normed, one after the other: (B, R, C)."""
        batch, channels = len(regions), regions.shape[-1]
        levels = torch.split(regions, sizes, dim=1)
        motions = [as_regions(self.offset(as_map(level, shape))) for level, shape in zip(levels, shapes, strict=True)]
        motion = torch.cat([part.reshape(-1, 3 * TAPS) for part in motions])  # (B * N, 27)
        far = motion.flatten().index_select(0, plan.reread).view(-1, 3 * TAPS)
        joint = torch.cat([motion, motion[batch * sizes[0] :], far])  # (Q, 27)
        offsets, mask = joint[:, : 2 * TAPS], joint[:, 2 * TAPS :].sigmoid()
        found = self.implementation(regions, plan.grid, offsets, mask, self._kernels())
        coarser, same, finer = (conv.get_submodule("bn") for conv in self.DyConv)
        return torch.cat(
            [
                norm_regions(level.view(batch, -1, channels), norm)
                for rows, norm, of in zip(found, (same, finer, coarser), (sizes, sizes[1:], sizes[1:]), strict=True)
                for level in torch.split(rows, [batch * size for size in of])
            ],
            dim=1,
        )

    def _kernels(self) -> list[Kernel]:
        """Of the convolutions from the same, the finer and the coarser level; kept while no weight changes."""
        coarser, same, finer = self.DyConv
        convs = [conv for conv in (same, finer, coarser) if isinstance(conv, ConvAndNorm)]
        weights = [conv.conv.weight for conv in convs]
        changing = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if changing or any(weight.is_inference() for weight in weights):
            return [conv.kernel() for conv in convs]
        state = [(id(weight), weight._version, weight.dtype, weight.device) for weight in weights]
        if self._prepared is None or self._prepared[0] != state:
            self._prepared = state, [conv.kernel() for conv in convs], weights  # kept, so that no id is used again
        return self._prepared[1]


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
