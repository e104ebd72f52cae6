"""How much glip-mini has learned: questions about streets that it has not seen, and how they are marked.

Things of which less than a quarter, or fewer than 60 pixels, or less than 8 pixels of height are seen are neither
asked for nor held against an answer that finds them. The phrases are drawn like those of the training, with other
seeds: two in five are true of something in the picture.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detectors.overlap import ious
from streamer.street import Scenario, SeenObject, StreetPicture, sample_picture
from streamer.street.dice import SeededDice
from streamer.street.words import KINDS, ground_phrases, meaning_holds, parse_phrase

if TYPE_CHECKING:
    import supervision as sv

    from detectors import Detector

HELD_OUT = 7_000_001  # the seed of the examination; training takes its streets from others
Answer = Callable[[npt.NDArray[np.uint8], Sequence[str]], "sv.Detections"]


@dataclass(frozen=True)
class Report:
    """Shares, 0..1. AP at IoU 0.5.

    `phrases`: AP over all present phrases together, each in its picture; `kinds`: mean AP of the plain kinds;
    `false_alarms`: pictures in which an absent phrase was found, of all pairs of picture and absent phrase;
    `alarmed_pictures`: those in which any of the absent phrases asked about, six as a rule, was found, of all pictures;
    `refused_colours`: of all things of a kind that was asked for in another colour, those not found for the phrase;
    `right_colour`: of all things of the kind that were found for such a phrase, those that have the colour.
    """

    pictures: int
    phrases: float
    kinds: float
    by_kind: dict[str, float]
    recall: float
    precision: float
    false_alarms: float
    alarmed_pictures: float
    refused_colours: float
    right_colour: float
    threshold: float

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)


def is_clear(one: SeenObject) -> bool:
    """Whether a thing is asked for."""
    return one.visibility >= 0.25 and one.area >= 60 and one.box[3] - one.box[1] >= 8


def truth_row(
    one: SeenObject, image: int, category: int, is_known: Callable[[SeenObject], bool] = is_clear
) -> dict[str, Any]:
    """A thing as an annotation of a COCO data set; one that is not known is a crowd: it swallows what finds it."""
    x1, y1, x2, y2 = one.box
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": one.area,
        "iscrowd": int(not is_known(one)),
    }


def answer_of(detector: Detector) -> Answer:
    """The detector as the examination asks it."""
    from detectors import Request

    def answer(image: npt.NDArray[np.uint8], queries: Sequence[str]) -> sv.Detections:
        return detector.detect([Request(image, detector.prepare(queries))])[0]

    return answer


def examine(
    answer: Answer,
    pictures: int,
    threshold: float,
    size: tuple[int, int] = (640, 384),
    scenario: Scenario | None = None,
    seed: int = HELD_OUT,
) -> Report:
    """The report at one threshold."""
    return examine_at(answer, pictures, (threshold,), size, scenario, seed)[0]


def examine_at(
    answer: Answer,
    pictures: int,
    thresholds: Sequence[float],
    size: tuple[int, int] = (640, 384),
    scenario: Scenario | None = None,
    seed: int = HELD_OUT,
) -> list[Report]:
    """Ask about `pictures` streets: the five kinds once, then two times five phrases, each list in one prompt.

    One report for each threshold; APs, which have none, are the same in all.
    """
    sheet = _Sheet(thresholds)
    for index in range(pictures):
        picture = sample_picture(seed, index, size, scenario)
        sheet.kinds(picture, answer(picture.image, KINDS))
        dice = SeededDice(seed, 81, index)
        for _ in range(2):
            texts = questions(picture, dice)
            if texts:
                sheet.phrases(index, picture, texts, answer(picture.image, texts))
    return sheet.reports(pictures)


def questions(picture: StreetPicture, dice: SeededDice, present: int = 2, absent: int = 3) -> list[str]:
    """Phrases about a picture, in random order."""
    clear = [one for one in picture.truth.seen if is_clear(one)]
    unclear = [one for one in picture.truth.seen if not is_clear(one)]
    counts = Counter(one.thing.kind for one in clear)
    evened = [one for one in clear for _ in range(round(max(counts.values()) / counts[one.thing.kind]))]
    said = ground_phrases(evened, dice, present=present, absent=absent, hidden=[*unclear, *picture.truth.hidden])
    texts = list(dict.fromkeys(grounding.text for grounding in said))
    return sorted(texts, key=lambda text: dice.word())


class _Sheet:
    """Marks answers as they come: each pair of picture and phrase becomes an image of a COCO data set."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self._asked = _Marks(["phrase"])
        self._plain = _Marks(KINDS)
        self._counts = [_Counts(threshold) for threshold in thresholds]

    def kinds(self, picture: StreetPicture, found: sv.Detections) -> None:
        number = self._plain.image()
        for category, kind in enumerate(KINDS):
            self._plain.add(number, category, [one for one in picture.truth.seen if one.thing.kind == kind], found)

    def phrases(self, index: int, picture: StreetPicture, texts: Sequence[str], found: sv.Detections) -> None:
        assert found.class_id is not None
        for label, text in enumerate(texts):
            meaning = parse_phrase(text)
            assert meaning is not None
            true = [one for one in picture.truth.seen if meaning_holds(meaning, one.thing, one.middle)]
            mine = found.class_id == label
            is_present = any(is_clear(one) for one in true)
            if is_present:
                self._asked.add(self._asked.image(), 0, true, found, label)
            for counts in self._counts:
                sure = found.xyxy[mine & (_confidence(found) >= counts.threshold)]
                if is_present:
                    counts.present(true, sure)
                else:
                    counts.nothing(index, sure)
                if meaning.colour and len(meaning.kinds) == 1:
                    counts.colours(picture.truth.seen, next(iter(meaning.kinds)), meaning.colour, sure)

    def reports(self, pictures: int) -> list[Report]:
        from detectors.evaluation import coco_score

        phrases, kinds, by_kind = (
            coco_score(*self._asked.files()).ap50,
            coco_score(*self._plain.files()).ap50,
            self._plain.each(),
        )
        return [
            Report(
                pictures=pictures,
                phrases=phrases,
                kinds=kinds,
                by_kind=by_kind,
                recall=_share(counts.right, counts.right + counts.missed),
                precision=_share(counts.right, counts.right + counts.wrong),
                false_alarms=_share(counts.alarms, counts.absent),
                alarmed_pictures=_share(len(counts.alarmed), pictures),
                refused_colours=_share(counts.refused[True], counts.refused.total()),
                right_colour=_share(counts.reported[True], counts.reported.total()),
                threshold=counts.threshold,
            )
            for counts in self._counts
        ]


