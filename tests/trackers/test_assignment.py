"""The assignment in groups against one big problem with "unmatched" rows and columns."""

from __future__ import annotations

import lap
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackers.assignment import assign
from trackers.boxes import overlapping, pair_iou


def total(costs: np.ndarray, rows: np.ndarray, cols: np.ndarray, limit: float) -> float:
    return float(np.sum(costs[rows, cols] - limit))


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 60),
    cols=st.integers(1, 60),
    density=st.floats(0.01, 0.7),
    limit=st.floats(0.05, 1.2),
    seed=st.integers(0, 2**32 - 1),
    ties=st.booleans(),
)
def test_groups_give_the_least_total_of_the_whole_problem(
    rows: int, cols: int, density: float, limit: float, seed: int, ties: bool
) -> None:
    random = np.random.default_rng(seed)
    costs = random.random((rows, cols))
    if ties:
        costs = np.round(costs, 1)
    costs[random.random((rows, cols)) > density] = 9.0
    row, col = np.nonzero(costs < 9)
    chosen = assign(row, col, costs[row, col], limit)
    row, col = row[chosen], col[chosen]
    assert len(set(row)) == len(set(col)) == chosen.size
    partner = lap.lapjv(costs, extend_cost=True, cost_limit=limit)[1]
    theirs = np.flatnonzero(partner >= 0)
    assert total(costs, row, col, limit) == pytest.approx(total(costs, theirs, partner[theirs], limit), abs=1e-6)


def test_large_problems_are_solved_group_by_group() -> None:
    random = np.random.default_rng(5)
    costs = np.full((600, 600), 9.0)
    for start in range(0, 600, 6):
        costs[start : start + 6, start : start + 6] = random.random((6, 6))
    row, col = np.nonzero(costs < 9)
    chosen = assign(row, col, costs[row, col], 0.7)
    partner = lap.lapjv(costs, extend_cost=True, cost_limit=0.7)[1]
    theirs = np.flatnonzero(partner >= 0)
    assert total(costs, row[chosen], col[chosen], 0.7) == pytest.approx(total(costs, theirs, partner[theirs], 0.7))


def test_equal_costs_go_to_the_first_row_and_column() -> None:
    row, col = np.indices((3, 3)).reshape(2, -1)
    chosen = assign(row, col, np.full(9, 0.5), 0.8)
    assert [(int(row[pair]), int(col[pair])) for pair in sorted(chosen)] == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("count", [60, 400])
def test_overlapping_pairs_are_all_found_however_many_there_are(count: int) -> None:
    random = np.random.default_rng(count)
    corner = random.uniform(0, 1500, (2, count))
    first = np.concatenate((corner, corner + random.uniform(1, 120, (2, count))))
    second = np.concatenate((corner[:, ::-1] + 5, corner[:, ::-1] + random.uniform(10, 90, (2, count))))
    rows, cols, overlap = overlapping(first, second)
    everything = np.indices((count, count)).reshape(2, -1)
    every_overlap = pair_iou(first, second, *everything)
    meets = every_overlap > 0
    np.testing.assert_array_equal(np.stack((rows, cols)), everything[:, meets])
    np.testing.assert_array_equal(overlap, every_overlap[meets])
