"""Putting figures onto pixels with OpenCV."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from streamer.street.dice import noise_bytes
from streamer.street.sketch import FRACTION_BITS, Colour, SketchFigure, SketchShape

Image = npt.NDArray[np.uint8]


class HazeLayer(Protocol):
    """What lies over colours that shine by themselves."""

    @property
    def haze(self) -> Colour: ...
    @property
    def haze_share(self) -> float: ...


def draw_solids(image: Image, figure: SketchFigure) -> None:
    """Every shape in its own colour."""
    for shape in figure.shapes:
        points = figure.points[shape.start : shape.stop]
        if shape.stroke_m:
            thickness = max(1, int(shape.stroke_m * figure.scale + 0.5))
            cv2.polylines(image, [points], False, shape.colour, thickness, cv2.LINE_AA, FRACTION_BITS)
        else:
            cv2.fillPoly(image, [points], shape.colour, cv2.LINE_AA, FRACTION_BITS)


def tone_figure(
    figure: SketchFigure, gains: tuple[float, float, float], veil: float, haze: Colour, *, is_dark: bool
) -> SketchFigure:
    """The figure as the light at its place and the haze before it show it; lamps shine when it `is_dark`."""
    clear = 1.0 - veil
    blue, green, red = (gain * clear for gain in gains)
    add_blue, add_green, add_red = (part * veil for part in haze)
    tones: dict[tuple[Colour, bool], Colour] = {}
    shapes = []
    for start, stop, colour, stroke_m, is_detail, is_lamp in figure.shapes:
        tone = tones.get((colour, is_lamp))
        if tone is None:
            b, g, r = colour
            if is_lamp and is_dark:
                tone = int(b * clear + add_blue), int(g * clear + add_green), int(r * clear + add_red)
            else:
                tone = int(b * blue + add_blue), int(g * green + add_green), int(r * red + add_red)
            tone = tones[colour, is_lamp] = min(tone[0], 255), min(tone[1], 255), min(tone[2], 255)
        shapes.append(SketchShape(start, stop, tone, stroke_m, is_detail, is_lamp))
    return figure._replace(shapes=shapes)


def draw_lamps(image: Image, figure: SketchFigure, light: HazeLayer) -> None:
    """Only the shapes that shine by themselves, over a picture that has been darkened."""
    share = light.haze_share
    for shape in figure.shapes:
        if shape.is_lamp:
            b, g, r = (
                int(part * (1 - share) + mist * share) for part, mist in zip(shape.colour, light.haze, strict=True)
            )
            cv2.fillPoly(image, [figure.points[shape.start : shape.stop]], (b, g, r), cv2.LINE_AA, FRACTION_BITS)


def add_glows(image: Image, figure: SketchFigure, strength: float) -> None:
    """Light around lamps, added to what is there."""
    height, width = image.shape[:2]
    for x, y, radius, (blue, green, red) in figure.glows:
        reach = int(radius)
        if reach < 2:
            continue
        left, top = int(x) - reach, int(y) - reach
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * reach, width), min(top + 2 * reach, height)
        if x0 >= x1 or y0 >= y1:
            continue
        disc = _soft_disc(reach)[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.uint16)
        power = int(strength * 256)
        light = np.stack([(disc * (part * power >> 8)) >> 8 for part in (blue, green, red)], axis=2).astype(np.uint8)
        region = image[y0:y1, x0:x1]
        cv2.add(region, light, region)


@lru_cache(maxsize=256)
def _soft_disc(radius: int) -> Image:
    """A soft round light of 2·radius pixels a side, brightest in the middle."""
    steps = np.arange(-radius, radius, dtype=np.int64) * 2 + 1
    square = steps[:, None] ** 2 + steps[None, :] ** 2  # in half pixels
    fall = np.maximum(0, 256 - square * 64 // (radius * radius))
    disc: Image = np.clip(fall * fall * fall >> 16, 0, 255).astype(np.uint8)
    return disc


def figure_silhouette(figure: SketchFigure) -> tuple[npt.NDArray[np.uint8], int, int] | None:
    """The figure as a mask, with the pixel of its left upper corner; it may reach beyond the picture.

    (h, w) uint8, 1 where the figure is. None where there is nothing of it.
    """
    pad = 2
    low = figure.points.min(axis=0) >> FRACTION_BITS
    high = figure.points.max(axis=0) >> FRACTION_BITS
    left, top = int(low[0]) - pad, int(low[1]) - pad
    width, height = int(high[0]) - left + pad + 2, int(high[1]) - top + pad + 2
    mask = np.zeros((height, width), np.uint8)
    points = figure.points - (np.array([left, top], np.int32) << FRACTION_BITS)
    for shape in figure.shapes:
        if shape.is_detail:
            continue
        part = points[shape.start : shape.stop]
        if shape.stroke_m:
            thickness = max(1, int(shape.stroke_m * figure.scale + 0.5))
            cv2.polylines(mask, [part], False, 1, thickness, cv2.LINE_8, FRACTION_BITS)
        else:
            cv2.fillPoly(mask, [part], 1, cv2.LINE_8, FRACTION_BITS)
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return None
    return mask[y : y + h, x : x + w], left + x, top + y


NOISE_ROOM = 64


@lru_cache(maxsize=4)
def noise_tile(height: int, width: int) -> Image:
    """Bytes with a bell-shaped spread about 128, the mean of four uniform ones, `NOISE_ROOM` larger each way."""
    height, width = height + NOISE_ROOM, width + NOISE_ROOM
    layers = noise_bytes(99, height * 4, width).reshape(4, height, width)
    total: Image = (layers.astype(np.uint16).sum(axis=0) >> 2).astype(np.uint8)
    return total
