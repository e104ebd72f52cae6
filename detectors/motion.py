"""Motion detector: boxes of moving objects before a still camera by background subtraction, one memory per stream.

Every pixel is compared with samples of its own past (k nearest neighbours: Zivkovic and van der Heijden, Pattern
Recognition Letters 27, 2006; OpenCV's `BackgroundSubtractorKNN`), shadows are recognised by their colour and dropped.
The foreground is cleaned and joined into blobs; blobs wider than the objects usually seen at that place are cut at
the dips of their outline, so that people side by side count one by one. A change of exposure is divided out; a change
of most of the picture at once is a change of light, not motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
import numpy.typing as npt

from detectors.detector import OptionError, Prompt, PromptError, Request, clean_queries, detections
from detectors.overlap import ious
from detectors.registry import ANYTHING_THAT_MOVES

if TYPE_CHECKING:
    import supervision as sv

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the working size

_WORKING_SIDE = 448  # pixels of the longer side of the working picture: a person of 20 pixels is still found
_SHADOW = 127  # in OpenCV's mask; 255 is foreground
_SQUARED_DISTANCE = 400.0  # in grey levels, from which on a pixel differs from a sample of its past
_LEAST_SHARE = 4e-4  # of the picture: smaller blobs are noise
_FLASH_SHARE = 0.4  # of the picture: more than this at once is a change of light
_PATIENCE = 15  # pictures of such a change until the background is learned again
_STIRRED = 14  # change in grey levels between two pictures that counts as movement
_COOLING = 3  # a place with movement is remembered for 255 / 3 pictures
_CLIPPED = 253  # grey level from which on a pixel may be overexposed
_GRID = (64, 48)  # where exposure is measured
_OPENING = np.ones((3, 2), np.uint8)  # removes thinner structures: noise, wires, tape in the wind
_CLOSING = np.ones((9, 3), np.uint8)  # upright, as gaps at belts and collars are; people side by side stay apart


class MotionDetector:
    """Finds "anything that moves", its only query, in the pictures of still cameras.

    Pictures of a stream must come in order; the first ones teach the background and give no detections. An object that
    stops becomes background after a while. The confidence rises with how solid a blob is, how long it has been seen,
    and whether it still moves; the trace of an object that has left falls below `threshold`.
    """

    def __init__(self, *, threshold: float = 0.5, memory: int = 500, seed: int = 0) -> None:
        """`memory` is the number of pictures after which the past is forgotten: 50 s at ten a second; `seed` is that of
        the random draws of the background model."""
        if not 0 <= threshold <= 1:
            raise OptionError(f"threshold is {threshold}: it must lie in 0..1")
        if memory < 10:
            raise OptionError(f"memory is {memory}: at least 10 pictures are needed to know a background")
        self._threshold = threshold
        self._memory = memory
        self._seed = seed
        self._scenes: dict[str, _SceneModel] = {}

    @property
    def threshold(self) -> float:
        return self._threshold

    def prepare(self, queries: Sequence[str]) -> Prompt:
        cleaned = clean_queries(queries)
        other = [query for query in cleaned if query.lower() != ANYTHING_THAT_MOVES]
        if other:
            raise PromptError(
                f"the motion detector cannot detect {other[0]!r}: its only query is {ANYTHING_THAT_MOVES!r}; "
                "choose a detector that reads words, such as glip-tiny"
            )
        return Prompt(cleaned)

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        return [self._detect_motion(request) for request in requests]

    def forget(self, stream: str) -> None:
        """Drop a stream's memory: call it when the stream has ended or its camera was turned."""
        self._scenes.pop(stream, None)

    def _detect_motion(self, request: Request) -> sv.Detections:
        image = request.image
        scene = self._scenes.get(request.stream)
        if scene is None or scene.shape != image.shape:
            scene = self._scenes[request.stream] = _SceneModel(image.shape, self._memory, self._seed)
        boxes, confidence = scene.find_blobs(image)
        kept = confidence >= request.least_scores(self.threshold)[0]
        class_id = np.zeros(int(kept.sum()), np.int64)
        return detections(boxes[kept], confidence[kept], class_id, request.prompt.queries)


class _RegionSizes:
    """Usual object size by the position of the feet: height = slope * y + offset, as over flat ground.

    Fitted to blobs that were seen whole and alone, with exponential forgetting; pixels of the working size.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(6)  # of 1, y, y², height, y * height, width / height

    def learn_size(self, foot: float, width: float, height: float) -> None:
        self._sums = 0.998 * self._sums + (1, foot, foot * foot, height, foot * height, width / height)

    def size_at(self, foot: float) -> tuple[float, float] | None:
        """Usual (width, height) of an object whose feet are at `foot`; None until enough were seen."""
        weight, y, yy, h, yh, ratio = self._sums
        if weight < 20:
            return None
        mean_y, mean_h = y / weight, h / weight
        spread = yy / weight - mean_y**2
        slope = (yh / weight - mean_y * mean_h) / (spread + 25)  # flat where all feet were at one place
        height = max(mean_h + slope * (foot - mean_y), mean_h / 4)
        return height * ratio / weight, height


class _SceneModel:
    """The memory of one stream."""

    def __init__(self, shape: tuple[int, ...], memory: int, seed: int) -> None:
        self.shape = shape
        height, width = shape[:2]
        scale = max(1.0, max(height, width) / _WORKING_SIDE)
        self._size = (max(round(width / scale), 1), max(round(height / scale), 1))
        self._memory = memory
        self._least = max(_LEAST_SHARE * self._size[0] * self._size[1], 6.0)
        self._sizes = _RegionSizes()
        self._draws = np.random.default_rng(seed)
        self._reset_scene()

    def _reset_scene(self) -> None:
        self._past = cv2.createBackgroundSubtractorKNN(self._memory, _SQUARED_DISTANCE, True)
        self._exposure: Floats | None = None
        self._before: Bytes | None = None
        self._flashes = 0
        self._stir = np.zeros(self._size[::-1], np.uint8)
        self._known = np.zeros((0, 5), np.float32)  # boxes of the picture before, and how often each was seen

    def find_blobs(self, image: Bytes) -> tuple[Floats, Floats]:
        """Boxes (N, 4) in pixels of the image and confidences (N,)."""
        raw = cast(Bytes, cv2.resize(image, self._size, interpolation=cv2.INTER_AREA))
        small = self._level_exposure(raw)
        # The subtractor draws from OpenCV's generator of the calling thread: seeded for each picture, the result does
        # not depend on other streams. The seeds are random, since small numbers in a row give draws that resemble one
        # another, and the samples of the background are then replaced unevenly.
        cv2.setRNGSeed(int(self._draws.integers(1, 2**31)))
        mask = cast(Bytes, cv2.threshold(self._past.apply(small), _SHADOW, 255, cv2.THRESH_BINARY)[1])
        if small is not raw:
            mask[raw.max(2) >= _CLIPPED] = 0  # overexposed pixels carry no information
        first = self._before is None
        self._mark_stirring(small)
        if first or self._is_flash(mask):
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        boxes, confidence = self._rate_blobs(mask, self._find_solid(mask))
        height, width = self.shape[:2]
        limit = np.array([width, height, width, height], np.float32)
        return np.clip(boxes * (limit / np.array(self._size * 2, np.float32)), 0, limit), confidence

    def _level_exposure(self, small: Bytes) -> Bytes:
        """The picture at its usual exposure: the median change of pixels against a slow average is divided out."""
        grid = np.asarray(cv2.resize(small, _GRID, interpolation=cv2.INTER_AREA), np.float32)
        if self._exposure is None:
            self._exposure = grid.copy()
        fair = (grid > 8) & (grid < 245) & (self._exposure > 8)
        gain = float(np.median(grid[fair] / self._exposure[fair])) if fair.sum() > 50 else 1.0
        self._exposure += 0.005 * (grid - self._exposure)
        return small if abs(gain - 1) < 0.02 else cast(Bytes, cv2.convertScaleAbs(small, alpha=1 / gain))

    def _mark_stirring(self, small: Bytes) -> None:
        """Remember where the picture changed lately: foreground without change is a ghost or a parked object."""
        grey = cast(Bytes, cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))
        if self._before is not None:
            _, fresh = cv2.threshold(cv2.absdiff(grey, self._before), _STIRRED, 255, cv2.THRESH_BINARY)
            self._stir = cast(Bytes, cv2.max(cv2.subtract(self._stir, float(_COOLING)), fresh))  # type: ignore[call-overload]
        self._before = grey

    def _is_flash(self, mask: Bytes) -> bool:
        """Whether most of the picture changed at once; if it stays so, the background is learned again."""
        # In a picture of a few pixels one object may fill all of it.
        if mask.size < 1000 or cv2.countNonZero(mask) < _FLASH_SHARE * mask.size:
            self._flashes = 0
            return False
        self._flashes += 1
        if self._flashes >= _PATIENCE:
            self._reset_scene()
        return True

    def _find_solid(self, mask: Bytes) -> list[Box]:
        """Boxes of solid objects in the mask: specks removed, fragments joined, groups cut."""
        solid = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _OPENING)
        joined = cv2.morphologyEx(solid, cv2.MORPH_CLOSE, _CLOSING)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
        found: list[Box] = []
        for label in range(1, len(stats)):
            x, y, width, height, area = (int(value) for value in stats[label])
            if area < self._least / 2:
                continue
            part = labels[y : y + height, x : x + width] == label
            found.extend((x + x1, y + y1, x + x2, y + y2) for x1, y1, x2, y2 in self._cut_blob(part, y + height))
        return [box for box in _join_pieces(found, self._sizes) if _box_area(box) >= self._least]

    def _cut_blob(self, part: npt.NDArray[np.bool_], foot: float) -> list[Box]:
        """The blob's box, or one box for each of the objects side by side, cut where the outline dips between heads."""
        height, width = part.shape
        usual = self._sizes.size_at(foot)
        if usual is None or width < 1.4 * usual[0] or height > 2.2 * usual[1]:
            return [(0, 0, width, height)]
        reach = max(round(usual[0] / 3), 1) // 2 * 2 + 1
        columns = part.sum(0, dtype=np.float32)[None]
        outline = cv2.blur(columns, (reach, 1), borderType=cv2.BORDER_CONSTANT)[0]
        boxes = []
        for left, right in pairwise([0, *_outline_dips(outline, usual[0]), width]):
            rows = np.flatnonzero(part[:, left:right].any(1))
            if len(rows):
                boxes.append((left, int(rows[0]), right, int(rows[-1]) + 1))
        return boxes

    def _rate_blobs(self, mask: Bytes, blobs: list[Box]) -> tuple[Floats, Floats]:
        """Boxes (N, 4) of the blobs and confidences (N,): solid, of usual size, seen before, moving."""
        boxes = np.array(blobs, np.float32).reshape(-1, 4)
        overlap = ious(boxes, self._known[:, :4])
        confidence = np.zeros(len(boxes), np.float32)
        seen = np.ones(len(boxes), np.float32)
        for index, (x1, y1, x2, y2) in enumerate(blobs):
            width, height = x2 - x1, y2 - y1
            if overlap[index].max(initial=0) > 0.3:
                seen[index] += self._known[overlap[index].argmax(), 4]
            inside = mask[y1:y2, x1:x2]
            area = max(cv2.countNonZero(inside), 1)
            stirring = cv2.countNonZero(cv2.bitwise_and(self._stir[y1:y2, x1:x2], inside)) / area
            solid = min(1.0, area / (0.4 * width * height))
            usual = self._sizes.size_at(y2)
            grown = 1.0 if usual is None else min(1.0, 1.6 * height / usual[1])
            steady = min(1.0, 0.4 + 0.2 * seen[index])
            confidence[index] = 0.98 * solid * grown**2 * min(1.0, stirring / 0.25) * steady
            whole = x1 > 0 and y1 > 0 and x2 < mask.shape[1] and y2 < mask.shape[0]
            if seen[index] > 5 and solid == 1.0 and whole and 0.15 < width / height < 6:
                self._sizes.learn_size(y2, width, height)
        self._known = np.column_stack([boxes, seen]).astype(np.float32)
        return boxes, confidence


