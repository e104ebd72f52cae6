"""The street itself: who is where at any moment.

Every thing's way is a closed formula of time and of the seed: any moment can be asked for, in any order, and is the
same at any reading speed. The traffic of a lane moves as a convoy behind one signal, so that nothing collides; each
walker has a plan made once, from its own dice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from streamer.street.camera import StreetCamera
from streamer.street.dice import SeededDice

Kind = Literal["person", "car", "bus", "bicycle", "dog", "robot"]
Light = Literal["day", "dusk", "night"]
Weather = Literal["clear", "rain", "fog", "snow"]
Bearing = Literal["roll", "walk", "stand", "ride"]

CAR_COLOURS = {
    "red": 4.0,
    "blue": 4.0,
    "white": 3.0,
    "black": 3.0,
    "grey": 2.5,
    "green": 3.0,
    "yellow": 3.0,
    "orange": 2.0,
}
BUS_COLOURS = {"red": 3.0, "blue": 3.0, "yellow": 2.5, "green": 2.5, "white": 2.0}
BICYCLE_COLOURS = {"red": 3.0, "blue": 3.0, "green": 2.0, "yellow": 2.0, "white": 2.0, "black": 2.0}
CLOTHES_COLOURS = {
    "red": 3.0,
    "blue": 3.0,
    "green": 3.0,
    "yellow": 2.5,
    "white": 2.5,
    "orange": 2.0,
    "purple": 2.0,
    "pink": 2.0,
}
DOG_COLOURS = {"brown": 3.0, "black": 3.0, "white": 3.0, "grey": 1.5}
ROBOT_COLOURS = {"white": 1.0}

SLOT = 17.0
"""Metres of lane that belong to one vehicle of a convoy."""
BICYCLE_SLOT = 9.0

# The signal's round: the convoy rolls, brakes, stands while people cross, and sets off again.
ROUND_S = 27.0
ROLL_S, BRAKE_S, STAND_S, START_S = 12.0, 2.5, 9.5, 3.0

_FOREVER = 1e9


@dataclass(frozen=True, slots=True)
class StreetObject:
    """Something that has an identity, and what is true of it as long as it lives.

    `colour` is that of the body, the frame, the coat or the clothes above the belt. `attributes` are from
    `words.ATTRIBUTES`. `size` is "large" or "small" where that means something, else "". `sex` is "man", "woman" or
    "child" for people. `dice` is the seed of everything about its looks that has no name.
    """

    identity: int
    kind: Kind
    colour: str
    attributes: frozenset[str] = frozenset()
    size: str = ""
    sex: str = ""
    dice: int = 0
    length: float = 0.5
    height: float = 1.7
    width: float = 0.5


@dataclass(frozen=True, slots=True)
class ObjectState:
    """A thing at one moment: its ground point in metres, where it heads, and how far it has come: that turns wheels and
    swings legs."""

    thing: StreetObject
    x: float
    z: float
    heading_x: float
    heading_z: float
    travelled: float
    bearing: Bearing
    leash: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class SceneConditions:
    """Light, weather and the camera's faults. `noise` and `blur` in grey levels and pixels, `jpeg` a quality or 0."""

    light: Light
    weather: Weather
    sun: tuple[float, float]
    noise: int
    blur: float
    jpeg: int
    flicker: float
    haze: float


@dataclass(frozen=True, slots=True)
class StreetLayout:
    """Distances from the camera, in metres, and where the crossing is."""

    near: tuple[float, float]
    cycle: float
    lanes: tuple[float, float]
    parking: float
    far: tuple[float, float]
    facade: float
    crossing: float
    hand: int  # 1: traffic keeps right

    @property
    def kerbs(self) -> tuple[float, float]:
        return self.near[1], self.far[0]


@dataclass(frozen=True, slots=True)
class _PathLeg:
    """A straight piece of a walker's plan."""

    start_s: float
    end_s: float
    x0: float
    z0: float
    x1: float
    z1: float
    travelled: float


@dataclass(frozen=True, slots=True)
class _PathPlan:
    """What a walker does from its first to its last moment."""

    thing: StreetObject
    legs: tuple[_PathLeg, ...]
    side: int
    dog: StreetObject | None = None

    @property
    def start_s(self) -> float:
        return self.legs[0].start_s

    @property
    def end_s(self) -> float:
        return self.legs[-1].end_s


