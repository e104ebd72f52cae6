"""Weights of the language model in 8 or 4 bits, so that GLaMM fits a smaller card. Activations keep their precision.

Symmetric rounding to the nearest step: one scale for each output in 8 bits, one for each 64 inputs in 4 bits
(LLM.int8(), arXiv:2208.07339, without its outlier part; group-wise as in GPTQ, arXiv:2210.17323, section 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = 64


class Int8Linear(nn.Module):
    """y = x W^T with W in int8 (out, in) and a scale for each output."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.float().abs().amax(1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight.float() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


class Int4Linear(nn.Module):
    """y = x W^T with W in 4 bits, two to a byte (out, in / 2), and a scale for each group of 64 inputs."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        grouped = weight.float().reshape(len(weight), -1, math.gcd(GROUP, weight.shape[1]))
        scale = grouped.abs().amax(2, keepdim=True).clamp(min=1e-12) / 7
        steps = ((grouped / scale).round() + 8).to(torch.uint8).flatten(1)
        self.register_buffer("weight", steps[:, ::2] | steps[:, 1::2] << 4)
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.stack([self.weight & 15, self.weight >> 4], dim=2).flatten(1).to(x.dtype) - 8
        groups = self.scale.shape[1]
        return F.linear(x, (steps.reshape(len(steps), groups, -1) * self.scale).flatten(1))


def quantised(weight: Tensor, bits: int) -> nn.Module:
    """A layer that does what a bias-free `nn.Linear` with this weight (out, in) does, in 8 or 4 bits."""
    return Int8Linear(weight) if bits == 8 else Int4Linear(weight)
