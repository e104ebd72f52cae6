"""What GLaMM was trained to lower: next words, and the masks' cross-entropy and Dice (arXiv:2311.03356)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.glamm.config import IGNORED_LABEL, IMAGE_PLACEHOLDER

CE_WEIGHT, BCE_WEIGHT, DICE_WEIGHT = 1.0, 2.0, 0.5
_DICE_SCALE = 1000
_DICE_EPSILON = 1e-6
_MASK_EPSILON = 1e-8  # keeps the mean over masks finite when a batch has none


@dataclass(frozen=True)
class GlammLosses:
    """Weighted parts and their sum, scalars."""

    words: Tensor
    bce: Tensor
    dice: Tensor

    @property
    def masks(self) -> Tensor:
        return self.bce + self.dice

    @property
    def total(self) -> Tensor:
        return self.words + self.masks


def expand_labels(labels: Tensor, ids: Tensor, num_patches: int) -> Tensor:
    """Labels of a row (L,) where N patches stand for the placeholder: (L - 1 + N,); the patches are not learned."""
    place = int((ids == IMAGE_PLACEHOLDER).nonzero().item())
    patches = labels.new_full((num_patches,), IGNORED_LABEL)
    return torch.cat([labels[:place], patches, labels[place + 1 :]])


def word_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each next token. Shapes: logits (B, L, V), labels (B, L)."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL)


def losses(logits: Tensor, labels: Tensor, masks: Sequence[Tensor], targets: Sequence[Tensor]) -> GlammLosses:
    """`masks[i]` are mask logits (K_i, H_i, W_i) of image i, `targets[i]` 0 or 1 of the same shape."""
    count = sum(len(rows) for rows in masks) + _MASK_EPSILON
    bce = sum(
        (_bce_loss(rows, target.float()).sum() for rows, target in zip(masks, targets, strict=True)), torch.zeros(())
    )
    dice = sum(
        (_dice_loss(rows, target.float()).sum() for rows, target in zip(masks, targets, strict=True)), torch.zeros(())
    )
    return GlammLosses(CE_WEIGHT * word_loss(logits, labels), BCE_WEIGHT * bce / count, DICE_WEIGHT * dice / count)


def _bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)


def _dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    mask, target = logits.sigmoid().flatten(1), target.flatten(1)
    overlap = 2 * (mask / _DICE_SCALE * target).sum(1)
    area = (mask / _DICE_SCALE).sum(1) + (target / _DICE_SCALE).sum(1)
    return 1 - (overlap + _DICE_EPSILON) / (area + _DICE_EPSILON)
