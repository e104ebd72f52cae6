"""What every detector keeps, whatever it looks with: subclass `DetectorConformance` and give it a factory.

class TestMine(DetectorConformance):
    queries = ("person", "red car")

    def make(self) -> Detector:
        return Mine(...)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import supervision as sv

from detectors import Detector, PromptError, Request

SIZES = [(1, 1), (1, 40), (40, 1), (33, 47), (97, 64), (240, 320)]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A few bright rectangles on grey noise, BGR."""
    random = np.random.default_rng(seed)
    image = random.integers(90, 110, (height, width, 3), dtype=np.uint8)
    for _ in range(4):
        y, x = random.integers(0, height), random.integers(0, width)
        image[y : y + height // 3 + 1, x : x + width // 5 + 1] = random.integers(0, 255, 3)
    return image


def check(found: sv.Detections, image: np.ndarray, queries: Sequence[str]) -> None:
    """The contract of one result."""
    height, width = image.shape[:2]
    assert found.xyxy.dtype == np.float32
    assert found.xyxy.shape == (len(found), 4)
    assert (found.xyxy >= 0).all()
    assert (found.xyxy <= [width, height, width, height]).all()
    assert (found.xyxy[:, :2] <= found.xyxy[:, 2:]).all()
    assert found.confidence is not None
    assert found.confidence.dtype == np.float32
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    assert found.class_id is not None
    assert found.class_id.dtype.kind == "i"
    assert [queries[index] for index in found.class_id] == list(found.data["class_name"])


def same(first: sv.Detections, second: sv.Detections, pixels: float = 0.05) -> None:
    """Equal but for float rounding, which may also let a box pass or fail the least score."""
    assert abs(len(first) - len(second)) <= 1 + len(first) // 50
    assert first.confidence is not None
    assert first.class_id is not None
    assert second.confidence is not None
    assert second.class_id is not None
    clear = first.confidence > first.confidence.min(initial=1) + 1e-3
    for box, score, label in zip(first.xyxy[clear], first.confidence[clear], first.class_id[clear], strict=True):
        near = np.abs(second.xyxy - box).max(1) <= pixels
        assert (near & (np.abs(second.confidence - score) < 1e-3) & (second.class_id == label)).any()


class DetectorConformance:
    """Subclasses give `make`, `queries`, and `sees` where it takes more than one picture to see something."""

    queries: tuple[str, ...] = ("person", "red car")
    other_queries: tuple[str, ...] = ("dog",)
    large = (4320, 7680)
    remembers = False  # results depend on what a stream showed before
    sees_colours = True  # results depend on colours, not on brightness and motion alone

    def make(self) -> Detector:
        raise NotImplementedError

    def red_thing(self) -> tuple[np.ndarray, str] | None:
        """A picture, BGR, of something red, and a query that names it with its colour; None where no query can."""
        return None

    @pytest.fixture
    def detector(self) -> Detector:
        return self.make()

    def test_a_prompt_keeps_the_queries_in_their_order(self, detector: Detector) -> None:
        assert detector.prepare(self.queries).queries == self.queries

    def test_white_space_in_a_query_is_folded(self, detector: Detector) -> None:
        spaced = [f"  {query.replace(' ', '   ')} " for query in self.queries]
        assert detector.prepare(spaced).queries == self.queries

    def test_the_threshold_is_a_score(self, detector: Detector) -> None:
        assert 0 <= detector.threshold <= 1

    @pytest.mark.parametrize("queries", [[], [""], ["   "]])
    def test_no_words_are_refused_in_one_sentence(self, detector: Detector, queries: list[str]) -> None:
        with pytest.raises(PromptError, match="quer"):
            detector.prepare(queries)

    def test_a_query_given_twice_is_refused_by_its_name(self, detector: Detector) -> None:
        with pytest.raises(PromptError, match=self.queries[0]):
            detector.prepare([self.queries[0], self.queries[0]])

    def test_no_request_gives_no_result(self, detector: Detector) -> None:
        assert detector.detect([]) == []

    @pytest.mark.parametrize("size", SIZES)
    def test_pictures_of_odd_sizes_give_boxes_inside_them(self, detector: Detector, size: tuple[int, int]) -> None:
        prompt = detector.prepare(self.queries)
        for seed in range(3):
            image = picture(*size, seed)
            [found] = detector.detect([Request(image, prompt, "odd")])
            check(found, image, self.queries)

    def test_a_picture_of_8k_is_taken(self, detector: Detector) -> None:
        image = picture(*self.large)
        [found] = detector.detect([Request(image, detector.prepare(self.queries), "large")])
        check(found, image, self.queries)

    def test_grey_pictures_in_three_channels_are_taken(self, detector: Detector) -> None:
        image = np.repeat(picture(120, 160)[:, :, :1], 3, axis=2)
        [found] = detector.detect([Request(image, detector.prepare(self.queries), "grey")])
        check(found, image, self.queries)

    def test_a_view_into_a_larger_picture_is_taken_and_left_unchanged(self, detector: Detector) -> None:
        whole = picture(200, 300)
        view = whole[20:180:2, ::-1]
        before = whole.copy()
        [found] = detector.detect([Request(view, detector.prepare(self.queries), "view")])
        check(found, view, self.queries)
        np.testing.assert_array_equal(whole, before)

    def test_a_picture_of_one_colour_gives_a_proper_result(self, detector: Detector) -> None:
        image = np.full((120, 160, 3), 127, np.uint8)
        [found] = detector.detect([Request(image, detector.prepare(self.queries), "empty")])
        check(found, image, self.queries)

    def test_colours_are_seen(self, detector: Detector) -> None:
        """Blue and red exchanged, which leaves all shapes as they are, changes the results."""
        if not self.sees_colours:
            pytest.skip("this detector does not use colours")
        prompt, all_queries = detector.prepare(self.queries), [0.0] * len(self.queries)
        changed = False
        for seed in range(3):
            image = picture(120, 160, seed)
            plain, exchanged = (
                detector.detect([Request(pixels, prompt, name, all_queries)])[0]
                for name, pixels in ((f"plain {seed}", image), (f"exchanged {seed}", image[:, :, ::-1]))
            )
            assert plain.confidence is not None
            assert exchanged.confidence is not None
            if len(plain) != len(exchanged) or not np.allclose(plain.confidence, exchanged.confidence, atol=1e-4):
                changed = True
        assert changed, "results do not depend on colours: is that intended? then set sees_colours = False"

    def test_red_is_red_and_not_blue(self, detector: Detector) -> None:
        """Pictures are BGR: a thing that is called red scores higher in them than with blue and red exchanged."""
        shown = self.red_thing()
        if shown is None:
            pytest.skip("no query of this detector names a colour")
        image, query = shown
        prompt = detector.prepare([query])
        best = []
        for name, pixels in (("red", image), ("blue", image[:, :, ::-1])):
            [found] = detector.detect([Request(pixels, prompt, name, [0.0])])
            assert found.confidence is not None
            best.append(float(found.confidence.max(initial=0)))
        assert best[0] > best[1] + 0.1

    def test_pixels_may_come_from_a_function(self, detector: Detector) -> None:
        image = picture(120, 160)
        prompt = detector.prepare(self.queries)
        [lazy] = detector.detect([Request(lambda: image, prompt, "first")])
        [eager] = detector.detect([Request(image, prompt, "second")])
        same(lazy, eager)

    def test_results_come_in_the_order_of_the_requests_and_alone_as_in_company(self, detector: Detector) -> None:
        prompt, other = detector.prepare(self.queries), detector.prepare(self.other_queries)
        images = [picture(*size, seed) for seed, size in enumerate([(120, 160), (90, 200), (120, 160), (64, 64)])]
        prompts = [prompt, other, other, prompt]
        together = detector.detect(
            [
                Request(image, words, f"together-{n}")
                for n, (image, words) in enumerate(zip(images, prompts, strict=True))
            ]
        )
        assert len(together) == len(images)
        for n, (image, words, found) in enumerate(zip(images, prompts, together, strict=True)):
            check(found, image, words.queries)
            [alone] = detector.detect([Request(image, words, f"alone-{n}")])
            same(found, alone)

    def test_thresholds_of_a_request_replace_the_detector_s_own(self, detector: Detector) -> None:
        """A lower threshold of one query shows more of that query, and one of 1 leaves hardly anything."""
        count = len(self.queries)
        wanted = {"own": None, "same": [detector.threshold] * count, "low": [0.0] * count, "high": [1.0] * count}
        wanted["mixed"] = [0.0] + [1.0] * (count - 1)
        prompt = detector.prepare(self.queries)
        found = {}
        for name, thresholds in wanted.items():
            for seed in range(3):
                image = picture(120, 160, seed)
                [found[name, seed]] = detector.detect([Request(image, prompt, name, thresholds)])
                check(found[name, seed], image, self.queries)
        for seed in range(3):
            same(found["own", seed], found["same", seed])
            assert len(found["low", seed]) >= len(found["own", seed]) >= len(found["high", seed])
            mixed, high = found["mixed", seed], found["high", seed]
            assert np.count_nonzero(mixed.class_id != 0) <= np.count_nonzero(high.class_id != 0)
            assert np.count_nonzero(mixed.class_id == 0) >= np.count_nonzero(high.class_id == 0)

    def test_thresholds_that_do_not_fit_the_queries_are_refused(self, detector: Detector) -> None:
        prompt = detector.prepare(self.queries)
        with pytest.raises(PromptError, match="give one for each"):
            Request(picture(40, 40), prompt, "", [0.5] * (len(self.queries) + 1))
        with pytest.raises(PromptError, match="between 0 and 1"):
            Request(picture(40, 40), prompt, "", [1.5] * len(self.queries))

    def test_a_second_detector_finds_the_same(self, detector: Detector) -> None:
        images = [picture(120, 160, seed) for seed in range(3)]
        results = []
        for each in (detector, self.make()):
            prompt = each.prepare(self.queries)
            results.append([each.detect([Request(image, prompt, "camera")])[0] for image in images])
        for first, second in zip(*results, strict=True):
            same(first, second)
