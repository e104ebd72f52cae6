"""Chance and curves from integers and plain arithmetic, so that a seed means the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

_WORD = (1 << 64) - 1


def mix_numbers(*numbers: int) -> int:
    """One 64-bit number from several: SplitMix64 (Steele, Lea and Flood, 2014) over each in turn."""
    state = 0
    for number in numbers:
        state = _scramble_word((state ^ (number & _WORD)) + 0x9E3779B97F4A7C15)
    return state


def _scramble_word(word: int) -> int:
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


class SeededDice:
    """A SplitMix64 generator whose key is a row of integers: every walker and every car throws its own."""

    __slots__ = ("_state",)

    def __init__(self, *key: int) -> None:
        self._state = mix_numbers(*key)

    def word(self) -> int:
        """64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _WORD
        return _scramble_word(self._state)

    def unit(self) -> float:
        """In [0, 1)."""
        return (self.word() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def whole(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + self.word() % (high - low + 1)

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def sign(self) -> int:
        return 1 if self.word() & 1 else -1

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.word() % len(choices)]

    def weigh(self, weights: Mapping[T, float]) -> T:
        """One of the keys, as often as its weight says."""
        left = self.unit() * sum(weights.values())
        for choice, weight in weights.items():
            left -= weight
            if left < 0:
                return choice
        return list(weights)[-1]


def sine(turns: float) -> float:
    """sin(2π·turns) to 4e-6 by additions and multiplications alone: libraries differ in the last bit, these do not."""
    x = turns - (turns + 0.5) // 1.0
    if x > 0.25:
        x = 0.5 - x
    elif x < -0.25:
        x = -0.5 - x
    y = x * 6.283185307179586
    square = y * y
    return y * (1.0 - square / 6.0 * (1.0 - square / 20.0 * (1.0 - square / 42.0 * (1.0 - square / 72.0))))


def cosine(turns: float) -> float:
    return sine(turns + 0.25)


@lru_cache(maxsize=32)
def circle_points(corners: int) -> tuple[tuple[float, float], ...]:
    """Points of the unit circle, counter-clockwise from (1, 0)."""
    return tuple((cosine(k / corners), sine(k / corners)) for k in range(corners))


def noise_bytes(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Uniform bytes, (height, width). The raw stream of PCG64 is fixed by NumPy's promise."""
    count = (height * width + 7) // 8
    words: npt.NDArray[np.uint64] = np.random.PCG64(mix_numbers(seed)).random_raw(count)
    return words.astype("<u8").view(np.uint8)[: height * width].reshape(height, width)
