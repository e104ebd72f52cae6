"""Picture encoder: Swin Transformer, arXiv:2103.14030, as in GLIP's checkpoints.

Maps are (B, H, W, C) inside; outputs are (B, C, H, W), channels last in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.glip.modeling.linear import Linear

MASKED = -100.0  # added to the score of two tokens that are neighbours only by the cyclic shift


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth, arXiv:1603.09382: a whole sample's branch is dropped, the kept ones scaled up."""
    if rate == 0.0 or not training:
        return x
    kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * kept.to(x.dtype) / (1.0 - rate)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair (query, key) of a window: (window^2, window^2) int64."""
    with torch.device("cpu"):
        axis = torch.arange(window)
        y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
        dy = y[:, None] - y[None, :] + window - 1
        dx = x[:, None] - x[None, :] + window - 1
        return dy * (2 * window - 1) + dx


@lru_cache(maxsize=64)
def shift_mask(height: int, width: int, window: int, device: torch.device, learning: bool) -> Tensor:
    """Mask added to a shifted block's scores: (windows, window^2, window^2); 0, or `MASKED` across the seam.

    `height` and `width` are those of the padded map. `learning` only keeps apart in the cache what autograd may use
    and what was made in inference mode.
    """
    region = torch.zeros(height, width, device=device)
    bands = (slice(0, -window), slice(-window, -(window // 2)), slice(-(window // 2), None))
    for row, rows in enumerate(bands):
        for column, columns in enumerate(bands):
            region[rows, columns] = 3 * row + column
    region = partition_windows(region[None, :, :, None], window).squeeze(-1)  # (windows, window^2)
    return (region[:, None, :] != region[:, :, None]) * MASKED


def partition_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, window^2, C); H and W are multiples of the window."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition_windows`."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


class WindowAttention(nn.Module):
    """Attention among the tokens of one window, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def bias(self) -> Tensor:
        """(heads, window^2, window^2)."""
        size = self.relative_position_index.shape[0]
        rows = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return rows.view(size, size, self.heads).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B * windows, n, C), mask (windows, n, n) or None -> (B * windows, n, C)."""
        count, n, width = x.shape
        q, k, v = self.qkv(x).view(count, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (count, heads, n, d) each
        bias = self.bias().to(q.dtype)
        if mask is not None:
            windows = mask.shape[0]
            seam = (bias + mask.to(q.dtype)[:, None]).repeat(count // windows, 1, 1, 1)  # (count, heads, n, n)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seam)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(count, n, width))
        return projected


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SwinBlock(nn.Module):
    """Window attention and an MLP, each behind a LayerNorm. Odd blocks shift the map by half a window first.

    The map is padded with zeros to whole windows after the norm; these tokens take part as keys. The shift happens
    even when one window holds the whole map: both as in the reference.
    """

    def __init__(self, width: int, heads: int, window: int, shifted: bool, drop: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop = window, window // 2 if shifted else 0, drop
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, window, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + drop_path(self._attend_windows(self.norm1(x)), self.drop, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop, self.training)

    def _attend_windows(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        _, tall, wide, _ = x.shape
        mask = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
            mask = shift_mask(tall, wide, self.window, x.device, torch.is_grad_enabled())
        x = join_windows(self.attn(partition_windows(x, self.window), mask), self.window, tall, wide)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Halve the map, double the width: four neighbours are laid side by side, normed and projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        quarters = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        out: Tensor = self.reduction(self.norm(torch.cat(quarters, dim=-1)))
        return out


class SwinStage(nn.Module):
    """Blocks of one resolution; `downsample` stands after them, but the stage's output is taken before it."""

    def __init__(self, width: int, heads: int, window: int, drops: Sequence[float], last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, shifted=index % 2 == 1, drop=drop) for index, drop in enumerate(drops)
        )
        self.downsample = None if last else PatchMerging(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) -> the stage's map (B, H, W, C), the next stage's input."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbedding(nn.Module):
    """Patches of 4 x 4 pixels become tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / 4, W / 4, C); sizes that 4 does not divide are padded with zeros."""
        _, _, height, width = images.shape
        images = F.pad(images, (0, -width % 4, 0, -height % 4))
        out: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return out


class Swin(nn.Module):
    """Swin Transformer, arXiv:2103.14030.

    (B, 3, H, W) -> maps of strides 4, 8, 16, 32, each (B, C, h, w); the last three pass an extra LayerNorm.
    """

    def __init__(
        self, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: int, drop_path: float
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(embed_dim)
        count = sum(depths)
        drops = [drop_path * block / max(count - 1, 1) for block in range(count)]
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            own, drops = drops[:depth], drops[depth:]
            last = stage == len(depths) - 1
            self.layers.append(SwinStage(embed_dim * 2**stage, heads, window_size, own, last))
        for stage in range(1, len(depths)):
            self.add_module(f"norm{stage}", nn.LayerNorm(embed_dim * 2**stage))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        maps = []
        for stage, layer in enumerate(self.layers):
            out, x = layer(x)
            norm: Any = getattr(self, f"norm{stage}") if stage else nn.Identity()
            maps.append(norm(out).permute(0, 3, 1, 2))
        return maps
