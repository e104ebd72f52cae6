"""Prompt tuning: the network stays as it is, its text features learn. GLIP, arXiv:2112.03857, section 4.3 (v2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detectors.glip.model import GlipModel
from detectors.glip.text import TextFeatures

ROWS = 1000  # what the checkpoints carry; a caption reaches 256 of them


class TextOffsets(nn.Module):
    """Row j is added to the text feature of position j of every caption, [CLS], [SEP] and padding included.

    Both the unmasked features and the masked ones move, after the masking, before the tower.
    """

    def __init__(self, width: int, rows: int = ROWS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, text: TextFeatures) -> TextFeatures:
        rows: Tensor = self.weight[: text.hidden.shape[1]]
        return TextFeatures(text.hidden + rows, text.embedded + rows, text.mask)


def add_offsets(model: GlipModel, rows: int = ROWS) -> TextOffsets:
    """Give the model offsets that are zero, and return them; everything else is frozen and in evaluation mode."""
    model.eval().requires_grad_(False)
    offsets = TextOffsets(model.config.text.hidden_size, rows).to(model.rpn.head.bias0.device)
    model.rpn.tunable_linear = offsets
    return offsets
