"""Training losses: ATSS targets and the three losses of GLIP. GLIP, arXiv:2112.03857; ATSS, arXiv:1912.02424."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.boxes import centres, ious
from detectors.glip.modeling.anchors import decode, encode
from detectors.glip.modeling.model import Predictions

ALPHA, GAMMA = 0.25, 2.0  # focal loss
BOX_WEIGHT = 2.0
NO_OBJECT = 255  # the token that stands for "nothing" where a caption is long enough to have it


class TrainingTruth(NamedTuple):
    """Ground truth of one picture: boxes (G, 4) in pixels of the padded batch, tokens (G, L) bool: each box's words."""

    boxes: Tensor
    tokens: Tensor


class GlipLosses(NamedTuple):
    """Scalars, each with its weight in it."""

    token: Tensor
    box: Tensor
    centerness: Tensor

    @property
    def total(self) -> Tensor:
        return self.token + self.box + self.centerness


class AnchorTargets(NamedTuple):
    """Training targets of N anchors."""

    matched: Tensor  # (N,) int64: 0 for background, else 1 + the box's index
    boxes: Tensor  # (N, 4): the matched box (the first one for background)
    centerness: Tensor  # (N,): 1 in the middle of the matched box, 0 at its edge; meaningless for background

    def deltas(self, anchors: Tensor) -> Tensor:
        """The matched boxes relative to the anchors (N, 4)."""
        return encode(self.boxes, anchors)


def assign(anchors: Sequence[Tensor], boxes: Tensor, nearest: int = 9) -> Tensor:
    """ATSS assignment of anchors to boxes, (N,) int64: 0 for none, else 1 + the box's index.

    Each level proposes for each box the anchors with the `nearest` centres; of these, those are positive whose IoU is
    at least the candidates' mean plus standard deviation and whose centre lies inside. Contested ones go to the box
    of highest IoU. anchors: one (n, 4) for each level; boxes (G, 4).
    """
    everything = torch.cat(list(anchors))
    if not len(boxes):
        return torch.zeros(len(everything), dtype=torch.int64, device=everything.device)
    overlap = ious(everything, boxes)  # (N, G)
    middle = centres(everything)
    distance = (middle[:, None] - centres(boxes)[None]).square().sum(-1).sqrt()
    chosen, start = [], 0
    for level in anchors:
        near = distance[start : start + len(level)].topk(min(nearest, len(level)), dim=0, largest=False).indices
        chosen.append(near + start)
        start += len(level)
    candidates = torch.cat(chosen)  # (candidates, G)
    theirs = overlap.gather(0, candidates)
    bar = theirs.mean(0) + theirs.std(0)
    spots = middle[candidates]  # (candidates, G, 2)
    inside = torch.cat([spots - boxes[:, :2], boxes[:, 2:] - spots], dim=-1).amin(-1) > 0.01
    claimed = torch.full_like(overlap, -1.0)
    claimed.scatter_(0, candidates, torch.where((theirs >= bar) & inside, theirs, -1.0))
    best, index = claimed.max(1)
    return torch.where(best >= 0, index + 1, 0)


def centerness(boxes: Tensor, anchors: Tensor) -> Tensor:
    """FCOS, arXiv:1904.01355: how central each anchor's centre lies in its box, (N, 4), (N, 4) -> (N,)."""
    middle = centres(anchors)
    low, high = middle - boxes[:, :2], boxes[:, 2:] - middle
    ratio = torch.minimum(low, high) / torch.maximum(low, high)
    return ratio.clamp(min=0).prod(-1).sqrt()


def make_targets(anchors: Sequence[Tensor], truth: TrainingTruth) -> AnchorTargets:
    """One picture's targets. anchors: one (n, 4) for each level."""
    everything = torch.cat(list(anchors))
    matched = assign(anchors, truth.boxes)
    if not len(truth.boxes):
        return AnchorTargets(matched, everything, torch.zeros_like(everything[:, 0]))
    boxes = truth.boxes[(matched - 1).clamp(min=0)]
    return AnchorTargets(matched, boxes, centerness(boxes, everything))


def token_targets(matched: Tensor, tokens: Tensor) -> Tensor:
    """(N,) and (G, L) -> (N, L) float: the words of the matched box; of background only `NO_OBJECT`."""
    nothing = torch.zeros_like(tokens[:1]) if len(tokens) else tokens.new_zeros(1, tokens.shape[1])
    nothing[:, NO_OBJECT : NO_OBJECT + 1] = True
    return torch.cat([nothing, tokens])[matched].float()


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss, arXiv:1708.02002, elementwise."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    right = p * targets + (1 - p) * (1 - targets)
    return (ALPHA * targets + (1 - ALPHA) * (1 - targets)) * cross_entropy * (1 - right) ** GAMMA


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 - generalised IoU, arXiv:1902.09630, of pairs (N, 4), (N, 4) -> (N,); plain widths, no end pixel."""
    a = torch.cat([a[:, :2], torch.maximum(a[:, :2], a[:, 2:])], dim=1)

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).prod(-1)

    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    union = area(a[:, :2], a[:, 2:]) + area(b[:, :2], b[:, 2:]) - shared + 1e-7
    hull = area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:])) + 1e-7
    return 1 - (shared / union - (hull - union) / hull)


def losses(
    predictions: Predictions, anchors: Sequence[Tensor], text_mask: Tensor, truths: Sequence[TrainingTruth]
) -> GlipLosses:
    """The three losses of a batch: B predictions and truths, text_mask (B, L), anchors one (n, 4) for each level."""
    everything = torch.cat(list(anchors))
    targets = [make_targets(anchors, truth) for truth in truths]
    positive = torch.stack([target.matched for target in targets]) > 0  # (B, N)
    count = positive.sum().clamp(min=1)

    wanted = torch.stack([token_targets(t.matched, truth.tokens) for t, truth in zip(targets, truths, strict=True)])
    per_token = focal(predictions.logits.float(), wanted) * text_mask[:, None].to(wanted.dtype)
    token = per_token.sum() / count

    central = torch.stack([target.centerness for target in targets])[positive]
    their_anchors = everything.expand(len(targets), -1, -1)[positive]
    boxes = torch.stack([target.boxes for target in targets])[positive]
    found = decode(predictions.deltas.float()[positive], their_anchors)
    weight = central.sum()
    box = BOX_WEIGHT * (giou_loss(found, boxes) * central).sum() / torch.where(weight > 0, weight, 1.0)

    middle = F.binary_cross_entropy_with_logits(predictions.centerness.float()[positive], central, reduction="sum")
    return GlipLosses(token, box, middle / count)
