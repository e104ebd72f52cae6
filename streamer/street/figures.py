"""What the things of the street look like, as sketches in metres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamer.street.camera import StreetCamera
from streamer.street.dice import SeededDice, circle_points, cosine, sine
from streamer.street.sketch import Colour, Point, Sketch, SketchFigure, blend, shade
from streamer.street.world import ObjectState

PAINT: dict[str, Colour] = {
    "red": (36, 30, 198),
    "blue": (190, 88, 26),
    "green": (62, 138, 34),
    "yellow": (32, 200, 242),
    "orange": (22, 120, 240),
    "white": (238, 240, 242),
    "black": (34, 32, 32),
    "grey": (142, 136, 132),
    "purple": (146, 44, 118),
    "pink": (176, 122, 240),
    "brown": (38, 72, 122),
}
DOG_FUR: dict[str, Colour] = {
    "brown": (44, 88, 148),
    "black": (40, 36, 36),
    "white": (220, 228, 234),
    "grey": (132, 128, 126),
}
SKIN: tuple[Colour, ...] = ((178, 204, 240), (150, 184, 228), (112, 150, 202), (74, 106, 156), (48, 70, 108))
HAIR: tuple[Colour, ...] = ((24, 28, 36), (32, 52, 84), (52, 96, 150), (96, 160, 206), (150, 150, 152), (30, 60, 130))
TROUSERS: tuple[Colour, ...] = ((50, 44, 42), (74, 66, 62), (66, 74, 84), (58, 52, 60), (92, 104, 116))
LUGGAGE: tuple[Colour, ...] = ((60, 40, 34), (52, 62, 76), (44, 44, 92), (84, 60, 40), (48, 76, 52))
GLASS: Colour = (104, 88, 74)
TYRE: Colour = (38, 36, 36)
METAL: Colour = (176, 174, 172)
HEADLIGHT: Colour = (226, 246, 252)
TAILLIGHT: Colour = (40, 34, 210)


def draw_figure(state: ObjectState, camera: StreetCamera) -> SketchFigure:
    """The thing as it is seen from the camera at this moment."""
    return _FIGURES[state.thing.kind](state, camera)


# -- people --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _FigureView:
    """How a body is turned: `across` to the right of the picture, `towards` the camera; both together a unit vector."""

    across: float
    towards: float

    def flat(self, forward: float, up: float, side: float) -> tuple[float, float]:
        """A point of the body (ahead, up, to its right) on the card that faces the camera."""
        return forward * self.across - side * self.towards, up


def _face_camera(state: ObjectState, camera: StreetCamera) -> _FigureView:
    """Turn the heading into the camera's frame at the place where it stands."""
    right, away = camera.cos * state.x - camera.sin * state.z, camera.depth(state.x, state.z)
    norm = (right * right + away * away) ** 0.5
    sight_right, sight_away = right / norm, away / norm
    ahead_right = camera.cos * state.heading_x - camera.sin * state.heading_z
    ahead_away = camera.sin * state.heading_x + camera.cos * state.heading_z
    across = ahead_right * sight_away - ahead_away * sight_right
    towards = -(ahead_right * sight_right + ahead_away * sight_away)
    return _FigureView(across, towards)


