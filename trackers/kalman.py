"""The Kalman filter of all tracks at once: four independent (position, rate) filters each.

With a constant-velocity model and diagonal noise (SORT, ByteTrack, BoT-SORT all have these) the 8 x 8 covariance never
gets a term between two coordinates, so four two-state filters are the same filter, not an approximation of it
(a test compares them). No matrix is inverted or multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trackers.boxes import Bools, Floats, from_centre, to_centre

FRAME_S = 1 / 30  # the frame time that the published noise constants were tuned for
MIN_SIDE = 1.0  # pixels


@dataclass(frozen=True)
class MotionNoise:
    """Standard deviations of four coordinates, as shares of the box's scale; `rate` ones are per published frame."""

    position: tuple[float, float, float, float]
    rate: tuple[float, float, float, float]
    measured: tuple[float, float, float, float]
    start_position: tuple[float, float, float, float]
    start_rate: tuple[float, float, float, float]


class MotionModel:
    """Meaning and noise of the four coordinates of a filter.

    State blocks are (20, T): rows 0-3 position, 4-7 rate per second, 8-11 variance of position, 12-15 covariance of
    position and rate, 16-19 variance of rate.
    """

    size_rates: tuple[int, ...] = ()  # rows of the rates of size, which can be frozen for lost tracks

    def __init__(self, noise: MotionNoise) -> None:
        def column(values: tuple[float, ...], unit: float = 1.0) -> Floats:
            return ((np.array(values) * unit) ** 2)[:, None]

        self._position = column(noise.position)
        self._base_rate = self.rate = column(noise.rate, 1 / FRAME_S)  # variances of the rates' noise
        self._measured = column(noise.measured)
        self._start_position = column(noise.start_position)
        self._start_rate = column(noise.start_rate, 1 / FRAME_S)

    def encode(self, boxes: Floats) -> Floats:
        """(4, N) corners -> (4, N) coordinates of this model."""
        raise NotImplementedError

    def decode(self, positions: Floats) -> Floats:
        """(4, N) coordinates of this model -> (4, N) corners."""
        raise NotImplementedError

    def scale(self, positions: Floats) -> Floats:
        """(4, N) squared length that the noise of each coordinate is a share of."""
        raise NotImplementedError

    def keep_sane(self, state: Floats) -> None:
        """Sides stay positive, in place."""
        raise NotImplementedError

    def start(self, measured: Floats) -> Floats:
        """New (20, N) states from (4, N) measurements: at rest, unsure of it."""
        state = np.zeros((20, measured.shape[1]))
        scale = self.scale(measured)
        state[:4] = measured
        state[8:12] = self._start_position * scale
        state[16:] = self._start_rate * scale
        return state

    def centre(self, state: Floats) -> Floats:
        """(2, T) centres in pixels; all models have them in their first two rows."""
        return state[:2]

    def measurement_variance(self, positions: Floats) -> Floats:
        """(4, T) variance of a measurement of the tracks at (4, T) `positions`."""
        return self._measured * self.scale(positions)

    def scale_rate_noise(self, factor: Floats) -> None:
        """From now on the rates wander by `factor` (4, 1) times the variance they were built with."""
        self.rate = self._base_rate * factor

    def follow_camera(self, state: Floats, turn: Floats, shift: Floats, zoom: float) -> Floats:
        """The states after the picture moved by x' = `turn` x + `shift`; covariances grow by the zoom alone.

        Exact for motion without rotation; the mixing of x and y it leaves out is of second order in the angle.
        """
        moved = state.copy()
        moved[:2] = turn @ state[:2] + shift
        moved[4:6] = turn @ state[4:6]
        moved[8:10] *= zoom * zoom
        moved[12:14] *= zoom * zoom
        moved[16:18] *= zoom * zoom
        self.zoom_size(moved, zoom)
        return moved

    def zoom_size(self, state: Floats, zoom: float) -> None:
        """Sizes and their rates and covariances after a zoom, in place."""
        raise NotImplementedError

    def predict(self, state: Floats, dt: float | Floats, still: Bools | None = None) -> None:
        """Move all tracks `dt` seconds on (a number or (T,)), in place; `still` (T,) ones stay as they are."""
        frames = dt / FRAME_S
        scale = self.scale(state[:4])
        if still is not None and still.any():
            step: Floats | float = np.where(still, 0.0, dt)
            scale = np.where(still, 0.0, scale)
        else:
            step = dt
        grown = state[16:] * step
        state[:4] += state[4:8] * step
        state[8:12] += (2 * state[12:16] + grown) * step + self._position * frames * scale
        state[12:16] += grown
        state[16:] += self.rate * frames * scale
        self.keep_sane(state)

    def correct(self, state: Floats, measured: Floats, matched: Bools, doubt: Floats | float = 1.0) -> None:
        """Take the (4, T) measurements of `matched` (T,) tracks into account, in place.

        The noise of a measurement is multiplied by `doubt` (T,) or a scalar (a standard deviation's factor).
        """
        noise = self.measurement_variance(state[:4])
        noise *= np.where(matched, np.square(doubt), np.inf)  # an infinitely noisy measurement changes nothing
        noise += state[8:12]
        gain = state[8:12] / noise
        rate_gain = state[12:16] / noise
        error = np.where(matched, measured - state[:4], 0.0)
        state[:4] += gain * error
        state[4:8] += rate_gain * error
        state[16:] -= rate_gain * state[12:16]
        np.subtract(1.0, gain, out=gain)
        state[12:16] *= gain
        state[8:12] *= gain
        self.keep_sane(state)


class CentreSize(MotionModel):
    """Centre, width, height: BoT-SORT (arXiv:2206.14651). Noise is a share of width (x, w) and height (y, h)."""

    size_rates = (6, 7)

    def encode(self, boxes: Floats) -> Floats:
        return to_centre(boxes)

    def decode(self, positions: Floats) -> Floats:
        return from_centre(positions)

    def scale(self, positions: Floats) -> Floats:
        squared = np.empty_like(positions)
        np.multiply(positions[2:], positions[2:], out=squared[:2])
        squared[2:] = squared[:2]
        return squared

    def keep_sane(self, state: Floats) -> None:
        np.maximum(state[2:4], MIN_SIDE, out=state[2:4])

    def zoom_size(self, state: Floats, zoom: float) -> None:
        _zoom_state(state, (2, 3), zoom)


class CentreAspectHeight(MotionModel):
    """Centre, width/height, height: DeepSORT, ByteTrack (arXiv:2110.06864). Noise is a share of the height."""

    size_rates = (7,)

    def encode(self, boxes: Floats) -> Floats:
        out = to_centre(boxes)
        out[2] /= out[3]
        return out

    def decode(self, positions: Floats) -> Floats:
        centred = positions.copy()
        centred[2] *= centred[3]
        return from_centre(centred)

    def scale(self, positions: Floats) -> Floats:
        squared = np.empty_like(positions)
        squared[:] = positions[3] * positions[3]
        squared[2] = 1.0
        return squared

    def keep_sane(self, state: Floats) -> None:
        np.maximum(state[3], MIN_SIDE, out=state[3])
        np.maximum(state[2], 1e-3, out=state[2])

    def zoom_size(self, state: Floats, zoom: float) -> None:
        _zoom_state(state, (3,), zoom)


class CentreAreaAspect(MotionModel):
    """Centre, area, width/height: SORT (arXiv:1602.00763). Noise is in pixels; the aspect has no rate."""

    def encode(self, boxes: Floats) -> Floats:
        out = to_centre(boxes)
        width, height = out[2].copy(), out[3].copy()
        np.multiply(width, height, out=out[2])
        np.divide(width, height, out=out[3])
        return out

    def decode(self, positions: Floats) -> Floats:
        centred = positions.copy()
        centred[2] = np.sqrt(positions[2] * positions[3])
        centred[3] = positions[2] / centred[2]
        return from_centre(centred)

    def scale(self, positions: Floats) -> Floats:
        return np.ones_like(positions)

    def predict(self, state: Floats, dt: float | Floats, still: Bools | None = None) -> None:
        shrinks_away = state[2] + state[6] * dt <= 0
        state[6, shrinks_away] = 0.0
        super().predict(state, dt, still)

    def keep_sane(self, state: Floats) -> None:
        np.maximum(state[2], MIN_SIDE, out=state[2])
        np.maximum(state[3], 1e-3, out=state[3])

    def zoom_size(self, state: Floats, zoom: float) -> None:
        _zoom_state(state, (2,), zoom * zoom)


def _zoom_state(state: Floats, coordinates: tuple[int, ...], factor: float) -> None:
    for row in coordinates:
        state[row] *= factor
        state[4 + row] *= factor
        for block in (8, 12, 16):
            state[block + row] *= factor * factor


def centre_size(rate: float, size_rate: float) -> MotionModel:
    """BoT-SORT's filter; `rate` and `size_rate` per published frame, as shares of the box's side."""
    p, v = (1 / 20,) * 4, (rate, rate, size_rate, size_rate)
    return CentreSize(MotionNoise(p, v, p, (2 / 20,) * 4, (10 * rate, 10 * rate, 10 * size_rate, 10 * size_rate)))


def centre_aspect_height(rate: float, size_rate: float) -> MotionModel:
    """ByteTrack's filter; `rate` of the centre and `size_rate` of the height, as shares of the height."""
    p = 1 / 20
    return CentreAspectHeight(
        MotionNoise(
            position=(p, p, 1e-2, p),
            rate=(rate, rate, 1e-5, size_rate),
            measured=(p, p, 1e-1, p),
            start_position=(2 * p, 2 * p, 1e-2, 2 * p),
            start_rate=(10 * rate, 10 * rate, 1e-5, 10 * size_rate),
        )
    )


def centre_area_aspect(rate: float, size_rate: float) -> MotionModel:
    """The filter of SORT and OC-SORT; `rate` in pixels and `size_rate` in square pixels, per published frame."""
    return CentreAreaAspect(
        MotionNoise(
            position=(1, 1, 1, 1),
            rate=(rate, rate, size_rate, 0),
            measured=(1, 1, 10**0.5, 10**0.5),
            start_position=(10**0.5,) * 4,
            start_rate=(100, 100, 100, 0),
        )
    )


MOTIONS: dict[str, Callable[[float, float], MotionModel]] = {
    "centre-size": centre_size,
    "centre-aspect-height": centre_aspect_height,
    "centre-area-aspect": centre_area_aspect,
}
