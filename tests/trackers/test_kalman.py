"""The four two-state filters against the plain 8 x 8 one that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from trackers import kalman


def plain_filter(boxes: np.ndarray, dt: float) -> np.ndarray:
    """BoT-SORT's filter in its textbook form, over (F, 4) centre-size measurements; the positions after each."""
    frames, p, v = dt * 30, 1 / 20, 1 / 160

    def noise(state: np.ndarray, share: float) -> np.ndarray:
        return np.diag((share * state[[2, 3, 2, 3]]) ** 2)

    step, observe = np.eye(8), np.eye(4, 8)
    step[:4, 4:] = dt * np.eye(4)
    mean = np.concatenate((boxes[0], np.zeros(4)))
    zeros = np.zeros((4, 4))
    spread = np.block([[noise(mean, 2 * p), zeros], [zeros, noise(mean, 10 * v * 30)]])
    out = []
    for measured in boxes[1:]:
        wander = np.block([[noise(mean, p), zeros], [zeros, noise(mean, v * 30)]]) * frames
        mean, spread = step @ mean, step @ spread @ step.T + wander
        gain = spread @ observe.T @ np.linalg.inv(observe @ spread @ observe.T + noise(mean, p))
        mean = mean + gain @ (measured - observe @ mean)
        spread = spread - gain @ observe @ spread
        out.append(mean.copy())
    return np.array(out)


@pytest.mark.parametrize("dt", [1 / 30, 1 / 7])
def test_four_small_filters_are_the_big_one(dt: float) -> None:
    random = np.random.default_rng(3)
    walk = np.cumsum(random.normal(0, 4, (120, 4)), axis=0) + [400, 300, 90, 180]
    walk[:, 2:] = np.maximum(walk[:, 2:], 20)
    motion = kalman.centre_size(1 / 160, 1 / 160)
    state = motion.start(walk[:1].T)
    for measured, expected in zip(walk[1:], plain_filter(walk, dt), strict=True):
        motion.predict(state, dt)
        motion.correct(state, measured[:, None], np.array([True]))
        np.testing.assert_allclose(state[:8, 0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(kalman.MOTIONS))
def test_every_model_gives_back_the_box_it_was_given(name: str) -> None:
    motion = kalman.MOTIONS[name](0.01, 0.01)
    box = np.array([[10.0], [20.0], [50.0], [140.0]])
    np.testing.assert_allclose(motion.decode(motion.encode(box)), box, rtol=1e-12)


@pytest.mark.parametrize("name", list(kalman.MOTIONS))
def test_a_track_that_was_not_measured_keeps_its_state(name: str) -> None:
    motion = kalman.MOTIONS[name](0.01, 0.01)
    state = motion.start(motion.encode(np.array([[10.0, 60], [20, 20], [50, 90], [140, 150]])))
    before = state.copy()
    motion.correct(state, np.ones((4, 2)), np.array([False, False]))
    np.testing.assert_array_equal(state, before)


@pytest.mark.parametrize("name", list(kalman.MOTIONS))
def test_a_zoom_of_the_camera_zooms_the_box(name: str) -> None:
    motion = kalman.MOTIONS[name](0.01, 0.01)
    state = motion.start(motion.encode(np.array([[10.0], [20], [50], [140]])))
    moved = motion.follow_camera(state, 1.5 * np.eye(2), np.array([[5.0], [-3.0]]), 1.5)
    np.testing.assert_allclose(motion.decode(moved[:4])[:, 0], [20, 27, 80, 207], rtol=1e-12)