def _limb_outline(a: Point, b: Point, ra: float, rb: float) -> list[Point]:
    """A limb from `a` to `b`, round at both ends."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    norm = (dx * dx + dy * dy) ** 0.5
    if norm < 1e-6:
        dx, dy, norm = 0.0, 1.0, 1.0
    dx, dy = dx / norm, dy / norm
    nx, ny = -dy, dx
    return [
        (a[0] + nx * ra, a[1] + ny * ra),
        (a[0] + (nx - dx) * ra * 0.7, a[1] + (ny - dy) * ra * 0.7),
        (a[0] - dx * ra, a[1] - dy * ra),
        (a[0] - (nx + dx) * ra * 0.7, a[1] - (ny + dy) * ra * 0.7),
        (a[0] - nx * ra, a[1] - ny * ra),
        (b[0] - nx * rb, b[1] - ny * rb),
        (b[0] + (dx - nx) * rb * 0.7, b[1] + (dy - ny) * rb * 0.7),
        (b[0] + dx * rb, b[1] + dy * rb),
        (b[0] + (dx + nx) * rb * 0.7, b[1] + (dy + ny) * rb * 0.7),
        (b[0] + nx * rb, b[1] + ny * rb),
    ]


def _ellipse_points(centre: Point, rx: float, ry: float, corners: int = 14) -> list[Point]:
    return [(centre[0] + rx * c, centre[1] + ry * s) for c, s in circle_points(corners)]


def _bend_joint(root: Point, goal: Point, upper: float, lower: float, forward: float) -> Point:
    """The joint of two bones from `root` to `goal`, bent to the side `forward` points to (+1 or -1 along x)."""
    dx, dy = goal[0] - root[0], goal[1] - root[1]
    reach = min(max((dx * dx + dy * dy) ** 0.5, 1e-6), (upper + lower) * 0.999)
    along = (upper * upper - lower * lower + reach * reach) / (2 * reach)
    off = max(upper * upper - along * along, 0.0) ** 0.5 * forward
    ux, uy = dx / reach, dy / reach
    return root[0] + ux * along - uy * off, root[1] + uy * along + ux * off


class _PersonBody:
    """A person's skeleton, in heights of the person, and the clothes upon it."""

    def __init__(self, state: ObjectState, view: _FigureView) -> None:
        thing = state.thing
        dice = SeededDice(thing.dice)
        self.thing, self.view = thing, view
        self.is_child = thing.sex == "child"
        self.coat = PAINT[thing.colour]
        self.skin = dice.pick(SKIN)
        self.hair = dice.pick(HAIR)
        self.trousers = dice.pick(TROUSERS)
        self.shoes = dice.pick(((30, 30, 34), (48, 58, 78), (190, 192, 196)))
        self.luggage = dice.pick(LUGGAGE)
        self.hat = dice.pick(((40, 40, 44), (70, 50, 40), (60, 80, 100), (52, 40, 74)))
        self.umbrella = dice.pick(
            ((30, 28, 150), (140, 66, 30), (40, 38, 40), (70, 120, 50), (40, 150, 200), (130, 60, 130))
        )
        self.has_dress = thing.sex == "woman" and dice.chance(0.55)
        self.has_bun = dice.chance(0.2)
        self.girth = dice.between(0.92, 1.12) * (0.94 if thing.sex == "woman" else 1.0)
        self.head = 0.098 if self.is_child else 0.078
        self.swing = 0.0

    def draw(self, sketch: Sketch, phase: float, walks: bool) -> None:
        amplitude = 0.078 if walks else 0.0
        view = self.view
        near = 1.0 if view.across >= 0 else -1.0  # which side of the body the camera sees
        thighs = [self._leg_joints(phase + shift, side, amplitude) for side, shift in ((-near, 0.5), (near, 0.0))]
        lift = -min(foot[1] for _, _, foot in thighs)
        raise_by = lift + 0.035
        seen_from_behind = view.towards < -0.3
        if "backpack" in self.thing.attributes and not seen_from_behind:
            self._draw_backpack(sketch, raise_by)
        if self.thing.sex == "woman" and not seen_from_behind:
            self._long_hair(sketch, raise_by)
        if "suitcase" in self.thing.attributes:
            self._draw_suitcase(sketch, near)
        self._draw_arm(sketch, -near, phase, amplitude, raise_by, is_far=True)
        for position, (hip, knee, foot) in enumerate(thighs):
            self._paint_leg(sketch, hip, knee, foot, raise_by, is_far=position == 0)
        self._draw_torso(sketch, raise_by)
        self._draw_head(sketch, raise_by)
        if self.thing.sex == "woman" and seen_from_behind:
            self._long_hair(sketch, raise_by)
        if "backpack" in self.thing.attributes and seen_from_behind:
            self._draw_backpack(sketch, raise_by)
        self._draw_arm(sketch, near, phase, amplitude, raise_by, is_far=False)
        if "umbrella" in self.thing.attributes:
            self._draw_umbrella(sketch, raise_by, near)

    def _leg_joints(self, phase: float, side: float, amplitude: float) -> tuple[Point, Point, Point]:
        thigh = amplitude * sine(phase)
        flex = amplitude * 1.9 * max(0.0, cosine(phase)) + 0.004
        hip = 0.0, 0.5, side * 0.052 * self.girth
        knee = 0.235 * sine(thigh), 0.5 - 0.235 * cosine(thigh), side * 0.05
        shin = thigh - flex
        foot = knee[0] + 0.235 * sine(shin), knee[1] - 0.235 * cosine(shin), side * 0.05
        return hip, knee, foot

    def _place_point(self, point: Point, raise_by: float) -> tuple[float, float]:
        x, y = self.view.flat(point[0], point[1] + raise_by, point[2])
        return x * self.thing.height, y * self.thing.height

    def _size(self, part: float) -> float:
        return part * self.thing.height

    def _paint_leg(
        self, sketch: Sketch, hip: Point, knee: Point, foot: Point, raise_by: float, *, is_far: bool
    ) -> None:
        tone = 0.78 if is_far else 1.0
        cloth = shade(self.skin if self.has_dress else self.trousers, tone)
        a, b, c = (self._place_point(point, raise_by) for point in (hip, knee, foot))
        size = self._size
        sketch.fill(_limb_outline(a, b, size(0.052 * self.girth), size(0.038)), cloth)
        sketch.fill(_limb_outline(b, c, size(0.038), size(0.027)), cloth)
        toe = self._place_point((foot[0] + 0.055, foot[1] - 0.012, foot[2]), raise_by)
        heel = self._place_point((foot[0] - 0.018, foot[1] - 0.012, foot[2]), raise_by)
        sketch.fill(_limb_outline(heel, toe, size(0.026), size(0.022)), shade(self.shoes, tone))

    def _half_width(self, front: float, depth: float) -> float:
        view = self.view
        return self._size(((front * view.towards) ** 2 + (depth * view.across) ** 2) ** 0.5) * self.girth

    def _draw_torso(self, sketch: Sketch, raise_by: float) -> None:
        x, _ = self._place_point((0.0, 0.0, 0.0), 0.0)
        size = self._size
        up = raise_by
        shoulder, chest, waist, hip = (
            self._half_width(*part) for part in ((0.115, 0.06), (0.118, 0.075), (0.092, 0.068), (0.102, 0.072))
        )
        hem = 0.30 if self.has_dress else 0.44
        flare = self._half_width(0.15, 0.12) if self.has_dress else hip * 1.04
        outline = [(0.835, 0.4), (0.815, 1.0), (0.72, None), (0.61, None), (0.5, None), (hem, None)]
        widths = [shoulder * 0.45, shoulder, chest, waist, hip, flare]
        left = [(x - width, size(height + up)) for (height, _), width in zip(outline, widths, strict=True)]
        right = [(x + width, size(height + up)) for (height, _), width in zip(outline, widths, strict=True)]
        sketch.fill([*left, *reversed(right)], self.coat)
        shadow = [(x + width * 0.38, y) for (_, y), width in zip(right, widths, strict=True)]
        sketch.fill([*shadow, *reversed(right)], shade(self.coat, 0.82), is_detail=True)
        if self.view.towards > 0.3 and not self.has_dress:
            middle = x + self.view.across * size(0.03)
            sketch.stroke(
                [(middle, size(0.82 + up)), (middle, size(hem + up))], shade(self.coat, 0.65), 0.012, is_detail=True
            )
        if not self.has_dress:
            belt = [(x - flare, size(hem + 0.012 + up)), (x + flare, size(hem + 0.012 + up))]
            sketch.stroke(belt, shade(self.coat, 0.6), 0.016, is_detail=True)
        if "backpack" in self.thing.attributes and self.view.towards > -0.3:
            for side in (-1, 1):
                top = self._place_point((0.03, 0.82, side * 0.06), raise_by)
                low = self._place_point((0.06, 0.62, side * 0.085), raise_by)
                sketch.stroke([top, low], shade(self.luggage, 0.8), 0.04, is_detail=True)

    def _draw_head(self, sketch: Sketch, raise_by: float) -> None:
        view, size, radius = self.view, self._size, self.head
        neck_low = self._place_point((0.0, 0.81, 0.0), raise_by)
        neck_high = self._place_point((0.008, 0.87, 0.0), raise_by)
        sketch.fill(_limb_outline(neck_low, neck_high, size(0.03), size(0.03)), shade(self.skin, 0.85))
        centre = self._place_point((0.012, 0.992 - radius, 0.0), raise_by)
        sketch.fill(_ellipse_points(centre, size(radius * 0.86), size(radius * 1.02)), self.skin)
        if view.towards < -0.45:
            sketch.fill(
                _ellipse_points((centre[0], centre[1] + size(0.008)), size(radius * 0.92), size(radius)), self.hair
            )
        else:
            back = -view.across * radius * 0.34
            cap = [
                (
                    centre[0] + size(back + radius * 0.95 * c),
                    centre[1] + size(radius * (0.12 + 0.98 * max(s, -0.35 if view.towards < 0.5 else 0.15))),
                )
                for c, s in circle_points(16)
            ]
            sketch.fill(cap, self.hair)
            face = centre[0] + size(view.across * radius * 0.38), centre[1] - size(radius * 0.22)
            sketch.fill(_ellipse_points(face, size(radius * 0.6), size(radius * 0.7), 10), self.skin, is_detail=True)
            eye = size(radius * 0.09)
            for side in (-0.3, 0.3):
                x = face[0] + size(view.across * radius * 0.2 + side * radius * max(view.towards, 0.0))
                sketch.fill(
                    _ellipse_points((x, face[1] + size(radius * 0.22)), eye, eye, 6), (40, 36, 40), is_detail=True
                )
        if self.thing.sex == "woman" and self.has_bun:
            bun = centre[0] - size(view.across * radius * 0.9), centre[1] + size(radius * 0.75)
            sketch.fill(_ellipse_points(bun, size(radius * 0.42), size(radius * 0.42), 8), shade(self.hair, 0.9))
        if "hat" in self.thing.attributes:
            self._draw_hat(sketch, centre)

    def _draw_hat(self, sketch: Sketch, head: Point) -> None:
        size, radius, across = self._size, self.head, self.view.across
        if self.is_child:  # a cap
            dome = [
                (head[0] + size(radius * 1.08 * c), head[1] + size(radius * (0.3 + 0.92 * max(s, 0.0))))
                for c, s in circle_points(16)
            ]
            sketch.fill(dome, self.hat)
            peak = head[0] + size(across * radius * 1.5), head[1] + size(radius * 0.34)
            sketch.fill(_limb_outline((head[0], peak[1]), peak, size(0.018), size(0.012)), shade(self.hat, 0.7))
            return
        y = head[1] + size(radius * 0.5)
        sketch.fill(_ellipse_points((head[0], y), size(radius * 1.75), size(radius * 0.3), 12), shade(self.hat, 0.85))
        crown = [(-0.95, 0.0), (-0.82, 1.0), (-0.3, 1.12), (0.3, 1.12), (0.82, 1.0), (0.95, 0.0)]
        sketch.fill([(head[0] + size(radius * px), y + size(radius * py)) for px, py in crown], self.hat)
        band = [(-0.95, 0.05), (-0.92, 0.3), (0.92, 0.3), (0.95, 0.05)]
        sketch.fill(
            [(head[0] + size(radius * px), y + size(radius * py)) for px, py in band],
            shade(self.hat, 0.55),
            is_detail=True,
        )

    def _long_hair(self, sketch: Sketch, raise_by: float) -> None:
        size, radius = self._size, self.head
        x, y = self._place_point((-0.035, 0.99 - radius, 0.0), raise_by)
        lock = [
            (-0.85, 0.5),
            (-1.08, -0.4),
            (-1.12, -1.7),
            (-0.5, -2.1),
            (0.5, -2.1),
            (1.12, -1.7),
            (1.08, -0.4),
            (0.85, 0.5),
        ]
        narrow = 0.75 + 0.25 * abs(self.view.towards)
        sketch.fill(
            [(x + size(radius * px * narrow), y + size(radius * py)) for px, py in lock], shade(self.hair, 0.92)
        )

    def _draw_backpack(self, sketch: Sketch, raise_by: float) -> None:
        view, size = self.view, self._size
        half = self._half_width(0.095, 0.062) / self.girth
        x, _ = self._place_point((-0.125, 0.0, 0.0), 0.0)
        y0, y1 = size(0.53 + raise_by), size(0.82 + raise_by)
        body = [
            (x - half * 0.7, y1), (x - half, y1 - size(0.05)), (x - half, y0 + size(0.02)), (x - half * 0.8, y0),
            (x + half * 0.8, y0), (x + half, y0 + size(0.02)), (x + half, y1 - size(0.05)), (x + half * 0.7, y1),
        ]  # fmt: skip
        sketch.fill(body, self.luggage)
        pocket = [
            (x - half * 0.65, y0 + size(0.13)),
            (x + half * 0.65, y0 + size(0.13)),
            (x + half * 0.65, y0 + size(0.03)),
            (x - half * 0.65, y0 + size(0.03)),
        ]
        if view.towards < 0.5:
            sketch.fill(pocket, shade(self.luggage, 1.35), is_detail=True)

    def _draw_suitcase(self, sketch: Sketch, near: float) -> None:
        x, _ = self._place_point((-0.26, 0.0, near * 0.1), 0.0)
        half = self._half_width(0.11, 0.085) / self.girth
        low, high, size = self._size(0.02), self._size(0.33), self._size
        sketch.stroke([(x, high), self._place_point((-0.1, 0.5, near * 0.12), 0.0)], (70, 70, 72), 0.02)
        sketch.fill([(x - half, low), (x + half, low), (x + half, high), (x - half, high)], self.luggage)
        for share in (-0.4, 0.4):
            line = [(x + half * share, low + size(0.03)), (x + half * share, high - size(0.03))]
            sketch.stroke(line, shade(self.luggage, 1.5), 0.018, is_detail=True)
        for share in (-0.7, 0.7):
            sketch.fill(_ellipse_points((x + half * share, size(0.012)), size(0.02), size(0.02), 6), (40, 40, 40))

    def _draw_arm(
        self, sketch: Sketch, side: float, phase: float, amplitude: float, raise_by: float, *, is_far: bool
    ) -> None:
        size = self._size
        shoulder = 0.0, 0.79, side * 0.112 * self.girth
        holds_umbrella = "umbrella" in self.thing.attributes and not is_far
        pulls = "suitcase" in self.thing.attributes and not is_far and not holds_umbrella
        if holds_umbrella:
            elbow, hand = (0.05, 0.65, side * 0.13), (0.13, 0.72, side * 0.09)
        elif pulls:
            elbow, hand = (-0.06, 0.64, side * 0.13), (-0.1, 0.5, side * 0.12)
        else:
            swing = -amplitude * 0.85 * sine(phase + (0.0 if not is_far else 0.5))
            elbow = 0.165 * sine(swing) - 0.01, 0.79 - 0.165 * cosine(swing), side * 0.132
            lower = swing + 0.03 + amplitude * 0.4
            hand = elbow[0] + 0.15 * sine(lower), elbow[1] - 0.15 * cosine(lower), side * 0.128
        tone = 0.72 if is_far else 0.92
        a, b, c = (self._place_point(point, raise_by) for point in (shoulder, elbow, hand))
        sleeve = shade(self.coat, tone)
        sketch.fill(_limb_outline(a, b, size(0.036), size(0.03)), sleeve)
        sketch.fill(_limb_outline(b, c, size(0.03), size(0.024)), sleeve)
        sketch.fill(_ellipse_points(c, size(0.026), size(0.028), 8), shade(self.skin, tone))

    def _draw_umbrella(self, sketch: Sketch, raise_by: float, near: float) -> None:
        size = self._size
        hand = self._place_point((0.13, 0.72, near * 0.09), raise_by)
        top = hand[0] - size(0.01 * self.view.across), hand[1] + size(0.47)
        sketch.stroke([hand, top], (60, 60, 62), 0.02)
        half, drop = size(0.36), size(0.2)
        rim = [
            (-1.0, -1.0),
            (-0.92, -0.55),
            (-0.72, -0.2),
            (-0.4, 0.02),
            (0.0, 0.1),
            (0.4, 0.02),
            (0.72, -0.2),
            (0.92, -0.55),
            (1.0, -1.0),
        ]
        scallop = [(0.66, -0.86), (0.33, -0.96), (0.0, -0.84), (-0.33, -0.96), (-0.66, -0.86)]
        canopy = [(top[0] + half * px, top[1] + drop * py) for px, py in (*rim, *scallop)]
        sketch.fill(canopy, self.umbrella)
        for low, high, factor in ((0.33, 1.0, 0.78), (-0.33, 0.33, 1.14)):
            gore = [
                (0.0, 0.1),
                (high * 0.72, -0.2 if high > 0.5 else 0.0),
                (high, -0.97),
                (low, -0.96),
                (low * 0.72, 0.0),
            ]
            sketch.fill(
                [(top[0] + half * px, top[1] + drop * py) for px, py in gore],
                shade(self.umbrella, factor),
                is_detail=True,
            )
        sketch.stroke([(top[0], top[1] + drop * 0.1), (top[0], top[1] + drop * 0.35)], (60, 60, 62), 0.02)


