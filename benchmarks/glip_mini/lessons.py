"""What glip-mini learns from: pieces of the synthetic street, phrases that are true of them and phrases that are not.

Every batch is a function of a seed and a number, painted when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

from detectors.glip.caption import BertTokenizer, category_caption
from detectors.glip.training.loss import TrainingTruth
from detectors.glip.training.trainer import TrainingBatch
from detectors.images import collate, normalise
from streamer.street import Scenario, SeenObject, Street, words
from streamer.street.dice import SeededDice, mix_numbers
from streamer.street.words import KINDS, PhraseGrounding, ground_phrases

SIZE = 640, 384  # of the whole picture: width, height
CROP = 320, 192
CROPS = 2  # of a picture: painting costs a fifth of what learning does
NEAR = 96, 96  # one thing, seen closely
NEARS, NEARS_OF_PICTURE = 5, 7  # in place of one crop; of a picture
NEAR_UNTIL = 6_000  # crops: the first lessons show nothing else
LEAST_VISIBILITY, LEAST_AREA = 0.2, 24  # what shows less than this is neither asked for nor taught
COLOURS, CONTRASTS = 0.45, 0.25  # shares of the pictures: asked for in all colours, and in what differs in one word
LONGEST = 126  # tokens of a caption, without [CLS] and [SEP]


class Lesson(NamedTuple):
    """A picture (H, W, 3) BGR uint8, what is to be seen in it with its boxes (N, 4) float32, and what is said."""

    image: npt.NDArray[np.uint8]
    seen: tuple[SeenObject, ...]
    boxes: npt.NDArray[np.float32]
    said: tuple[PhraseGrounding, ...]


def is_evident(one: SeenObject) -> bool:
    """Whether enough of a thing is visible to recognise it."""
    return one.visibility >= LEAST_VISIBILITY and one.area >= LEAST_AREA


@dataclass(frozen=True)
class Lessons:
    """Batches by number. Of eight, five hold `batch` crops, two as many pixels in whole pictures, one near looks.

    The first `NEAR_UNTIL` crops' worth are near looks alone. Whatever is learned first shapes the features: a model
    that meets whole streets first learns what a thing is, and then has no room for what colour it has. A thing that
    fills the picture, with every kind and colour in one caption, teaches both in the first two hundred batches.
    """

    tokenizer: BertTokenizer
    seed: int = 0
    batch: int = 8
    kinds: Sequence[str] = KINDS
    scenario: Scenario | None = None

    def __call__(self, number: int) -> TrainingBatch:
        return to_batch(self.lessons(number), self.tokenizer)

    def lessons(self, number: int) -> list[Lesson]:
        """Batch `number`, as pictures and words."""
        if number % 8 == 0 or number * self.batch < NEAR_UNTIL:
            return self._looks(number, NEAR, NEARS * self.batch, NEARS_OF_PICTURE)
        if number % 4 == 3:
            return self._looks(number, SIZE, self.batch // 4, 1)
        return self._looks(number, CROP, self.batch, CROPS)

    def _looks(self, number: int, size: tuple[int, int], count: int, of_picture: int) -> list[Lesson]:
        """`count` pieces of `size`, up to `of_picture` of each street."""
        dice = SeededDice(self.seed, 71, number)
        found: list[Lesson] = []
        for index in range(-(-count // of_picture)):
            street = Street(
                mix_numbers(self.seed, 72, number, index), SIZE, fps=1000.0, scenario=self.scenario or Scenario()
            )
            picture = street.picture(dice.whole(0, 600_000))
            seen, hidden = picture.truth.seen, picture.truth.hidden
            for _ in range(min(of_picture, count - len(found))):
                window = _window(seen, size, dice)
                found.append(_lesson(picture.image, seen, hidden, window, size, dice, self.kinds))
        return found


def _window(seen: Sequence[SeenObject], size: tuple[int, int], dice: SeededDice) -> npt.NDArray[np.int64]:
    """x1, y1, x2, y2 of a piece in `size`'s proportion, mostly around something that is seen."""
    if size == SIZE:
        return np.array([0, 0, *SIZE])
    evident = [one for one in seen if is_evident(one)]
    around = None
    if evident and dice.chance(0.85):
        kind = dice.pick(sorted({one.thing.kind for one in evident}))
        around = dice.pick([one for one in evident if one.thing.kind == kind]).box
    if size == NEAR:
        margin = 0.35
        longer = 32.0 if around is None else max(around[2] - around[0], around[3] - around[1], 12.0)
        zoom = size[1] / min(longer / dice.between(0.35, 0.85), SIZE[1])
    else:
        margin = 0.15
        zoom = 1.0 if dice.chance(0.5) else dice.between(0.7, 1.35)
    width, height = round(size[0] / zoom), round(size[1] / zoom)
    if around is not None:
        left = round((around[0] + around[2]) / 2 - width * dice.between(margin, 1 - margin))
        top = round((around[1] + around[3]) / 2 - height * dice.between(margin, 1 - margin))
    else:
        left, top = dice.whole(0, SIZE[0] - width), dice.whole(0, SIZE[1] - height)
    left, top = min(max(left, 0), SIZE[0] - width), min(max(top, 0), SIZE[1] - height)
    return np.array([left, top, left + width, top + height])


