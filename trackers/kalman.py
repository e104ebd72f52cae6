"""The Kalman filter of all tracks at once: four independent (position, rate) filters each.

With a constant-velocity model and diagonal noise (SORT, ByteTrack, BoT-SORT all have these) the 8 x 8 covariance never
gets a term between two coordinates, so four two-state filters are the same filter, not an approximation of it
(a test compares them). No matrix is inverted or multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trackers.boxes import Bools, Floats, from_centre, to_centre

FRAME_S = 1 / 30  # the frame time that the published noise constants were tuned for
MIN_SIDE = 1.0  # pixels


@dataclass(frozen=True)
class Noise:
    """Standard deviations of four coordinates, as shares of the box's scale; `rate` ones are per published frame."""

    position: tuple[float, float, float, float]
    rate: tuple[float, float, float, float]
    measured: tuple[float, float, float, float]
    start_position: tuple[float, float, float, float]
    start_rate: tuple[float, float, float, float]


class Motion:
    """What the four coordinates mean and how much they wander.

    State blocks are (20, T): rows 0-3 position, 4-7 rate per second, 8-11 variance of position, 12-15 covariance of
    position and rate, 16-19 variance of rate.
    """

    frozen_when_lost: tuple[int, ...] = ()  # rate rows set to zero for a track that is lost

    def __init__(self, noise: Noise) -> None:
        def column(values: tuple[float, ...], unit: float = 1.0) -> Floats:
            return ((np.array(values) * unit) ** 2)[:, None]

        self._position = column(noise.position)
        self._rate = column(noise.rate, 1 / FRAME_S)
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
        state[16:] += self._rate * frames * scale
        self.keep_sane(state)

    def correct(self, state: Floats, measured: Floats, matched: Bools, doubt: Floats | float = 1.0) -> None:
        """Take the (4, T) measurements of `matched` (T,) tracks into account, in place.

        The noise of a measurement is multiplied by `doubt` (T,) or a scalar (a standard deviation's factor).
        """
        noise = self._measured * self.scale(state[:4])
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


class CentreSize(Motion):
    """Centre, width, height: BoT-SORT (arXiv:2206.14651). Noise is a share of width (x, w) and height (y, h)."""

    frozen_when_lost = (6, 7)

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


class CentreAspectHeight(Motion):
    """Centre, width/height, height: DeepSORT, ByteTrack (arXiv:2110.06864). Noise is a share of the height."""

    frozen_when_lost = (7,)

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


class CentreAreaAspect(Motion):
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


def centre_size(rate: float = 1 / 160) -> Motion:
    """BoT-SORT's filter; `rate` is the standard deviation of the rates a frame, as a share of the box's side."""
    p, v = (1 / 20,) * 4, (rate,) * 4
    return CentreSize(Noise(p, v, p, (2 / 20,) * 4, (10 * rate,) * 4))


def centre_aspect_height() -> Motion:
    """ByteTrack's filter."""
    p, v = 1 / 20, 1 / 160
    return CentreAspectHeight(
        Noise(
            position=(p, p, 1e-2, p),
            rate=(v, v, 1e-5, v),
            measured=(p, p, 1e-1, p),
            start_position=(2 * p, 2 * p, 1e-2, 2 * p),
            start_rate=(10 * v, 10 * v, 1e-5, 10 * v),
        )
    )


def centre_area_aspect() -> Motion:
    """The filter of SORT and OC-SORT."""
    return CentreAreaAspect(
        Noise(
            position=(1, 1, 1, 1),
            rate=(0.1, 0.1, 0.01, 0),
            measured=(1, 1, 10**0.5, 10**0.5),
            start_position=(10**0.5,) * 4,
            start_rate=(100, 100, 100, 0),
        )
    )
