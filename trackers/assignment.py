"""Assignment of tracks to detections over a list of candidate pairs, with a cost limit inside the optimisation.

Because of the limit the problem splits exactly into the connected components of the graph of admissible pairs. Most
components of ordinary video are one pair, which needs no solver.
"""

from __future__ import annotations

import itertools

import lap
import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from trackers.boxes import Floats, Ints

TIE = 1e-9  # equal costs go to the lower row and column on every platform
FEW_PAIRS = 40  # contested pairs that go to a solver at once, without the search for obvious ones
SMALL_CELLS = 2_500  # up to this table size SciPy's solver is faster than lap's
TABLE_CELLS = 10_000  # up to this table size contested pairs are not split into groups first


def assign(rows: Ints, cols: Ints, costs: Floats, limit: float) -> npt.NDArray[np.intp]:
    """Positions of the chosen pairs: least total of their costs plus `limit` for every pair that could be but is not.

    `rows`, `cols`, `costs` are (P,), one candidate pair each, in row-major order. Pairs at `limit` or above are never
    chosen.
    """
    admissible = (costs < limit).nonzero()[0]
    if admissible.size == 0:
        return admissible
    if admissible.size < rows.size:
        rows, cols, costs = rows.take(admissible), cols.take(admissible), costs.take(admissible)
    contested = (np.bincount(rows).take(rows) > 1) | (np.bincount(cols).take(cols) > 1)
    part = contested.nonzero()[0]
    if part.size == 0:
        return admissible
    gains = limit - costs.take(part)
    picked = ~contested
    picked[part[_solve(rows.take(part), cols.take(part), gains)]] = True
    return admissible[picked]


def assign_then_filter(
    rows: Ints, cols: Ints, gains: Floats, good: npt.NDArray[np.bool_], shortcut: bool = True
) -> npt.NDArray[np.intp]:
    """Positions of the chosen pairs in SORT's order: greatest total gain first, then `good` ones only.

    With `shortcut`, good pairs without conflict among themselves are taken without a solver (as SORT and OC-SORT do);
    the result can differ from the solver's.
    """
    best = good.nonzero()[0]
    if best.size == 0:
        return best
    if shortcut and np.bincount(rows[best]).max() == 1 and np.bincount(cols[best]).max() == 1:
        return best
    chosen = assign(rows, cols, -gains, 0.0)
    return chosen[good[chosen]]


def _solve(rows: Ints, cols: Ints, gains: Floats) -> npt.NDArray[np.intp]:
    """Positions of the pairs of greatest total gain; gains are above zero, unmatched gains nothing."""
    count = rows.size
    gains = gains - TIE * np.arange(count) / count
    open_: npt.NDArray[np.intp] = np.arange(count)
    chosen = []
    while open_.size > FEW_PAIRS:
        row, col, gain = rows.take(open_), cols.take(open_), gains.take(open_)
        sure = gain >= _best_other(row, gain) + _best_other(col, gain)
        if not sure.any():
            break
        chosen.append(open_[sure])
        row_taken, col_taken = np.bincount(row, sure) > 0, np.bincount(col, sure) > 0
        open_ = open_[~(row_taken[row] | col_taken[col])]
    if open_.size:
        chosen.append(open_[_solve_rest(rows.take(open_), cols.take(open_), gains.take(open_))])
    return np.concatenate(chosen)


def _best_other(names: Ints, gains: Floats) -> Floats:
    """(P,) the greatest gain among the other pairs that share the name, 0 where there is none.

    A pair that gains as much as the best other pair of its row and that of its column together is in an optimal
    assignment: the pairs that it excludes are worth no more.
    """
    order = np.lexsort((gains, names))
    ordered, ordered_gains = names[order], gains[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # the best of each name
    best = ordered_gains[last].take(np.cumsum(last) - last)  # of the name of each pair
    second = np.zeros(order.size)
    second[1:] = np.where(ordered[1:] == ordered[:-1], ordered_gains[:-1], 0.0)
    other = np.empty(order.size)
    other[order] = np.where(last, second, best)
    return other


def _solve_rest(rows: Ints, cols: Ints, gains: Floats) -> npt.NDArray[np.intp]:
    row, height = _renumbered(rows)
    col, width = _renumbered(cols)
    if height * width <= TABLE_CELLS:
        return _solve_table(row, col, gains, height, width)
    graph = coo_array((np.ones(row.size, dtype=np.int8), (row, height + col)), shape=(height + width,) * 2)
    count, group = connected_components(graph, directed=False)
    order = np.argsort(group[row], kind="stable")
    starts = np.searchsorted(group[row][order], np.arange(count + 1))
    chosen = []
    for start, stop in itertools.pairwise(starts):
        part = order[start:stop]
        group_row, group_height = _renumbered(row[part])
        group_col, group_width = _renumbered(col[part])
        chosen.append(part[_solve_table(group_row, group_col, gains[part], group_height, group_width)])
    return np.concatenate(chosen)


def _renumbered(names: Ints) -> tuple[Ints, int]:
    """Names as 0, 1, ... in their order, and their number."""
    present = np.zeros(int(names.max()) + 1, dtype=np.int64)
    present[names] = 1
    numbers = present.cumsum()
    return numbers.take(names) - 1, int(numbers[-1])


def _solve_table(row: Ints, col: Ints, gains: Floats, height: int, width: int) -> npt.NDArray[np.intp]:
    """One dense problem. A cell without gain means "unmatched", so no extra rows and columns are needed."""
    table = np.zeros((height, width))
    table[row, col] = -gains
    if height * width <= SMALL_CELLS:
        partner = np.full(height, -1)
        matched_row, matched_col = linear_sum_assignment(table)
        partner[matched_row] = matched_col
    else:
        partner = lap.lapjv(table, extend_cost=True)[1]
    return np.flatnonzero(partner[row] == col)
