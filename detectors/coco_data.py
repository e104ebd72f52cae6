"""Reader and validator of data sets and results in COCO's format, for tuning and evaluation.

Every flaw is found before any work begins and named by file and place: `train.json: annotations[3].category_id is 34:
expected one of the ids in categories`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectors.data_files import DataSetError, read_json
from detectors.labelled_data import read_labelled

Row = dict[str, Any]

SHOWN_FLAWS = 8
"""Flaws that one error message lists; the others are counted."""
_SLACK = 0.02  # of a picture's side: rounding at its border


class Flaws:
    """The flaws of one file, collected and raised together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[str] = []

    def add(self, place: str, sentence: str) -> None:
        """One flaw: `place` such as `images[3].id`, `sentence` what is wrong there and what is expected."""
        self._found.append(f"{self._path}: {place} {sentence}")

    def raise_any(self) -> None:
        """Raises `DataSetError` where a flaw was added."""
        if self._found:
            shown = self._found[:SHOWN_FLAWS]
            more = len(self._found) - len(shown)
            raise DataSetError("\n".join([*shown, *([f"{self._path}: and {more} more"] if more else [])]))


def read_data_set(path: Path, *, for_training: bool = False) -> dict[str, Any]:
    """A data set in COCO's format: lists `images`, `annotations` and, unless absent, `categories`.

    Labels corrected in CVAT, Label Studio or YOLO's form are read as one; see `labelled_data.read_labelled`.

    `for_training` also demands categories with names that differ, file names, and boxes that fill an area in pixels.
    Raises `DataSetError` with all flaws.
    """
    labelled = read_labelled(path)
    data = read_json(path) if labelled is None else labelled
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise DataSetError(
            f"{path} is not a data set in COCO's format: expected an object with the lists 'images' and 'annotations'"
        )
    flaws = Flaws(path)
    images = _check_images(data["images"], flaws, need_files=for_training)
    categories = _check_categories(data, flaws, needed=for_training)
    _check_annotations(data["annotations"], images, categories, flaws)
    flaws.raise_any()
    _check_units(data["annotations"], images, flaws)
    flaws.raise_any()
    return data


def read_results(path: Path, truth: Mapping[str, Any]) -> list[Row]:
    """Detections in COCO's result format, or a data set whose annotations carry a `score`, as `annotate` writes.

    Raises `DataSetError` with all flaws; images and categories must be those of `truth`.
    """
    data = read_json(path)
    rows = data.get("annotations") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise DataSetError(
            f"{path} is not a list of results: expected [{{image_id, category_id, bbox, score}}, ...] as in COCO"
        )
    flaws = Flaws(path)
    name = "annotations" if isinstance(data, dict) else "result"
    images = {image["id"]: image for image in truth["images"]}
    categories = {category["id"] for category in truth.get("categories") or ()}
    for number, row in enumerate(rows):
        place = f"{name}[{number}]"
        if not isinstance(row, dict):
            flaws.add(place, f"is {_kind(row)}: expected an object")
            continue
        if missing := [key for key in ("image_id", "category_id", "bbox", "score") if key not in row]:
            flaws.add(place, f"lacks {', '.join(missing)}: expected image_id, category_id, bbox and score")
            continue
        _check_reference(row, "image_id", images, "images", place, flaws)
        if categories:
            _check_reference(row, "category_id", categories, "categories", place, flaws)
        _check_box(row["bbox"], place, flaws)
        if not _is_number(row["score"]):
            flaws.add(f"{place}.score", f"is {row['score']!r}: expected a number")
    flaws.raise_any()
    return rows


