"""What never moves: sky, houses, ground, trees, lamps, benches, the signal; and how light and haze lie over it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamer.street.dice import SeededDice, circle_points
from streamer.street.sketch import Colour, Point, Sketch, SketchFigure, blend, shade
from streamer.street.world import SceneConditions, StreetLayout, StreetWorld

Gains = tuple[float, float, float]
"""Factors for blue, green and red."""

_AMBIENT: dict[str, Gains] = {"day": (1.0, 1.0, 1.0), "dusk": (0.68, 0.68, 0.82), "night": (0.40, 0.33, 0.30)}
_LAMP: dict[str, Gains] = {"day": (0.0, 0.0, 0.0), "dusk": (0.10, 0.18, 0.22), "night": (0.34, 0.50, 0.58)}
_HAZE: dict[str, Colour] = {"day": (216, 213, 210), "dusk": (150, 150, 176), "night": (72, 64, 60)}
_SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((226, 172, 112), (246, 228, 206)),
    "dusk": ((150, 98, 88), (120, 160, 238)),
    "night": ((46, 30, 20), (84, 62, 46)),
}
_WALLS: tuple[Colour, ...] = (
    (176, 196, 214), (150, 178, 206), (196, 204, 208), (132, 160, 196),
    (188, 200, 186), (204, 196, 184), (116, 134, 168), (170, 186, 224),
)  # fmt: skip
_AWNINGS: tuple[Colour, ...] = ((72, 72, 178), (92, 120, 70), (150, 96, 60), (60, 150, 200), (110, 84, 120))


class StreetProp(NamedTuple):
    """A standing piece of scenery: its place decides what it hides. A signal has lights for rolling and for stopped
    traffic."""

    x: float
    z: float
    figure: SketchFigure
    lights: tuple[SketchFigure, SketchFigure] | None = None


@dataclass
class StreetLighting:
    """How bright a place is and how much haze lies before it."""

    conditions: SceneConditions
    layout: StreetLayout
    lamps: tuple[tuple[float, float], ...]

    @cached_property
    def ambient(self) -> Gains:
        blue, green, red = _AMBIENT[self.conditions.light]
        if self.conditions.weather == "clear":
            return blue, green, red
        return blue * 0.90, green * 0.88, red * 0.86

    @property
    def haze(self) -> Colour:
        return _HAZE[self.conditions.light]

    @property
    def haze_share(self) -> float:
        """How much of the haze's colour hides the houses on the far side."""
        weather = self.conditions.weather
        return {"clear": 0.04, "rain": 0.18, "snow": 0.22}.get(weather, self.conditions.haze)

    def gains(self, x: float, z: float) -> Gains:
        pool = sum(1.0 / (1.0 + ((x - lamp_x) ** 2 + (z - lamp_z) ** 2) / 9.0) for lamp_x, lamp_z in self.lamps)
        pool = min(pool, 1.4)
        blue, green, red = _LAMP[self.conditions.light]
        return self.ambient[0] + blue * pool, self.ambient[1] + green * pool, self.ambient[2] + red * pool

    def veil(self, z: float) -> float:
        """The share of haze in front of distance `z`."""
        return min(self.haze_share * z / self.layout.facade, 0.95)


