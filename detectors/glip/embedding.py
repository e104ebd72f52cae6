"""Embeddings of boxes from the detector's own features, by which trackers recognise an object again.

No further model: the finest map of the feature pyramid is averaged over the cells of a grid in the box, so that the
embedding says where in the box which features are (clothes above, legs below).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CELLS = (4, 2)
"""Rows and columns of the grid in a box."""
SAMPLES = 2
"""Samples in each direction in a cell."""


def embed_boxes(features: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """features (C, h, w), boxes (N, 4) in pixels of the network's input, of which a position spans `stride` -> (N, D),
    float32, with D = C times the number of cells."""
    channels, height, width = features.shape
    down, across = (SAMPLES * cells for cells in CELLS)
    steps_y, steps_x = ((torch.arange(count, device=boxes.device) + 0.5) / count for count in (down, across))
    y = boxes[:, 1, None] + steps_y * (boxes[:, 3] - boxes[:, 1])[:, None]
    x = boxes[:, 0, None] + steps_x * (boxes[:, 2] - boxes[:, 0])[:, None]
    grid = torch.stack(
        [
            (x / (stride * width) * 2 - 1)[:, None, :].expand(-1, down, -1),
            (y / (stride * height) * 2 - 1)[:, :, None].expand(-1, -1, across),
        ],
        dim=-1,
    )
    grid = grid.reshape(1, -1, across, 2)
    values = F.grid_sample(features[None].float(), grid, padding_mode="border", align_corners=False)[0]
    values = values.reshape(channels, len(boxes), CELLS[0], SAMPLES, CELLS[1], SAMPLES).mean(dim=(3, 5))
    return values.transpose(0, 1).flatten(1)
