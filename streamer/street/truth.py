"""What is exactly known about a frame of the street, and about what happens in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from streamer.street.camera import StreetCamera
from streamer.street.world import ObjectState, StreetObject, StreetWorld

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels; the last row and column lie just outside."""


@dataclass(frozen=True, slots=True, eq=False)
class SeenObject:
    """One thing in one frame.

    `box` holds its visible pixels; `full_box` the whole of it, hidden parts and parts outside the picture included.
    `visibility` is the share of the whole that is seen (0..1), `area` the number of visible pixels, `depth` metres
    from the camera, `order` its place from the nearest (0) on. `foot` is where it touches the ground: the bottom
    centre of its box inside the picture, in fractions of it, smooth over time. `patch` is its visible mask inside
    `box`.
    """

    thing: StreetObject
    box: Box
    full_box: Box
    visibility: float
    area: int
    depth: float
    order: int
    foot: tuple[float, float]
    moves: bool
    patch: npt.NDArray[np.bool_]
    size: tuple[int, int]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Its visible pixels in the whole picture, (H, W)."""
        mask = np.zeros((self.size[1], self.size[0]), np.bool_)
        x1, y1, x2, y2 = self.box
        mask[y1:y2, x1:x2] = self.patch
        return mask

    @property
    def middle(self) -> float:
        """Where its box is from left (0) to right (1)."""
        return (self.box[0] + self.box[2]) / 2 / self.size[0]


@dataclass(frozen=True, slots=True, eq=False)
class StreetTruth:
    """Everything in one frame. `seen` has visible pixels, the nearest first; `hidden` is in the picture, but wholly
    covered by nearer things."""

    index: int
    time_s: float
    size: tuple[int, int]
    seen: tuple[SeenObject, ...]
    hidden: tuple[SeenObject, ...] = ()


@dataclass(frozen=True, slots=True)
class StreetEvent:
    """Something that happens at `time_s`, between frames as exactly as on them. `visibility` is that of the thing in
    the nearest frame: hidden objects cannot be detected."""

    time_s: float
    type: Literal["line.cross", "zone.enter", "zone.exit"]
    identity: int
    kind: str
    place: str
    direction: Literal["in", "out"] | None = None
    visibility: float = 1.0


def foot_point(state: ObjectState, camera: StreetCamera) -> tuple[float, float] | None:
    """The bottom centre of the thing's box inside the picture, in fractions of it; None where it is outside.

    The box is that of the solid the thing fits in, so that swinging legs do not shake it.
    """
    thing = state.thing
    half = thing.length / 2
    near, far = state.z, state.z
    if thing.kind in ("car", "bus", "robot"):
        near, far = state.z - thing.width / 2, state.z + thing.width / 2
    elif thing.kind == "person":
        half = thing.height * 0.14
    corners = [camera.point(state.x + side * half, 0.0, z) for side in (-1.0, 1.0) for z in (near, far)]
    high = min(camera.point(state.x, thing.height, z)[1] for z in (near, far))
    left, right = min(x for x, _ in corners), max(x for x, _ in corners)
    low = max(y for _, y in corners)
    left, right = max(left, 0.0), min(right, float(camera.width))
    if left >= right or high >= camera.height or low <= 0:
        return None
    return (left + right) / 2 / camera.width, min(low, float(camera.height)) / camera.height


Point = tuple[float, float]
Place = Sequence[Sequence[float]]


@dataclass
class TruthWatch:
    """Finds the moments at which feet cross lines and the edges of zones, each by bisection to a microsecond.

    Geometry is that of `streamer.rules`: fractions of the frame; `in` is from the left to the right of someone who
    walks the line from its first to its second point.
    """

    world: StreetWorld
    lines: Mapping[str, Place] = field(default_factory=dict)
    zones: Mapping[str, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from streamer.rules.geometry import polygon, segment

        self._ends: dict[str, list[Point]] = {}
        self._corners: dict[str, list[Point]] = {}
        for name, points in self.lines.items():
            segment(name, points)  # raises on what is no line
            self._ends[name] = [(x, y) for x, y in points]
        for name, points in self.zones.items():
            polygon(name, points)
            self._corners[name] = [(x, y) for x, y in points]

    def between(self, start_s: float, end_s: float, step_s: float = 0.04) -> list[StreetEvent]:
        """What happens from `start_s` to `end_s`. Whatever is back where it was within `step_s` is not noticed."""
        events: list[StreetEvent] = []
        steps = max(1, round((end_s - start_s) / step_s))
        before = self._foot_points(start_s)
        for step in range(1, steps + 1):
            earlier, later = start_s + (step - 1) * step_s, start_s + step * step_s
            now = self._foot_points(later)
            for identity in before.keys() | now.keys():
                events += self._foot_changes(identity, before.get(identity), now.get(identity), earlier, later)
            before = now
        return sorted(events, key=lambda event: (event.time_s, event.identity, event.place))

    def _foot_points(self, time_s: float) -> dict[int, tuple[Point, StreetObject]]:
        feet = {}
        for state in self.world.at(time_s):
            point = foot_point(state, self.world.camera)
            if point is not None:
                feet[state.thing.identity] = point, state.thing
        return feet

    def _foot_changes(
        self,
        identity: int,
        before: tuple[Point, StreetObject] | None,
        now: tuple[Point, StreetObject] | None,
        earlier: float,
        later: float,
    ) -> list[StreetEvent]:
        found: list[StreetEvent] = []
        _, thing = now or before or (None, None)
        assert thing is not None
        start, end = before and before[0], now and now[0]
        for name in self._ends:
            was, is_now = self._right_of_line(name, start), self._right_of_line(name, end)
            if start is not None and end is not None and was != is_now and self._crosses_line(name, start, end):
                when = self._change_time(identity, partial(self._right_of_line, name), was, earlier, later)
                found.append(StreetEvent(when, "line.cross", identity, thing.kind, name, "in" if is_now else "out"))
        for name in self._corners:
            within, remains = self._inside_zone(name, start), self._inside_zone(name, end)
            if within != remains:
                when = self._change_time(identity, partial(self._inside_zone, name), within, earlier, later)
                found.append(StreetEvent(when, "zone.enter" if remains else "zone.exit", identity, thing.kind, name))
        return found

    def _right_of_line(self, name: str, point: Point | None) -> bool:
        """Whether the point lies to the right of the line."""
        (x0, y0), (x1, y1) = self._ends[name]
        return point is not None and (x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0) > 0

    def _crosses_line(self, name: str, start: Point, end: Point) -> bool:
        """Whether a way that changes sides passes between the line's ends."""
        way_x, way_y = end[0] - start[0], end[1] - start[1]
        first, second = (way_x * (y - start[1]) - way_y * (x - start[0]) for x, y in self._ends[name])
        return first * second <= 0

    def _inside_zone(self, name: str, point: Point | None) -> bool:
        """Whether the point lies in the zone, by the even-odd rule."""
        if point is None:
            return False
        x, y = point
        corners = self._corners[name]
        is_inside = False
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if (y0 > y) != (y1 > y) and x < x0 + (x1 - x0) * (y - y0) / (y1 - y0):
                is_inside = not is_inside
        return is_inside

    def _change_time(
        self, identity: int, state_of: Callable[[Point | None], bool], was: bool, earlier: float, later: float
    ) -> float:
        """The moment between two at which `state_of` the foot is no longer what it `was`."""
        while later - earlier > 1e-6:
            middle = (earlier + later) / 2
            here = self._foot_points(middle).get(identity)
            if state_of(here and here[0]) == was:
                earlier = middle
            else:
                later = middle
        return later