class _Counts:
    """What is right and wrong at one threshold. `sure` are the boxes (N, 4) that reach it for one phrase."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.right = self.wrong = self.missed = 0
        self.absent = self.alarms = 0
        self.alarmed: set[int] = set()  # pictures
        self.refused: Counter[bool] = Counter()  # whether one of another colour was not found
        self.reported: Counter[bool] = Counter()  # whether the colour of one that was found was right

    def present(self, true: Sequence[SeenObject], sure: npt.NDArray[Any]) -> None:
        clear = [one for one in true if is_clear(one)]
        wanted = np.array([one.box for one in clear], np.float64).reshape(-1, 4)
        hit = int((ious(sure, wanted) >= 0.5).any(axis=0).sum())
        near_any = (ious(sure, np.array([one.box for one in true], np.float64).reshape(-1, 4)) >= 0.3).any(axis=1)
        self.right += hit
        self.missed += len(clear) - hit
        self.wrong += int((~near_any).sum())

    def nothing(self, picture: int, sure: npt.NDArray[Any]) -> None:
        self.absent += 1
        if len(sure):
            self.alarms += 1
            self.alarmed.add(picture)

    def colours(self, seen: Sequence[SeenObject], kind: str, colour: str, sure: npt.NDArray[Any]) -> None:
        """Whether the object of the kind under each box has the colour."""
        same = [one for one in seen if one.thing.kind == kind and is_clear(one)]
        if not same:
            return
        overlap = ious(sure, np.array([one.box for one in same], np.float64))
        found = [int(row.argmax()) for row in overlap if row.max() >= 0.5]
        self.reported.update(same[index].thing.colour == colour for index in found)
        self.refused.update(index not in found for index, one in enumerate(same) if one.thing.colour != colour)


class _Marks:
    """A COCO data set and its results, as they grow."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._images: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def image(self) -> int:
        self._images.append({"id": len(self._images) + 1})
        return len(self._images)

    def add(
        self, image: int, category: int, true: Iterable[SeenObject], found: sv.Detections, label: int | None = None
    ) -> None:
        assert found.class_id is not None
        self._boxes += [truth_row(one, image, category + 1) for one in true]
        for box, score, class_id in zip(found.xyxy, _confidence(found), found.class_id, strict=True):
            if class_id == (category if label is None else label):
                left, top, right, bottom = (float(edge) for edge in box)
                self._found.append(
                    {
                        "image_id": image,
                        "category_id": category + 1,
                        "bbox": [left, top, right - left, bottom - top],
                        "score": float(score),
                    }
                )

    def files(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        categories = [{"id": number, "name": name} for number, name in enumerate(self._names, 1)]
        return {"images": self._images, "annotations": self._boxes, "categories": categories}, self._found

    def each(self) -> dict[str, float]:
        """AP50 of each category alone."""
        from detectors.evaluation import coco_score

        truth, found = self.files()
        by_name: dict[str, float] = defaultdict(float)
        for category in truth["categories"]:
            only = {
                **truth,
                "annotations": [row for row in truth["annotations"] if row["category_id"] == category["id"]],
                "categories": [category],
            }
            own = [row for row in found if row["category_id"] == category["id"]]
            by_name[category["name"]] = coco_score(only, own).ap50
        return dict(by_name)


def _confidence(found: sv.Detections) -> npt.NDArray[np.float32]:
    assert found.confidence is not None
    return found.confidence


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
