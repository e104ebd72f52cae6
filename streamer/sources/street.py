"""Synthetic street as a source: `synthetic:street?seed=7&size=640x384&fps=25&duration=30`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from streamer.errors import SourceAddressError
from streamer.frame import Frame, FrameClock
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.source import OnState, SourceRecipe, SourceState, StateChange
from streamer.street.street import Street
from streamer.street.world import Light, Scenario, Weather

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")

_OPTIONS = ("seed", "size", "fps", "duration", "live", "light", "weather", "crowd", "traffic", "scenario", "clean")
SCENARIOS: Mapping[str, Scenario] = {
    "everyday": Scenario(),
    "courier": Scenario(light="night", weather="rain", robots=True),
}
"""`courier` is a street that a model of the everyday one has never seen: night, rain, delivery robots."""


class StreetSource:
    """Frames of a seeded street.

    Without `live` every frame is kept and the reader sets the pace; times count from 1970. With `live` frames appear
    `fps` times a second by the clock on the wall, and the reader gets the newest: those it was too slow for are never
    painted, but received and dropped as `stale`. `duration_s` None is endless. `light`, `weather`, `crowd` and
    `traffic` overrule the scenario; what none of them says, the seed decides.

    Raises `SourceAddressError`.
    """

    def __init__(
        self,
        name: str = "street",
        *,
        seed: int = 7,
        size: tuple[int, int] = (640, 384),
        fps: float = 25.0,
        duration_s: float | None = None,
        live: bool = False,
        scenario: str = "everyday",
        light: Light | None = None,
        weather: Weather | None = None,
        crowd: float = 1.0,
        traffic: float = 1.0,
        clean: bool = False,
        on_state: OnState | None = None,
    ) -> None:
        _check_size(size)
        _check_range("fps", fps, 0.1, 1000.0)
        if duration_s is not None:
            _check_range("duration", duration_s, 0.01, 1e6)
        _check_range("crowd", crowd, 0.0, 3.0)
        _check_range("traffic", traffic, 0.0, 3.0)
        base = SCENARIOS[_one_of("scenario", scenario, tuple(SCENARIOS))]
        if light is not None:
            _one_of("light", light, get_args(Light))
        if weather is not None:
            _one_of("weather", weather, get_args(Weather))
        self.name, self.live = name, live
        self.account = FrameCounter()
        self.recording: Path | None = None
        self.remote: str | None = None
        self._arguments = {
            "name": name,
            "seed": seed,
            "size": size,
            "fps": fps,
            "duration_s": duration_s,
            "live": live,
            "scenario": scenario,
            "light": light,
            "weather": weather,
            "crowd": crowd,
            "traffic": traffic,
            "clean": clean,
        }
        self.expected_frames = None if duration_s is None else max(1, round(duration_s * fps))
        chosen = Scenario(light or base.light, weather or base.weather, crowd, traffic, base.robots, clean)
        self.street = Street(seed, size, fps, chosen)
        self._on_state = on_state
        self._closed = asyncio.Event()
        self._is_over = False

    @classmethod
    def from_query(
        cls, query: Mapping[str, str], name: str = "street", on_state: OnState | None = None
    ) -> StreetSource:
        """From the part of an address behind the question mark. Raises `SourceAddressError`."""
        for key in query:
            if key not in _OPTIONS:
                raise SourceAddressError(f"synthetic:street has no option {key!r}: it has {', '.join(_OPTIONS)}")

        def read(key: str, default: T, convert: Callable[[str, str], T]) -> T:
            return convert(key, query[key]) if key in query else default

        return cls(
            name,
            seed=read("seed", 7, _whole),
            size=read("size", (640, 384), _size),
            fps=read("fps", 25.0, _number),
            duration_s=read("duration", None, _number),
            live=read("live", False, _switch),
            scenario=query.get("scenario", "everyday"),
            light=query.get("light"),  # type: ignore[arg-type]  # the constructor checks it
            weather=query.get("weather"),  # type: ignore[arg-type]
            crowd=read("crowd", 1.0, _number),
            traffic=read("traffic", 1.0, _number),
            clean=read("clean", False, _switch),
            on_state=on_state,
        )

    def recipe(self) -> SourceRecipe:
        return SourceRecipe(StreetSource, self._arguments)

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self._live() if self.live else self._film()

    async def aclose(self) -> None:
        self._closed.set()
        self._report_state(SourceState.CLOSED)

    async def _film(self) -> AsyncIterator[Frame]:
        self._report_state(SourceState.LIVE)
        index = 0
        while not self._closed.is_set() and (self.expected_frames is None or index < self.expected_frames):
            image = await asyncio.to_thread(self.street.image, index)
            clock = FrameClock("file_pts")
            time_ns = _round_ns(index, self.street.fps)
            yield self._frame(index, time_ns, clock, image)
            index += 1
        self._report_state(SourceState.CLOSED)

    async def _live(self) -> AsyncIterator[Frame]:
        start_ns, start = time.time_ns(), time.monotonic()
        fps = self.street.fps
        self._report_state(SourceState.LIVE)
        index = 0
        while self.expected_frames is None or index < self.expected_frames:
            newest = int((time.monotonic() - start) * fps)
            if self.expected_frames is not None:
                newest = min(newest, self.expected_frames - 1)
            for _ in range(index, newest):
                self.account.receive()
                self.account.drop("stale")
            index = max(index, newest)
            wait_s = start + index / fps - time.monotonic()
            if await self._is_closed_within(wait_s):
                break
            image = await asyncio.to_thread(self.street.image, index)
            received_ns = start_ns + _round_ns(index, fps)
            yield self._frame(index, received_ns, FrameClock("arrival", 0.0, received_ns), image)
            index += 1
        self._report_state(SourceState.CLOSED)

    async def _is_closed_within(self, seconds: float) -> bool:
        if seconds <= 0:
            return self._closed.is_set()
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _frame(self, index: int, time_ns: int, clock: FrameClock, image: npt.NDArray[np.uint8]) -> Frame:
        received = self.account.receive()
        assert received == index
        return Frame(self.name, index, time_ns, clock, image, self.street.size)

    def _report_state(self, state: SourceState) -> None:
        if self._is_over:
            return
        self._is_over = state is SourceState.CLOSED
        if self._on_state is not None:
            self._on_state(StateChange(self.name, state, time.time_ns()))


def _round_ns(index: int, fps: float) -> int:
    return round(index * 1e9 / fps)


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if not (160 <= width <= 3840 and 96 <= height <= 2160):
        raise SourceAddressError(f"size is {width}x{height}: the street is painted from 160x96 to 3840x2160")


def _check_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SourceAddressError(f"{key} is {value:g}: give a number from {low:g} to {high:g}")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise SourceAddressError(f"{key} is {value!r}: choose {', '.join(allowed[:-1])} or {allowed[-1]}")
    return value


def _whole(key: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text):
        raise SourceAddressError(f"{key} is {text!r}: give a whole number from 0 on")
    return int(text)


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SourceAddressError(f"{key} is {text!r}: give a number") from None


def _size(key: str, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None:
        raise SourceAddressError(f"{key} is {text!r}: give width x height in pixels, such as 640x384")
    return int(found[1]), int(found[2])


def _switch(key: str, text: str) -> bool:
    switch = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower())
    if switch is None:
        raise SourceAddressError(f"{key} is {text!r}: give true or false")
    return switch
