"""Exports of a data set of labelled pictures for labelling tools and training.

Formats: CVAT for images 1.1 (https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/), Label Studio
(https://labelstud.io/guide/predictions), Ultralytics YOLO (https://docs.ultralytics.com/datasets/detect/), Datumaro
(https://openvinotoolkit.github.io/datumaro/). FiftyOne reads the COCO data set itself.
"""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import yaml

from streamer.errors import ConfigError
from streamer.recorders.label_exports import IMAGES, clean_text, link_file, xml_text
from streamer.recorders.text import OutputError

Row = Mapping[str, Any]


def check_picture_exports(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of formats, each once. Raises `ConfigError` for an unknown one."""
    for name in names:
        if name not in PICTURE_EXPORTS:
            raise ConfigError(f"--export {name!r} is not a format: choose {', '.join(PICTURE_EXPORTS)}")
    return tuple(sorted(set(names)))


def write_picture_exports(folder: Path, names: Sequence[str], coco: Row) -> list[Path]:
    """Writes the formats beside the pictures in `folder`/images; returns what was written. Raises `OutputError`.

    `coco` has `images`, `annotations` with `bbox` in pixels and `score`, and `categories`.
    """
    by_image: dict[Any, list[Row]] = defaultdict(list)
    for one in coco["annotations"]:
        by_image[one["image_id"]].append(one)
    rows = [(image, by_image[image["id"]]) for image in coco["images"]]
    labels = {category["id"]: str(category["name"]) for category in coco["categories"]}
    try:
        return [PICTURE_EXPORTS[name](folder, rows, labels) for name in names]
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or folder}: {error.strerror}; free space") from error


Rows = Sequence[tuple[Row, Sequence[Row]]]
Labels = Mapping[Any, str]


def _write_cvat(folder: Path, rows: Rows, labels: Labels) -> Path:
    path = folder / "cvat.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("annotations.xml", "w") as file:
        for line in _cvat_lines(rows, labels):
            file.write(f"{line}\n".encode())
    return path


def _cvat_lines(rows: Rows, labels: Labels) -> Iterator[str]:
    names = "".join(f"<label><name>{xml_text(label)}</name></label>" for label in labels.values())
    yield '<?xml version="1.0" encoding="utf-8"?>'
    yield "<annotations><version>1.1</version>"
    yield f"<meta><task><size>{len(rows)}</size><mode>annotation</mode><labels>{names}</labels></task></meta>"
    for number, (image, found) in enumerate(rows):
        name = quoteattr(clean_text(image["file_name"]))
        yield f'<image id="{number}" name={name} width="{image["width"]}" height="{image["height"]}">'
        for one in found:
            left, top, width, height = one["bbox"]
            yield (
                f'<box label={quoteattr(clean_text(labels[one["category_id"]]))} source="auto" occluded="0" '
                f'xtl="{left:.2f}" ytl="{top:.2f}" xbr="{left + width:.2f}" ybr="{top + height:.2f}" z_order="0"></box>'
            )
        yield "</image>"
    yield "</annotations>"


def _write_label_studio(folder: Path, rows: Rows, labels: Labels) -> Path:
    target = folder / "label-studio"
    target.mkdir(exist_ok=True)
    tasks = []
    for image, found in rows:
        scores = [one["score"] for one in found]
        prediction = {
            "model_version": "groundstream",
            "score": round(sum(scores) / len(scores), 4) if scores else 0.0,
            "result": [_label_studio_box(image, one, labels) for one in found],
        }
        # The path below the folder that Label Studio serves: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
        address = f"/data/local-files/?d={IMAGES}/{image['file_name']}"
        tasks.append({"data": {"image": address}, "predictions": [prediction]})
    (target / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    names = "".join(f"<Label value={quoteattr(clean_text(label))}/>" for label in labels.values())
    text = (
        f'<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">{names}'
        "</RectangleLabels></View>\n"
    )
    (target / "config.xml").write_text(text, encoding="utf-8")
    return target


def _label_studio_box(image: Row, one: Row, labels: Labels) -> dict[str, Any]:
    left, top, width, height = one["bbox"]
    return {
        "id": str(one["id"]),
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": image["width"],
        "original_height": image["height"],
        "image_rotation": 0,
        "score": one["score"],
        "value": {
            "x": round(100 * left / image["width"], 6),
            "y": round(100 * top / image["height"], 6),
            "width": round(100 * width / image["width"], 6),
            "height": round(100 * height / image["height"], 6),
            "rotation": 0,
            "rectanglelabels": [clean_text(labels[one["category_id"]])],
        },
    }


def _write_yolo(folder: Path, rows: Rows, labels: Labels) -> Path:
    target = folder / "yolo"
    texts, pictures = target / "labels" / "train", target / "images" / "train"
    texts.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    numbers = {category: number for number, category in enumerate(labels)}
    for image, found in rows:
        lines = []
        for one in found:
            left, top, width, height = one["bbox"]
            x, y = (left + width / 2) / image["width"], (top + height / 2) / image["height"]
            size = f"{width / image['width']:.8f} {height / image['height']:.8f}"
            lines.append(f"{numbers[one['category_id']]} {x:.8f} {y:.8f} {size}\n")
        (texts / image["file_name"]).with_suffix(".txt").write_text("".join(lines))
        link_file(folder / IMAGES / image["file_name"], pictures / image["file_name"])
    names = dict(enumerate(labels.values()))
    content = {"train": "images/train", "val": "images/train", "names": names}
    (target / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return target


def _write_datumaro(folder: Path, rows: Rows, labels: Labels) -> Path:
    target = folder / "datumaro"
    pictures = target / "images" / "default"
    pictures.mkdir(parents=True, exist_ok=True)
    (target / "annotations").mkdir(exist_ok=True)
    numbers = {category: number for number, category in enumerate(labels)}
    items = []
    for image, found in rows:
        link_file(folder / IMAGES / image["file_name"], pictures / image["file_name"])
        boxes = [
            {
                "id": one["id"],
                "type": "bbox",
                "attributes": {"score": one["score"]},
                "group": 0,
                "label_id": numbers[one["category_id"]],
                "z_order": 0,
                "bbox": list(one["bbox"]),
            }
            for one in found
        ]
        shown = {"path": image["file_name"], "size": [image["height"], image["width"]]}
        items.append({"id": Path(image["file_name"]).stem, "annotations": boxes, "attr": {}, "image": shown})
    kinds = [{"name": label, "parent": "", "attributes": []} for label in labels.values()]
    content = {"info": {}, "categories": {"label": {"labels": kinds, "attributes": []}}, "items": items}
    (target / "annotations" / "default.json").write_text(json.dumps(content), encoding="utf-8")
    return target


PICTURE_EXPORTS: Mapping[str, Callable[[Path, Rows, Labels], Path]] = {
    "cvat": _write_cvat,
    "datumaro": _write_datumaro,
    "label-studio": _write_label_studio,
    "yolo": _write_yolo,
}
"""Formats by the name of `annotate --export`."""