def _draw_person(state: ObjectState, camera: StreetCamera) -> SketchFigure:
    sketch = Sketch()
    view = _face_camera(state, camera)
    if "bicycle" in state.thing.attributes:
        _draw_rider(sketch, state, view)
    else:
        stride = 0.82 * state.thing.height
        body = _PersonBody(state, view)
        body.draw(sketch, state.travelled / stride, state.bearing == "walk")
    return sketch.card(camera, state.x, state.z)


# -- bicycles ------------------------------------------------------------------------------------------------------

_WHEEL = 0.34
_CRANK = -0.06, 0.30
_SADDLE = -0.22, 0.98
_GRIP = 0.44, 1.02


def _side_length(view: _FigureView) -> float:
    """How long something that is seen from the side looks; never so thin that it is a line."""
    across = view.across
    return across if abs(across) > 0.35 else (0.35 if across >= 0 else -0.35)


def _draw_bicycle(state: ObjectState, camera: StreetCamera) -> SketchFigure:
    sketch = Sketch()
    across = _side_length(_face_camera(state, camera))
    paint = PAINT[state.thing.colour]

    def at(point: Point) -> Point:
        return point[0] * across, point[1]

    turn = -state.travelled / (_WHEEL * 6.2832)
    for hub in (-0.52, 0.54):
        rim = [at((hub + _WHEEL * c, _WHEEL + _WHEEL * s)) for c, s in circle_points(20)]
        sketch.stroke([*rim, rim[0]], TYRE, 0.055)
        for spoke in range(3):
            c, s = cosine(turn + spoke / 6), sine(turn + spoke / 6)
            ends = [at((hub - 0.3 * c, _WHEEL - 0.3 * s)), at((hub + 0.3 * c, _WHEEL + 0.3 * s))]
            sketch.stroke(ends, (150, 150, 150), 0.008)
        guard = [at((hub + 0.40 * c, _WHEEL + 0.40 * s)) for c, s in circle_points(20)[2:9]]
        sketch.stroke(guard, paint, 0.04)
    rear, front, head, seat = (-0.52, _WHEEL), (0.54, _WHEEL), (0.36, 0.82), (-0.2, 0.86)
    for a, b in ((rear, _CRANK), (rear, seat), (_CRANK, seat), (_CRANK, head), (seat, head)):
        sketch.fill(_limb_outline(at(a), at(b), 0.035, 0.035), paint)
    sketch.fill(_limb_outline(at(head), at(front), 0.03, 0.024), shade(paint, 0.85))
    sketch.fill(_limb_outline(at((0.34, 0.9)), at(_GRIP), 0.02, 0.025), (60, 60, 62))
    sketch.fill(_limb_outline(at((-0.32, 0.93)), at((-0.1, 0.92)), 0.04, 0.025), (36, 34, 36))
    crank = [(at((_CRANK[0] + 0.1 * c, _CRANK[1] + 0.1 * s))) for c, s in circle_points(10)]
    sketch.fill(crank, (96, 96, 98))
    sketch.fill([at(p) for p in ((0.56, 0.78), (0.62, 0.8), (0.62, 0.72), (0.56, 0.72))], HEADLIGHT, is_lamp=True)
    sketch.fill([at(p) for p in ((-0.9, 0.62), (-0.84, 0.62), (-0.84, 0.56), (-0.9, 0.56))], TAILLIGHT, is_lamp=True)
    sketch.glow(at((0.6, 0.76)), 0.35, HEADLIGHT)
    sketch.glow(at((-0.86, 0.6)), 0.2, TAILLIGHT)
    return sketch.card(camera, state.x, state.z)