def _outline_dips(outline: Floats, width: float) -> list[int]:
    """Columns at which to cut: lower than 0.7 of the peaks on both sides, and far enough from one another."""
    cuts: list[int] = []
    peak = low = 0
    for column in range(1, len(outline)):
        if outline[column] < outline[low]:
            low = column
        if column - low >= 2 and outline[low] < 0.7 * min(outline[peak], outline[column]):
            before, after = low - (cuts[-1] if cuts else 0), len(outline) - low
            if min(before, after) >= 0.4 * width:
                cuts.append(low)
            peak = low = column
        elif outline[column] > outline[peak] and low <= peak:
            peak = low = column
    return cuts


def _join_pieces(boxes: list[Box], sizes: _RegionSizes) -> list[Box]:
    """Join pieces above one another that together are no taller than one object."""
    boxes = sorted(boxes, key=lambda box: -box[3])
    done: list[Box] = []
    while boxes:
        x1, y1, x2, y2 = boxes.pop(0)
        usual = sizes.size_at(y2)
        room = usual[1] if usual else 1.5 * (y2 - y1)
        for other in list(boxes):
            shared = min(x2, other[2]) - max(x1, other[0])
            narrow = min(x2 - x1, other[2] - other[0])
            high = max(y2, other[3]) - min(y1, other[1])
            wide = max(x2, other[2]) - min(x1, other[0])
            fits = high <= 1.2 * room and y1 - other[3] < 0.35 * room and (usual is None or wide <= 1.5 * usual[0])
            if shared > 0.5 * narrow and fits:
                x1, y1, x2, y2 = min(x1, other[0]), min(y1, other[1]), max(x2, other[2]), max(y2, other[3])
                boxes.remove(other)
        done.append((x1, y1, x2, y2))
    return done


def _box_area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def create(name: str, *, threshold: float | None = None, memory: int = 500) -> MotionDetector:
    return MotionDetector(threshold=0.5 if threshold is None else threshold, memory=memory)
