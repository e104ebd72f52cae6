from __future__ import annotations

import numpy as np
import pytest

from detectors import Detector, PromptError, Request, create_detector
from detectors.conformance import DetectorConformance
from detectors.detector import OptionError
from detectors.motion import MotionDetector
from detectors.registry import ANYTHING_THAT_MOVES

HEIGHT, WIDTH = 240, 320


class TestMotionConforms(DetectorConformance):
    sees_colours = False
    queries = (ANYTHING_THAT_MOVES,)
    other_queries = (ANYTHING_THAT_MOVES,)

    def make(self) -> Detector:
        return create_detector("motion")


class Camera:
    """A still, textured scene with noise; `show` draws dark upright figures with their feet at (x, y)."""

    def __init__(self, detector: MotionDetector, seed: int = 3) -> None:
        self._random = np.random.default_rng(seed)
        coarse = self._random.integers(70, 190, (HEIGHT // 8, WIDTH // 8, 3))
        self._scene = coarse.repeat(8, 0).repeat(8, 1).astype(np.float32)
        self._detector = detector
        self._prompt = detector.prepare([ANYTHING_THAT_MOVES])

    def show(self, *feet: tuple[int, int], gain: float = 1.0, size: tuple[int, int] = (18, 48)):
        image = self._scene + self._random.normal(0, 3, self._scene.shape)
        width, height = size
        for x, y in feet:
            body = np.s_[max(y - height, 0) : y, max(x - width // 2, 0) : x + width // 2]
            image[body] = (20, 20, 160) + self._random.normal(0, 3, image[body].shape)
        image = np.clip(image * gain, 0, 255).astype(np.uint8)
        [found] = self._detector.detect([Request(image, self._prompt, "camera")])
        return found[found.confidence >= self._detector.threshold]

    def settle(self, *feet: tuple[int, int], frames: int = 40) -> None:
        for _ in range(frames):
            self.show(*feet)


@pytest.fixture
def camera() -> Camera:
    return Camera(MotionDetector())


def box_of(x: int, y: int, width: int = 18, height: int = 48) -> list[int]:
    return [x - width // 2, y - height, x + width // 2, y]


def test_a_walker_is_found_where_he_walks(camera):
    camera.settle()
    found = [camera.show((60 + 4 * step, 150)) for step in range(30)]
    for step in range(8, 30):
        assert len(found[step]) == 1
        np.testing.assert_allclose(found[step].xyxy[0], box_of(60 + 4 * step, 150), atol=6)


def test_two_walkers_are_two(camera):
    camera.settle()
    found = [camera.show((60 + 4 * step, 150), (260 - 4 * step, 220)) for step in range(20)]
    assert [len(each) for each in found[8:]] == [2] * 12


def test_noise_alone_is_nothing(camera):
    assert sum(len(camera.show()) for _ in range(150)) == 0


def test_what_stood_there_from_the_first_picture_is_background(camera):
    assert sum(len(camera.show((200, 180))) for _ in range(80)) == 0


def test_what_parks_becomes_background_and_leaving_is_seen(camera):
    camera.settle()
    for step in range(20):
        camera.show((60 + 5 * step, 150), size=(60, 30))
    parked = [len(camera.show((155, 150), size=(60, 30))) for _ in range(200)]
    assert parked[0] == 1
    assert sum(parked[-50:]) == 0


def test_the_hole_that_a_thing_leaves_behind_is_doubted(camera):
    camera.settle((200, 180), frames=60)
    for step in range(1, 30):
        camera.show((200 - 5 * step, 180))
    ghosts = sum(abs(box[0] - 191) < 12 for _ in range(120) for box in camera.show((40, 180)).xyxy)
    assert ghosts < 100


@pytest.mark.parametrize("gain", [0.6, 0.85, 1.25, 1.6])
def test_a_change_of_exposure_is_no_motion(camera, gain):
    camera.settle()
    assert sum(len(camera.show(gain=gain)) for _ in range(60)) == 0


def test_a_flash_is_no_motion(camera):
    camera.settle()
    assert len(camera.show(gain=2.5)) == 0
    assert sum(len(camera.show()) for _ in range(10)) == 0


def test_a_walker_is_found_while_the_exposure_changes(camera):
    camera.settle()
    found = [camera.show((60 + 4 * step, 150), gain=1 - 0.01 * step) for step in range(30)]
    assert sum(len(each) == 1 for each in found[8:]) >= 20


def test_every_stream_has_its_own_memory():
    detector = MotionDetector()
    prompt = detector.prepare([ANYTHING_THAT_MOVES])
    dark, light = np.full((120, 160, 3), 40, np.uint8), np.full((120, 160, 3), 200, np.uint8)
    for _ in range(30):
        found = detector.detect([Request(dark, prompt, "dark"), Request(light, prompt, "light")])
        assert [len(each) for each in found] == [0, 0]


def test_the_draws_of_other_streams_change_nothing():
    alone, beside = Camera(MotionDetector(seed=5)), Camera(shared := MotionDetector(seed=5))
    prompt = shared.prepare([ANYTHING_THAT_MOVES])
    for step in range(40):
        feet = (40 + 5 * step, 150)
        if step % 3:
            other_image = np.full((HEIGHT, WIDTH, 3), 40 + step, np.uint8)
            shared.detect([Request(other_image, prompt, "other")])
        np.testing.assert_array_equal(alone.show(feet).xyxy, beside.show(feet).xyxy)


def test_a_change_of_resolution_begins_anew(camera):
    detector = MotionDetector()
    prompt = detector.prepare([ANYTHING_THAT_MOVES])
    for size in [(120, 160)] * 10 + [(240, 320)] * 10:
        [found] = detector.detect([Request(np.full((*size, 3), 90, np.uint8), prompt, "camera")])
        assert len(found) == 0


def test_a_forgotten_stream_begins_with_a_new_background():
    detector = MotionDetector()
    camera = Camera(detector)
    camera.settle()
    assert len(camera.show((60, 150))) == 1
    detector.forget("camera")
    assert len(camera.show((64, 150))) == 0


def test_other_words_get_one_sentence_that_names_them():
    with pytest.raises(PromptError, match=r"'red car'.*'anything that moves'"):
        MotionDetector().prepare([ANYTHING_THAT_MOVES, "red car"])


def test_options_out_of_range_are_refused():
    with pytest.raises(OptionError, match="must lie"):
        create_detector("motion", threshold=2)
    with pytest.raises(OptionError, match="10"):
        create_detector("motion", memory=3)
