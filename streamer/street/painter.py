"""One moment of the street as pixels and as masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from streamer.street import brush, figures
from streamer.street.dice import SeededDice, circle_points, mix_numbers, sine
from streamer.street.scenery import StreetProp, StreetScenery
from streamer.street.sketch import FRACTION_BITS, SketchFigure, fixed
from streamer.street.world import ObjectState, StreetWorld

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]

_DEEP, _SOFT = 0.62, 0.80  # how bright the ground is in the core and at the rim of a shadow


@dataclass(frozen=True, slots=True, eq=False)
class FigureSilhouette:
    """The whole of one thing, hidden or not: `mask` (h, w) uint8 0/1 whose left upper pixel is (`left`, `top`)."""

    mask: Mask
    left: int
    top: int


class StreetPainter:
    """Paints one world. Any moment, in any order; not for several threads at once."""

    def __init__(self, world: StreetWorld) -> None:
        self.world = world
        self.scenery = StreetScenery(world)
        self._lighting = self.scenery.lighting
        self._is_dark = world.conditions.light != "day"

    def figures(self, time_s: float) -> list[tuple[ObjectState, SketchFigure]]:
        """Whatever may be in the picture, the most distant first."""
        camera = self.world.camera
        drawn = []
        for state in self.world.at(time_s):
            figure = figures.draw_figure(state, camera)
            low, high = figure.points.min(axis=0), figure.points.max(axis=0)
            bits = FRACTION_BITS
            if high[0] >= 0 and high[1] >= 0 and low[0] >> bits <= camera.width and low[1] >> bits <= camera.height:
                drawn.append((state, figure))
        return drawn

    def paint(self, time_s: float, drawn: list[tuple[ObjectState, SketchFigure]]) -> Image:
        """The picture, (H, W, 3) BGR, of what `figures` gave for the same moment."""
        image = self._empty_street.copy()
        self._cast_shadows(image, drawn)
        stopped = self.world.stopped(time_s)
        for item, figure in self._in_order(drawn):
            if isinstance(item, StreetProp):
                self._put_figure(image, figure)
                if item.lights is not None:
                    self._put_figure(image, item.lights[stopped])
            else:
                self._put_figure(image, self._light_figure(figure, item.x, item.z))
        return self._through_lens(image, time_s)

    def labels(
        self, drawn: list[tuple[ObjectState, SketchFigure]]
    ) -> tuple[npt.NDArray[np.uint8], list[FigureSilhouette | None]]:
        """Which thing each pixel shows, (H, W): its position in `drawn` from 1, or 0; and every whole silhouette."""
        camera = self.world.camera
        labels = np.zeros((camera.height, camera.width), np.uint8)
        shapes: list[FigureSilhouette | None] = []
        for item, figure in self._in_order(drawn):
            found = brush.figure_silhouette(figure)
            label = 0
            if isinstance(item, ObjectState):
                shapes.append(None if found is None else FigureSilhouette(*found))
                label = len(shapes)
            if found is None:
                continue
            mask, left, top = found
            height, width = mask.shape
            x0, y0 = max(left, 0), max(top, 0)
            x1, y1 = min(left + width, camera.width), min(top + height, camera.height)
            if x0 < x1 and y0 < y1:
                part = mask[y0 - top : y1 - top, x0 - left : x1 - left]
                labels[y0:y1, x0:x1][part != 0] = label
        return labels, shapes

    # -- steps -----------------------------------------------------------------------------------------------------

    @cached_property
    def _empty_street(self) -> Image:
        return self.scenery.paint()

    @cached_property
    def _shaded_streets(self) -> tuple[Image, Image]:
        """The empty street in soft and in deep shadow."""
        levels = np.arange(256)
        return (
            np.asarray(cv2.LUT(self._empty_street, (levels * _SOFT).astype(np.uint8)), np.uint8),
            np.asarray(cv2.LUT(self._empty_street, (levels * _DEEP).astype(np.uint8)), np.uint8),
        )

    def _in_order(
        self, drawn: list[tuple[ObjectState, SketchFigure]]
    ) -> Iterator[tuple[ObjectState | StreetProp, SketchFigure]]:
        """Things and props together, the most distant first."""
        props = self._lit_props
        next_prop = 0
        for state, figure in drawn:
            while next_prop < len(props) and props[next_prop].z >= state.z:
                yield props[next_prop], props[next_prop].figure
                next_prop += 1
            yield state, figure
        for prop in props[next_prop:]:
            yield prop, prop.figure

    def _light_figure(self, figure: SketchFigure, x: float, z: float) -> SketchFigure:
        lighting = self._lighting
        return brush.tone_figure(figure, lighting.gains(x, z), lighting.veil(z), lighting.haze, is_dark=self._is_dark)

    @cached_property
    def _lit_props(self) -> list[StreetProp]:
        """The scenery's props in their own light, the most distant first."""
        props = []
        for x, z, figure, lights in self.scenery.props:
            lit = lights and (self._light_figure(lights[0], x, z), self._light_figure(lights[1], x, z))
            props.append(StreetProp(x, z, self._light_figure(figure, x, z), lit))
        return props

    def _put_figure(self, image: Image, figure: SketchFigure) -> None:
        brush.draw_solids(image, figure)
        if self._is_dark and figure.glows:
            brush.add_glows(image, figure, 0.55 if self.world.conditions.light == "night" else 0.3)

    def _cast_shadows(self, image: Image, drawn: list[tuple[ObjectState, SketchFigure]]) -> None:
        """Everything rests in a soft shadow; under the sun a deep one falls to one side."""
        conditions = self.world.conditions
        soft = np.zeros(image.shape[:2], np.uint8)
        sunny = conditions.light == "day" and conditions.weather == "clear"
        deep = self._prop_shadows.copy() if sunny else np.zeros(image.shape[:2], np.uint8)
        for state, _ in drawn:
            thing = state.thing
            half, wide = thing.length / 2, thing.width / 2
            if thing.kind in ("car", "bus", "robot"):
                corners = [(half, wide), (half, -wide), (-half, -wide), (-half, wide)]
            else:
                radius = 0.3 if thing.kind == "person" else half * 0.8
                corners = [(radius * c, min(radius, 0.3) * s) for c, s in circle_points(12)]
            if sunny:
                self._ground_shape(deep, state, corners, thing.height * 0.9)
            else:
                self._ground_shape(soft, state, [(x * 1.12, z * 1.25) for x, z in corners], 0.0)
                self._ground_shape(deep, state, [(x * 0.92, z * 0.9) for x, z in corners], 0.0)
        cv2.copyTo(self._shaded_streets[0], soft, image)
        cv2.copyTo(self._shaded_streets[1], deep, image)

    @cached_property
    def _prop_shadows(self) -> Mask:
        mask = np.zeros(self._empty_street.shape[:2], np.uint8)
        for prop in self.scenery.props:
            self._prop_shadow(mask, prop)
        return mask

    def _ground_shape(self, mask: Mask, state: ObjectState, corners: list[tuple[float, float]], height: float) -> None:
        sun_x, sun_z = self.world.conditions.sun
        points = [(state.x + x, 0.0, state.z + z) for x, z in corners]
        if height:
            points += [(x + sun_x * height, 0.0, z + sun_z * height) for x, _, z in points]
        pixels = fixed(self.world.camera.project(np.array(points)))
        hull = cv2.convexHull(pixels) if height else pixels
        cv2.fillPoly(mask, [hull], 255, cv2.LINE_8, FRACTION_BITS)

    def _prop_shadow(self, mask: Mask, prop: StreetProp) -> None:
        """A card's shadow is the card laid down along the sun."""
        camera = self.world.camera
        sun_x, sun_z = self.world.conditions.sun
        right, down = camera.point(prop.x, 0.0, prop.z)
        scale = camera.scale(prop.x, prop.z)
        for shape in prop.figure.shapes[:24]:
            card = prop.figure.points[shape.start : shape.stop] / (1 << FRACTION_BITS) + 0.5
            across, up = (card[:, 0] - right) / scale, (down - card[:, 1]) / scale
            ground = np.stack([prop.x + across + sun_x * up, np.zeros_like(up), prop.z + sun_z * up], axis=1)
            ground[:, 2] = np.clip(ground[:, 2], 1.0, self.world.layout.facade)
            cv2.fillPoly(mask, [fixed(camera.project(ground))], 255, cv2.LINE_8, FRACTION_BITS)

    def _through_lens(self, image: Image, time_s: float) -> Image:
        """Rain and snow, passing clouds, then what the camera adds: blur, noise, compression."""
        conditions = self.world.conditions
        height, width = image.shape[:2]
        moment = SeededDice(self.world.seed, 50, int(time_s * 1000 + 0.5))
        if conditions.weather == "rain":
            _add_falling(image, _rain_tile(height, width, self.world.seed & 3), time_s, (70.0, -900.0), height / 384)
        elif conditions.weather == "snow":
            for layer, speed in enumerate((38.0, 62.0, 95.0)):
                drift = 14.0 * (layer + 1) + 9.0 * sine(time_s * 0.13 + layer * 0.3)
                _add_falling(image, _snow_tile(height, width, layer), time_s, (drift, -speed), height / 384)
        if conditions.flicker:
            cloud = sine(time_s * 0.045 + (self.world.seed % 97) / 97) + 0.5 * sine(time_s * 0.11)
            gain = int(256 * (1.0 + conditions.flicker * cloud / 1.5))
            levels = np.minimum(np.arange(256) * gain >> 8, 255).astype(np.uint8)
            image = np.asarray(cv2.LUT(image, levels), np.uint8)
        if conditions.blur:
            image = np.asarray(cv2.GaussianBlur(image, (5, 5), conditions.blur * height / 384), np.uint8)
        if conditions.noise:
            more, less = _sensor_noise(height, width, conditions.noise)
            dy, dx = moment.whole(0, brush.NOISE_ROOM - 1), moment.whole(0, brush.NOISE_ROOM - 1)
            cv2.add(image, more[dy : dy + height, dx : dx + width], image)
            cv2.subtract(image, less[dy : dy + height, dx : dx + width], image)
        if conditions.jpeg:
            _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, conditions.jpeg])
            image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
        return image


