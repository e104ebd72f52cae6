"""Points, polygons and lines in fractions of the frame: x to the right, y down, both 0..1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamer.errors import ConfigError
from streamer.rules.rule import Bools, Floats


def polygon(name: str, points: Sequence[Sequence[float]]) -> Floats:
    """The corners (P, 2) of a zone. Raises `ConfigError` for fewer than three, for a point outside the frame, and for
    a polygon without area."""
    if len(points) < 3:
        raise ConfigError(f"zone {name!r} has {len(points)} point{'s' * (len(points) != 1)}: a zone needs at least 3")
    corners = _points(f"zone {name!r}", points)
    x, y = corners.T
    if abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) < 1e-9:
        raise ConfigError(f"zone {name!r} has no area: its points lie on one line")
    return corners


def segment(name: str, points: Sequence[Sequence[float]]) -> Floats:
    """The ends (2, 2) of a line. Raises `ConfigError` for another number of points, for a point outside the frame, and
    for a line without length."""
    if len(points) != 2:
        raise ConfigError(f"line {name!r} has {len(points)} points: a line goes from one point to another")
    ends = _points(f"line {name!r}", points)
    if np.hypot(*(ends[1] - ends[0])) < 1e-6:
        raise ConfigError(f"line {name!r} begins and ends at the same point")
    return ends


def _points(owner: str, points: Sequence[Sequence[float]]) -> Floats:
    for point in points:
        if len(point) != 2 or not all(0.0 <= value <= 1.0 for value in point):
            raise ConfigError(
                f"{owner} has the point {list(point)}: give x and y as fractions of the frame, 0 to 1 from the top left"
            )
    return np.asarray(points, np.float64)


class Inside:
    """Tells which points lie inside the polygon `corners` (P, 2), by the even-odd rule."""

    def __init__(self, corners: Floats) -> None:
        following = np.roll(corners, -1, axis=0)
        self._x, self._y = corners.T
        self._next_y = following[:, 1]
        rise = self._next_y - self._y
        # A level edge is never straddled, so its slope is never looked at.
        self._slope = (following[:, 0] - self._x) / np.where(rise == 0, 1.0, rise)

    def __call__(self, points: Floats) -> Bools:
        """`points` (N, 2) -> (N,)."""
        x, y = points[:, :1], points[:, 1:]
        straddled = (self._y > y) != (self._next_y > y)  # (N, P)
        left_of = x < self._x + self._slope * (y - self._y)
        result: Bools = np.bitwise_xor.reduce(straddled & left_of, axis=1)
        return result


def signed_distance(points: Floats, ends: Floats) -> Floats:
    """Distance (N,) of `points` (N, 2) from the infinite line through `ends`, positive on its right.

    Right as seen by someone who walks from the first end to the second in the picture, where y points down.
    """
    along = ends[1] - ends[0]
    offset = points - ends[0]
    distance: Floats = (along[0] * offset[:, 1] - along[1] * offset[:, 0]) / np.hypot(*along)
    return distance


def crosses_within(before: Floats, after: Floats, ends: Floats) -> bool:
    """Whether the way from `before` (2,) to `after` (2,), which changes sides, passes between the two ends."""
    way = after - before
    first, second = ends[0] - before, ends[1] - before
    return bool((way[0] * first[1] - way[1] * first[0]) * (way[0] * second[1] - way[1] * second[0]) <= 0)
