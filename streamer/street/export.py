"""The street's truth in the formats of the field: COCO, MOT Challenge and plain JSON events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from streamer.street import words
from streamer.street.street import Street
from streamer.street.truth import Place, SeenObject, StreetEvent, StreetTruth

CATEGORIES: Mapping[str, int] = {kind: number for number, kind in enumerate((*words.KINDS, "robot"), start=1)}
"""COCO's category ids, and the classes of MOT lines."""


def coco_document(
    truths: Iterable[StreetTruth], file_name: str = "{index:06d}.jpg", *, least_visibility: float = 0.0
) -> dict[str, Any]:
    """A COCO data set. Image ids count from 1; every annotation carries its visible mask as RLE, and beside COCO's
    fields `track_id`, `visibility`, `colour`, `attributes` and `phrases` (what is true of it, in words).

    `file_name` is filled with the frame's `index`. Needs pycocotools (the extra `eval`).
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, truth in enumerate(truths, start=1):
        width, height = truth.size
        seen = [one for one in truth.seen if one.visibility >= least_visibility]
        name = file_name.format(index=truth.index)
        caption = ". ".join(dict.fromkeys(words.true_phrases(one, ())[0] for one in seen))
        images.append(
            {
                "id": image_id,
                "file_name": name,
                "width": width,
                "height": height,
                "time_s": truth.time_s,
                "caption": caption,
            }
        )
        for one in seen:
            annotations.append(_coco_annotation(one, truth, image_id, len(annotations) + 1))
    categories = [{"id": number, "name": kind} for kind, number in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coco_annotation(one: SeenObject, truth: StreetTruth, image_id: int, number: int) -> dict[str, Any]:
    x1, y1, x2, y2 = one.box
    return {
        "id": number,
        "image_id": image_id,
        "category_id": CATEGORIES[one.thing.kind],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": one.area,
        "iscrowd": 0,
        "segmentation": rle(one),
        "track_id": one.thing.identity,
        "visibility": round(one.visibility, 4),
        "colour": one.thing.colour,
        "attributes": sorted(one.thing.attributes),
        "phrases": list(words.true_phrases(one, truth.seen)),
    }


def rle(one: SeenObject) -> dict[str, Any]:
    """The visible mask as COCO's compressed RLE, `size` (height, width) and `counts` as text."""
    from pycocotools import mask

    packed = mask.encode(np.asfortranarray(one.mask.view(np.uint8)))
    return {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")}


def mot_lines(truths: Iterable[StreetTruth]) -> list[str]:
    """Lines of a MOT Challenge gt.txt: frame from 1, identity from 1 in order of appearance, left, top, width, height
    of the whole thing (hidden parts too), 1 to be counted, class as in `CATEGORIES`, visibility."""
    numbers: dict[int, int] = {}
    lines = []
    for frame, truth in enumerate(truths, start=1):
        for one in truth.seen:
            number = numbers.setdefault(one.thing.identity, len(numbers) + 1)
            x1, y1, x2, y2 = one.full_box
            kind = CATEGORIES[one.thing.kind]
            lines.append(f"{frame},{number},{x1 + 1},{y1 + 1},{x2 - x1},{y2 - y1},1,{kind},{one.visibility:.5f}")
    return lines


def write_mot(folder: Path, street: Street, frames: int, name: str = "street") -> None:
    """`folder/gt/gt.txt` and `folder/seqinfo.ini` for the first `frames` frames."""
    (folder / "gt").mkdir(parents=True, exist_ok=True)
    lines = mot_lines(street.truth(index) for index in range(frames))
    (folder / "gt" / "gt.txt").write_text("\n".join(lines) + "\n")
    width, height = street.size
    (folder / "seqinfo.ini").write_text(
        f"[Sequence]\nname={name}\nimDir=img1\nframeRate={street.fps:g}\nseqLength={frames}\n"
        f"imWidth={width}\nimHeight={height}\nimExt=.jpg\n"
    )


def write_coco(path: Path, truths: Iterable[StreetTruth], file_name: str = "{index:06d}.jpg") -> None:
    path.write_text(json.dumps(coco_document(truths, file_name)))


def write_events(
    path: Path,
    events: Sequence[StreetEvent],
    lines: Mapping[str, Place] | None = None,
    zones: Mapping[str, Place] | None = None,
) -> None:
    """The events with the places they belong to, as one JSON object."""
    content = {"lines": lines or {}, "zones": zones or {}, "events": [asdict(event) for event in events]}
    path.write_text(json.dumps(content, indent=1) + "\n")
