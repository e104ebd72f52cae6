"""Adaptive parts of the `default` tracker: rate noise, birth record and common camera shift, learnt per stream."""

from __future__ import annotations

import math

import numpy as np

from trackers.assignment import assign
from trackers.boxes import Bools, Floats, grown, overlapping

MEMORY = 0.93  # share of the past that is kept with every frame
PRIOR_PAIRS = 50  # weight of the prior "nothing to change", in pairs of innovations
RATE_BOUND = 2.0  # largest change of the rate noise, as a power of e
INNOVATION_BOUND = 3.0  # standard deviations at which outliers are clipped

BIRTH_MEMORY = 0.995  # share of the past that is kept with every birth that was decided
PRIOR_BIRTHS, PRIOR_DEATHS = 5.0, 1.5

COMMON_TRACKS = 256  # tracks sampled at most: more do not improve the estimate
COMMON_GROWTH = 0.2
COMMON_LIMIT = 0.95
COMMON_LEAST = 3  # tracks


class RateNoise:
    """Noise of the velocities, learnt from the correlation of the filter's errors.

    The innovations of a filter with the right noise are white (Mehra, IEEE Trans. Automatic Control 1970). Where each
    resembles the one before, the filter lags behind accelerating objects and should trust new positions more; where
    they alternate, it follows the detector's jitter and should trust them less. The lag-one covariance of the
    innovations in units of the expected variance moves the rate noise of x and y up or down.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.products = [0.0, 0.0]  # of successive innovations in x and y, summed
        self.pairs = 0.0

    def learn(self, before: Floats, now: Floats, both: int) -> Floats:
        """(4, 1) factor of the rate variances, after innovations (2, T) of two frames; zero where unknown."""
        self.pairs = self.pairs * MEMORY + both
        factor = np.ones((4, 1))
        for axis in (0, 1):
            self.products[axis] = self.products[axis] * MEMORY + float(before[axis] @ now[axis])
            power = self.strength * self.products[axis] / (self.pairs + PRIOR_PAIRS)
            factor[axis, 0] = math.exp(2 * min(max(power, -RATE_BOUND), RATE_BOUND))
        return factor


class BirthRecord:
    """Share of new tracks that vanish before confirmation: unreliable detectors need one more match per track."""

    def __init__(self) -> None:
        self.confirmed = PRIOR_BIRTHS - PRIOR_DEATHS
        self.died = PRIOR_DEATHS

    def learn(self, confirmed: int, died: int) -> None:
        if confirmed or died:
            kept = BIRTH_MEMORY ** (confirmed + died)
            prior = 1 - kept  # the prior never fades
            self.confirmed = self.confirmed * kept + confirmed + prior * (PRIOR_BIRTHS - PRIOR_DEATHS)
            self.died = self.died * kept + died + prior * PRIOR_DEATHS

    @property
    def death_share(self) -> float:
        return self.died / (self.died + self.confirmed)


def common_shift(tracks: Floats, centres: Floats, boxes: Floats) -> Floats | None:
    """(2, 1) common displacement of all tracks beyond their prediction: a camera that turns, shakes or starts to pan.

    `tracks` (4, T) are predicted boxes of tracks seen in the last frame and `centres` (2, T) theirs, `boxes` (4, N)
    confident detections. The median over loosely matched pairs, shrunk by how uncertain it is; None when too few match.
    """
    if min(tracks.shape[1], boxes.shape[1]) < COMMON_LEAST:
        return None
    if tracks.shape[1] > COMMON_TRACKS:
        some = np.linspace(0, tracks.shape[1] - 1, COMMON_TRACKS).astype(np.int64)
        tracks, centres = tracks[:, some], centres[:, some]
    rows, cols, overlap = overlapping(grown(tracks, COMMON_GROWTH), grown(boxes, COMMON_GROWTH))
    chosen = assign(rows, cols, 1 - overlap, COMMON_LIMIT)
    if chosen.size < COMMON_LEAST:
        return None
    found = boxes.take(cols[chosen], axis=1)
    moved = (found[:2] + found[2:]) * 0.5 - centres.take(rows[chosen], axis=1)
    shift = _median(moved)
    spread = 1.48 * _median(np.abs(moved - shift))
    error = 1.25 * spread / np.sqrt(chosen.size)  # standard error of a median
    shift *= np.maximum(0.0, 1 - (error / np.maximum(np.abs(shift), 1e-9)) ** 2)
    return shift


def _median(values: Floats) -> Floats:
    """(2, 1) medians of (2, N), faster than `numpy.median`."""
    ordered = np.sort(values, axis=1)
    middle = ordered.shape[1] // 2
    if ordered.shape[1] % 2:
        return ordered[:, middle : middle + 1].copy()
    return (ordered[:, middle - 1 : middle] + ordered[:, middle : middle + 1]) * 0.5


def normalised(error: Floats, variance: Floats, known: Bools) -> Floats:
    """(2, T) innovations in standard deviations, bounded; zero where not known."""
    scaled: Floats = error / np.sqrt(variance)
    np.minimum(scaled, INNOVATION_BOUND, out=scaled)
    np.maximum(scaled, -INNOVATION_BOUND, out=scaled)
    scaled *= known
    return scaled