def _add_falling(image: Image, tile: Image, time_s: float, speed: tuple[float, float], scale: float) -> None:
    """Add one layer of what falls; its tile is twice the picture each way and wraps."""
    height, width = image.shape[:2]
    dx, dy = int(speed[0] * scale * time_s) % width, int(speed[1] * scale * time_s) % height
    cv2.add(image, tile[dy : dy + height, dx : dx + width], image)


def _wrap_layer(layer: Image) -> Image:
    return np.repeat(np.tile(layer, (2, 2))[..., None], 3, axis=2)


@lru_cache(maxsize=16)
def _rain_tile(height: int, width: int, variant: int) -> Image:
    layer = np.zeros((height, width), np.uint8)
    dice = SeededDice(51, variant)
    for _ in range(230):
        x, y = dice.between(0, width), dice.between(0, height)
        length = dice.between(9, 26) * height / 384
        ends = np.array([[x, y], [x - length * 0.08, y + length]])
        cv2.polylines(layer, [fixed(ends)], False, dice.whole(14, 46), 1, cv2.LINE_AA, FRACTION_BITS)
    return _wrap_layer(layer)


@lru_cache(maxsize=16)
def _snow_tile(height: int, width: int, depth: int) -> Image:
    layer = np.zeros((height, width), np.uint8)
    dice = SeededDice(52, depth)
    for _ in range((150, 90, 36)[depth]):
        x, y = dice.between(0, width), dice.between(0, height)
        radius = (0.8, 1.3, 2.1)[depth] * dice.between(0.7, 1.2) * height / 384
        flake = np.array([(x + radius * c, y + radius * s) for c, s in circle_points(8)])
        cv2.fillPoly(layer, [fixed(flake)], (90, 120, 150)[depth], cv2.LINE_AA, FRACTION_BITS)
    return _wrap_layer(layer)


@lru_cache(maxsize=16)
def _sensor_noise(height: int, width: int, strength: int) -> tuple[Image, Image]:
    """What to add and what to take away, for noise with a spread of about `strength` grey levels."""
    tile = brush.noise_tile(height, width).astype(np.int16) - 128
    colour = np.stack([tile, np.roll(tile, 37, 0), np.roll(tile, 91, 1)], axis=2)
    levels = (colour * strength) // 37  # the tile's own spread is 37
    return np.maximum(levels, 0).astype(np.uint8), np.maximum(-levels, 0).astype(np.uint8)


def moment_seed(seed: int, index: int) -> int:
    """The seed of the world that a training sample shows."""
    return mix_numbers(seed, 60, index) >> 1