def _draw_rider(sketch: Sketch, state: ObjectState, view: _FigureView) -> None:
    across = _side_length(view)
    body = _PersonBody(state, _FigureView(across, view.towards * 0.3))
    sign = 1.0 if across >= 0 else -1.0

    def at(point: Point) -> tuple[float, float]:
        return point[0] * across, point[1]

    turn = -state.travelled / 5.2
    hip = _SADDLE[0] + 0.02, _SADDLE[1] + 0.03
    shoulder = 0.12, 1.44
    head = 0.21, 1.66
    tone = (0.75, 1.0)
    for position, shift in enumerate((0.5, 0.0)):
        pedal = _CRANK[0] + 0.17 * cosine(turn + shift), _CRANK[1] + 0.17 * sine(turn + shift) + 0.05
        knee = _bend_joint(hip, pedal, 0.43, 0.42, 1.0)
        cloth = shade(body.trousers, tone[position])
        sketch.fill(_limb_outline(at(hip), at(knee), 0.085, 0.06), cloth)
        sketch.fill(_limb_outline(at(knee), at(pedal), 0.06, 0.042), cloth)
        toe = pedal[0] + 0.13, pedal[1] - 0.02
        sketch.fill(
            _limb_outline(at((pedal[0] - 0.04, pedal[1] - 0.02)), at(toe), 0.04, 0.032),
            shade(body.shoes, tone[position]),
        )
        if position == 0 and "backpack" in state.thing.attributes:
            sketch.fill(_limb_outline(at((-0.26, 1.14)), at((-0.1, 1.42)), 0.14, 0.13), body.luggage)
    sketch.fill(_limb_outline(at(hip), at(shoulder), 0.125, 0.125), body.coat)
    elbow = _bend_joint(shoulder, _GRIP, 0.3, 0.28, -1.0)
    sketch.fill(_limb_outline(at(shoulder), at(elbow), 0.062, 0.05), shade(body.coat, 0.84))
    sketch.fill(_limb_outline(at(elbow), at(_GRIP), 0.05, 0.042), shade(body.coat, 0.84))
    sketch.fill(_ellipse_points(at(_GRIP), 0.045, 0.045, 8), body.skin)
    centre = at(head)
    radius = 0.125
    sketch.fill(_limb_outline(at((0.15, 1.48)), at((0.19, 1.58)), 0.055, 0.05), shade(body.skin, 0.85))
    if state.thing.sex == "woman":
        locks = [(-0.5, 0.9), (-1.1, 0.2), (-1.9, -1.3), (-1.0, -1.5), (-0.1, -0.6), (0.2, 0.9)]
        sketch.fill(
            [(centre[0] + sign * px * radius, centre[1] + py * radius) for px, py in locks], shade(body.hair, 0.92)
        )
    sketch.fill(_ellipse_points(centre, radius * 0.88, radius), body.skin)
    cap = [
        (centre[0] + radius * (0.95 * c - 0.25 * sign), centre[1] + radius * (0.2 + 0.9 * max(s, -0.2)))
        for c, s in circle_points(14)
    ]
    sketch.fill(cap, body.hair)
    sketch.fill(_ellipse_points((centre[0] + sign * 0.05, centre[1] - 0.02), 0.07, 0.08, 8), body.skin, is_detail=True)
    if "helmet" in state.thing.attributes:
        dome = [
            (centre[0] + radius * 1.12 * c, centre[1] + radius * (0.25 + 0.95 * max(s, 0.0)))
            for c, s in circle_points(14)
        ]
        sketch.fill(dome, body.hat)


