"""Matrix products by whichever library does them faster.

On CPUs torch hands `linear` to MKL and convolutions, with more than one thread, to oneDNN. In single precision a 1 x 1
convolution over rows laid out as pixels is the same product, and oneDNN does it twice as fast on AMD
(`benchmarks/glip.py`); elsewhere they are alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _by_convolution(x: Tensor) -> bool:
    threaded = torch.compiler.is_compiling() or torch.get_num_threads() > 1
    return x.device.type == "cpu" and threaded and x.numel() > 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    if not _by_convolution(x):
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last: no copy
    out = F.conv2d(pixels, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """`torch.bmm`: a (B, N, K), b (B, K, M) -> (B, N, M), for long, narrow `a`."""
    if not _by_convolution(a):
        return a @ b
    return torch.stack([linear(rows, columns.mT) for rows, columns in zip(a, b, strict=True)])


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
