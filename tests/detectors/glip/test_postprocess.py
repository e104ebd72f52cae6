"""From scores to detections."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detectors.boxes import suppress
from detectors.glip.config import PostprocessConfig
from detectors.glip.modeling.model import Predictions
from detectors.glip.postprocess import BoxCandidates, aggregate_tokens, find_candidates, select_boxes, token_map


def crowd(count: int, seed: int = 0) -> BoxCandidates:
    """Overlapping boxes of three labels."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(1, count, 2, generator=generator) * 40
    size = torch.rand(1, count, 2, generator=generator) * 30 + 20
    scores = torch.rand(1, count, generator=generator)
    labels = torch.randint(0, 3, (1, count), generator=generator)
    return BoxCandidates(torch.cat([corner, corner + size], -1), scores, labels, torch.ones(1, count, dtype=torch.bool))


def greedy(found: BoxCandidates, threshold: float) -> list[int]:
    """One box after the other, by the book: +1 pixel, strictly greater."""
    boxes, labels = found.boxes[0].double().numpy(), found.labels[0].numpy()
    kept: list[int] = []
    for i in np.argsort(-found.scores[0].numpy(), kind="stable"):
        for j in kept:
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + 1
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + 1
            shared = max(width, 0) * max(height, 0)
            area_i, area_j = (np.prod(boxes[k, 2:] - boxes[k, :2] + 1) for k in (i, j))
            if labels[i] == labels[j] and shared / (area_i + area_j - shared) > threshold:
                break
        else:
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_the_greedy_one(seed: int) -> None:
    found = crowd(300, seed)
    kept, sure = select_boxes(found, 0.6, limit=0)
    assert sure.all()
    assert torch.equal(kept.scores[kept.valid], found.scores[0][greedy(found, 0.6)])


def test_looking_at_the_best_only_gives_the_same_first_survivors_or_says_it_may_not() -> None:
    found = crowd(300)
    whole = select_boxes(found, 0.6, limit=10)[0]
    kept, sure = select_boxes(found, 0.6, limit=10, look_at=60)
    assert sure.all()
    assert torch.equal(kept.boxes[kept.valid], whole.boxes[whole.valid])
    _, sure = select_boxes(found, 0.6, limit=200, look_at=60)
    assert not sure.any()


def test_a_chain_longer_than_the_rounds_is_reported_as_unsettled() -> None:
    steps = torch.arange(12.0)  # each box overlaps its neighbours only
    boxes = torch.stack([steps * 10, torch.zeros(12), steps * 10 + 39, torch.full((12,), 9.0)], dim=-1)[None]
    labels, valid = torch.zeros(1, 12, dtype=torch.int64), torch.ones(1, 12, dtype=torch.bool)
    kept, settled = suppress(boxes, labels, valid, threshold=0.5)
    assert settled.all()
    assert kept[0].tolist() == [True, False] * 6
    assert not suppress(boxes, labels, valid, threshold=0.5, rounds=4)[1].any()


def test_all_that_tie_with_the_last_one_within_the_limit_stay() -> None:
    boxes = torch.arange(5.0)[:, None] * 100 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.4]])
    found = BoxCandidates(boxes[None], scores, torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5, dtype=torch.bool))
    kept, _ = select_boxes(found, 0.6, limit=2)
    assert int(kept.valid.sum()) == 4


def test_a_label_without_tokens_scores_nothing() -> None:
    tokens = token_map([[0], []], length=2)[None]
    for how in ("MEAN", "MAX", "POWER"):
        assert aggregate_tokens(torch.full((1, 3, 2), 0.5), tokens, how)[..., 1].max() == 0
    with pytest.raises(ValueError, match="not by 'SUM'"):
        aggregate_tokens(torch.zeros(1, 1, 2), tokens, "SUM")


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_score_is_the_weighed_geometric_mean_of_probability_and_centerness(weight: float) -> None:
    probability, centerness = torch.tensor([0.9, 0.4, 0.04, 0.7]), torch.tensor([0.2, 0.8, 1.0, 0.6])
    predictions = Predictions(
        logits=probability.logit()[None, :, None],
        deltas=torch.zeros(1, 4, 4),
        centerness=centerness.logit(eps=1e-7)[None],
        shapes=[(2, 2)],
    )
    anchors = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(4, 1)
    rule = PostprocessConfig(centerness_weight=weight)
    least = torch.full((1, 1), 0.5)
    every = find_candidates(predictions, anchors, torch.ones(1, 1, 1), torch.tensor([[32, 32]]), rule)
    wanted = find_candidates(predictions, anchors, torch.ones(1, 1, 1), torch.tensor([[32, 32]]), rule, least)
    scores = (probability.log() + weight * centerness.log()).div(1 + weight).exp()[[0, 1, 3]]  # 0.04: below 0.05
    assert every.scores[every.valid].numpy() == pytest.approx(scores.sort(descending=True).values.numpy(), rel=1e-5)
    assert wanted.valid.sum() == (scores >= 0.5).sum()