def _lesson(
    image: npt.NDArray[np.uint8],
    seen: Sequence[SeenObject],
    hidden: Sequence[SeenObject],
    window: npt.NDArray[np.int64],
    size: tuple[int, int],
    dice: SeededDice,
    kinds: Sequence[str],
) -> Lesson:
    """The window of a picture at `size`, mirrored half of the time: no phrase that is taught knows left from right."""
    left, top, right, bottom = (int(edge) for edge in window)
    piece: npt.NDArray[Any] = image[top:bottom, left:right]
    scale = np.array([size[0] / (right - left), size[1] / (bottom - top)] * 2, np.float32)
    if piece.shape[:2] != size[::-1]:
        piece = cv2.resize(piece, size, interpolation=cv2.INTER_AREA if scale[0] < 1 else cv2.INTER_LINEAR)
    whole = np.array([one.box for one in seen], np.float32).reshape(-1, 4)
    inside = np.clip(whole, [left, top, left, top], [right, bottom, right, bottom])
    share = _area(inside) / np.maximum(_area(whole), 1)
    clear = np.array([is_evident(one) for one in seen], bool) & (share > 0.4)
    boxes = (inside[clear] - np.array([left, top, left, top], np.float32)) * scale
    boxes = np.minimum(boxes, np.array([*size, *size], np.float32))  # rounding
    if dice.chance(0.5):
        piece = piece[:, ::-1]
        boxes = np.stack([size[0] - boxes[:, 2], boxes[:, 1], size[0] - boxes[:, 0], boxes[:, 3]], axis=1)
    there = [one for one, yes in zip(seen, clear, strict=True) if yes]
    unclear = [one for one, yes, part in zip(seen, clear, share, strict=True) if part > 0 and not yes]
    said = _say(there, [*unclear, *hidden], dice, kinds)
    return Lesson(np.ascontiguousarray(piece), tuple(there), boxes.astype(np.float32), tuple(said))


def _say(
    there: Sequence[SeenObject], unclear: Sequence[SeenObject], dice: SeededDice, kinds: Sequence[str]
) -> list[PhraseGrounding]:
    """Phrases in random order, rare kinds named about as often as common ones.

    Captions are long: a phrase more costs little, and every pair of a region and a phrase is something to learn.
    """
    counts = Counter(one.thing.kind for one in there)
    most = max(counts.values(), default=0)
    evened = [one for one in there for _ in range(round(most / counts[one.thing.kind]))]
    said: list[PhraseGrounding] = []
    about = dice.between(0, 1)
    if about < COLOURS:
        said = words.colour_phrases(there, dice, unclear, kinds)
    elif about < COLOURS + CONTRASTS and evened:
        said = words.contrasting_phrases(evened, dice, unclear)
    if about >= COLOURS:
        texts = {one.text for one in said}
        others = ground_phrases(
            evened, dice, present=dice.whole(1, 9), absent=dice.whole(1, 9), hidden=unclear, kinds=kinds
        )
        said += [one for one in others if one.text not in texts]
    order = sorted(range(len(said)), key=lambda index: (dice.word(), index))
    return [said[index] for index in order]


def _area(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    area: npt.NDArray[np.float32] = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    return area


def to_batch(lessons: Sequence[Lesson], tokenizer: BertTokenizer) -> TrainingBatch:
    """Pictures normalised, phrases joined to captions as the benchmarks' are, every box with the words true of it."""
    images = collate([normalise(torch.from_numpy(lesson.image).permute(2, 0, 1)) for lesson in lessons])
    read = [_read(lesson, tokenizer) for lesson in lessons]
    length = max(len(ids) for ids, _ in read)
    input_ids = torch.zeros(len(read), length, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    truths = []
    for row, (lesson, (ids, labels)) in enumerate(zip(lessons, read, strict=True)):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        tokens = torch.zeros(len(lesson.seen), length, dtype=torch.bool)
        for phrase, positions in zip(lesson.said, labels, strict=False):
            for box, one in enumerate(lesson.seen):
                if one.thing.identity in phrase.identities:
                    tokens[box, list(positions)] = True
        named = tokens.any(1)
        truths.append(TrainingTruth(torch.from_numpy(lesson.boxes)[named], tokens[named]))
    return TrainingBatch(images, input_ids, mask, truths)


def _read(lesson: Lesson, tokenizer: BertTokenizer) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The caption's ids, and each phrase's tokens; the last phrases are left out where a caption grows too long."""
    texts = [phrase.text for phrase in lesson.said] or ["person"]
    lengths = [tokenizer.count(text) + 1 for text in texts]
    while sum(lengths) > LONGEST:
        lengths.pop()
    tokens = tokenizer(category_caption(texts[: len(lengths)]))
    return tokens.ids, tokens.labels
