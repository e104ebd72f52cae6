"""One frame's record in the structure of GranD (Rasheed et al., arXiv:2311.03356, section 4), made with GLaMM.

Objects, attributes, relations, landmark and a dense grounded caption. GranD lets seven detectors vote; here the
detectors that were asked for and GLaMM's own description do. What no two of them saw is kept apart as floating.
Left out: depth and the layers made from it, and the choice among labels by a second CLIP: the better score chooses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detectors.detector import GroundedText
from detectors.overlap import mask_boxes
from streamer.boxes import box_ious
from streamer.enrichment.grounded import union_mask
from streamer.rules.mask_rle import mask_model

if TYPE_CHECKING:
    import supervision as sv

    from detectors.glamm.box_masks import BoxMasks
    from detectors.glamm.segmenter import EncodedImage, Glamm

Boxes = npt.NDArray[np.float64]
BoolMask = npt.NDArray[np.bool_]

DESCRIPTION = "glamm"
SAME = 0.65
"""IoU from which two detectors, or two masks, speak of one thing. GranD also asks for Dice 0.75, which this implies."""
LINKED = 0.75
"""IoU above which a phrase's box is an object's."""
DUPLICATE = 0.9
LEAST_SCORE = 0.1
LONE_PERSON = 0.75
"""Score from which a person that only one detector saw is an object."""
MOST_OBJECTS = 100

SHORT_CAPTION = "Generate a single sentence caption of the provided image."
COARSE = "What kind of scene is this? Answer with one of: {choices}."
FINE = "What kind of {coarse} is this? Answer with one of: {choices}."
LANDMARKS: Mapping[str, Sequence[str]] = {
    "Indoor scene": ("Living space", "Work space", "Public space", "Industrial space"),
    "Outdoor scene": ("Urban landscape", "Rural landscape", "Natural landscape"),
    "Transportation scene": ("Road", "Airport", "Train station", "Port and harbor"),
    "Sports and recreation scene": ("Sporting venue", "Recreational area", "Gym and fitness center"),
}
_PERSONS = frozenset({"man", "woman", "men", "women"})
_SPEAKER = re.compile(r"^(?:assistant|answer|region\s*\d*)\s*:\s*", re.IGNORECASE)


@dataclass
class GrandObject:
    """Something that one or more voters saw, `box` in pixels; the best score leads."""

    box: Boxes
    label: str
    score: float
    source: str
    votes: dict[str, str] = field(default_factory=dict)
    mask: BoolMask | None = None
    track: int | None = None
    attributes: list[str] = field(default_factory=list)
    segmentation: BoolMask | None = None
    segmentation_source: str = ""

    @property
    def is_object(self) -> bool:
        """Two voters, or a person that one is sure of. GLaMM gives no score, so its word alone is not enough."""
        sure = self.label == "person" and self.source != DESCRIPTION and self.score > LONE_PERSON
        return len(self.votes) > 1 or sure

    def as_json(self, number: int) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": number,
            "bbox": [round(float(value), 1) for value in self.box],
            "label": self.label,
            "labels": list(dict.fromkeys([self.label, *self.votes.values()])),
            "score": round(self.score, 4),
            "attributes": self.attributes or None,
            "source": self.source,
            "votes": sorted(self.votes),
            "segmentation": None if self.segmentation is None else mask_model(self.segmentation).model_dump(),
            "segmentation_source": self.segmentation_source,
        }
        return record if self.track is None else {**record, "track_id": self.track}


def vote_objects(found: Mapping[str, sv.Detections], described: GroundedText) -> list[GrandObject]:
    """The things that detectors and the description speak of, each with who saw it; best scores first."""
    things: list[GrandObject] = []
    for source, candidates in [
        *((name, _source_candidates(name, rows)) for name, rows in found.items()),
        _described_things(described),
    ]:
        known = list(things)
        for candidate in _drop_duplicates(candidates):
            ious = box_ious(candidate.box[None], np.array([thing.box for thing in known]).reshape(-1, 4))[0]
            free = [place for place in np.argsort(-ious) if ious[place] >= SAME and source not in known[place].votes]
            if free:
                _join_candidate(known[free[0]], candidate)
            else:
                candidate.votes[source] = candidate.label
                things.append(candidate)
    return sorted(things, key=lambda thing: -thing.score)


def _join_candidate(thing: GrandObject, candidate: GrandObject) -> None:
    """The label and box of the better score stay; the other's label is kept as a candidate."""
    thing.votes[candidate.source] = candidate.label
    if candidate.mask is not None:
        thing.mask = candidate.mask
    if candidate.track is not None and thing.track is None:
        thing.track = candidate.track
    if candidate.source != DESCRIPTION and candidate.score > thing.score:
        thing.box, thing.label, thing.score, thing.source = (
            candidate.box, candidate.label, candidate.score, candidate.source,
        )  # fmt: skip


