"""Data set of labelled pictures as it grows: COCO's form with captions and phrases, and GLIGEN's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detectors.phrases import Phrase, bare_words, with_article
from streamer.boxes import box_polygon
from streamer.frame import Frame
from streamer.tasks.review_page import by_image

if TYPE_CHECKING:
    import supervision as sv

NO_TRACK = -1


@dataclass(frozen=True, slots=True)
class ImageWords:
    """The caption of a picture and the phrases in it that were looked for."""

    caption: str
    phrases: tuple[Phrase, ...]

    @classmethod
    def of_queries(cls, queries: Sequence[str]) -> ImageWords:
        """Queries joined as GLIP reads them: `person . red car`."""
        phrases, start = [], 0
        for query in queries:
            phrases.append(Phrase(query, ((start, start + len(query)),)))
            start += len(query) + 3
        return cls(" . ".join(queries), tuple(phrases))


@dataclass
class PictureDataSet:
    """A COCO data set as it grows. Categories are the queries, or the phrases without determiners, from 1.

    Each image has a `caption` and each annotation `tokens_positive`, the characters of its phrase there, as GLIP and
    MDETR train on.
    """

    categories: dict[str, int] = field(default_factory=dict)
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of_queries(cls, queries: Sequence[str]) -> PictureDataSet:
        """A data set whose categories are the queries, whether they are found or not."""
        return cls({query: number for number, query in enumerate(queries, 1)})

    def add(self, file_name: str, frame: Frame, words: ImageWords, found: sv.Detections, source: str) -> None:
        """Adds a frame and its detections, whose `class_id` are indices into the phrases of `words`; `source` names the
        file or address that the frame comes from."""
        image = {
            "id": len(self.images) + 1,
            "file_name": file_name,
            "width": frame.width,
            "height": frame.height,
            "source": source,
            "stream": frame.stream,
            "frame_index": frame.index,
            "time_s": round(frame.time_s, 6),
            "caption": words.caption,
        }
        self.images.append(image)
        for row in range(len(found)):
            self.annotations.append(self._coco_annotation(len(self.images), words, found, row))

    def _coco_annotation(self, image: int, words: ImageWords, found: sv.Detections, row: int) -> dict[str, Any]:
        from streamer.enrichment.grounded import masks_of
        from streamer.rules.mask_rle import mask_model

        assert found.class_id is not None
        assert found.confidence is not None
        phrase = words.phrases[int(found.class_id[row])]
        name = phrase.text if phrase.text in self.categories else bare_words(phrase.text)
        x1, y1, x2, y2 = (round(float(value), 2) for value in found.xyxy[row])
        annotation: dict[str, Any] = {
            "id": len(self.annotations) + 1,
            "image_id": image,
            "category_id": self.categories.setdefault(name, len(self.categories) + 1),
            "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            "area": round((x2 - x1) * (y2 - y1), 2),
            "segmentation": box_polygon((x1, y1, x2, y2)),
            "iscrowd": 0,
            "score": round(float(found.confidence[row]), 4),
            "phrase": phrase.text,
            "tokens_positive": [list(span) for span in phrase.spans],
        }
        if found.tracker_id is not None and found.tracker_id[row] != NO_TRACK:
            annotation["track_id"] = int(found.tracker_id[row])
            annotation["attributes"] = {"track_id": annotation["track_id"]}
        if found.mask is not None:
            mask = masks_of(found)[row]
            annotation["segmentation"] = mask_model(mask).model_dump(include={"size", "counts"})
            annotation["area"] = int(mask.sum())
        return annotation

    def as_coco(self) -> dict[str, Any]:
        """The data set in COCO's form."""
        return {
            "info": {"description": "made by groundstream annotate: boxes found by a model, not checked by a person"},
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": number, "name": name} for name, number in self.categories.items()],
        }

    def as_gligen(self, *, own_captions: bool) -> list[dict[str, Any]]:
        """What GLIGEN (arXiv:2301.07093) is fed: a caption, phrases in it, and their boxes as fractions.

        The caption is the picture's with `own_captions`, else a sentence that names what was found.
        """
        annotations, entries = by_image(self.annotations), []
        for image in self.images:
            own = annotations[image["id"]]
            phrases = [annotation["phrase"] for annotation in own]
            entries.append(
                {
                    "image": image["file_name"],
                    "caption": image["caption"] if own_captions else _sentence_of(list(dict.fromkeys(phrases))),
                    "phrases": phrases,
                    "boxes": [_box_fractions(annotation["bbox"], image) for annotation in own],
                }
            )
        return entries


def _sentence_of(phrases: Sequence[str]) -> str:
    """`A picture of a red car, a dog and a man.`; empty where nothing was found."""
    if not phrases:
        return ""
    *first, last = map(with_article, phrases)
    return f"A picture of {', '.join(first)} and {last}." if first else f"A picture of {last}."


def _box_fractions(bbox: Sequence[float], image: dict[str, Any]) -> list[float]:
    """xywh in pixels -> xyxy in 0..1."""
    x, y, width, height = bbox
    corners = (x / image["width"], y / image["height"], (x + width) / image["width"], (y + height) / image["height"])
    return [round(min(max(value, 0.0), 1.0), 6) for value in corners]
