"""Deep fusion: cross-attention between picture and text. GLIP, arXiv:2112.03857, section 3.2.

Regions are (B, N, C): the five levels one after the other, row by row. Text is (B, L, D).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.glip.modeling.linear import bmm
from detectors.glip.modeling.text import bound_values


class CrossAttention(nn.Module):
    """Attention in both directions over one matrix of scores: `v` regions, `l` words.

    Written out, regions are projected to queries and values of `dim` (2048) channels. Here the projections of the
    regions are folded into the few words instead, which is the same sum in another order:
    (v Wq) k^T = v (Wq k^T), (P u) Wo = P (u Wo) and P^T (v Wv) = (P^T v) Wv. For 10,900 regions and 30 words this is
    a tenth of the work, and never more than it was.
    """

    def __init__(self, channels: int, width: int, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale, self.dropout = heads, (dim // heads) ** -0.5, dropout
        self.v_proj = nn.Linear(channels, dim)
        self.l_proj = nn.Linear(width, dim)
        self.values_v_proj = nn.Linear(channels, dim)
        self.values_l_proj = nn.Linear(width, dim)
        self.out_v_proj = nn.Linear(dim, channels)
        self.out_l_proj = nn.Linear(dim, width)

    def forward(self, v: Tensor, l: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # noqa: E741
        """v (B, N, C), l (B, L, D), mask (B, L) -> what to add to each."""
        heads, length = self.heads, l.shape[1]
        scores = bound_values(self._word_scores(v, l))  # (B, N, heads * L)

        # Regions read words; padding is hidden from them.
        hidden = (mask == 0)[:, None, None, :]
        to_words = torch.unflatten(scores, -1, (heads, length)).masked_fill(hidden, float("-inf")).softmax(-1)
        to_words = F.dropout(to_words, self.dropout, self.training).flatten(2)
        dv = bmm(to_words, self._word_values(l)) + self.out_v_proj.bias

        # Words read regions: all words, padding too, all regions, the padded border too.
        rows = scores.mT.contiguous()  # a softmax along a strided axis costs several times the copy
        to_regions = F.dropout(rows.softmax(-1), self.dropout, self.training)  # (B, heads * L, N)
        return dv, self._region_values(to_regions, v)

    def _word_scores(self, v: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        keys = torch.unflatten(self.l_proj(l), -1, (self.heads, -1)) * self.scale  # (B, L, heads, d)
        weight = torch.unflatten(self.v_proj.weight, 0, (self.heads, -1))  # (heads, d, C)
        bias = torch.unflatten(self.v_proj.bias, 0, (self.heads, -1))  # (heads, d)
        folded = torch.einsum("blhd,hdc->bchl", keys, weight).flatten(2)  # (B, C, heads * L)
        return bmm(v, folded) + torch.einsum("blhd,hd->bhl", keys, bias).flatten(1)[:, None]

    def _word_values(self, l: Tensor) -> Tensor:  # noqa: E741
        """(B, heads * L, C): each word's value, already through its head's share of the output projection."""
        values = torch.unflatten(self.values_l_proj(l), -1, (self.heads, -1))
        weight = torch.unflatten(self.out_v_proj.weight, 1, (self.heads, -1))  # (C, heads, d)
        return torch.einsum("blhd,chd->bhlc", values, weight).flatten(1, 2)

    def _region_values(self, to_regions: Tensor, v: Tensor) -> Tensor:
        """(B, L, D): the regions seen by each word and head, then projected."""
        seen = torch.unflatten(to_regions @ v, 1, (self.heads, -1))  # (B, heads, L, C)
        weight = torch.unflatten(self.values_v_proj.weight, 0, (self.heads, -1))  # (heads, d, C)
        values = torch.einsum("bhlc,hdc->bhld", seen, weight)
        # The bias is seen as often as the row's weights sum to: once, but for dropout.
        bias = torch.unflatten(self.values_v_proj.bias, 0, (self.heads, -1))[:, None]  # (heads, 1, d)
        if self.training:
            bias = torch.unflatten(to_regions.sum(-1), 1, (self.heads, -1))[..., None] * bias
        out: Tensor = self.out_l_proj((values + bias).transpose(1, 2).flatten(2))
        return out


class Fusion(nn.Module):
    """One exchange between picture and text ("MHA-B"). Both residuals start from the *normalised* inputs.

    Shapes: regions (B, N, C), text (B, L, D), mask (B, L) -> regions, text.
    """

    def __init__(self, channels: int, width: int, dim: int, heads: int, dropout: float, scale: float) -> None:
        super().__init__()
        self.layer_norm_v = nn.LayerNorm(channels)
        self.layer_norm_l = nn.LayerNorm(width)
        self.attn = CrossAttention(channels, width, dim, heads, dropout)
        self.gamma_v = nn.Parameter(torch.full((channels,), scale))
        self.gamma_l = nn.Parameter(torch.full((width,), scale))

    def forward(self, regions: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        v, l = self.layer_norm_v(regions), self.layer_norm_l(text)  # noqa: E741
        dv, dl = self.attn(v, l, mask)
        return v + self.gamma_v * dv, l + self.gamma_l * dl