@dataclass(frozen=True)
class Scenario:
    """What is asked for; None leaves it to the seed. `crowd` and `traffic` scale how much is going on, 0..3."""

    light: Light | None = None
    weather: Weather | None = None
    crowd: float = 1.0
    traffic: float = 1.0
    robots: bool = False
    clean: bool = False


@dataclass
class StreetWorld:
    """A street grown from a seed, seen by one camera of `size` (width, height)."""

    seed: int
    size: tuple[int, int] = (640, 384)
    scenario: Scenario = field(default_factory=Scenario)

    def __post_init__(self) -> None:
        dice = SeededDice(self.seed, 1)
        self.camera, self.layout = _survey_street(dice, self.size)
        self.conditions = _random_conditions(SeededDice(self.seed, 2), self.scenario)
        self._plans: dict[tuple[int, int], _PathPlan] = {}
        self._vehicles: dict[tuple[int, int], StreetObject | None] = {}
        mood = SeededDice(self.seed, 3)
        self._phase = mood.between(0.0, ROUND_S)
        self._speeds = tuple(mood.pick((4, 5, 6, 7)) * SLOT for _ in range(2))
        self._cycle_advance = 8 * BICYCLE_SLOT
        self._fill = min(1.0, mood.between(0.3, 0.75) * self.scenario.traffic)
        self._bus_share = mood.between(0.12, 0.35)
        self._cycle_fill = min(1.0, mood.between(0.15, 0.5) * self.scenario.traffic)
        self._parked_fill = min(0.95, mood.between(0.0, 0.9) * self.scenario.traffic)
        crowd = max(self.scenario.crowd, 0.01)
        self._walk_gap_s = tuple(mood.between(3.0, 8.0) / crowd for _ in range(2))
        self._dog_gap_s = mood.between(14.0, 35.0) / crowd
        self._robot_gap_s = mood.between(6.0, 12.0) / crowd
        self._umbrellas = {"rain": 0.55, "snow": 0.2}.get(self.conditions.weather, 0.12)

    def at(self, time_s: float) -> list[ObjectState]:
        """Everything near the picture at `time_s`, the most distant first."""
        states = [*self._all_convoys(time_s), *self._parked_cars, *self._all_strollers(time_s)]
        camera = self.camera
        states.sort(key=lambda state: (-_depth_order(state), -abs(state.x), state.thing.identity))
        return [state for state in states if camera.depth(state.x, state.z) > 1.5]

    def stopped(self, time_s: float) -> bool:
        """Whether the signal holds the traffic back, so that people cross."""
        return ROLL_S <= (time_s + self._phase) % ROUND_S < ROLL_S + BRAKE_S + STAND_S

    # -- vehicles ------------------------------------------------------------------------------------------------

    def _convoy_advance(self, time_s: float, per_round: float) -> tuple[float, bool]:
        """How far a convoy has come, a whole number of slots each round; and whether it stands."""
        rounds, phase = divmod(time_s + self._phase, ROUND_S)
        speed = per_round / (ROLL_S + (BRAKE_S + START_S) / 2)
        way = speed * (min(phase, ROLL_S) - ROLL_S - BRAKE_S / 2)  # 0 where it stands, so that slots hold the crossing
        braking = min(max(phase - ROLL_S, 0.0), BRAKE_S)
        way += speed * (braking - braking * braking / (2 * BRAKE_S))
        starting = max(phase - ROLL_S - BRAKE_S - STAND_S, 0.0)
        way += speed * starting * starting / (2 * START_S)
        return rounds * per_round + way, ROLL_S + BRAKE_S <= phase < ROLL_S + BRAKE_S + STAND_S

    def _all_convoys(self, time_s: float) -> Iterator[ObjectState]:
        layout = self.layout
        for lane, z in enumerate(layout.lanes):
            direction = layout.hand if lane == 0 else -layout.hand
            yield from self._lane_convoy(lane, z, direction, self._speeds[lane], SLOT, time_s)
        yield from self._lane_convoy(2, layout.cycle, layout.hand, self._cycle_advance, BICYCLE_SLOT, time_s)

    def _lane_convoy(
        self, lane: int, z: float, direction: int, per_round: float, slot: float, time_s: float
    ) -> Iterator[ObjectState]:
        way, stands = self._convoy_advance(time_s, per_round)
        left, right = self.camera.reach(z)
        origin = self.layout.crossing - direction * slot / 2  # the crossing lies between two slots of a standing convoy
        low, high = sorted(((left - origin) * direction, (right - origin) * direction))
        first, last = int((way - high - 8.0) // slot), int((way - low + 8.0) // slot) + 1
        for index in range(first, last + 1):
            thing = self._lane_vehicle(lane, index)
            if thing is None:
                continue
            dice = SeededDice(self.seed, 11, lane, index)
            room = max(slot / 2 - 3.1 - thing.length / 2, 0.0)
            along = way - index * slot + dice.between(-room, room)
            x = origin + direction * along
            if not left - thing.length <= x <= right + thing.length:
                continue
            offset = dice.between(-0.15, 0.15)
            if thing.kind == "bicycle":
                yield ObjectState(thing, x, z + offset, direction, 0.0, way, "ride")
                yield ObjectState(
                    self._lane_rider(lane, index), x, z + offset, direction, 0.0, way, "stand" if stands else "ride"
                )
            else:
                yield ObjectState(thing, x, z + offset, direction, 0.0, way, "roll")

    def _lane_vehicle(self, lane: int, index: int) -> StreetObject | None:
        key = lane, index
        if key not in self._vehicles:
            dice = SeededDice(self.seed, 10, lane, index)
            fill = self._cycle_fill if lane == 2 else self._fill
            thing = None
            if dice.chance(fill):
                identity = _unique_identity(lane, index)
                if lane == 2:
                    colour = dice.weigh(BICYCLE_COLOURS)
                    thing = StreetObject(
                        identity, "bicycle", colour, dice=dice.word(), length=1.75, height=1.05, width=0.3
                    )
                elif dice.chance(self._bus_share):
                    thing = _random_bus(identity, dice)
                else:
                    thing = _random_car(identity, dice)
            self._vehicles[key] = thing
        return self._vehicles[key]

    def _lane_rider(self, lane: int, index: int) -> StreetObject:
        dice = SeededDice(self.seed, 12, lane, index)
        attributes = {"bicycle"}
        if dice.chance(0.3):
            attributes.add("backpack")
        if dice.chance(0.45):
            attributes.add("helmet")
        sex = "woman" if dice.chance(0.5) else "man"
        colour = dice.weigh(CLOTHES_COLOURS)
        return StreetObject(
            _unique_identity(3, index), "person", colour, frozenset(attributes), sex=sex, dice=dice.word(), height=1.72
        )

    @cached_property
    def _parked_cars(self) -> tuple[ObjectState, ...]:
        z = self.layout.parking
        left, right = self.camera.reach(z)
        states = []
        for index in range(int(left // 6.2) - 1, int(right // 6.2) + 2):
            dice = SeededDice(self.seed, 13, index)
            x = index * 6.2 + dice.between(-0.4, 0.4)
            if abs(x - self.layout.crossing) < 5.2 or not dice.chance(self._parked_fill):
                continue
            thing = _random_car(_unique_identity(4, index), dice, parked=True)
            states.append(ObjectState(thing, x, z, -self.layout.hand, 0.0, dice.between(0, 2), "roll"))
        return tuple(states)

    # -- walkers -------------------------------------------------------------------------------------------------

    def _all_strollers(self, time_s: float) -> Iterator[ObjectState]:
        for group, gap in ((5, self._walk_gap_s[0]), (6, self._walk_gap_s[1]), (8, self._dog_gap_s)):
            yield from self._group_stroll(group, gap, time_s)
        if self.scenario.robots:
            yield from self._group_stroll(9, self._robot_gap_s, time_s)
        if self.scenario.crowd > 0:
            yield from self._idle_people

    def _group_stroll(self, group: int, gap_s: float, time_s: float) -> Iterator[ObjectState]:
        if self.scenario.crowd <= 0:
            return
        longest_s = 110.0
        for index in range(int((time_s - longest_s) // gap_s), int(time_s // gap_s) + 1):
            plan = self._plans.get((group, index))
            if plan is None:
                plan = self._plans[group, index] = self._make_plan(group, index, gap_s)
            if plan.start_s <= time_s < plan.end_s:
                yield from _walk_plan(plan, time_s)

    def _make_plan(self, group: int, index: int, gap_s: float) -> _PathPlan:
        dice = SeededDice(self.seed, 20, group, index)
        start_s = (index + dice.unit()) * gap_s
        is_near = dice.chance(0.5) if group in (8, 9) else group == 5
        layout = self.layout
        strip = layout.near if is_near else layout.far
        z = dice.between(strip[0] + 0.55, strip[1] - 0.7)
        direction = dice.sign()
        dog = None
        if group == 8:
            thing = _random_dog(_unique_identity(group, index), dice)
            speed = dice.between(1.3, 2.6)
        elif group == 9:
            thing = StreetObject(
                _unique_identity(group, index), "robot", "white", dice=dice.word(), length=0.75, height=1.15, width=0.55
            )
            speed = dice.between(0.9, 1.5)
        else:
            walks_dog = dice.chance(0.14)
            thing = _random_person(_unique_identity(group, index), dice, self._umbrellas, leads=walks_dog)
            speed = dice.between(1.0, 1.65) * (0.8 if thing.sex == "child" else 1.0)
            if walks_dog:
                dog = _random_dog(_unique_identity(7, index * 2 + (group == 6)), dice, leashed=True)
        way = _PathWay(start_s, self._picture_door(z, -direction), z)
        target_strip = strip
        if group != 8 and dice.chance(0.3):
            kerb, other_kerb = layout.kerbs if is_near else layout.kerbs[::-1]
            inward = -0.35 if is_near else 0.35
            x = layout.crossing + dice.between(-1.3, 1.3)
            way.go(x - direction * 1.0, z, speed)
            way.go(x, kerb + inward, speed)
            way.stay(self._next_walk_s(way.time_s) + dice.between(0.0, 1.2) - way.time_s)
            way.go(x + dice.between(-0.4, 0.4), other_kerb - inward, max(speed, 1.5))
            target_strip = layout.far if is_near else layout.near
            if dice.chance(0.3):
                direction = -direction
            z = dice.between(target_strip[0] + 0.55, target_strip[1] - 0.7)
            way.go(way.x + direction * 1.2, z, speed)
        elif dice.chance(0.3):
            left, right = self.camera.reach(z)
            way.go(dice.between(left * 0.8, right * 0.8), z, speed)
            way.stay(dice.between(2.0, 9.0))
            if dice.chance(0.25):
                direction = -direction
        way.go(self._picture_door(z, direction), z, speed)
        return _PathPlan(thing, tuple(way.legs), dice.sign(), dog)

    def _picture_door(self, z: float, direction: int) -> float:
        """Just outside the picture, on the side `direction` points to."""
        left, right = self.camera.reach(z)
        return right + 1.6 if direction > 0 else left - 1.6

    def _next_walk_s(self, time_s: float) -> float:
        """The first moment from `time_s` on at which people may set foot on the crossing."""
        since = (time_s + self._phase - (ROLL_S + BRAKE_S)) % ROUND_S
        return time_s if since < 0.4 else time_s + ROUND_S - since

    @cached_property
    def _idle_people(self) -> tuple[ObjectState, ...]:
        """People who wait in one place for the whole recording."""
        states = []
        for index in range(SeededDice(self.seed, 30).whole(0, 3)):
            dice = SeededDice(self.seed, 31, index)
            strip = self.layout.near if dice.chance(0.35) else self.layout.far
            z = dice.between(strip[0] + 0.6, strip[1] - 0.6)
            left, right = self.camera.reach(z)
            thing = _random_person(_unique_identity(10, index), dice, self._umbrellas, leads=False)
            heading = dice.pick(((1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, -1.0), (0.0, 1.0)))
            states.append(ObjectState(thing, dice.between(left * 0.85, right * 0.85), z, *heading, 0.0, "stand"))
        return tuple(states)


class _PathWay:
    """Builds a plan leg by leg."""

    def __init__(self, time_s: float, x: float, z: float) -> None:
        self.time_s, self.x, self.z = time_s, x, z
        self.travelled = 0.0
        self.legs: list[_PathLeg] = []

    def go(self, x: float, z: float, speed: float) -> None:
        length = ((x - self.x) ** 2 + (z - self.z) ** 2) ** 0.5
        if length > 0.01:
            self._add(self.time_s + length / speed, x, z)
            self.travelled += length

    def stay(self, seconds: float) -> None:
        if seconds > 0.01:
            self._add(self.time_s + seconds, self.x, self.z)

    def _add(self, end_s: float, x: float, z: float) -> None:
        self.legs.append(_PathLeg(self.time_s, end_s, self.x, self.z, x, z, self.travelled))
        self.time_s, self.x, self.z = end_s, x, z


def _walk_plan(plan: _PathPlan, time_s: float) -> Iterator[ObjectState]:
    x, z, heading_x, heading_z, travelled, moves = _follow_plan(plan, time_s)
    thing = plan.thing
    if plan.dog is None:
        yield ObjectState(thing, x, z, heading_x, heading_z, travelled, _thing_bearing(thing, moves))
        return
    ahead_x, ahead_z, _, _, dog_travelled, dog_moves = _follow_plan(plan, time_s + 0.55)
    dog_x, dog_z = ahead_x + plan.side * 0.25, ahead_z - 0.3
    yield ObjectState(thing, x, z, heading_x, heading_z, travelled, _thing_bearing(thing, moves))
    yield ObjectState(
        plan.dog, dog_x, dog_z, heading_x, heading_z, dog_travelled, "walk" if dog_moves else "stand", leash=(x, z)
    )


def _thing_bearing(thing: StreetObject, moves: bool) -> Bearing:
    if thing.kind == "robot":
        return "roll"
    return "walk" if moves else "stand"


def _follow_plan(plan: _PathPlan, time_s: float) -> tuple[float, float, float, float, float, bool]:
    """x, z, heading x, heading z, metres travelled, whether it moves; it goes on straight after the plan's end."""
    leg = next((leg for leg in plan.legs if time_s < leg.end_s), plan.legs[-1])
    share = (time_s - leg.start_s) / (leg.end_s - leg.start_s)
    way_x, way_z = leg.x1 - leg.x0, leg.z1 - leg.z0
    length = (way_x * way_x + way_z * way_z) ** 0.5
    x, z = leg.x0 + way_x * share, leg.z0 + way_z * share
    if length > 0.01:
        return x, z, way_x / length, way_z / length, leg.travelled + length * share, True
    position = plan.legs.index(leg)
    around = plan.legs[min(position + 1, len(plan.legs) - 1)]
    ahead_x, ahead_z = around.x1 - around.x0, around.z1 - around.z0
    norm = max((ahead_x * ahead_x + ahead_z * ahead_z) ** 0.5, 0.01)
    return x, z, ahead_x / norm, ahead_z / norm, leg.travelled, False


def _depth_order(state: ObjectState) -> float:
    """What decides who is in front: everything in the street stands in planes along it."""
    return state.z - (0.01 if state.thing.kind == "person" and "bicycle" in state.thing.attributes else 0.0)


def _unique_identity(group: int, index: int) -> int:
    """A positive number that no other thing of this world has; indices before the first moment are negative."""
    return (index + 100_000) * 16 + group


def _random_car(identity: int, dice: SeededDice, parked: bool = False) -> StreetObject:
    body, length, height = dice.pick((("saloon", 4.5, 1.45), ("hatchback", 3.9, 1.5), ("suv", 4.6, 1.75)))
    attributes = {body} | ({"parked"} if parked else set())
    colour = dice.weigh(CAR_COLOURS)
    return StreetObject(
        identity, "car", colour, frozenset(attributes), dice=dice.word(), length=length, height=height, width=1.8
    )


def _random_bus(identity: int, dice: SeededDice) -> StreetObject:
    colour = dice.weigh(BUS_COLOURS)
    if dice.chance(0.35):
        return StreetObject(identity, "bus", colour, size="small", dice=dice.word(), length=7.2, height=2.7, width=2.2)
    decks = dice.chance(0.3)
    return StreetObject(
        identity,
        "bus",
        colour,
        frozenset({"double-decker"} if decks else ()),
        size="large",
        dice=dice.word(),
        length=10.4,
        height=4.2 if decks else 3.1,
        width=2.5,
    )


def _random_dog(identity: int, dice: SeededDice, leashed: bool = False) -> StreetObject:
    is_large = dice.chance(0.5)
    scale = dice.between(1.0, 1.15) if is_large else dice.between(0.6, 0.72)
    return StreetObject(
        identity,
        "dog",
        dice.weigh(DOG_COLOURS),
        frozenset({"leash"} if leashed else ()),
        size="large" if is_large else "small",
        dice=dice.word(),
        length=0.95 * scale,
        height=0.7 * scale,
        width=0.28 * scale,
    )


def _random_person(identity: int, dice: SeededDice, umbrellas: float, leads: bool) -> StreetObject:
    sex = dice.weigh({"man": 0.42, "woman": 0.42, "child": 0.0 if leads else 0.16})
    attributes = set()
    if leads:
        attributes.add("dog")
    if dice.chance(umbrellas) and sex != "child":
        attributes.add("umbrella")
    if dice.chance(0.28):
        attributes.add("backpack")
    if dice.chance(0.25):
        attributes.add("hat")
    if not leads and sex != "child" and dice.chance(0.14):
        attributes.add("suitcase")
    height = dice.between(1.05, 1.3) if sex == "child" else dice.between(1.6, 1.76) + (0.08 if sex == "man" else 0.0)
    return StreetObject(
        identity,
        "person",
        dice.weigh(CLOTHES_COLOURS),
        frozenset(attributes),
        sex=sex,
        dice=dice.word(),
        height=height,
        width=0.5,
    )


def _survey_street(dice: SeededDice, size: tuple[int, int]) -> tuple[StreetCamera, StreetLayout]:
    width, height = size
    base = min(width, height * 640 / 384)
    focal = base * dice.between(0.66, 0.98)
    rise = dice.between(3.6, 6.2)
    horizon = height * dice.between(0.14, 0.34)
    start = focal * rise / (height - horizon)
    half_turn = dice.between(-0.13, 0.13)
    norm = 1.0 + half_turn * half_turn
    camera = StreetCamera(
        width, height, focal, rise, horizon, (1.0 - half_turn * half_turn) / norm, 2.0 * half_turn / norm
    )
    start = start / camera.cos
    near = start + 0.2, start + dice.between(2.8, 3.6)
    cycle = near[1] + 0.9
    lanes = cycle + 2.6, cycle + 5.9
    parking = lanes[1] + 2.9
    far_start = parking + 1.25
    far = far_start, far_start + dice.between(2.8, 4.0)
    left, right = camera.reach(lanes[0])
    crossing = dice.between(left * 0.65, right * 0.65)
    return camera, StreetLayout(near, cycle, lanes, parking, far, far[1] + 0.1, crossing, dice.sign())


def _random_conditions(dice: SeededDice, scenario: Scenario) -> SceneConditions:
    light: Light = dice.weigh({"day": 0.6, "dusk": 0.2, "night": 0.2})
    weather: Weather = dice.weigh({"clear": 0.55, "rain": 0.18, "fog": 0.12, "snow": 0.15})
    sun = dice.between(-1.1, 1.1), dice.between(0.1, 0.7)
    noise = dice.whole(0, 6) if dice.chance(0.6) else 0
    blur = dice.between(0.4, 1.0) if dice.chance(0.25) else 0.0
    jpeg = dice.whole(25, 80) if dice.chance(0.3) else 0
    flicker = dice.between(0.02, 0.12) if dice.chance(0.4) else 0.0
    haze = dice.between(0.35, 0.75)
    light = scenario.light or light
    weather = scenario.weather or weather
    if scenario.clean:
        noise, blur, jpeg, flicker = 0, 0.0, 0, 0.0
    elif light == "night":
        noise += 3
    return SceneConditions(light, weather, sun, noise, blur, jpeg, flicker, haze)
