"""Records of masks, phrases and captions, one for each image, as the segmentation benchmarks exchange them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision as sv

from detectors import coco_data, data_files

BoolMask = npt.NDArray[np.bool_]
_LARGEST_SIDE = 1 << 16  # pixels of a mask


@dataclass(frozen=True)
class MaskRecord:
    """One image: its caption, its phrases and the mask of each; `image_id` ties two files together."""

    image_id: str
    caption: str
    phrases: tuple[str, ...]
    rles: tuple[Mapping[str, Any], ...]
    image: str = ""
    box: tuple[float, ...] = ()

    def masks(self) -> BoolMask:
        """(K, H, W)"""
        if not self.rles:
            return np.zeros((0, 1, 1), dtype=bool)
        return np.stack([decode_mask(rle) for rle in self.rles])


def decode_mask(rle: Mapping[str, Any]) -> BoolMask:
    """COCO run lengths -> (H, W)."""
    height, width = rle["size"]
    return np.asarray(sv.rle_to_mask(rle["counts"], (width, height)), dtype=bool)


def read_records(path: Path) -> dict[str, MaskRecord]:
    """A JSON list, or JSON lines, of `{image_id, caption, phrases, masks}`, as records by image.

    Masks (`masks` or `pred_masks`) are COCO run lengths, or polygons where the record has `height` and `width`.
    GranD-f's own form, `{file_name, caption, groundings: {phrase: {rle_masks}}}`, is read too. Several records of one
    image are joined. Raises `DataSetError` with every flaw.
    """
    text = data_files.read_text(path)
    if text.lstrip().startswith("["):
        table = data_files.parse_json(text, path)
    else:
        table = [data_files.parse_json(row, path) for row in text.splitlines() if row.strip()]
    flaws = coco_data.Flaws(path)
    records: dict[str, MaskRecord] = {}
    for number, entry in enumerate(table):
        record = _read_record(entry, f"record {number}", flaws)
        if record is None:
            continue
        earlier = records.get(record.image_id)
        records[record.image_id] = record if earlier is None else _join_records(earlier, record)
    flaws.raise_any()
    return records


def _join_records(first: MaskRecord, second: MaskRecord) -> MaskRecord:
    """Two records of one image as one: RefCOCO has a record for each phrase."""
    return MaskRecord(
        first.image_id,
        " ".join(dict.fromkeys(filter(None, (first.caption, second.caption)))),
        first.phrases + second.phrases,
        first.rles + second.rles,
        first.image or second.image,
        first.box or second.box,
    )


def _read_record(entry: Any, place: str, flaws: coco_data.Flaws) -> MaskRecord | None:
    """The record at a place of the file; None where a flaw makes it useless."""
    if not isinstance(entry, dict):
        flaws.add(place, f"is {entry!r:.60}: expected an object {{image_id, caption, phrases, masks}}")
        return None
    identity = entry.get("image_id", entry.get("file_name"))
    if not isinstance(identity, int | str) or isinstance(identity, bool):
        flaws.add(place, "has no image_id or file_name: expected one of them, a number or a text")
        return None
    try:
        phrases, rles = _phrases_and_masks(entry)
        box = _read_box(entry.get("box", []))
    except ValueError as error:
        flaws.add(place, str(error))
        return None
    image = str(entry.get("image", entry.get("file_name", "")))
    return MaskRecord(str(identity), str(entry.get("caption", "")), tuple(phrases), tuple(rles), image, box)


def _phrases_and_masks(entry: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Raises `ValueError`."""
    if "groundings" in entry:
        groundings = entry["groundings"]
        whole = isinstance(groundings, dict) and all(
            isinstance(one, dict) and isinstance(one.get("rle_masks"), list) for one in groundings.values()
        )
        if not whole:
            raise ValueError(f"groundings is {groundings!r:.60}: expected {{phrase: {{rle_masks: [...]}}}}")
        pairs = [(phrase, rle) for phrase, one in groundings.items() for rle in one["rle_masks"]]
        phrases, masks = [phrase for phrase, _ in pairs], [rle for _, rle in pairs]
    else:
        phrases, masks = entry.get("phrases", []), entry.get("pred_masks", entry.get("masks", []))
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise ValueError(f"phrases is {phrases!r:.60}: expected a list of texts")
    if not isinstance(masks, list):
        raise ValueError(f"masks is {masks!r:.60}: expected a list of masks, one for each phrase")
    rles = [_read_mask(mask, entry) for mask in masks]
    if len({tuple(rle["size"]) for rle in rles}) > 1:
        raise ValueError("has masks that differ in size: expected masks of the one image")
    return phrases, rles


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _read_box(value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, list) and all(map(_is_number, value))
    if not numbers or len(value) not in (0, 4):
        raise ValueError(f"box is {value!r:.60}: expected x1, y1, x2, y2 in pixels")
    return tuple(float(number) for number in value)


def _read_mask(mask: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    """COCO run lengths from run lengths or polygons. Raises `ValueError`."""
    if isinstance(mask, list):
        return _from_polygons(mask, entry)
    if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
        raise ValueError(f"a mask is {mask!r:.60}: expected COCO run lengths, {{size: [height, width], counts}}")
    size, counts = mask["size"], mask["counts"]
    if not isinstance(size, list) or len(size) != 2 or not all(_is_side(side) for side in size):
        raise ValueError(f"a mask's size is {size!r:.60}: expected [height, width] in pixels")
    runs = counts if isinstance(counts, list) else _decompress_counts(counts)
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"a mask's counts do not add up to its {size[0]} x {size[1]} pixels")
    return {"size": size, "counts": counts}


def _decompress_counts(counts: Any) -> list[int]:
    """COCO's compressed run lengths: numbers in base 32, each from the third on as the difference to the run before
    the last. Raises `ValueError`."""
    if not isinstance(counts, str):
        raise ValueError(f"a mask's counts are {counts!r:.60}: expected a text or a list of run lengths")
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError(f"a mask's counts {counts!r:.40} are not COCO's compressed run lengths")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError(f"a mask's counts {counts!r:.40} are cut short")
    return runs


def _from_polygons(polygons: list[Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    height, width = entry.get("height"), entry.get("width")
    if not (_is_side(height) and _is_side(width)):
        raise ValueError(
            "a mask is a list of polygons: expected COCO run lengths {size, counts}, or height and width of the image "
            "in the record"
        )
    try:
        from pycocotools import mask as coco_mask
    except ImportError:
        raise ValueError("a mask is a list of polygons, which need pip install 'groundstream[eval]'") from None
    for polygon in polygons or [None]:
        numbers = isinstance(polygon, list) and all(map(_is_number, polygon))
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a mask's polygons must each be [x1, y1, x2, y2, x3, y3, ...], of at least three corners")
    joined = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": joined["counts"].decode()}


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIDE
