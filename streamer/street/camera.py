"""The camera: from metres in the street to pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StreetCamera:
    """A pinhole with an upright picture plane (a shift lens), so that what stands upright stays upright.

    The street's x runs along it, y up, z away from the camera, in metres; the camera stands at (0, `rise`, 0) and is
    turned by the angle whose cosine and sine are `cos` and `sin`. `focal` and `horizon` are in pixels.
    """

    width: int
    height: int
    focal: float
    rise: float
    horizon: float
    cos: float
    sin: float

    def depth(self, x: float, z: float) -> float:
        """Metres from the picture plane."""
        return self.sin * x + self.cos * z

    def scale(self, x: float, z: float) -> float:
        """Pixels per metre."""
        return self.focal / max(self.depth(x, z), 0.5)

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Where one point is seen: (right, down) in pixels."""
        scale = self.scale(x, z)
        return self.width / 2 + (self.cos * x - self.sin * z) * scale, self.horizon + (self.rise - y) * scale

    def project(self, points: Floats) -> Floats:
        """Points (N, 3) in metres -> (N, 2) in pixels, right and down. They must lie before the camera."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        scale = self.focal / np.maximum(x * self.sin + z * self.cos, 0.5)
        seen: Floats = np.stack(
            [self.width / 2 + (x * self.cos - z * self.sin) * scale, self.horizon + (self.rise - y) * scale], axis=1
        )
        return seen

    def reach(self, z: float) -> tuple[float, float]:
        """The x between which the line at distance `z` along the street is in the picture."""
        edge = self.width / 2 / self.focal
        left = (-edge * self.cos + self.sin) / (self.cos + edge * self.sin) * z
        right = (edge * self.cos + self.sin) / (self.cos - edge * self.sin) * z
        return left, right
