"""Geometry of zones and lines in fractions of the frame: x to the right, y down, both 0..1.

Zones are closed sets: a point on an edge or a corner is inside, also at 0 and 1 exactly, so that two zones with a
common edge both contain the points on it. The edge of a hole belongs to the zone around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from streamer.errors import ConfigError
from streamer.rules.rule import Bools, Floats

EDGE = 1e-9
"""Distance, in fractions of the frame, up to which a point lies on an edge: rounding of float64 stays far below."""
LEAST_ROOM = 0.002
"""Distance between a line and the edge of the frame below which no track can be seen on that side."""
GRID = 200
"""Points in each direction by which areas are compared."""

Points = Sequence[Sequence[float]]


def polygon(name: str, points: Points) -> Floats:
    """Corners (P, 2) of a zone, without repeated ones.

    Raises `ConfigError` for fewer than three corners, for a point outside the frame, for a polygon without area, and
    for one whose edges cross or touch each other; the message names the two edges.
    """
    corners = _distinct(_checked_points(name, points))
    if len(corners) < 3:
        raise ConfigError(
            f"{name} has {len(corners)} different point{'s' * (len(corners) != 1)}: a polygon needs at least 3"
        )
    if _spread(corners) < EDGE:
        raise ConfigError(f"{name} has no area: its points lie on one line: move at least one of them")
    _refuse_crossings(name, corners)
    return corners


def segment(name: str, points: Points) -> Floats:
    """Ends (2, 2) of a line. Raises `ConfigError` for another number of points, a point outside the frame, a line
    without length, and a line along the edge of the frame, which no visible point can cross."""
    if len(points) != 2:
        raise ConfigError(f"{name} has {len(points)} point{'s' * (len(points) != 1)}: a line has 2, its two ends")
    ends = _checked_points(name, points)
    if np.hypot(*(ends[1] - ends[0])) < 1e-6:
        raise ConfigError(f"{name} begins and ends at the same point: move one of its ends")
    if min(room_beside(ends)) < LEAST_ROOM:
        raise ConfigError(
            f"{name} lies on the edge of the frame, where nothing can cross it: move it away from the edge by at "
            f"least {LEAST_ROOM:g} of the frame"
        )
    return ends


def room_beside(ends: Floats) -> tuple[float, float]:
    """Greatest distances from the line to the edge of the frame, to its left and to its right."""
    normal = _right_normal(ends)
    starts = [ends[0] + share * (ends[1] - ends[0]) for share in (0.0, 0.5, 1.0)]
    return max(_reach(start, -normal) for start in starts), max(_reach(start, normal) for start in starts)


def _reach(start: Floats, direction: Floats) -> float:
    """Length of the ray from `start` along the unit vector `direction` to the edge of the frame."""
    lengths = [
        ((1.0 if step > 0 else 0.0) - at) / step
        for at, step in zip(start.tolist(), direction.tolist(), strict=True)
        if abs(step) > 1e-12
    ]
    return max(0.0, float(min(lengths)))


def _right_normal(ends: Floats) -> Floats:
    along = (ends[1] - ends[0]) / np.hypot(*(ends[1] - ends[0]))
    return np.array([-along[1], along[0]])


def _checked_points(name: str, points: Points) -> Floats:
    for point in points:
        if len(point) != 2 or not all(0.0 <= value <= 1.0 for value in point):
            raise ConfigError(
                f"{name} has the point {list(point)}: give x and y as fractions of the frame, 0 to 1 from the top left"
            )
    return np.asarray(points, np.float64).reshape(-1, 2)


def _distinct(corners: Floats) -> Floats:
    """Without corners that repeat the one before, the last and the first included."""
    if len(corners) < 2:
        return corners
    apart = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1) > EDGE
    return corners[apart] if apart.any() else corners[:1]


def _spread(corners: Floats) -> float:
    """Greatest distance of a corner from the line through the first corner and the one farthest from it."""
    offsets = corners - corners[0]
    lengths = np.hypot(offsets[:, 0], offsets[:, 1])
    far = offsets[int(lengths.argmax())]
    return float(np.abs(far[0] * offsets[:, 1] - far[1] * offsets[:, 0]).max() / max(float(lengths.max()), EDGE))


def _refuse_crossings(name: str, corners: Floats) -> None:
    count = len(corners)
    following = np.roll(corners, -1, axis=0)
    for first in range(count):
        for second in range(first + 1, count):
            is_next = second == first + 1
            if is_next or (first == 0 and second == count - 1):
                shared, a, b = (second, first, (second + 1) % count) if is_next else (first, second, first + 1)
                if not _folds_back(corners[a], corners[shared], corners[b]):
                    continue
                how = "run over each other"
            elif _segments_meet(corners[first], following[first], corners[second], following[second]):
                how = "cross each other"
            else:
                continue
            raise ConfigError(
                f"{name}: its edges {first + 1} ({_edge_text(corners[first], following[first])}) and {second + 1} "
                f"({_edge_text(corners[second], following[second])}) {how}: give the corners in their order around the "
                "area"
            )


def _edge_text(start: Floats, end: Floats) -> str:
    return f"{start[0]:g},{start[1]:g} to {end[0]:g},{end[1]:g}"


def _turn(a: Floats, b: Floats, c: Floats) -> float:
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


def _folds_back(before: Floats, corner: Floats, after: Floats) -> bool:
    """Whether the polygon turns by 180 degrees at the corner."""
    length = math.hypot(*(before - corner)) * math.hypot(*(after - corner))
    is_straight = abs(_turn(corner, before, after)) <= EDGE * max(length, EDGE)
    return is_straight and float(np.dot(before - corner, after - corner)) > 0


def _segments_meet(a: Floats, b: Floats, c: Floats, d: Floats) -> bool:
    """Whether the segments a-b and c-d have a common point."""
    sides = [_sign(_turn(a, b, c)), _sign(_turn(a, b, d)), _sign(_turn(c, d, a)), _sign(_turn(c, d, b))]
    if sides[0] != sides[1] and sides[2] != sides[3] and 0 not in sides:
        return True
    ends = ((sides[0], a, b, c), (sides[1], a, b, d), (sides[2], c, d, a), (sides[3], c, d, b))
    return any(side == 0 and _is_between(start, end, point) for side, start, end, point in ends)


def _sign(value: float) -> int:
    return 0 if abs(value) <= EDGE * EDGE else int(math.copysign(1, value))


def _is_between(start: Floats, end: Floats, point: Floats) -> bool:
    low, high = np.minimum(start, end) - EDGE, np.maximum(start, end) + EDGE
    return bool((point >= low).all() and (point <= high).all())


class Inside:
    """Test of points against the closed polygon `corners` (P, 2)."""

    def __init__(self, corners: Floats) -> None:
        following = np.roll(corners, -1, axis=0)
        self._x, self._y = corners.T
        self._next_y = following[:, 1]
        rise = self._next_y - self._y
        # Only points on the edge itself are between the two ends of a level edge: its slope does not matter.
        self._slope = (following[:, 0] - self._x) / np.where(np.abs(rise) < EDGE * EDGE, 1.0, rise)
        self._along = following - corners
        self._length2 = np.maximum((self._along**2).sum(axis=1), EDGE * EDGE)
        self._corners = corners

    def __call__(self, points: Floats) -> Bools:
        """`points` (N, 2) -> (N,) whether each is inside or on an edge."""
        result: Bools = self.within(points) | self.on_edge(points)
        return result

    def within(self, points: Floats) -> Bools:
        """(N,) by the even-odd rule; either result is possible for points on an edge."""
        x, y = points[:, :1], points[:, 1:]
        straddled = (self._y > y) != (self._next_y > y)  # (N, P)
        left_of = x < self._x + self._slope * (y - self._y)
        result: Bools = np.bitwise_xor.reduce(straddled & left_of, axis=1)
        return result

    def on_edge(self, points: Floats) -> Bools:
        """(N,) whether each point lies on an edge or a corner."""
        offset = points[:, None] - self._corners  # (N, P, 2)
        share = np.clip((offset * self._along).sum(axis=2) / self._length2, 0.0, 1.0)
        apart = offset - share[:, :, None] * self._along
        result: Bools = (np.abs(apart).max(axis=2) <= EDGE).any(axis=1)
        return result


def _grid_over(corners: Floats) -> Floats:
    """(N, 2) points spread evenly over the box around corners."""
    steps = (np.arange(GRID) + 0.5) / GRID
    low, high = corners.min(axis=0), corners.max(axis=0)
    x, y = np.meshgrid(*(low[:, None] + steps * (high - low)[:, None]))
    return np.column_stack([x.ravel(), y.ravel()])


class Region:
    """Closed polygon with holes: the area of a zone, or of a mask that hides a part of the frame."""

    def __init__(self, name: str, points: Points, holes: Sequence[Points] = ()) -> None:
        self.corners = polygon(name, points)
        self.holes = tuple(polygon(f"hole {number} of {name}", hole) for number, hole in enumerate(holes, 1))
        self._inside = Inside(self.corners)
        self._holes = tuple(Inside(hole) for hole in self.holes)
        for number, (hole, inside) in enumerate(zip(self.holes, self._holes, strict=True), 1):
            area = _grid_over(hole)
            if not (self._inside(hole).all() and self._inside(area[inside.within(area)]).all()):
                raise ConfigError(f"hole {number} of {name} reaches outside of it: move its corners inside")
        if self.holes and not self(_grid_over(self.corners)).any():
            raise ConfigError(f"the holes of {name} leave no area of it: make them smaller, or leave the zone out")

    def __call__(self, points: Floats) -> Bools:
        """`points` (N, 2) -> (N,) whether each is inside."""
        inside = self._inside(points)
        for hole in self._holes:
            inside &= ~hole.within(points) | hole.on_edge(points)
        return inside


def signed_distance(points: Floats, ends: Floats) -> Floats:
    """Distances (...) of `points` (..., 2) from the infinite line through `ends`, positive on its right.

    Right as seen from the first end towards the second in the picture, where y points down.
    """
    distance: Floats = (points - ends[0]) @ _right_normal(ends)
    return distance


def crosses_within(before: Floats, after: Floats, ends: Floats) -> bool:
    """Whether the way from `before` (2,) to `after` (2,), which changes sides, passes between the two ends."""
    way = after - before
    first, second = ends[0] - before, ends[1] - before
    return bool((way[0] * first[1] - way[1] * first[0]) * (way[0] * second[1] - way[1] * second[0]) <= 0)