# -- dogs ----------------------------------------------------------------------------------------------------------


def _draw_dog(state: ObjectState, camera: StreetCamera) -> SketchFigure:
    """Points are in shoulder-to-tail lengths of a dog 0.95 m long."""
    thing = state.thing
    dice = SeededDice(thing.dice)
    fur = DOG_FUR[thing.colour]
    dark, ear_up = shade(fur, 0.7), dice.chance(0.5)
    spots = thing.colour == "white" and dice.chance(0.6)
    fluff = dice.between(0.9, 1.2)
    view = _face_camera(state, camera)
    size = thing.length / 0.95
    sketch = Sketch()
    near = 1.0 if view.across >= 0 else -1.0

    def at(forward: float, up: float, side: float = 0.0) -> tuple[float, float]:
        x, y = view.flat(forward, up, side)
        return x * size, y * size

    phase = state.travelled / (0.75 * size)
    amplitude = 0.09 if state.bearing == "walk" else 0.0
    if state.leash is not None:
        hand_x, hand_y = camera.point(state.leash[0], 0.85, state.leash[1])
        here_x, here_y = camera.point(state.x, 0.0, state.z)
        scale = camera.scale(state.x, state.z)
        neck = at(0.25, 0.56)
        hand = (hand_x - here_x) / scale, (here_y - hand_y) / scale
        sag = (neck[0] + hand[0]) / 2, (neck[1] + hand[1]) / 2 - 0.09
        sketch.stroke([neck, sag, hand], (60, 50, 160), 0.014, is_detail=True)
    tail = at(-0.36, 0.58), at(-0.5, 0.72 + 0.03 * sine(phase * 2)), at(-0.53, 0.84)
    if view.towards > 0.2:
        sketch.stroke(tail, dark, 0.06 * size)
    for side, tone in ((-near, 0.72), (near, 1.0)):
        for forward, shift in ((0.24, 0.0), (-0.27, 0.5)):
            swing = amplitude * sine(phase + shift + (0.25 if side > 0 else 0.0))
            hip = at(forward, 0.42, side * 0.08)
            knee = at(forward + 0.2 * sine(swing), 0.22, side * 0.08)
            lift = 0.05 * max(0.0, cosine(phase + shift + (0.25 if side > 0 else 0.0))) if amplitude else 0.0
            paw = at(forward + 0.4 * sine(swing), 0.03 + lift, side * 0.08)
            colour = shade(fur, tone)
            sketch.fill(_limb_outline(hip, knee, 0.08 * size, 0.045 * size), colour)
            sketch.fill(_limb_outline(knee, paw, 0.042 * size, 0.035 * size), colour)
    sketch.fill(_limb_outline(at(-0.26, 0.5), at(0.22, 0.53), 0.135 * size * fluff, 0.155 * size * fluff), fur)
    sketch.fill(
        _limb_outline(at(-0.24, 0.41), at(0.2, 0.42), 0.05 * size, 0.07 * size), shade(fur, 0.82), is_detail=True
    )
    if spots:
        sketch.fill(
            _ellipse_points(at(-0.1, 0.58, near * 0.1), 0.1 * size, 0.07 * size, 9), (50, 70, 96), is_detail=True
        )
    if view.towards <= 0.2:
        sketch.stroke(tail, dark, 0.06 * size)
    sketch.fill(_limb_outline(at(0.25, 0.55), at(0.4, 0.72), 0.11 * size, 0.09 * size), fur)
    sketch.stroke([at(0.27, 0.66), at(0.39, 0.57)], (44, 40, 170), 0.04 * size, is_detail=True)
    head, nose = at(0.43, 0.76), at(0.62, 0.72)
    sketch.fill(_limb_outline(head, nose, 0.105 * size, 0.05 * size), fur)
    sketch.fill(_ellipse_points(nose, 0.035 * size, 0.032 * size, 7), (24, 22, 24), is_detail=thing.colour == "black")
    if view.towards > -0.6:
        eye = at(0.49, 0.79, near * 0.05)
        sketch.fill(
            _ellipse_points(eye, 0.02 * size, 0.02 * size, 6),
            (20, 20, 20) if thing.colour != "black" else (90, 110, 130),
            is_detail=True,
        )
    for side in (-1.0, 1.0):
        if ear_up:
            ear = [at(0.36, 0.82, side * 0.06), at(0.37, 0.97, side * 0.08), at(0.45, 0.84, side * 0.06)]
        else:
            ear = [
                at(0.37, 0.84, side * 0.08),
                at(0.32, 0.68, side * 0.11),
                at(0.42, 0.68, side * 0.1),
                at(0.45, 0.82, side * 0.07),
            ]
        sketch.fill(ear, dark)
    return sketch.card(camera, state.x, state.z)


# -- vehicles ------------------------------------------------------------------------------------------------------


