"""Figures as lists of filled shapes: drawn once, painted in colour and as a mask from the same points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamer.street.camera import StreetCamera

Colour = tuple[int, int, int]
"""Blue, green, red, 0..255."""
Point = Sequence[float]

FRACTION_BITS = 4
"""Points are integers in sixteenths of a pixel, as OpenCV's drawing takes them."""


class SketchShape(NamedTuple):
    """A filled polygon, or an open line where `stroke_m` is not 0. Details lie on the figure and add no silhouette."""

    start: int
    stop: int
    colour: Colour
    stroke_m: float
    is_detail: bool
    is_lamp: bool


class SketchFigure(NamedTuple):
    """Shapes in pixels, in the order to paint them. `points` (N, 2) int32 in sixteenths of a pixel; `scale` in
    pixels per metre; `glows` are (x, y, radius) in pixels with the colour of their light."""

    points: npt.NDArray[np.int32]
    shapes: Sequence[SketchShape]
    scale: float
    glows: Sequence[tuple[float, float, float, Colour]] = ()


@dataclass(slots=True)
class Sketch:
    """Collects shapes in metres: (right, up) on an upright card that faces the camera, or (x, y, z) in the street."""

    points: list[Point] = field(default_factory=list)
    shapes: list[SketchShape] = field(default_factory=list)
    lamps: list[tuple[Point, float, Colour]] = field(default_factory=list)

    def fill(self, points: Sequence[Point], colour: Colour, *, is_detail: bool = False, is_lamp: bool = False) -> None:
        start = len(self.points)
        self.points.extend(points)
        self.shapes.append(SketchShape(start, len(self.points), colour, 0.0, is_detail, is_lamp))

    def stroke(self, points: Sequence[Point], colour: Colour, width: float, *, is_detail: bool = False) -> None:
        start = len(self.points)
        self.points.extend(points)
        self.shapes.append(SketchShape(start, len(self.points), colour, width, is_detail, False))

    def glow(self, point: Point, radius: float, colour: Colour) -> None:
        """A lamp that shines at night: `radius` in metres."""
        self.lamps.append((point, radius, colour))

    def card(self, camera: StreetCamera, x: float, z: float) -> SketchFigure:
        """Stand the flat sketch on the ground at (x, z), facing the camera."""
        scale = camera.scale(x, z)
        right, down = camera.point(x, 0.0, z)
        flat = np.array(self.points, np.float64)
        pixels = np.empty_like(flat)
        pixels[:, 0] = right + flat[:, 0] * scale
        pixels[:, 1] = down - flat[:, 1] * scale
        glows = [(right + p[0] * scale, down - p[1] * scale, radius * scale, c) for p, radius, c in self.lamps]
        return SketchFigure(fixed(pixels), self.shapes, scale, glows)

    def solid(self, camera: StreetCamera, x: float, z: float) -> SketchFigure:
        """The sketch of street points, whose middle is at (x, z)."""
        pixels = camera.project(np.array(self.points, np.float64))
        scale = camera.scale(x, z)
        glows = [(*camera.point(*point), radius * scale, colour) for point, radius, colour in self.lamps]
        return SketchFigure(fixed(pixels), self.shapes, scale, glows)


def fixed(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Pixels to sixteenths. A pixel's centre is at its integer coordinates for OpenCV, at a half for us."""
    sixteenths: npt.NDArray[np.int32] = np.floor((pixels - 0.5) * (1 << FRACTION_BITS) + 0.5).astype(np.int32)
    return sixteenths


def shade(colour: Colour, factor: float) -> Colour:
    """Lighter above 1, darker below."""
    blue, green, red = colour
    return min(255, int(blue * factor)), min(255, int(green * factor)), min(255, int(red * factor))


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """`share` 0 gives the first colour, 1 the second."""
    return (
        int(first[0] + (second[0] - first[0]) * share),
        int(first[1] + (second[1] - first[1]) * share),
        int(first[2] + (second[2] - first[2]) * share),
    )
