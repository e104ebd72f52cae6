"""Postprocessing on the device: from predictions to detections by the rule of the released GLIPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detectors.boxes import clip, suppress
from detectors.glip.config import PostprocessConfig
from detectors.glip.modeling.anchors import decode
from detectors.glip.modeling.model import Predictions

AGGREGATES = ("MEAN", "MAX", "ONEHOT", "POWER")
FIRST_LOOK = 1000  # best candidates given to suppression first, before all of them


class BoxCandidates(NamedTuple):
    """M rows for each picture, of which the `valid` ones hold a box."""

    boxes: Tensor  # (B, M, 4), pixels of the network's unpadded input
    scores: Tensor  # (B, M), 0..1
    labels: Tensor  # (B, M) int64: column of the token map
    valid: Tensor  # (B, M) bool


def token_map(label_tokens: Sequence[Sequence[int]], length: int) -> Tensor:
    """Which of a caption's tokens belong to which label: (length, labels) of 0 and 1."""
    table = torch.zeros(length, len(label_tokens))
    for label, tokens in enumerate(label_tokens):
        table[list(tokens), label] = 1
    return table


def aggregate_tokens(probabilities: Tensor, tokens: Tensor, how: str = "MEAN") -> Tensor:
    """Token probabilities (B, N, L) to label scores (B, N, K), with token maps (B, L, K).

    `how`: the tokens' MEAN, their MAX, their geometric mean (POWER), or the first K tokens as they are (ONEHOT).
    A label without tokens scores 0.
    """
    if how == "ONEHOT":
        return probabilities[..., : tokens.shape[-1]]
    if how == "MAX":
        best = [(probabilities * column[:, None]).amax(-1) for column in tokens.unbind(-1)]
        return torch.stack(best, dim=-1)
    counts = tokens.sum(1, keepdim=True)  # (B, 1, K)
    weights = tokens / counts.clamp(min=1)
    if how == "POWER":
        return torch.exp(probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log() @ weights) * (counts > 0)
    if how == "MEAN":
        return probabilities @ weights
    raise ValueError(f"scores are aggregated by {', '.join(AGGREGATES)}, not by {how!r}")


def weigh_scores(probabilities: Tensor, centerness: Tensor, rule: PostprocessConfig) -> Tensor:
    """Label probabilities (B, N, K) weighed by centerness logits (B, N): in the order of the scores, not yet rooted."""
    return probabilities * centerness.float().sigmoid().pow(rule.centerness_weight)[..., None]


def root_scores(weighed: Tensor, rule: PostprocessConfig) -> Tensor:
    """Final scores, 0..1, from those of `weigh_scores`."""
    return weighed.pow(1 / (1 + rule.centerness_weight))


def find_candidates(
    predictions: Predictions,
    anchors: Tensor,
    tokens: Tensor,
    sizes: Tensor,
    rule: PostprocessConfig,
    least: Tensor | None = None,
) -> BoxCandidates:
    """The best pairs of region and label of each level, as many as the rule allows, that pass its score threshold.

    anchors (N, 4), tokens (B, L, K) 0/1, sizes (B, 2): each picture's unpadded (height, width). The threshold is on
    the label's probability alone; the score is then its geometric mean with the centerness, weighed as the rule says.
    `least` (B, K), the lowest score of each label, drops boxes below it.
    """
    probabilities = aggregate_tokens(predictions.logits.float().sigmoid(), tokens, rule.aggregate)  # (B, N, K)
    weighed = weigh_scores(probabilities, predictions.centerness, rule)
    passed = probabilities > rule.score_threshold
    if least is not None:
        passed = passed & (weighed >= least.pow(1 + rule.centerness_weight)[:, None])
    weighed = weighed.masked_fill(~passed, -1.0)
    labels = tokens.shape[-1]
    best, index, start = [], [], 0
    for level in torch.split(weighed, [height * width for height, width in predictions.shapes], dim=1):
        flat = level.flatten(1)
        top = flat.topk(min(rule.pre_nms_top_n_per_level, flat.shape[1]), dim=1)
        best.append(top.values)
        index.append(top.indices + start)
        start += flat.shape[1]
    score, chosen = torch.cat(best, dim=1), torch.cat(index, dim=1)
    region = chosen // labels
    deltas = predictions.deltas.float().gather(1, region[..., None].expand(-1, -1, 4))
    boxes = clip(decode(deltas, anchors[region]), sizes)
    return BoxCandidates(boxes, root_scores(score.clamp(min=0), rule), chosen % labels, score >= 0)


def best_first(found: BoxCandidates, limit: int) -> BoxCandidates:
    """The `limit` best, in order of descending score."""
    scores = found.scores.masked_fill(~found.valid, -1.0)
    order = scores.topk(min(limit, scores.shape[1]), dim=1).indices
    boxes = found.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    scores, labels, valid = (part.gather(1, order) for part in (found.scores, found.labels, found.valid))
    return BoxCandidates(boxes, scores, labels, valid)


def select_boxes(
    found: BoxCandidates, nms_iou: float, limit: int, look_at: int = FIRST_LOOK, rounds: int | None = None
) -> tuple[BoxCandidates, Tensor]:
    """Suppression within each label, then the `limit` best (all when <= 0; all that tie with the last one, too).

    A box can only be suppressed by a better one, so the best `look_at` candidates decide the first survivors. Returns
    the survivors, in order of descending score, and for each picture whether they are complete, (B,) bool; where not,
    call it again with a larger `look_at` and without a bound on the `rounds` of suppression.
    """
    ahead = best_first(found, look_at)
    kept, sure = suppress(ahead.boxes, ahead.labels, ahead.valid, nms_iou, rounds)
    enough = found.valid.sum(1) <= look_at
    if limit > 0:
        rank = kept.cumsum(1)
        full = rank[:, -1] >= limit
        last = ahead.scores.masked_fill(~(kept & (rank == limit)), 0.0).amax(1, keepdim=True)
        kept = kept & (~full[:, None] | (ahead.scores >= last))
        enough = enough | full
    return ahead._replace(valid=kept), sure & enough