def _source_candidates(source: str, found: sv.Detections) -> list[GrandObject]:
    scores = np.ones(len(found)) if found.confidence is None else found.confidence
    tracks = [None] * len(found) if found.tracker_id is None else found.tracker_id.tolist()
    rows = zip(found.xyxy.astype(np.float64), found.data.get("class_name", ()), scores, tracks, strict=True)
    return [
        GrandObject(box, _plain_label(str(name)), float(score), source, track=track)
        for box, name, score, track in rows
        if score >= LEAST_SCORE
    ]


def _described_things(described: GroundedText) -> tuple[str, list[GrandObject]]:
    """The phrases of the description that have a mask."""
    things = []
    for span in described.spans:
        mask = union_mask(described, span)
        if mask is not None and mask.any():
            box = mask_boxes(mask[None])[0]
            things.append(GrandObject(box, span.phrase.lower(), 0.0, DESCRIPTION, mask=mask))
    return DESCRIPTION, things


def _drop_duplicates(candidates: Sequence[GrandObject]) -> list[GrandObject]:
    """Without those that nearly cover a better one of the same voter."""
    kept: list[GrandObject] = []
    for candidate in sorted(candidates, key=lambda thing: -thing.score):
        if not kept or box_ious(candidate.box[None], np.array([thing.box for thing in kept])).max() <= DUPLICATE:
            kept.append(candidate)
    return kept


def _plain_label(name: str) -> str:
    return "person" if name.lower() in _PERSONS else name