class _VehicleHull:
    """A vehicle in street coordinates: heads along x, its near side faces the camera."""

    def __init__(self, state: ObjectState, camera: StreetCamera) -> None:
        self.x, self.z = state.x, state.z
        self.ahead = 1.0 if state.heading_x >= 0 else -1.0
        self.camera = camera
        self.eye = -state.x * self.ahead  # the camera, seen along the vehicle's own axis

    def at(self, forward: float, up: float, near: float) -> tuple[float, float, float]:
        """A point: metres ahead of the middle, above the ground, and towards the camera from the middle line."""
        return self.x + self.ahead * forward, up, self.z - near

    def band(self, sketch: Sketch, profile: Sequence[tuple[float, float, float]], colours: Sequence[Colour]) -> None:
        """The skin over a profile of (ahead, up, half width), nose to tail: the strips that face the camera."""
        for (f0, u0, w0), (f1, u1, w1), colour in zip(profile, profile[1:], colours, strict=False):
            out_forward, out_up = u1 - u0, f0 - f1
            if out_forward * (self.eye - f0) + out_up * (self.camera.rise - u0) > 0:
                corners = [self.at(f0, u0, w0), self.at(f1, u1, w1), self.at(f1, u1, -w1), self.at(f0, u0, -w0)]
                sketch.fill(corners, colour)

    def near_side(
        self, sketch: Sketch, profile: Sequence[tuple[float, float, float]], colour: Colour, *, is_detail: bool = False
    ) -> None:
        sketch.fill([self.at(f, u, w) for f, u, w in profile], colour, is_detail=is_detail)

    def wheel(self, sketch: Sketch, forward: float, radius: float, near: float, travelled: float, rim: Colour) -> None:
        tyre = [self.at(forward + radius * c, radius + radius * s, near) for c, s in circle_points(18)]
        sketch.fill(tyre, TYRE)
        if self.camera.scale(self.x, self.z) * radius < 5.0:
            return  # no pixels for a rim
        disc = [self.at(forward + radius * 0.62 * c, radius + radius * 0.62 * s, near) for c, s in circle_points(12)]
        sketch.fill(disc, rim, is_detail=True)
        turn = -travelled / (radius * 6.2832)
        for spoke in range(5):
            c0, s0 = cosine(turn + spoke / 5), sine(turn + spoke / 5)
            c1, s1 = cosine(turn + spoke / 5 + 0.09), sine(turn + spoke / 5 + 0.09)
            inner, outer = radius * 0.16, radius * 0.54
            gap = [
                self.at(forward + inner * c0, radius + inner * s0, near),
                self.at(forward + outer * c0, radius + outer * s0, near),
                self.at(forward + outer * c1, radius + outer * s1, near),
            ]
            sketch.fill(gap, shade(rim, 0.45), is_detail=True)


_Profile = Sequence[tuple[float, float, float]]

# Profiles for a car of length 2 (from 1 at the nose to -1), heights in metres, half widths in metres.
_CAR_SHAPES: dict[str, tuple[_Profile, _Profile]] = {
    "saloon": (
        (
            (0.97, 0.28, 0.82), (1.0, 0.52, 0.84), (0.95, 0.72, 0.86), (0.45, 0.92, 0.88),
            (-0.66, 0.96, 0.88), (-0.95, 0.92, 0.86), (-1.0, 0.58, 0.84), (-0.97, 0.28, 0.82),
        ),
        ((0.47, 0.92, 0.82), (0.14, 1.40, 0.62), (-0.34, 1.43, 0.62), (-0.68, 0.96, 0.8)),
    ),
    "hatchback": (
        (
            (0.97, 0.28, 0.80), (1.0, 0.54, 0.82), (0.94, 0.76, 0.84), (0.52, 0.96, 0.86),
            (-0.9, 1.0, 0.86), (-0.99, 0.9, 0.84), (-1.0, 0.55, 0.82), (-0.97, 0.28, 0.80),
        ),
        ((0.56, 0.96, 0.80), (0.18, 1.45, 0.62), (-0.62, 1.5, 0.62), (-0.93, 1.0, 0.78)),
    ),
    "suv": (
        (
            (0.97, 0.36, 0.86), (1.0, 0.66, 0.88), (0.96, 0.92, 0.9), (0.5, 1.08, 0.9),
            (-0.95, 1.12, 0.9), (-0.99, 1.0, 0.88), (-1.0, 0.66, 0.88), (-0.97, 0.36, 0.86),
        ),
        ((0.5, 1.08, 0.84), (0.2, 1.66, 0.68), (-0.8, 1.72, 0.68), (-0.96, 1.12, 0.84)),
    ),
}  # fmt: skip


def _inset_pane(
    profile: _Profile, back: float, front: float, low: float, high: float
) -> list[tuple[float, float, float]]:
    """A pane in the cabin's side between two shares of its length and of its height (0 at the belt, 1 at the roof)."""
    (f0, u0, w0), (f1, u1, w1), (f2, u2, w2), (f3, u3, w3) = profile

    def on(share: float, rise: float) -> tuple[float, float, float]:
        front_f, rear_f = f0 + (f1 - f0) * rise, f3 + (f2 - f3) * rise
        front_u, rear_u = u0 + (u1 - u0) * rise, u3 + (u2 - u3) * rise
        front_w, rear_w = w0 + (w1 - w0) * rise, w3 + (w2 - w3) * rise
        return (
            rear_f + (front_f - rear_f) * share,
            rear_u + (front_u - rear_u) * share,
            rear_w + (front_w - rear_w) * share,
        )

    return [on(back, low), on(front, low), on(front, high), on(back, high)]


