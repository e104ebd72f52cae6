"""GLIP's costly parts as the paper writes them: the start that `benchmarks/glip.py` measures from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.glip.modeling import deform, dyhead, fusion, linear, swin
from detectors.glip.modeling.deform_grid import TAPS, JointGrid, Kernel


def deform_conv(
    regions: Tensor, grid: JointGrid, offsets: Tensor, mask: Tensor, kernels: Sequence[Kernel]
) -> list[Tensor]:
    """For each convolution four gathers of channels-first maps, weighted and added, then one product."""
    channels = regions.shape[-1]
    rows, weights = (torch.split(part, [9 * n for n in grid.counts]) for part in deform.corners(grid, offsets, mask))
    table = regions.reshape(-1, channels).T.contiguous()  # (C, B * N)
    results = []
    for row, weight, kernel in zip(rows, weights, kernels, strict=True):
        columns = torch.zeros(channels, len(row))
        for corner in range(4):
            columns += table.gather(1, row[:, corner].long().expand(channels, -1)) * weight[:, corner]
        columns = columns.view(channels, -1, TAPS).permute(2, 0, 1).reshape(TAPS * channels, -1)
        results.append((kernel.weight @ columns + kernel.bias[:, None]).T)
    return results


def attend_windows(self: swin.WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Scores, bias, mask, softmax, values: each its own pass."""
    count, n, width = x.shape
    q, k, v = self.qkv(x).view(count, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT + self.bias()
    if mask is not None:
        scores = (scores.view(-1, len(mask), self.heads, n, n) + mask[:, None]).view(-1, self.heads, n, n)
    out: Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(count, n, width))
    return out


def attend_both_ways(self: fusion.CrossAttention, v: Tensor, l: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # noqa: E741
    """All projections of all regions, all 256 tokens."""

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    scores = heads(self.v_proj(v) * self.scale) @ heads(self.l_proj(l)).mT
    scores = scores.clamp(-50000, 50000)
    back = scores.mT
    back = (back - back.amax(-1, keepdim=True)).clamp(-50000, 50000).softmax(-1)
    there = (scores + (mask == 0)[:, None, None] * -9e15).softmax(-1)
    dv = (there @ heads(self.values_l_proj(l))).transpose(1, 2).flatten(2)
    dl = (back @ heads(self.values_v_proj(v))).transpose(1, 2).flatten(2)
    return self.out_v_proj(dv), self.out_l_proj(dl)


@contextmanager
def installed() -> Iterator[None]:
    """Within, GLIP's modules compute in the plain way."""
    with ExitStack() as stack:
        for target, name, plain in (
            (dyhead, "by_embedding_bag", deform_conv),
            (swin.WindowAttention, "forward", attend_windows),
            (fusion.CrossAttention, "forward", attend_both_ways),
            (linear, "linear", F.linear),
        ):
            stack.enter_context(patch.object(target, name, plain))
        yield
