"""Labels that people corrected in other tools, read as a COCO data set: CVAT, Label Studio and YOLO."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from detectors.data_files import DataSetError, read_json, read_text

_MAX_XML = 1 << 30  # bytes of an unpacked CVAT file
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class CocoBuilder:
    """A COCO data set as it grows: images by name, categories by label, boxes in pixels."""

    def __init__(self, labels: list[str] | None = None) -> None:
        self._numbers = {label: number for number, label in enumerate(labels or (), 1)}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add_image(self, file_name: str, width: int, height: int) -> int:
        """Adds an image of a size in pixels, 0 where it is not known; returns its id."""
        number = len(self._images) + 1
        size = {"width": width, "height": height} if width and height else {}
        self._images.append({"id": number, "file_name": file_name, **size})
        return number

    def add_box(self, image: int, label: str, box: tuple[float, float, float, float]) -> None:
        """Adds a box (left, top, width, height)."""
        category = self._numbers.setdefault(label, len(self._numbers) + 1)
        bbox = [round(value, 3) for value in box]
        self._annotations.append(
            {
                "id": len(self._annotations) + 1,
                "image_id": image,
                "category_id": category,
                "bbox": bbox,
                "area": round(box[2] * box[3], 3),
                "iscrowd": 0,
            }
        )

    def as_coco(self) -> dict[str, Any]:
        """The data set."""
        categories = [{"id": number, "name": label} for label, number in self._numbers.items()]
        return {"images": self._images, "annotations": self._annotations, "categories": categories}


def read_labelled(path: Path) -> dict[str, Any] | None:
    """Returns the data set of a file of another tool, None where it is none: COCO, presumably.

    Known are CVAT for images (`.xml`, or the `.zip` that holds it), an export of Label Studio (`.json`, a list of
    tasks) and YOLO (`data.yaml`). Raises `DataSetError` for a file that is damaged or of another kind.
    """
    suffix = path.suffix.lower()
    if suffix in (".xml", ".zip"):
        return _read_cvat(path)
    if suffix in (".yaml", ".yml"):
        return _read_yolo(path)
    if suffix == ".json" and isinstance(tasks := read_json(path), list) and any(map(_is_task, tasks)):
        return _read_label_studio(path, tasks)
    return None


def _read_cvat(path: Path) -> dict[str, Any]:
    try:
        root = ElementTree.fromstring(_cvat_bytes(path))  # without a document type nothing expands  # nosec B314
    except (ElementTree.ParseError, zipfile.BadZipFile, OSError, ValueError, LookupError) as error:
        raise DataSetError(f"cannot read {path} as CVAT for images 1.1: {error}") from error
    if root.tag != "annotations":
        raise DataSetError(f"{path} is not CVAT's: its root is <{root.tag}>, expected <annotations>")
    if root.find("track") is not None:
        raise DataSetError(f"{path} holds tracks of a video: export it from CVAT as `CVAT for images 1.1`")
    builder = CocoBuilder([name.text or "" for name in root.iterfind("meta//labels/label/name")])
    for place, image in enumerate(root.iterfind("image")):
        number = builder.add_image(*_read_attributes(path, image, f"image {place}", name=str, width=int, height=int))
        for at, box in enumerate(image.iterfind("box")):
            label, left, top, right, bottom = _read_attributes(
                path, box, f"box {at} of image {place}", label=str, xtl=float, ytl=float, xbr=float, ybr=float
            )
            builder.add_box(number, label, (left, top, right - left, bottom - top))
    return builder.as_coco()


def _cvat_bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".zip":
        data = path.read_bytes()
    else:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if PurePosixPath(name).name == "annotations.xml"), None)
            if name is None:
                raise DataSetError(f"{path} holds no annotations.xml: export it from CVAT as `CVAT for images 1.1`")
            if archive.getinfo(name).file_size > _MAX_XML:
                raise DataSetError(f"{path} unpacks to over 1 GiB: split the task in CVAT")
            data = archive.read(name)
    if b"<!DOCTYPE" in data[:4096] or b"<!ENTITY" in data:
        raise DataSetError(f"{path} holds a document type, which CVAT does not write: export it again")
    return data


def _read_attributes(path: Path, element: ElementTree.Element, place: str, **kinds: type) -> list[Any]:
    values = []
    for name, kind in kinds.items():
        text = element.get(name)
        try:
            if text is None:
                raise ValueError
            values.append(kind(text))
        except ValueError:
            raise DataSetError(f"{path}: {name} of {place} is {text!r}: expected {kind.__name__}") from None
    return values


def _is_task(row: Any) -> bool:
    return isinstance(row, Mapping) and isinstance(row.get("data"), Mapping)


def _read_label_studio(path: Path, tasks: list[Any]) -> dict[str, Any]:
    builder = CocoBuilder()
    for place, task in enumerate(tasks):
        if not _is_task(task):
            raise DataSetError(f"{path}: task {place} has no data: expected an export of Label Studio in JSON")
        address = next((value for value in task["data"].values() if isinstance(value, str)), "")
        results = list(_chosen_results(task))
        size = next(((r.get("original_width"), r.get("original_height")) for r in results), (0, 0))
        number = builder.add_image(_file_name(address), *(int(side or 0) for side in size))
        for at, result in enumerate(results):
            try:
                value, (width, height) = result["value"], (result["original_width"], result["original_height"])
                box = (value["x"] * width, value["y"] * height, value["width"] * width, value["height"] * height)
                label = str(value["rectanglelabels"][0])
                builder.add_box(number, label, tuple(side / 100 for side in box))
            except (KeyError, IndexError, TypeError) as error:
                raise DataSetError(f"{path}: region {at} of task {place} is no labelled rectangle: {error}") from None
    return builder.as_coco()


def _chosen_results(task: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rectangles of a person's annotation; of the prediction where no person has annotated the task."""
    annotations = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    for one in (annotations or task.get("predictions") or ())[:1]:
        yield from (result for result in one.get("result") or () if result.get("type") == "rectanglelabels")