class StreetScenery:
    """Paints the empty street once; gives the standing props to be painted among the things."""

    def __init__(self, world: StreetWorld) -> None:
        self.world = world
        self.camera, self.layout, self.conditions = world.camera, world.layout, world.conditions
        self._dice = SeededDice(world.seed, 40)
        self.lighting = StreetLighting(self.conditions, self.layout, self._lamp_places())
        self.props = tuple(self._build_props())

    def _lamp_places(self) -> tuple[tuple[float, float], ...]:
        layout = self.layout
        dice = SeededDice(self.world.seed, 41)
        places = []
        for z, pitch in ((layout.far[0] + 0.25, 12.0), (layout.near[1] - 0.2, 16.0)):
            left, right = self.camera.reach(z)
            start = dice.between(0.0, pitch)
            first = int((left - start - 4.0) // pitch)
            places += [
                (start + pitch * k, z) for k in range(first, int((right - start + 4.0) // pitch) + 1)
                if abs(start + pitch * k - layout.crossing) > 1.0
            ]  # fmt: skip
        return tuple(places)

    # -- the empty street ------------------------------------------------------------------------------------------

    def paint(self) -> npt.NDArray[np.uint8]:
        """The street without anything that stands or moves, (H, W, 3) BGR."""
        import cv2

        from streamer.street.brush import draw_lamps, draw_solids

        camera = self.camera
        image = self._paint_sky()
        ground, walls = Sketch(), Sketch()
        self._paint_houses(walls)
        self._paint_ground(ground)
        house_figure = walls.solid(camera, 0.0, self.layout.facade)
        draw_solids(image, house_figure)
        ground_figure = ground.solid(camera, 0.0, self.layout.near[0])
        draw_solids(image, ground_figure)
        self._add_grain(image)
        image = self._lay_light(image)
        draw_lamps(image, house_figure, self.lighting)
        return np.asarray(cv2.GaussianBlur(image, (3, 3), 0.45), np.uint8)

    def _paint_sky(self) -> npt.NDArray[np.uint8]:
        camera, conditions = self.camera, self.conditions
        high, low = _SKY[conditions.light]
        if conditions.weather != "clear":
            grey = {"day": (206, 202, 198), "dusk": (140, 132, 138), "night": (52, 44, 40)}[conditions.light]
            high, low = blend(high, grey, 0.85), blend(low, grey, 0.75)
        rows = np.arange(camera.height, dtype=np.int64)[:, None]
        reach = max(int(camera.horizon), 1)
        share = np.minimum(rows * 256 // reach, 256)
        columns = (np.array(high) * (256 - share) + np.array(low) * share) >> 8  # (H, 3)
        image: npt.NDArray[np.uint8] = np.repeat(columns.astype(np.uint8)[:, None, :], camera.width, axis=1)
        return np.ascontiguousarray(image)

    def _ground_strip(self, sketch: Sketch, z0: float, z1: float, colour: Colour, y: float = 0.0) -> None:
        (left0, right0), (left1, right1) = self.camera.reach(z0), self.camera.reach(z1)
        sketch.fill([(left0 - 2, y, z0), (right0 + 2, y, z0), (right1 + 2, y, z1), (left1 - 2, y, z1)], colour)

    def _paint_ground(self, sketch: Sketch) -> None:
        layout, dice = self.layout, SeededDice(self.world.seed, 42)
        snow = self.conditions.weather == "snow"
        wet = self.conditions.weather == "rain"
        slab = dice.pick(((176, 184, 190), (164, 168, 172), (150, 166, 184)))
        asphalt = dice.pick(((92, 88, 86), (104, 100, 98), (84, 82, 82)))
        lane = dice.pick(((88, 84, 128), (96, 116, 88), asphalt))
        if snow:
            slab, asphalt, lane = (
                blend(slab, (246, 244, 242), 0.75),
                blend(asphalt, (226, 222, 218), 0.45),
                blend(lane, (226, 222, 218), 0.45),
            )
        if wet:
            slab, asphalt, lane = shade(slab, 0.8), shade(asphalt, 0.74), shade(lane, 0.78)
        paint = (226, 228, 228)
        near_kerb, far_kerb = layout.kerbs
        self._ground_strip(sketch, far_kerb, layout.facade + 0.1, slab)
        self._ground_strip(sketch, near_kerb, far_kerb, asphalt)
        self._ground_strip(sketch, near_kerb + 0.1, near_kerb + 1.75, lane)
        self._ground_strip(sketch, layout.near[0] * 0.6, near_kerb, slab)
        self._wheel_tracks(sketch, asphalt)
        joints = shade(slab, 0.88)
        for low, high in (layout.near[0] - 1.2, near_kerb), (far_kerb, layout.facade):
            steps = max(2, round((high - low) / 0.9))
            for k in range(1, steps):
                z = low + (high - low) * k / steps
                left, right = self.camera.reach(z)
                sketch.stroke([(left - 1, 0.0, z), (right + 1, 0.0, z)], joints, 0.015)
            left, right = self.camera.reach(high)
            for k in range(int(left // 1.2) - 1, int(right // 1.2) + 2):
                sketch.stroke([(k * 1.2, 0.0, low), (k * 1.2, 0.0, high)], joints, 0.015)
        stone = shade(slab, 1.08)
        self._ground_strip(sketch, near_kerb - 0.16, near_kerb, stone)
        self._ground_strip(sketch, near_kerb, near_kerb + 0.1, shade(asphalt, 0.7))
        self._ground_strip(sketch, far_kerb, far_kerb + 0.16, stone)
        self._ground_strip(sketch, far_kerb - 0.08, far_kerb, shade(slab, 0.62))
        middle = (layout.lanes[0] + layout.lanes[1]) / 2
        bay = layout.parking - 1.2
        for z, length, pitch in ((middle, 2.0, 4.0), (near_kerb + 1.82, 40.0, 40.0)):
            left, right = self.camera.reach(z)
            for k in range(int(left // pitch) - 1, int(right // pitch) + 2):
                self._mend_patch(sketch, k * pitch, k * pitch + length, z - 0.06, z + 0.06, paint)
        left, right = self.camera.reach(bay)
        for k in range(int(left // 6.2) - 1, int(right // 6.2) + 2):
            x = k * 6.2 + 3.1
            if abs(x - layout.crossing) > 3.0:
                self._mend_patch(sketch, x - 0.05, x + 0.05, bay, far_kerb - 0.1, paint)
                self._mend_patch(sketch, x - 0.9, x + 0.9, bay - 0.05, bay + 0.05, paint)
        stripes = int((far_kerb - near_kerb - 0.8) / 0.95)
        for k in range(stripes):
            z = near_kerb + 0.5 + 0.95 * k
            self._mend_patch(sketch, layout.crossing - 1.7, layout.crossing + 1.7, z, z + 0.5, paint)
        for lane_z, toward in ((layout.lanes[0], layout.hand), (layout.lanes[1], -layout.hand)):
            x = layout.crossing - toward * 2.6
            self._mend_patch(sketch, x - 0.15, x + 0.15, lane_z - 1.5, lane_z + 1.5, paint)
        for _ in range(dice.whole(1, 3)):
            z = dice.pick((*layout.lanes, layout.near[0] + 1.0))
            left, right = self.camera.reach(z)
            x = dice.between(left, right)
            sketch.fill([(x + 0.32 * c, 0.0, z + 0.32 * s) for c, s in circle_points(16)], shade(asphalt, 0.72))
            sketch.fill([(x + 0.24 * c, 0.0, z + 0.24 * s) for c, s in circle_points(16)], shade(asphalt, 0.85))

    def _wheel_tracks(self, sketch: Sketch, asphalt: Colour) -> None:
        """Worn wheel tracks and mended patches keep the road from looking like paper."""
        dice = SeededDice(self.world.seed, 43)
        for lane in self.layout.lanes:
            for offset in (-0.75, 0.75):
                self._ground_strip(sketch, lane + offset - 0.28, lane + offset + 0.28, shade(asphalt, 0.94))
            left, right = self.camera.reach(lane)
            for _ in range(dice.whole(0, 2)):
                x, length = dice.between(left, right), dice.between(1.0, 4.0)
                self._mend_patch(
                    sketch,
                    x,
                    x + length,
                    lane - 1.1,
                    lane + dice.between(0.0, 1.2),
                    shade(asphalt, dice.between(0.84, 1.1)),
                )

    def _mend_patch(self, sketch: Sketch, x0: float, x1: float, z0: float, z1: float, colour: Colour) -> None:
        sketch.fill([(x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1)], colour)

    def _paint_houses(self, sketch: Sketch) -> None:
        z = self.layout.facade
        left, right = self.camera.reach(z)
        dice = SeededDice(self.world.seed, 44)
        x = left - dice.between(1.0, 8.0)
        before: Colour | None = None
        while x < right:
            wide = dice.between(6.0, 11.0)
            wall = dice.pick(tuple(colour for colour in _WALLS if colour != before))
            _HouseFront(sketch, x, wide, z, wall, dice, self.conditions).draw()
            before = wall
            x += wide

    def _add_grain(self, image: npt.NDArray[np.uint8]) -> None:
        """A little grain, coarse and fine, so that nothing is one flat colour."""
        import cv2

        from streamer.street.brush import noise_tile

        height, width = image.shape[:2]
        tile = noise_tile(height, width)
        fine = tile[:height, :width]
        coarse = cv2.resize(
            tile[: height // 4 + 1, : width // 4 + 1], (width, height), interpolation=cv2.INTER_LINEAR_EXACT
        )
        grain = ((fine.astype(np.int16) - 128) >> 5) + ((coarse.astype(np.int16) - 128) >> 5)
        np.clip(image + grain[..., None], 0, 255, out=image, casting="unsafe")

    def _lay_light(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Lay light and haze over the painted street; both vary slowly, so a coarse grid is enough."""
        import cv2

        camera, lighting, layout = self.camera, self.lighting, self.layout
        step = 8
        rows, columns = (camera.height + step - 1) // step + 1, (camera.width + step - 1) // step + 1
        v = (np.arange(rows) * step + step / 2)[:, None]
        u = (np.arange(columns) * step + step / 2)[None, :]
        facade_depth = layout.facade * camera.cos
        depth = np.minimum(camera.focal * camera.rise / np.maximum(v - camera.horizon, 1.0), facade_depth)
        across = (u - camera.width / 2) / camera.focal * depth
        x = camera.cos * across + camera.sin * depth
        z = np.minimum(camera.cos * depth - camera.sin * across, layout.facade)
        pool = np.zeros_like(x)
        for lamp_x, lamp_z in lighting.lamps:
            pool += 1.0 / (1.0 + ((x - lamp_x) ** 2 + (z - lamp_z) ** 2) / 9.0)
        np.minimum(pool, 1.4, out=pool)
        lamp = _LAMP[self.conditions.light]
        gains = np.stack([np.floor((base + lamp[k] * pool) * 128) for k, base in enumerate(lighting.ambient)], axis=2)
        veil = np.floor(np.minimum(lighting.haze_share * z / layout.facade, 0.95) * 256)
        sky = np.repeat(v < camera.horizon - camera.focal * 3.0 / facade_depth, columns, axis=1)
        veil[sky] = min(lighting.haze_share * 1.1, 0.97) * 256 // 1
        size = columns * step, rows * step
        wide_gains = cv2.resize(np.minimum(gains, 255).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR_EXACT)
        wide_veil = cv2.resize(np.minimum(veil, 255).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR_EXACT)
        height, width = image.shape[:2]
        lit = image.astype(np.uint16)
        lit *= wide_gains[:height, :width]
        lit >>= 7
        np.minimum(lit, 255, out=lit)
        covered = wide_veil[:height, :width, None].astype(np.uint16)
        lit *= 256 - covered
        lit += covered * np.array(lighting.haze, np.uint16)
        lit >>= 8
        return lit.astype(np.uint8)

    # -- what stands in the street ---------------------------------------------------------------------------------

    def _build_props(self) -> list[StreetProp]:
        layout, dice = self.layout, self._dice
        props = [self._lamp_post(x, z) for x, z in self.lighting.lamps]
        left, right = self.camera.reach(layout.far[0])
        x = left + dice.between(0.0, 6.0)
        trees = dice.chance(0.75)
        while trees and x < right:
            if abs(x - layout.crossing) > 2.2 and all(abs(x - lamp_x) > 1.2 for lamp_x, _ in self.lighting.lamps):
                props.append(self._plant_tree(x, layout.far[0] + 0.3, dice))
            x += dice.between(5.0, 11.0)
        left, right = self.camera.reach(layout.far[1])
        benches, planters = dice.whole(0, 2), dice.whole(0, 2)
        props += [self._place_bench(dice.between(left, right), layout.far[1] - 0.35) for _ in range(benches)]
        props += [self._place_planter(dice.between(left, right), layout.far[1] - 0.3, dice) for _ in range(planters)]
        if dice.chance(0.5):
            left, right = self.camera.reach(layout.near[1])
            props.append(self._place_bin(dice.between(left, right), layout.near[1] - 0.25))
        props.append(self._signal_post(layout.crossing - layout.hand * 2.4, layout.near[1] - 0.2))
        props.append(self._signal_post(layout.crossing + layout.hand * 2.4, layout.far[0] + 0.25))
        return sorted(props, key=lambda prop: (-prop.z, prop.x))

    def _lamp_post(self, x: float, z: float) -> StreetProp:
        sketch, iron = Sketch(), (66, 62, 58)
        sketch.fill([(-0.09, 0.0), (0.09, 0.0), (0.05, 0.9), (0.045, 4.6), (-0.045, 4.6), (-0.05, 0.9)], iron)
        sketch.fill([(-0.16, 4.6), (0.16, 4.6), (0.26, 5.1), (-0.26, 5.1)], (190, 226, 240), is_lamp=True)
        sketch.fill([(-0.32, 5.1), (0.32, 5.1), (0.0, 5.4)], iron)
        sketch.glow((0.0, 4.85), 1.5, (150, 210, 240))
        return StreetProp(x, z, sketch.card(self.camera, x, z))

    def _plant_tree(self, x: float, z: float, dice: SeededDice) -> StreetProp:
        sketch = Sketch()
        bark, snow = (52, 70, 92), self.conditions.weather == "snow"
        leaf = dice.pick(((58, 132, 74), (52, 118, 96), (66, 146, 104), (60, 120, 60)))
        tall = dice.between(2.0, 2.6)
        sketch.fill([(-0.55, 0.0), (0.55, 0.0), (0.5, 0.06), (-0.5, 0.06)], (58, 70, 84))
        sketch.fill(
            [(-0.13, 0.0), (0.13, 0.0), (0.08, tall), (0.3, tall + 0.8), (-0.3, tall + 0.8), (-0.08, tall)], bark
        )
        blobs = [(dice.between(-1.0, 1.0), dice.between(0.3, 2.0), dice.between(0.5, 0.85)) for _ in range(9)]
        for shift, tone in ((-0.12, 0.72), (0.0, 0.92), (0.14, 1.1)):
            for bx, by, radius in blobs:
                size = radius * (1.0 if tone < 0.8 else 0.82 if tone < 1.0 else 0.42)
                colour = shade(leaf, tone)
                if snow and tone > 1.0:
                    colour = (238, 236, 234)
                crown = [
                    (bx + shift * 2 + size * c * (1.0 + 0.1 * ((k * 7) % 3 - 1)), tall + by + shift + size * 0.85 * s)
                    for k, (c, s) in enumerate(circle_points(13))
                ]
                sketch.fill(crown, colour)
        return StreetProp(x, z, sketch.card(self.camera, x, z))

    def _place_bench(self, x: float, z: float) -> StreetProp:
        sketch, wood, iron = Sketch(), (62, 98, 140), (58, 54, 52)
        for leg in (-0.7, 0.7):
            sketch.fill([(leg - 0.04, 0.0), (leg + 0.04, 0.0), (leg + 0.04, 0.85), (leg - 0.04, 0.85)], iron)
        for low, high, tone in ((0.40, 0.48, 0.8), (0.55, 0.65, 1.0), (0.70, 0.80, 1.08)):
            sketch.fill([(-0.9, low), (0.9, low), (0.9, high), (-0.9, high)], shade(wood, tone))
        return StreetProp(x, z, sketch.card(self.camera, x, z))

    def _place_planter(self, x: float, z: float, dice: SeededDice) -> StreetProp:
        sketch, leaf = Sketch(), (60, 124, 70)
        sketch.fill([(-0.4, 0.0), (0.4, 0.0), (0.48, 0.45), (-0.48, 0.45)], (110, 124, 140))
        for _ in range(7):
            bx, by, radius = dice.between(-0.35, 0.35), dice.between(0.5, 0.8), dice.between(0.12, 0.22)
            sketch.fill(
                [(bx + radius * c, by + radius * s) for c, s in circle_points(9)], shade(leaf, dice.between(0.75, 1.15))
            )
        return StreetProp(x, z, sketch.card(self.camera, x, z))

    def _place_bin(self, x: float, z: float) -> StreetProp:
        sketch = Sketch()
        sketch.fill([(-0.2, 0.05), (0.2, 0.05), (0.24, 0.8), (-0.24, 0.8)], (70, 84, 70))
        sketch.fill([(-0.27, 0.8), (0.27, 0.8), (0.22, 0.95), (-0.22, 0.95)], (52, 60, 52))
        return StreetProp(x, z, sketch.card(self.camera, x, z))

    def _signal_post(self, x: float, z: float) -> StreetProp:
        sketch = Sketch()
        sketch.fill([(-0.05, 0.0), (0.05, 0.0), (0.05, 2.4), (-0.05, 2.4)], (70, 68, 66))
        sketch.fill([(-0.17, 2.3), (0.17, 2.3), (0.17, 3.2), (-0.17, 3.2)], (36, 34, 34))
        lights = self._signal_lights(x, z, stopped=False), self._signal_lights(x, z, stopped=True)
        return StreetProp(x, z, sketch.card(self.camera, x, z), lights)

    def _signal_lights(self, x: float, z: float, stopped: bool) -> SketchFigure:
        sketch = Sketch()
        red, green = ((40, 36, 240), (38, 60, 40)) if stopped else ((36, 34, 70), (90, 220, 60))
        for height, colour in ((2.97, red), (2.55, green)):
            disc = [(0.11 * c, height + 0.11 * s) for c, s in circle_points(10)]
            sketch.fill(disc, colour, is_lamp=max(colour) > 200)
        sketch.glow((0.0, 2.97 if stopped else 2.55), 0.5, red if stopped else green)
        return sketch.card(self.camera, x, z)


class _HouseFront:
    """One front: wall, rows of windows, a shop or a door."""

    def __init__(
        self,
        sketch: Sketch,
        x: float,
        wide: float,
        z: float,
        wall: Colour,
        dice: SeededDice,
        conditions: SceneConditions,
    ) -> None:
        self.sketch, self.x, self.wide, self.z, self.wall = sketch, x, wide, z, wall
        self.dice, self.conditions = dice, conditions
        self.lit = {"day": 0.0, "dusk": 0.35, "night": 0.4}[conditions.light]

    def _draw_panel(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, *, is_lamp: bool = False) -> None:
        z = self.z
        self.sketch.fill([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], colour, is_lamp=is_lamp)

    def draw(self) -> None:
        dice, x, wide = self.dice, self.x, self.wide
        floors = dice.whole(2, 4)
        top = 3.6 + floors * 3.1
        self._draw_panel(x, 0.0, x + wide, top, self.wall)
        self._draw_panel(x, 3.35, x + wide, 3.6, shade(self.wall, 1.12))
        self._draw_panel(x, top - 0.35, x + wide, top, shade(self.wall, 0.78))
        self._draw_panel(x, top, x + wide, top + 1.4, (78, 84, 120) if dice.chance(0.5) else (96, 92, 90))
        self._draw_panel(x, 0.0, x + 0.09, top, shade(self.wall, 0.7))
        self._draw_panel(x, 0.0, x + wide, 0.5, shade(self.wall, 0.72))
        columns = max(2, round(wide / 2.3))
        pitch = wide / columns
        shutters = dice.chance(0.4)
        tint = dice.pick(((70, 96, 60), (120, 84, 60), (64, 64, 110)))
        for floor in range(floors):
            for column in range(columns):
                self._draw_window(x + pitch * (column + 0.5), 4.2 + floor * 3.1, 1.0, 1.75, tint if shutters else None)
        if dice.chance(0.6):
            self._draw_shop()
        else:
            self._draw_porch(columns, pitch)

    def _pane_colour(self) -> tuple[Colour, bool]:
        """The colour of a pane and whether the room is lit."""
        dice = self.dice
        if dice.chance(self.lit):
            return dice.pick(((120, 206, 250), (150, 220, 252), (96, 180, 238), (190, 226, 240))), True
        return dice.pick(((112, 98, 84), (128, 112, 96), (98, 88, 78), (148, 132, 112))), False

    def _draw_window(self, middle: float, low: float, wide: float, tall: float, shutter: Colour | None) -> None:
        half = wide / 2
        self._draw_panel(middle - half - 0.1, low - 0.1, middle + half + 0.1, low + tall + 0.1, shade(self.wall, 1.18))
        colour, is_lamp = self._pane_colour()
        self._draw_panel(middle - half, low, middle + half, low + tall, colour, is_lamp=is_lamp)
        self._draw_panel(middle - 0.035, low, middle + 0.035, low + tall, shade(self.wall, 1.1))
        self._draw_panel(middle - half, low + tall * 0.6, middle + half, low + tall * 0.6 + 0.06, shade(self.wall, 1.1))
        self._draw_panel(middle - half - 0.15, low - 0.18, middle + half + 0.15, low - 0.06, shade(self.wall, 0.8))
        if shutter is not None:
            for side in (-1, 1):
                x = middle + side * (half + 0.32)
                self._draw_panel(x - 0.2, low - 0.05, x + 0.2, low + tall + 0.05, shutter)

    def _draw_shop(self) -> None:
        dice, x, wide = self.dice, self.x, self.wide
        frame = dice.pick(((60, 56, 52), (84, 60, 48), (56, 78, 60), (70, 64, 110)))
        self._draw_panel(x + 0.4, 0.0, x + wide - 0.4, 3.1, frame)
        door = x + wide * dice.pick((0.25, 0.5, 0.75))
        edges = [x + 0.6, door - 0.6, door + 0.6, x + wide - 0.6]
        for left, right in ((edges[0], edges[1]), (edges[2], edges[3])):
            if right - left > 0.5:
                colour, is_lamp = self._pane_colour()
                self._draw_panel(left, 0.6, right, 2.5, colour, is_lamp=is_lamp)
                for k in range(3):
                    middle = left + (right - left) * (k + 0.5) / 3
                    self._draw_panel(middle - 0.18, 0.62, middle + 0.18, dice.between(0.9, 1.5), shade(colour, 0.7))
        self._draw_panel(door - 0.45, 0.05, door + 0.45, 2.3, (92, 82, 72))
        self._draw_panel(x + 0.5, 2.6, x + wide - 0.5, 3.05, shade(frame, 1.3))
        awning = dice.pick(_AWNINGS)
        stripes = max(4, int((wide - 1.0) / 0.5))
        pitch = (wide - 1.0) / stripes
        for k in range(stripes):
            left = x + 0.5 + pitch * k
            colour = awning if k % 2 else (230, 232, 232)
            corners: list[Point] = [
                (left, 2.75, self.z),
                (left + pitch, 2.75, self.z),
                (left + pitch, 2.3, self.z - 0.7),
                (left, 2.3, self.z - 0.7),
            ]
            self.sketch.fill(corners, colour)

    def _draw_porch(self, columns: int, pitch: float) -> None:
        dice = self.dice
        door = dice.whole(0, columns - 1)
        for column in range(columns):
            middle = self.x + pitch * (column + 0.5)
            if column == door:
                wood = dice.pick(((48, 60, 96), (70, 90, 50), (110, 70, 44), (52, 52, 56)))
                self._draw_panel(middle - 0.65, 0.0, middle + 0.65, 2.75, shade(self.wall, 1.15))
                self._draw_panel(middle - 0.5, 0.0, middle + 0.5, 2.55, wood)
                self._draw_panel(middle - 0.35, 1.3, middle + 0.35, 2.3, shade(wood, 1.25))
                self._draw_panel(middle - 0.8, 0.0, middle + 0.8, 0.14, (150, 156, 160))
            else:
                self._draw_window(middle, 1.0, 1.1, 1.6, None)
