"""Reader of Flickr30k Entities as published, arXiv:1505.04870: sentences with marked phrases, boxes in XML.

The data set becomes COCO's form with a caption for each image entry and `tokens_positive`, as MDETR has it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detectors.data_files import DataSetError, read_text

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^\s\]]+)* ([^\]]+)\]")
_NOT_VISUAL = "0"  # entity of phrases that show nothing


def is_flickr(path: Path) -> bool:
    """Whether a path is the folder of the data set, or a list of ids (`test.txt`) in it."""
    folder = path.parent if path.suffix.lower() == ".txt" else path
    return (folder / "Sentences").is_dir() and (folder / "Annotations").is_dir()


def read_flickr(path: Path) -> dict[str, Any]:
    """The data set, or the part that a list of ids names. Pictures are `ID.jpg`; each sentence is an image entry.

    Raises `DataSetError` for files that are missing or damaged.
    """
    folder = path.parent if path.suffix.lower() == ".txt" else path
    if path.suffix.lower() == ".txt":
        names: Sequence[str] = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    else:
        names = sorted(file.stem for file in (folder / "Sentences").glob("*.txt"))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name in names:
        size, boxes = _read_boxes(folder / "Annotations" / f"{name}.xml")
        for number, line in enumerate(read_text(folder / "Sentences" / f"{name}.txt").splitlines()):
            if not line.strip():
                continue
            caption, phrases = _read_sentence(line)
            image = len(images) + 1
            sized = {"width": size[0], "height": size[1]} if size else {}
            images.append({"id": image, "file_name": f"{name}.jpg", **sized, "caption": caption, "sentence_id": number})
            for entity, start, end in phrases:
                for box in boxes.get(entity, ()):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": image,
                            "category_id": 1,
                            "bbox": box,
                            "area": box[2] * box[3],
                            "iscrowd": 0,
                            "tokens_positive": [[start, end]],
                        }
                    )
    if not images:
        raise DataSetError(f"{path} names no pictures: expected ids, or a folder with Sentences and Annotations")
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def _read_sentence(line: str) -> tuple[str, list[tuple[str, int, int]]]:
    """The plain caption, and (entity, start, end) of each phrase that may be visible."""
    caption, phrases, at = "", [], 0
    for match in _PHRASE.finditer(line.rstrip()):
        caption += line[at : match.start()]
        start = len(caption)
        caption += match[2]
        if match[1] != _NOT_VISUAL:
            phrases.append((match[1], start, len(caption)))
        at = match.end()
    return caption + line[at:].rstrip(), phrases


def _read_boxes(path: Path) -> tuple[tuple[int, int] | None, dict[str, list[list[float]]]]:
    """The size of the picture where it is given, and the boxes (x, y, width, height) of each entity."""
    text = read_text(path)
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise DataSetError(f"{path} holds a document type, which Flickr30k Entities has not: fetch it again")
    try:
        root = ElementTree.fromstring(text)  # without a document type nothing expands  # nosec B314
        width, height = root.findtext("size/width"), root.findtext("size/height")
        boxes: dict[str, list[list[float]]] = {}
        for thing in root.iterfind("object"):
            corners = thing.find("bndbox")
            if corners is None:
                continue
            x1, y1, x2, y2 = (float(corners.findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax"))
            for entity in thing.iterfind("name"):
                boxes.setdefault(entity.text or "", []).append([x1, y1, x2 - x1, y2 - y1])
        size = (int(width), int(height)) if width and height else None
    except (ElementTree.ParseError, ValueError) as error:
        raise DataSetError(f"cannot read {path} as Flickr30k Entities: {error}") from error
    return size, boxes