class GrandAnnotator:
    """Makes the records of frames with one GLaMM."""

    def __init__(self, glamm: Glamm, masks: BoxMasks) -> None:
        self._glamm = glamm
        self._masks = masks

    def annotate(
        self, image: npt.NDArray[np.uint8], found: Mapping[str, sv.Detections], frame_index: int, time_s: float
    ) -> dict[str, Any]:
        """The record of one frame (BGR); `found` are the detections by the name of their detector, in pixels."""
        (look,) = self._glamm.encode_images([image])
        described = self._glamm.describe(look)
        things = vote_objects(found, described)
        objects = [thing for thing in things if thing.is_object][:MOST_OBJECTS]
        floating = [thing for thing in things if not thing.is_object][: MOST_OBJECTS - len(objects)]
        everything = objects + floating
        self._segment_things(image, everything)
        self._give_attributes(look, objects)
        numbered = dict(enumerate(everything))
        short = self._glamm.chat(look, [], SHORT_CAPTION)
        short_details = ground_exactly(short.text, numbered)
        dense_details = _dense_details(described, numbered)
        related = {number for detail in dense_details for number in detail["ids"]}
        return {
            "objects": [thing.as_json(number) for number, thing in enumerate(objects)],
            "floating_objects": [thing.as_json(len(objects) + number) for number, thing in enumerate(floating)],
            "floating_attributes": [],
            "landmark": self._ask_landmark(look),
            "relationships": {
                "object_ids": sorted(number for number in related if number < len(objects)),
                "floating_object_ids": sorted(number for number in related if number >= len(objects)),
                "grounding": [{"phrase": detail["phrase"], "object_ids": detail["ids"]} for detail in dense_details],
            },
            # an answer that broke off is no caption
            "short_captions": [{"caption": short.text, "details": short_details}] if short.complete else [],
            "dense_caption": {"caption": described.text, "details": dense_details} if described.complete else None,
            "additional_context": None,
            "frame_index": frame_index,
            "timestamp": time_s,
        }

    def _segment_things(self, image: npt.NDArray[np.uint8], things: Sequence[GrandObject]) -> None:
        """SAM's mask of the box; where GLaMM's mask of the words agrees with it, that one, as two saw it."""
        masks, _ = self._masks.masks(image, np.array([thing.box for thing in things]).reshape(-1, 4))
        for thing, mask in zip(things, masks, strict=True):
            agreed = thing.mask is not None and _mask_iou(thing.mask, mask) >= SAME
            thing.segmentation = thing.mask if agreed else mask
            thing.segmentation_source = "GLAMM" if agreed else "SAM"

    def _give_attributes(self, look: EncodedImage, objects: Sequence[GrandObject]) -> None:
        height, width = look.size
        boxes = [(np.clip(thing.box, 0, [width, height] * 2)).tolist() for thing in objects]
        real = [place for place, (x1, y1, x2, y2) in enumerate(boxes) if x2 > x1 and y2 > y1]
        for place, text in zip(real, self._glamm.caption_regions(look, [boxes[i] for i in real]), strict=True):
            if attribute := _SPEAKER.sub("", text).strip():
                objects[place].attributes.insert(0, attribute)

    def _ask_landmark(self, look: EncodedImage) -> dict[str, str | None]:
        """Asked twice, first for the kind, then for the kind within it; an answer outside the list does not count."""
        coarse = self._ask_choice(look, COARSE, tuple(LANDMARKS))
        fine = None if coarse is None else self._ask_choice(look, FINE, LANDMARKS[coarse], coarse=coarse.lower())
        return {"category": coarse, "fine_category": fine}

    def _ask_choice(self, look: EncodedImage, question: str, choices: Sequence[str], **words: str) -> str | None:
        answer = self._glamm.chat(look, [], question.format(choices=", ".join(choices), **words)).text.lower()
        named = [
            choice for choice in choices if choice.lower() in answer or choice.split()[0].lower() in answer.split()
        ]
        return named[0] if len(named) == 1 else None


def _mask_iou(first: BoolMask, second: BoolMask) -> float:
    union_area = (first | second).sum()
    return float((first & second).sum() / union_area) if union_area else 0.0


def ground_exactly(caption: str, things: Mapping[int, GrandObject]) -> list[dict[str, Any]]:
    """Where labels of things stand in a caption, plurals too; of overlapping finds the longest stays."""
    finds: list[tuple[int, int, int]] = []
    for number, thing in things.items():
        for label in dict.fromkeys([thing.label, *thing.votes.values()]):
            pattern = re.compile(rf"\b{re.escape(label)}(?:s|es)?\b", re.IGNORECASE)
            finds += [(match.start(), match.end(), number) for match in pattern.finditer(caption)]
    finds.sort(key=lambda find: (find[0] - find[1], find[0], find[2]))
    kept: list[tuple[int, int, int]] = []
    for start, end, number in finds:
        if all(end <= first or start >= last for first, last, _ in kept):
            kept.append((start, end, number))
    return [
        {
            "phrase": caption[start:end],
            "tokens_positive": [start, end],
            "id": number,
            "bbox": [round(float(value), 1) for value in things[number].box],
        }
        for start, end, number in sorted(kept)
    ]


def _dense_details(described: GroundedText, things: Mapping[int, GrandObject]) -> list[dict[str, Any]]:
    """GLaMM's own phrases, each linked to the objects whose box its mask fills."""
    boxes = np.array([thing.box for thing in things.values()]).reshape(-1, 4)
    details = []
    for span in described.spans:
        mask = union_mask(described, span)
        if mask is None or not mask.any():
            continue
        ious = box_ious(mask_boxes(mask[None]), boxes)[0]
        own = [number for number, thing in things.items() if thing.mask is mask or ious[number] > LINKED]
        details.append(
            {
                "phrase": described.text[span.start : span.end],
                "tokens_positive": [span.start, span.end],
                "ids": own,
                "bbox": [[round(float(value), 1) for value in things[number].box] for number in own],
            }
        )
    return details
