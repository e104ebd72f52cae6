"""Assignment of tracks to detections over a list of candidate pairs, with a price for leaving a pair apart.

With a cost limit inside the optimisation the problem falls apart, exactly, into the connected groups of the graph of
admissible pairs. Most groups of ordinary video are one pair, which needs no solver.
"""

from __future__ import annotations

import lap
import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from trackers.boxes import Floats, Ints

TIE = 1e-9  # equal costs go to the lower row and column on every platform
SMALL_CELLS = 2_500  # SciPy's solver starts faster than lap's, which wins on tables larger than this
TABLE_CELLS = 2_500  # contested pairs that fit one table of this size are not split into groups first


def assign(rows: Ints, cols: Ints, costs: Floats, limit: float) -> npt.NDArray[np.intp]:
    """Positions of the chosen pairs: least total of their costs plus `limit` for every pair that could be but is not.

    `rows`, `cols`, `costs` are (P,), one candidate pair each, in row-major order. Pairs at `limit` or above are never
    chosen.
    """
    admissible = (costs < limit).nonzero()[0]
    if admissible.size == 0:
        return admissible
    if admissible.size < rows.size:
        rows, cols, costs = rows[admissible], cols[admissible], costs[admissible]
    contested = (np.bincount(rows)[rows] > 1) | (np.bincount(cols)[cols] > 1)
    if not contested.any():
        return admissible
    part = contested.nonzero()[0]
    chosen = part[_solve(rows[part], cols[part], costs[part] - limit)]
    picked = ~contested
    picked[chosen] = True
    return admissible[picked]


def assign_then_filter(
    rows: Ints, cols: Ints, gains: Floats, good: npt.NDArray[np.bool_], shortcut: bool = True
) -> npt.NDArray[np.intp]:
    """The order of SORT: the greatest total gain first, then pairs that are not `good` fall away.

    With `shortcut`, good pairs that contest nothing among themselves are taken as they are, unsolved (as SORT and
    OC-SORT do); it gives other answers than the solver.
    """
    best = good.nonzero()[0]
    if best.size == 0:
        return best
    if shortcut and np.bincount(rows[best]).max() == 1 and np.bincount(cols[best]).max() == 1:
        return best
    chosen = assign(rows, cols, -gains, 0.0)
    return chosen[good[chosen]]


def _solve(rows: Ints, cols: Ints, costs: Floats) -> npt.NDArray[np.intp]:
    """Positions of the pairs of least total cost; costs are below zero, a pair left apart costs nothing."""
    row_names, row = np.unique(rows, return_inverse=True)
    col_names, col = np.unique(cols, return_inverse=True)
    height, width = row_names.size, col_names.size
    costs = costs + TIE * (row * width + col) / (height * width)
    if height * width <= TABLE_CELLS:
        return _solve_table(row, col, costs, height, width)
    graph = coo_array((np.ones(row.size, dtype=np.int8), (row, height + col)), shape=(height + width,) * 2)
    count, group = connected_components(graph, directed=False)
    group_of_pair = group[row]
    order = np.lexsort((costs, group_of_pair))
    starts = np.searchsorted(group_of_pair[order], np.arange(count + 1))
    rows_in = np.bincount(group[:height], minlength=count)
    cols_in = np.bincount(group[height:], minlength=count)
    star = (rows_in == 1) | (cols_in == 1)  # all its pairs share a box: the cheapest one wins
    chosen = [order[starts[:-1][star]]]
    for each in (~star).nonzero()[0]:
        part = order[starts[each] : starts[each + 1]]
        group_rows, group_row = np.unique(row[part], return_inverse=True)
        group_cols, group_col = np.unique(col[part], return_inverse=True)
        chosen.append(part[_solve_table(group_row, group_col, costs[part], group_rows.size, group_cols.size)])
    return np.sort(np.concatenate(chosen))


def _solve_table(row: Ints, col: Ints, costs: Floats, height: int, width: int) -> npt.NDArray[np.intp]:
    """One dense problem. A cell of cost zero means "left apart", so no extra rows and columns are needed for that."""
    table = np.zeros((height, width))
    table[row, col] = costs
    if height * width <= SMALL_CELLS:
        partner = np.full(height, -1)
        matched_row, matched_col = linear_sum_assignment(table)
        partner[matched_row] = matched_col
    else:
        partner = lap.lapjv(table, extend_cost=True)[1]
    return np.flatnonzero(partner[row] == col)
