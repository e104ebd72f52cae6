"""Reader of files with captions of pictures, in the forms in which data sets come.

Known are COCO's captions (`images` with ids, `annotations` with `image_id` and `caption`), a data set whose images have
a `caption` (as MDETR and `annotate` write), an object `{name: caption}`, lines of JSON (`file_name` or `image`,
`caption` or `text`), and lines `NAME<tab>CAPTION` or `NAME,CAPTION` as Flickr8k and Flickr30k have them, with their
`#0` behind names.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from detectors.data_files import DataSetError, parse_json, read_text

_NAME_KEYS = ("file_name", "image", "filename", "file")
_CAPTION_KEYS = ("caption", "text", "sentence")
_NUMBERED = re.compile(r"#\d+$")
_HEADERS = {"image", "file", "filename", "file_name", "image_name", "name"}


def read_captions(path: Path) -> dict[str, list[str]]:
    """The captions of each picture, by the name of its file. Raises `DataSetError` with the place of a flaw."""
    text = read_text(path)
    captions: dict[str, list[str]] = defaultdict(list)
    for place, name, caption in _caption_rows(path, text):
        if not isinstance(name, str) or not name.strip():
            raise DataSetError(f"{path}: the name of a picture at {place} is {name!r}: expected a file name")
        if not isinstance(caption, str) or not caption.strip():
            raise DataSetError(f"{path}: the caption of {name} at {place} is {caption!r}: expected a sentence")
        words = " ".join(caption.split())
        key = picture_key(name)
        if words not in captions[key]:
            captions[key].append(words)
    if not captions:
        raise DataSetError(f"{path} holds no captions: expected lines NAME<tab>CAPTION, or JSON {{name: caption}}")
    return dict(captions)


def picture_key(name: str) -> str:
    """The name of a picture without folders, by which captions and pictures belong together."""
    return PurePosixPath(name.strip().replace("\\", "/")).name


def _caption_rows(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    """(place, name, caption) of each caption."""
    start = text.lstrip()[:1]
    if start == "[" or (start == "{" and not _is_json_lines(text)):
        yield from _json_rows(path, parse_json(text, path))
    elif start == "{":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                row = parse_json(line, path)
                yield from _object_row(path, row, f"line {number}")
    else:
        yield from _line_rows(path, text)


def _is_json_lines(text: str) -> bool:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and all(line.startswith("{") and line.endswith("}") for line in lines[:2])


def _json_rows(path: Path, data: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(data, list):
        for number, row in enumerate(data):
            yield from _object_row(path, row, f"[{number}]")
    elif isinstance(data, dict) and isinstance(data.get("images"), list):
        yield from _data_set_rows(path, data)
    elif isinstance(data, dict) and len(data) > 0 and not isinstance(data.get("annotations"), list):
        if set(_NAME_KEYS) & data.keys() and set(_CAPTION_KEYS) & data.keys():
            yield from _object_row(path, data, "the object")
            return
        for name, captions in data.items():
            for caption in captions if isinstance(captions, list) else [captions]:
                yield f"{name!r}", name, caption
    else:
        raise DataSetError(
            f"{path} holds no captions: expected {{name: caption}}, or images and annotations as in COCO"
        )


def _data_set_rows(path: Path, data: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    names: dict[Any, Any] = {}
    for number, image in enumerate(data["images"]):
        if not isinstance(image, dict) or "file_name" not in image:
            raise DataSetError(f"{path}: images[{number}] has no file_name: expected an object with id and file_name")
        names[image.get("id")] = image["file_name"]
        if "caption" in image:
            yield f"images[{number}]", image["file_name"], image["caption"]
    for number, row in enumerate(data.get("annotations") or ()):
        if not isinstance(row, dict) or "caption" not in row:
            continue  # boxes
        if row.get("image_id") not in names:
            raise DataSetError(
                f"{path}: annotations[{number}].image_id is {row.get('image_id')!r}, not an id in images"
            )
        yield f"annotations[{number}]", names[row["image_id"]], row["caption"]


def _object_row(path: Path, row: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    name = next((row[key] for key in _NAME_KEYS if key in row), None) if isinstance(row, dict) else None
    caption = next((row[key] for key in _CAPTION_KEYS if key in row), None) if isinstance(row, dict) else None
    if name is None or caption is None:
        raise DataSetError(f"{path}: {place} is {row!r:.60}: expected an object with file_name and caption")
    for one in caption if isinstance(caption, list) else [caption]:
        yield place, name, one


def _line_rows(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    lines = text.splitlines()
    separator = "\t" if any("\t" in line for line in lines) else ","
    rows = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL)
    for row in rows:
        number = rows.line_num
        if not row or not "".join(row).strip():
            continue
        name = _NUMBERED.sub("", row[0].strip())
        if number == 1 and name.lower() in _HEADERS:
            continue
        if len(row) < 2:
            raise DataSetError(f"{path} line {number} is {separator.join(row)!r:.60}: expected NAME<tab>CAPTION")
        yield f"line {number}", name, separator.join(row[1:])
