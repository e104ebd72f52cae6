"""Word-region scores. GLIP, arXiv:2112.03857, section 3.1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.glip.modeling.text import bound_values

PRIOR = 0.01  # the probability that a region and a word match, before training


class Scale(nn.Module):
    """One learned factor of a level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def word_region_logits(
    regions: Tensor, words: Tensor, projection: nn.Linear, bias_lang: Tensor, bias0: Tensor, log_scale: Tensor
) -> Tensor:
    """Match of each region with each word: regions (B, N, C), words (B, L, D) -> logits (B, N, L).

    Words are brought to length one; half of each is projected, the whole decides the word's own bias.
    """
    words = F.normalize(words, dim=-1, eps=1e-12)
    projected = projection(words / 2)  # (B, L, C)
    bias = words @ bias_lang + bias0  # (B, L)
    return bound_values(regions @ projected.mT / log_scale.exp() + bias[:, None])


def initial_bias() -> float:
    """The logit of `PRIOR`."""
    return -math.log((1 - PRIOR) / PRIOR)