def merge_categories(truth: Mapping[str, Any], other: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`other` with the category ids of `truth`: categories belong together by name, in whatever order or numbering.

    Raises `DataSetError` when `other` has boxes of a category that `truth` lacks.
    """
    ids = {fold_name(category["name"]): category["id"] for category in truth["categories"]}
    names = {category["id"]: category["name"] for category in other["categories"]}
    flaws = Flaws(path)
    for category in sorted({row["category_id"] for row in other["annotations"]}):
        if fold_name(names[category]) not in ids:
            flaws.add("categories", f"has {names[category]!r}, which the training data lack: rename or remove it")
    flaws.raise_any()
    rows = [{**row, "category_id": ids[fold_name(names[row["category_id"]])]} for row in other["annotations"]]
    return {**other, "annotations": rows, "categories": list(truth["categories"])}


def fold_name(name: str) -> str:
    """A name as models read it: lower case, single blanks for white space and underscores."""
    return " ".join(name.replace("_", " ").lower().split())


def _check_images(rows: Sequence[Any], flaws: Flaws, *, need_files: bool) -> dict[Any, Row]:
    known: dict[Any, Row] = {}
    for number, row in _objects(rows, "images", flaws):
        place = f"images[{number}]"
        if not _is_id(row.get("id")):
            flaws.add(f"{place}.id", f"is {row.get('id')!r}: expected a whole number or a text")
            continue
        if row["id"] in known:
            flaws.add(f"{place}.id", f"is {row['id']!r}, the id of an earlier image: ids must not occur twice")
        known.setdefault(row["id"], row)
        for side in ("width", "height"):
            if side in row and not (_is_number(row[side]) and row[side] > 0):
                flaws.add(f"{place}.{side}", f"is {row[side]!r}: expected pixels, above 0")
        file = row.get("file_name")
        if need_files and not (isinstance(file, str) and file.strip()):
            flaws.add(f"{place}.file_name", f"is {file!r}: expected the name of a picture file")
        if not isinstance(row.get("caption", ""), str):
            flaws.add(f"{place}.caption", f"is {_kind(row['caption'])}: expected a text")
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = row.get(key, [])
            if not isinstance(ids, list) or not all(_is_id(one) for one in ids):
                flaws.add(f"{place}.{key}", f"is {ids!r:.60}: expected a list of category ids")
    return known


def _check_categories(data: Mapping[str, Any], flaws: Flaws, *, needed: bool) -> set[Any] | None:
    """The ids; None where the data set has no categories and needs none."""
    rows = data.get("categories")
    if rows is None and not needed:
        return None
    if not isinstance(rows, list) or (needed and not rows):
        flaws.add("categories", f"is {_kind(rows)}: expected a list of {{id, name}}, one for each kind of object")
        return None
    known: set[Any] = set()
    names: dict[str, str] = {}
    for number, row in _objects(rows, "categories", flaws):
        place, name = f"categories[{number}]", row.get("name")
        if not _is_id(row.get("id")):
            flaws.add(f"{place}.id", f"is {row.get('id')!r}: expected a whole number")
            continue
        if row["id"] in known:
            flaws.add(f"{place}.id", f"is {row['id']!r}, the id of an earlier category: ids must not occur twice")
        known.add(row["id"])
        if not isinstance(name, str) or not name.strip():
            flaws.add(f"{place}.name", f"is {name!r}: expected words that name the category")
        elif needed and (same := names.get(fold_name(name))) is not None:
            flaws.add(f"{place}.name", f"is {name!r}, which reads like {same!r}: give each category its own name")
        else:
            names[fold_name(name)] = name
    return known


def _check_annotations(
    rows: Sequence[Any], images: Mapping[Any, Row], categories: set[Any] | None, flaws: Flaws
) -> None:
    for number, row in _objects(rows, "annotations", flaws):
        place = f"annotations[{number}]"
        _check_reference(row, "image_id", images, "images", place, flaws)
        if categories is not None and not ("category_id" not in row and {"phrase", "tokens_positive"} & row.keys()):
            _check_reference(row, "category_id", categories, "categories", place, flaws)
        elif "category_id" in row and not _is_id(row["category_id"]):
            flaws.add(f"{place}.category_id", f"is {row['category_id']!r}: expected a whole number")
        _check_box(row.get("bbox"), place, flaws)
        if not _is_number(row.get("area", 0)):
            flaws.add(f"{place}.area", f"is {row['area']!r}: expected square pixels")
        if row.get("iscrowd", 0) not in (0, 1):
            flaws.add(f"{place}.iscrowd", f"is {row['iscrowd']!r}: expected 0 or 1")
        spans = row.get("tokens_positive") or []
        if not isinstance(spans, list) or not all(_is_span(span) for span in spans):
            flaws.add(f"{place}.tokens_positive", f"is {spans!r:.60}: expected [[begin, end], ...] in characters")


def _check_reference(row: Row, key: str, known: Any, table: str, place: str, flaws: Flaws) -> None:
    value = row.get(key)
    if _is_id(value) and value in known:
        return
    hint = ""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20 and int(value) in known:
        hint = f" (it is a text here and the number {value} there)"
    elif isinstance(value, int) and str(value) in known:
        hint = f" (it is a number here and the text '{value}' there)"
    elif isinstance(value, int) and table == "categories" and value + 1 in known and 0 not in known:
        hint = " (do these results count categories from 0?)"
    elif key not in row:
        hint = " (the key is missing)"
    sample = ", ".join(repr(one) for one in list(known)[:5]) or "none"
    flaws.add(f"{place}.{key}", f"is {value!r}, not an id in {table}{hint}: expected one such as {sample}")


def _check_box(box: Any, place: str, flaws: Flaws) -> None:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        flaws.add(f"{place}.bbox", f"is {box!r:.60}: expected [x, y, width, height] in pixels")
    elif box[2] < 0 or box[3] < 0:
        flaws.add(f"{place}.bbox", f"is {box}: width and height cannot be negative; expected [x, y, width, height]")


def _check_units(rows: Sequence[Row], images: Mapping[Any, Row], flaws: Flaws) -> None:
    """Boxes in fractions, or as corners, are a mistake of the whole file: one flaw names it."""
    boxes = [row["bbox"] for row in rows]
    if boxes and all(max(box) <= 1 for box in boxes) and any(value % 1 for box in boxes for value in box):
        sample = ", ".join(f"{value:.4g}" for value in boxes[0])
        flaws.add("annotations", f"has boxes in fractions, such as [{sample}]: expected pixels, [x, y, width, height]")
        return
    sized = [
        (number, row["bbox"], image["width"], image["height"])
        for number, row in enumerate(rows)
        if {"width", "height"} <= (image := images[row["image_id"]]).keys()
    ]
    beyond = [one for one in sized if _exceeds(one[1], one[2], one[3])]
    if beyond and all(_fits_as_corners(box, width, height) for _, box, width, height in sized):
        number, box, width, height = beyond[0]
        flaws.add(
            f"annotations[{number}].bbox",
            f"is {box} in a picture of {width}x{height}, as if all boxes were corners x1, y1, x2, y2: "
            "expected [x, y, width, height]",
        )
        return
    for number, box, width, height in beyond:
        if box[0] >= width or box[1] >= height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
            flaws.add(f"annotations[{number}].bbox", f"is {box}, outside its picture of {width}x{height} pixels")


def _exceeds(box: Sequence[float], width: float, height: float) -> bool:
    return box[0] + box[2] > width * (1 + _SLACK) + 1 or box[1] + box[3] > height * (1 + _SLACK) + 1 or min(box) < -1


def _fits_as_corners(box: Sequence[float], width: float, height: float) -> bool:
    x1, y1, x2, y2 = box
    return 0 <= x1 < x2 <= width + 1 and 0 <= y1 < y2 <= height + 1


def _objects(rows: Sequence[Any], name: str, flaws: Flaws) -> Iterator[tuple[int, Row]]:
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            yield number, row
        else:
            flaws.add(f"{name}[{number}]", f"is {_kind(row)}: expected an object")


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is no float
        return False


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_span(span: Any) -> bool:
    return (
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(end, int) and not isinstance(end, bool) for end in span)
        and 0 <= span[0] < span[1]
    )


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value!r:.40}"
    kinds: Mapping[type, str] = {type(None): "missing", list: "a list", dict: "an object"}
    return kinds.get(type(value), repr(value))


# -- pictures ------------------------------------------------------------------------------------------------------


def check_pictures(
    data: Mapping[str, Any], folder: Path, path: Path, ids: Sequence[Any] | None = None
) -> dict[Any, bool]:
    """Whether each picture must be read as it is stored, not turned by its EXIF data; by image id.

    Boxes are in the picture that `width` and `height` describe. Raises `DataSetError` naming every picture that is
    missing, unreadable, or of another size than the data set says. `ids` limits the check to some images.
    """
    from PIL import Image, UnidentifiedImageError

    flaws, stored = Flaws(path), {}
    chosen = None if ids is None else set(ids)
    for number, image in enumerate(data["images"]):
        if chosen is not None and image["id"] not in chosen:
            continue
        place, file = f"images[{number}].file_name", folder / image["file_name"]
        try:
            with Image.open(file) as picture:
                lying = picture.size
                turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except FileNotFoundError:
            flaws.add(place, f"is {image['file_name']!r}, but there is no file {file}")
            continue
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or "not a picture file"
            flaws.add(place, f"is {image['file_name']!r}, which cannot be read as a picture ({reason})")
            continue
        stored[image["id"]] = _is_as_stored(image, lying, number, flaws, turned=turned)
    flaws.raise_any()
    return stored


def _is_as_stored(image: Row, lying: tuple[int, int], number: int, flaws: Flaws, *, turned: bool) -> bool:
    upright = lying[::-1] if turned else lying
    if not {"width", "height"} <= image.keys():
        return False
    said = (image["width"], image["height"])
    if said in (upright, lying):
        return said != upright
    note = f" (turned by its EXIF orientation; stored as {lying[0]}x{lying[1]})" if turned else ""
    flaws.add(
        f"images[{number}]",
        f"is {said[0]}x{said[1]} in the data set, but {image['file_name']} has {upright[0]}x{upright[1]} pixels{note}: "
        "the boxes must be of the picture as it is",
    )
    return False
