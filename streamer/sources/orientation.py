"""Orientation of stored pictures: how rows and columns become the upright picture."""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt


class Orientation(NamedTuple):
    """How to make a stored picture upright: transposed first, then flipped."""

    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def from_matrix(cls, data: bytes) -> Self:
        """Reads a display matrix, nine 32-bit numbers; an angle between two quarter turns becomes the nearer one."""
        a, b, _, c, d = struct.unpack_from("=5i", data)
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return (height, width) if self.transposed else (width, height)

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The upright picture, contiguous; (height, width, 3)."""
        turned = image.swapaxes(0, 1) if self.transposed else image
        return np.ascontiguousarray(turned[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])


UPRIGHT = Orientation()