def _draw_car(state: ObjectState, camera: StreetCamera) -> SketchFigure:
    thing = state.thing
    body = next(name for name in _CAR_SHAPES if name in thing.attributes)
    half = thing.length / 2
    lower, cabin = ([(f * half, u, w) for f, u, w in profile] for profile in _CAR_SHAPES[body])
    paint = PAINT[thing.colour]
    if thing.colour == "black":
        paint = (44, 42, 42)
    hull, sketch = _VehicleHull(state, camera), Sketch()
    dice = SeededDice(thing.dice)
    rim = dice.pick((METAL, (196, 196, 196), (120, 120, 122)))
    radius = 0.37 if body == "suv" else 0.32
    underbody = [
        hull.at(f, u, w)
        for f, u, w in (
            (half * 0.9, 0.1, 0.8),
            (-half * 0.9, 0.1, 0.8),
            (-half * 0.9, 0.4, 0.8),
            (half * 0.9, 0.4, 0.8),
        )
    ]
    sketch.fill(underbody, (26, 25, 25))
    top = shade(paint, 1.16) if thing.colour != "white" else (252, 253, 254)
    front, rear = shade(paint, 0.86), shade(paint, 0.8)
    hull.band(sketch, lower, (front, front, shade(paint, 1.08), top, top, rear, rear))
    _draw_ends(sketch, hull, lower, half)
    hull.near_side(sketch, lower, paint)
    sill = [
        (half * 0.95, lower[0][1], 0.85),
        (-half * 0.95, lower[0][1], 0.85),
        (-half * 0.97, lower[0][1] + 0.16, 0.86),
        (half * 0.97, lower[0][1] + 0.16, 0.86),
    ]
    hull.near_side(sketch, sill, shade(paint, 0.62), is_detail=True)
    belt = lower[3][1]
    shine = [
        (half * 0.5, belt - 0.03, 0.885),
        (-half * 0.9, belt - 0.02, 0.885),
        (-half * 0.9, belt - 0.13, 0.885),
        (half * 0.55, belt - 0.14, 0.885),
    ]
    hull.near_side(sketch, shine, shade(paint, 1.18), is_detail=True)
    glass = shade(GLASS, 1.0)
    hull.band(sketch, cabin, (shade(glass, 1.25), top, shade(glass, 1.1)))
    hull.near_side(sketch, cabin, shade(paint, 0.92))
    for back, ahead in ((0.07, 0.46), (0.52, 0.92)):
        hull.near_side(sketch, _inset_pane(cabin, back, ahead, 0.1, 0.86), glass, is_detail=True)
        glint = _inset_pane(cabin, back + 0.05, back + 0.16, 0.15, 0.8)
        hull.near_side(sketch, glint, shade(glass, 1.5), is_detail=True)
    for door in (0.08, -0.42):
        line = [hull.at(half * door, belt - 0.02, 0.885), hull.at(half * door, lower[0][1] + 0.12, 0.87)]
        sketch.stroke(line, shade(paint, 0.55), 0.015, is_detail=True)
        grip = [hull.at(half * door - 0.12, belt - 0.14, 0.89), hull.at(half * door - 0.28, belt - 0.14, 0.89)]
        sketch.stroke(grip, shade(paint, 0.5), 0.03, is_detail=True)
    mirror = [
        hull.at(half * 0.34 + f, belt + u, 0.98) for f, u in ((0.0, 0.02), (0.12, 0.04), (0.12, 0.16), (-0.02, 0.16))
    ]
    sketch.fill(mirror, shade(paint, 0.75))
    for wheel in (0.62, -0.62):
        arch = [
            hull.at(half * wheel + (radius + 0.07) * c, radius + (radius + 0.07) * max(s, -0.2), 0.875)
            for c, s in circle_points(16)
        ]
        sketch.fill(arch, (30, 28, 28), is_detail=True)
        hull.wheel(sketch, half * wheel, radius, 0.9, state.travelled, rim)
    _draw_lamps(sketch, hull, half, lower[2][1] - 0.1, 0.7, shines="parked" not in thing.attributes)
    return sketch.solid(camera, state.x, state.z)


def _draw_ends(sketch: Sketch, hull: _VehicleHull, lower: _Profile, half: float) -> None:
    """Number plate, grille and windscreen-high lamps, where nose or tail shows."""
    if hull.eye > half:
        height = lower[1][1]
        grille = [
            hull.at(half + 0.01, height + u, w) for u, w in ((-0.1, 0.45), (0.06, 0.45), (0.06, -0.45), (-0.1, -0.45))
        ]
        sketch.fill(grille, (40, 38, 38), is_detail=True)
    elif hull.eye < -half:
        height = lower[-2][1]
        plate = [
            hull.at(-half - 0.01, height + u, w)
            for u, w in ((-0.06, 0.26), (0.06, 0.26), (0.06, -0.26), (-0.06, -0.26))
        ]
        sketch.fill(plate, (200, 214, 216), is_detail=True)


def _draw_lamps(sketch: Sketch, hull: _VehicleHull, half: float, up: float, near: float, *, shines: bool) -> None:
    """Head and tail lamps wrap around the corners, so that they show from the side as well."""
    side = near + 0.17
    for end, colour in ((1.0, HEADLIGHT), (-1.0, TAILLIGHT)):
        edge = end * half
        wrap = [
            hull.at(edge * 0.985, up - 0.07, side),
            hull.at(edge * 0.985, up + 0.07, side),
            hull.at(edge * 0.985 - end * 0.3, up + 0.08, side),
            hull.at(edge * 0.985 - end * 0.2, up - 0.04, side),
        ]
        sketch.fill(wrap, colour, is_detail=True, is_lamp=shines)
        if hull.eye * end > half:
            for inner, outer in ((near - 0.25, near + 0.12), (-near - 0.12, -near + 0.25)):
                face = [
                    hull.at(edge * 1.005, up + u, w)
                    for u, w in ((-0.08, inner), (-0.08, outer), (0.07, outer), (0.07, inner))
                ]
                sketch.fill(face, colour, is_detail=True, is_lamp=shines)
        if shines:
            glow = 0.9 if end > 0 else 0.5
            sketch.glow(hull.at(edge, up, near), glow, colour)
            if hull.eye * end > half:
                sketch.glow(hull.at(edge, up, -near), glow, colour)


