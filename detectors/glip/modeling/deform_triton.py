"""The deformable convolution as one Triton kernel: samples are made in registers and go straight into the product.

A program computes a tile of output positions for all output channels. For each tap and slice of input channels it
gathers the four corners of its positions, weighs and adds them in single precision, and multiplies by the weights in
the precision of the features. What `by_embedding_bag` writes and reads back (nine times the map) never leaves the chip.

Checked with Triton's interpreter on a CPU (TRITON_INTERPRET=1). On a GPU it is the default where it passes the
self-test of `runtime.choose_deform`; sizes of tiles are chosen by timing them at the first call (`SETTINGS`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from detectors.glip.modeling.deform_grid import TAPS, JointGrid, Kernel

SETTINGS = [
    triton.Config({"TILE": tile, "SLICE": slice_}, num_warps=warps)  # output positions, input channels at a time
    for tile, slice_, warps in ((64, 64, 8), (64, 32, 8), (32, 64, 4), (128, 32, 8))
]
if os.environ.get("TRITON_INTERPRET") == "1":
    del SETTINGS[1:]  # nothing to time


@triton.autotune(SETTINGS, key=["channels", "width_out"])  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    features, offsets, mask, base_y, base_x, heights, widths, starts, weight, bias, out,
    first_output, last_output, channels, width_out,
    OUT: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    p = first_output + tl.program_id(0) * TILE + tl.arange(0, TILE)
    real = p < last_output
    height = tl.load(heights + p, mask=real, other=0).to(tl.int32)
    width = tl.load(widths + p, mask=real, other=0)
    start = tl.load(starts + p, mask=real, other=0)
    o = tl.arange(0, OUT)
    total = tl.zeros((TILE, OUT), dtype=tl.float32)
    for tap in range(9):
        y = tl.load(base_y + p * 9 + tap, mask=real, other=0.0)
        y += tl.load(offsets + p * 18 + 2 * tap, mask=real, other=0.0).to(tl.float32)
        x = tl.load(base_x + p * 9 + tap, mask=real, other=0.0)
        x += tl.load(offsets + p * 18 + 2 * tap + 1, mask=real, other=0.0).to(tl.float32)
        strength = tl.load(mask + p * 9 + tap, mask=real, other=0.0).to(tl.float32)
        y = tl.minimum(tl.maximum(y, -1.0), height.to(tl.float32))
        x = tl.minimum(tl.maximum(x, -1.0), width.to(tl.float32))
        top, left = tl.floor(y), tl.floor(x)
        dy, dx = y - top, x - left
        r, c = top.to(tl.int32), left.to(tl.int32)
        above, below = real & (r >= 0) & (r < height), real & (r + 1 < height)
        before, after = (c >= 0) & (c < width), c + 1 < width
        row = start + r * width + c
        for first in range(0, channels, SLICE):
            k = first + tl.arange(0, SLICE)
            there = (k < channels)[None, :]
            near = features + row[:, None].to(tl.int64) * channels + k[None, :]
            below_near = near + width[:, None].to(tl.int64) * channels
            a = tl.load(near, mask=(above & before)[:, None] & there, other=0.0).to(tl.float32)
            b = tl.load(near + channels, mask=(above & after)[:, None] & there, other=0.0).to(tl.float32)
            e = tl.load(below_near, mask=(below & before)[:, None] & there, other=0.0).to(tl.float32)
            f = tl.load(below_near + channels, mask=(below & after)[:, None] & there, other=0.0).to(tl.float32)
            upper = a * (1 - dx)[:, None] + b * dx[:, None]
            lower = e * (1 - dx)[:, None] + f * dx[:, None]
            sample = (upper * (1 - dy)[:, None] + lower * dy[:, None]) * strength[:, None]
            w = tl.load(
                weight + (tap * channels + k)[:, None] + o[None, :] * (9 * channels),
                mask=(k < channels)[:, None] & (o < width_out)[None, :],
                other=0.0,
            )
            total = tl.dot(sample.to(w.dtype), w, total, input_precision="tf32x3")
    total += tl.load(bias + o, mask=o < width_out, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + (p - first_output)[:, None].to(tl.int64) * width_out + o[None, :],
        total,
        mask=real[:, None] & (o < width_out)[None, :],
    )


def fused(regions: Tensor, grid: JointGrid, offsets: Tensor, mask: Tensor, kernels: Sequence[Kernel]) -> list[Tensor]:
    """As `deform.by_embedding_bag`, without gradients, in the precision of the computation."""
    if torch.is_autocast_enabled(regions.device.type):
        regions = regions.to(torch.get_autocast_dtype(regions.device.type))
    channels = regions.shape[-1]
    tensors = regions.contiguous(), offsets.contiguous(), mask.contiguous(), grid.base[0], grid.base[1]
    sizes = grid.size[0], grid.width, grid.start
    results, first = [], 0
    for count, (weight, bias) in zip(grid.counts, kernels, strict=True):
        width = len(weight)
        out = torch.empty(count, width, device=regions.device, dtype=regions.dtype)
        _kernel[lambda chosen, count=count: (triton.cdiv(count, chosen["TILE"]),)](
            *tensors, *sizes, weight.to(regions.dtype), bias, out, first, first + count, channels, width,
            OUT=max(triton.next_power_of_2(width), 16),
        )  # fmt: skip
        results.append(out)
        first += count
    return results


assert TAPS == 9, "the kernel counts them"
