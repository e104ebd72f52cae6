"""Camera motion from pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from trackers import TrackerInputError
from trackers.camera_motion import CameraMotion


def ground(seed: int = 0, size: tuple[int, int] = (540, 960)) -> np.ndarray:
    """A textured picture."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[0] // 6, size[1] // 6, 3), dtype=np.uint8)
    return cv2.GaussianBlur(cv2.resize(noise, size[::-1], interpolation=cv2.INTER_NEAREST), (5, 5), 0)


def moved(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(image, affine, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


@pytest.mark.parametrize("angle", [0.0, 1.0])
@pytest.mark.parametrize("zoom", [1.0, 1.02])
def test_a_known_motion_is_found(angle: float, zoom: float) -> None:
    affine = cv2.getRotationMatrix2D((480, 270), angle, zoom)
    affine[:, 2] += [9, -5]
    camera, image = CameraMotion(), ground()
    assert camera.update(image) is None
    found = camera.update(moved(image, affine))
    assert found is not None
    corners = np.array([[100.0, 100, 1], [860, 100, 1], [100, 440, 1], [860, 440, 1]]).T
    np.testing.assert_allclose(found @ corners, affine @ corners, atol=1.0)


def test_a_still_camera_is_noticed_although_things_move() -> None:
    camera, image = CameraMotion(), ground()
    camera.update(image)
    other = image.copy()
    other[200:260, 300:340] = 255
    assert camera.update(other) is None


def test_things_that_move_do_not_speak_for_the_ground() -> None:
    """Three quarters of the picture are a moving thing; with it masked out, the ground gives the true motion."""
    camera, image = CameraMotion(), ground()
    thing = ground(1)[60:480, 60:800]

    def picture(at: int, shift: int) -> np.ndarray:
        frame = moved(image, np.array([[1.0, 0, shift], [0, 1, 0]]))
        frame[60:480, at : at + 740] = thing
        return frame

    camera.update(picture(100, 0))
    found = camera.update(picture(124, 6), boxes=np.array([[90.0, 55, 870, 485]]))
    assert found is not None
    assert found[:, 2] == pytest.approx([6, 0], abs=1)


def test_a_cut_is_not_taken_for_motion() -> None:
    camera = CameraMotion()
    camera.update(ground(0))
    assert camera.update(np.ascontiguousarray(ground(7)[::-1])) is None
    assert camera.update(ground(0, (360, 640))) is None


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(TrackerInputError, match="give \\(height, width, 3\\)"):
        CameraMotion().update(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