def _file_name(address: str) -> str:
    """The file below `images`, of an address of Label Studio's: `/data/local-files/?d=images/x.jpg`, an upload."""
    parts = urlsplit(address)
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    name = PurePosixPath(path).name
    # Label Studio puts eight digits before the names of uploads.
    return re.sub(r"^[0-9a-f]{8}-", "", name) if "/upload/" in path else name


def _yolo_labels(path: Path, names: object) -> dict[int, str]:
    """The names of the classes by their numbers."""
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names) if isinstance(names, list) else ()
    try:
        labels = {int(key): str(name) for key, name in pairs if isinstance(name, str | int | float)}
    except (TypeError, ValueError):
        labels = {}
    if not labels or not isinstance(names, Mapping | list) or len(labels) != len(names):
        raise DataSetError(f"{path}: names is a list of texts, or a mapping from numbers to texts")
    return labels


def _read_yolo(path: Path) -> dict[str, Any]:
    import cv2
    import yaml

    try:
        data = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that does not exist is a ValueError
        raise DataSetError(f"cannot read {path} as YOLO's data.yaml: {error}") from error
    if not isinstance(data, Mapping) or "names" not in data or "train" not in data:
        raise DataSetError(f"{path} is not YOLO's data.yaml: it needs names and train")
    labels = _yolo_labels(path, data["names"])
    builder = CocoBuilder([labels[number] for number in sorted(labels)])
    folder, train = data.get("path", "."), data["train"]
    if not isinstance(folder, str) or not isinstance(train, str):
        raise DataSetError(f"{path}: path and train are folders, written as text")
    pictures = (path.parent / folder).resolve() / train
    files = sorted(file for file in pictures.rglob("*") if file.suffix.lower() in _PICTURES)
    if not files:
        raise DataSetError(f"{path}: {pictures} holds no pictures: train is a folder below the file, or below its path")
    for file in files:
        image = cv2.imread(str(file))
        if image is None:
            raise DataSetError(f"{file} is not a picture")
        height, width = image.shape[:2]
        number = builder.add_image(file.name, width, height)
        text = Path(*["labels" if part == "images" else part for part in file.parts]).with_suffix(".txt")
        for place, line in enumerate(io.StringIO(read_text(text)) if text.exists() else ()):
            fields = line.split()
            if not fields:
                continue
            try:
                category, (x, y, w, h) = labels[int(fields[0])], (float(field) for field in fields[1:5])
            except (ValueError, KeyError):
                found = f"{text} line {place + 1} is {line.strip()!r}"
                raise DataSetError(f"{found}: expected CLASS X Y WIDTH HEIGHT") from None
            builder.add_box(number, category, ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height))
    return builder.as_coco()
