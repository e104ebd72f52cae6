"""Boxes as tensors: `x1, y1, x2, y2` in pixels, the last axis of length 4.

In the convention of GLIP and its ancestors a box holds both its end pixels: it is `x2 - x1 + 1` wide.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 512  # of the matrix of overlaps that are computed at once
PATIENCE = 12  # rounds of suppression on a GPU between two looks at the result


def areas(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def ious(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair: (..., N, 4), (..., M, 4) -> (..., N, M)."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    shared = (high - low + 1).clamp(min=0).prod(-1)
    return shared / (areas(a)[..., :, None] + areas(b)[..., None, :] - shared)


def centres(boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 2): x, y."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Into pictures of (height, width) `sizes` (B, 2): (B, N, 4) -> (B, N, 4) within 0..width - 1 and 0..height - 1."""
    high = (sizes.flip(-1) - 1).to(boxes.dtype).repeat(1, 2)[:, None]  # (B, 1, 4): w, h, w, h
    return torch.minimum(boxes.clamp(min=0), high)


def suppress(
    boxes: Tensor, labels: Tensor, valid: Tensor, threshold: float, rounds: int | None = None
) -> tuple[Tensor, Tensor]:
    """Greedy non-maximum suppression within each label, of boxes already in order of descending score.

    boxes (B, N, 4), labels (B, N), valid (B, N) bool -> (B, N) bool: the valid boxes that no kept, better box of the
    same label overlaps by more than `threshold`; and (B,) bool: whether this is settled.

    A box's fate depends on the boxes before it. All start as kept and are decided again until nothing changes: after
    step k the first k boxes are final; in practice a handful of steps are enough. With `rounds` exactly that many steps
    are taken and the result is not inspected in between, which on a GPU would wait for it. Needs 4 * B * N * N bytes.
    """
    rivals = _find_rivals(boxes, labels, threshold)
    kept, settled = valid, torch.ones_like(valid[:, 0])
    patience = 1 if boxes.device.type == "cpu" else PATIENCE
    for step in range(boxes.shape[1] if rounds is None else rounds):
        beaten = (kept.float()[:, None] @ rivals)[:, 0] > 0
        before, kept = kept, valid & ~beaten
        settled = (kept == before).all(1)
        if rounds is None and step % patience == patience - 1 and settled.all():
            break
    return kept, settled


def _find_rivals(boxes: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """(B, N, N) of 0 and 1: [better, worse] of the same label that overlap, made in slices of rows."""
    batch, count = labels.shape
    rivals = boxes.new_empty(batch, count, count, dtype=torch.float32)
    for start in range(0, count, ROWS):
        part = slice(start, start + ROWS)
        overlap = ious(boxes[:, part], boxes) > threshold
        rivals[:, part] = (overlap & (labels[:, part, None] == labels[:, None])).triu(start + 1)
    return rivals