def _draw_bus(state: ObjectState, camera: StreetCamera) -> SketchFigure:
    thing = state.thing
    half, height, wide = thing.length / 2, thing.height, thing.width / 2
    paint = PAINT[thing.colour]
    dice = SeededDice(thing.dice)
    trim = dice.pick(((238, 238, 238), (60, 54, 50), shade(paint, 0.55)))
    if thing.colour == "white":
        trim = dice.pick(((150, 90, 40), (60, 110, 60), (70, 60, 60)))
    hull, sketch = _VehicleHull(state, camera), Sketch()
    underbody = [hull.at(f * half * 0.96, u, wide - 0.1) for f, u in ((1, 0.12), (-1, 0.12), (-1, 0.5), (1, 0.5))]
    sketch.fill(underbody, (26, 25, 25))
    shell = [
        (half, 0.32, wide), (half, height * 0.86, wide), (half - 0.25, height, wide - 0.08),
        (-half + 0.12, height, wide - 0.08), (-half, height * 0.92, wide), (-half, 0.32, wide),
    ]  # fmt: skip
    top = shade(paint, 1.14) if thing.colour != "white" else (250, 252, 252)
    front, rear = shade(paint, 0.88), shade(paint, 0.8)
    hull.band(sketch, shell, (front, shade(paint, 0.96), top, rear, rear))
    decks = 2 if "double-decker" in thing.attributes else 1
    belts = [1.15, 2.75] if decks == 2 else [1.3 if thing.size == "large" else 1.2]
    tall = 0.95 if decks == 2 else height - belts[0] - 0.5
    if hull.eye > half:
        for belt in belts:
            screen = [
                hull.at(half + 0.01, belt + u, w)
                for u, w in ((-0.1, wide - 0.12), (tall, wide - 0.16), (tall, -wide + 0.16), (-0.1, -wide + 0.12))
            ]
            sketch.fill(screen, shade(GLASS, 1.15), is_detail=True)
    elif hull.eye < -half:
        pane = [
            hull.at(-half - 0.01, belts[-1] + u, w)
            for u, w in ((0.1, wide - 0.3), (tall, wide - 0.3), (tall, -wide + 0.3), (0.1, -wide + 0.3))
        ]
        sketch.fill(pane, GLASS, is_detail=True)
    hull.near_side(sketch, shell, paint)
    stripe = [(half, 0.62, wide), (-half, 0.62, wide), (-half, 0.84, wide), (half, 0.84, wide)]
    hull.near_side(sketch, stripe, trim, is_detail=True)
    hull.near_side(
        sketch,
        [(half, 0.32, wide), (-half, 0.32, wide), (-half, 0.46, wide), (half, 0.46, wide)],
        shade(paint, 0.6),
        is_detail=True,
    )
    for belt in belts:
        _bus_windows(sketch, hull, half, belt, tall, wide, dice)
    if hull.ahead > 0:  # the doors are on the kerb's side; the camera sees them on one side of the road only
        for door in (half - 1.5, -0.4):
            frame = [(door + f, u, wide + 0.005) for f, u in ((0.5, 0.36), (-0.5, 0.36), (-0.5, 2.25), (0.5, 2.25))]
            hull.near_side(sketch, frame, shade(paint, 0.7), is_detail=True)
            for leaf in (-0.24, 0.24):
                pane = [
                    (door + leaf + f, u, wide + 0.01)
                    for f, u in ((0.19, 0.5), (-0.19, 0.5), (-0.19, 2.15), (0.19, 2.15))
                ]
                hull.near_side(sketch, pane, shade(GLASS, 1.1), is_detail=True)
    sign = [
        (half - 0.5, height - 0.36, wide),
        (half - 2.1, height - 0.36, wide),
        (half - 2.1, height - 0.14, wide - 0.03),
        (half - 0.5, height - 0.14, wide - 0.03),
    ]
    hull.near_side(sketch, sign, (26, 24, 24), is_detail=True)
    letters = [hull.at(half - 0.65, height - 0.25, wide), hull.at(half - 1.9, height - 0.25, wide)]
    sketch.stroke(letters, (60, 190, 250), 0.08, is_detail=True)
    for wheel in (half - 2.3, -half + 2.1):
        arch = [hull.at(wheel + 0.58 * c, 0.47 + 0.58 * max(s, -0.2), wide + 0.005) for c, s in circle_points(16)]
        sketch.fill(arch, (30, 28, 28), is_detail=True)
        hull.wheel(sketch, wheel, 0.47, wide + 0.02, state.travelled, METAL)
    _draw_lamps(sketch, hull, half, 0.7, wide - 0.16, shines=True)
    return sketch.solid(camera, state.x, state.z)


def _bus_windows(
    sketch: Sketch, hull: _VehicleHull, half: float, belt: float, tall: float, wide: float, dice: SeededDice
) -> None:
    count = max(3, round((2 * half - 0.8) / 1.4))
    pitch = (2 * half - 0.8) / count
    for pane in range(count):
        f0 = -half + 0.4 + pane * pitch
        f1 = f0 + pitch - 0.14
        hull.near_side(
            sketch,
            [(f0, belt, wide), (f1, belt, wide), (f1, belt + tall, wide), (f0, belt + tall, wide)],
            GLASS,
            is_detail=True,
        )
        glint = [
            (f0 + 0.1, belt + 0.08, wide),
            (f0 + 0.3, belt + 0.08, wide),
            (f0 + 0.55, belt + tall - 0.08, wide),
            (f0 + 0.35, belt + tall - 0.08, wide),
        ]
        hull.near_side(sketch, glint, shade(GLASS, 1.35), is_detail=True)
        if dice.chance(0.5):
            middle = (f0 + f1) / 2 + dice.between(-0.15, 0.15)
            head = [hull.at(middle + 0.13 * c, belt + 0.3 + 0.15 * s, wide) for c, s in circle_points(8)]
            sketch.fill(head, (64, 66, 78), is_detail=True)


# -- the newcomer --------------------------------------------------------------------------------------------------


def _draw_robot(state: ObjectState, camera: StreetCamera) -> SketchFigure:
    """A delivery robot: a white box on six wheels with a lid, an eye band and a flag on a whip."""
    hull, sketch = _VehicleHull(state, camera), Sketch()
    dice = SeededDice(state.thing.dice)
    lid = dice.pick(((60, 60, 62), (40, 120, 230), (120, 160, 40)))
    half, wide, shell = 0.36, 0.27, (236, 238, 240)
    body = [
        (half, 0.16, wide),
        (half + 0.02, 0.4, wide),
        (half - 0.08, 0.56, wide - 0.02),
        (-half + 0.04, 0.56, wide - 0.02),
        (-half, 0.4, wide),
        (-half, 0.16, wide),
    ]
    hull.band(sketch, body, (shade(shell, 0.85), shade(shell, 0.92), lid, shade(shell, 0.8), shade(shell, 0.76)))
    hull.near_side(sketch, body, shell)
    rim = [
        (half - 0.02, 0.44, wide),
        (-half + 0.02, 0.44, wide),
        (-half + 0.04, 0.56, wide - 0.02),
        (half - 0.08, 0.56, wide - 0.02),
    ]
    hull.near_side(sketch, rim, lid, is_detail=True)
    eyes = [(half - 0.06, 0.32, wide), (half - 0.28, 0.32, wide), (half - 0.28, 0.38, wide), (half - 0.06, 0.38, wide)]
    sketch.fill([hull.at(*point) for point in eyes], (250, 220, 150), is_detail=True, is_lamp=True)
    for wheel in (-0.26, 0.0, 0.26):
        hull.wheel(sketch, wheel, 0.11, wide + 0.02, state.travelled, (120, 120, 122))
    foot, tip = hull.at(-half + 0.06, 0.56, 0.0), hull.at(-half + 0.04, 1.15, 0.0)
    sketch.stroke([foot, tip], (60, 60, 62), 0.015)
    flutter = 0.03 * sine(state.travelled * 0.9)
    flag = [tip, hull.at(-half - 0.2, 1.08 + flutter, 0.0), hull.at(-half + 0.05, 1.0, 0.0)]
    sketch.fill(flag, blend(PAINT["orange"], (255, 255, 255), 0.1), is_lamp=True)
    sketch.glow(hull.at(half, 0.35, wide), 0.3, (250, 220, 150))
    sketch.glow(tip, 0.15, (60, 140, 255))
    return sketch.solid(camera, state.x, state.z)


_FIGURES: dict[str, Callable[[ObjectState, StreetCamera], SketchFigure]] = {
    "person": _draw_person,
    "bicycle": _draw_bicycle,
    "dog": _draw_dog,
    "car": _draw_car,
    "bus": _draw_bus,
    "robot": _draw_robot,
}
