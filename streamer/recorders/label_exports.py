"""Exports of a recording's tracks for labelling tools and training: CVAT, Label Studio and YOLO.

Written from the COCO file of the recording. Formats: CVAT for video 1.1
(https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/), Label Studio video object tracking
(https://labelstud.io/tags/videorectangle), Ultralytics YOLO detection (https://docs.ultralytics.com/datasets/detect/).
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import yaml

from streamer.errors import ConfigError
from streamer.recorders.text import OutputError

COCO, IMAGES = "coco.json", "images"
_NOT_IN_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF, *range(0xD800, 0xE000)], "\ufffd")


@dataclass(frozen=True, slots=True)
class TrackBox:
    """One box of a track: pixels from the top left, `frame` from 0."""

    frame: int
    left: float
    top: float
    width: float
    height: float
    score: float
    label: str


@dataclass(frozen=True, slots=True)
class ListedFrame:
    """A frame of the recording: `index` from 0, `time_ns` capture time, size in pixels."""

    index: int
    time_ns: int
    width: int
    height: int
    file_name: str


@dataclass(frozen=True, slots=True)
class LabelledRecording:
    """Tracks of a recording by number, each with its boxes in order; its frames and the labels in their order."""

    source: str
    labels: list[str]
    frames: list[ListedFrame]
    tracks: dict[int, list[TrackBox]]

    @property
    def frame_count(self) -> int:
        """Frames up to the last one that is listed."""
        return self.frames[-1].index + 1 if self.frames else 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first frame, pixels."""
        return (self.frames[0].width, self.frames[0].height) if self.frames else (0, 0)

    @property
    def fps(self) -> float:
        """Mean rate of the frames; 25 where fewer than two have a time."""
        if len(self.frames) > 1 and (elapsed_ns := self.frames[-1].time_ns - self.frames[0].time_ns) > 0:
            return (self.frames[-1].index - self.frames[0].index) * 1e9 / elapsed_ns
        return 25.0


def check_exports(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of formats, each once. Raises `ConfigError` for an unknown one."""
    for name in names:
        if name not in EXPORTS:
            raise ConfigError(f"--export {name!r} is not a format: choose {', '.join(EXPORTS)}")
    return tuple(sorted(set(names)))


def write_exports(folder: Path, names: Sequence[str], source: str) -> None:
    """Writes the formats into the result folder of a recording; `source` is its address without secrets.

    Raises `OutputError`.
    """
    if not names:
        return
    try:
        recording = read_recording(folder / COCO, source)
        for name in names:
            EXPORTS[name](folder, recording)
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or folder}: {error.strerror}; free space") from error


def read_recording(coco: Path, source: str) -> LabelledRecording:
    """Reads what `CocoJson` wrote."""
    found = json.loads(coco.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in found["categories"]}
    tracks: dict[int, list[TrackBox]] = {}
    for one in found["annotations"]:
        number = one["category_id"]
        label = names.setdefault(number, str(number))
        left, top, width, height = one["bbox"]
        box = TrackBox(one["image_id"] - 1, left, top, width, height, one["score"], label)
        tracks.setdefault(one["track_id"], []).append(box)
    frames = [
        ListedFrame(one["id"] - 1, one["time_ns"], one["width"], one["height"], one["file_name"])
        for one in found["images"]
    ]
    labels = list(dict.fromkeys(names[number] for number in sorted(names)))
    return LabelledRecording(source, labels, frames, dict(sorted(tracks.items())))


def _write_cvat(folder: Path, recording: LabelledRecording) -> None:
    with (
        zipfile.ZipFile(folder / "cvat.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("annotations.xml", "w") as file,
    ):
        for line in _cvat_lines(recording):
            file.write(f"{line}\n".encode())


def _cvat_lines(recording: LabelledRecording) -> Iterator[str]:
    """The lines of a CVAT file. Every box is a key frame: CVAT would interpolate between others."""
    width, height = recording.size
    count = recording.frame_count
    labels = "".join(f"<label><name>{xml_text(label)}</name></label>" for label in recording.labels)
    yield '<?xml version="1.0" encoding="utf-8"?>'
    yield "<annotations><version>1.1</version>"
    yield (
        f"<meta><task><size>{count}</size><mode>interpolation</mode><start_frame>0</start_frame>"
        f"<stop_frame>{max(count - 1, 0)}</stop_frame><labels>{labels}</labels>"
        f"<original_size><width>{width}</width><height>{height}</height></original_size></task></meta>"
    )
    for number, boxes in recording.tracks.items():
        yield f'<track id="{number}" label={quoteattr(clean_text(_main_label(boxes)))} source="auto">'
        for box, following in zip(boxes, (*boxes[1:], None), strict=True):
            yield _cvat_box(box, box.frame, outside=False)
            after = box.frame + 1
            if after < count and (following is None or following.frame > after):
                yield _cvat_box(box, after, outside=True)
        yield "</track>"
    yield "</annotations>"


def _cvat_box(box: TrackBox, frame: int, *, outside: bool) -> str:
    return (
        f'<box frame="{frame}" keyframe="1" outside="{int(outside)}" occluded="0" xtl="{box.left:.2f}" '
        f'ytl="{box.top:.2f}" xbr="{box.left + box.width:.2f}" ybr="{box.top + box.height:.2f}" z_order="0"></box>'
    )


def _write_label_studio(folder: Path, recording: LabelledRecording) -> None:
    results = [_label_studio_track(recording, number, boxes) for number, boxes in recording.tracks.items()]
    scores = [box.score for boxes in recording.tracks.values() for box in boxes]
    prediction = {
        "model_version": "groundstream",
        "score": round(sum(scores) / len(scores), 4) if scores else 0.0,
        "result": results,
    }
    target = folder / "label-studio"
    target.mkdir()
    tasks = [{"data": {"video": recording.source}, "predictions": [prediction]}]
    (target / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    names = "".join(f"<Label value={quoteattr(clean_text(label))}/>" for label in recording.labels)
    (target / "config.xml").write_text(
        f'<View><Labels name="label" toName="video">{names}</Labels>'
        f'<Video name="video" value="$video" framerate="{recording.fps:.6g}"/>'
        '<VideoRectangle name="box" toName="video"/></View>\n',
        encoding="utf-8",
    )


def _label_studio_track(recording: LabelledRecording, number: int, boxes: list[TrackBox]) -> dict[str, Any]:
    """One region: percent of the frame, frames from 1; the last box before a gap ends the stretch."""
    sizes = {frame.index: (frame.width, frame.height) for frame in recording.frames}
    sequence = []
    for box, following in zip(boxes, (*boxes[1:], None), strict=True):
        width, height = sizes.get(box.frame, recording.size)
        sequence.append(
            {
                "frame": box.frame + 1,
                "enabled": following is not None and following.frame == box.frame + 1,
                "rotation": 0,
                "x": round(100 * box.left / width, 6),
                "y": round(100 * box.top / height, 6),
                "width": round(100 * box.width / width, 6),
                "height": round(100 * box.height / height, 6),
                "time": round(box.frame / recording.fps, 6),
            }
        )
    return {
        "id": f"track-{number}",
        "type": "videorectangle",
        "from_name": "box",
        "to_name": "video",
        "score": round(sum(box.score for box in boxes) / len(boxes), 4),
        "value": {
            "framesCount": recording.frame_count,
            "duration": round(recording.frame_count / recording.fps, 6),
            "labels": [clean_text(_main_label(boxes))],
            "sequence": sequence,
        },
    }


def _write_yolo(folder: Path, recording: LabelledRecording) -> None:
    """Writes labels of every listed frame, and links its saved picture beside them."""
    target = folder / "yolo"
    labels, pictures = target / "labels" / "train", target / "images" / "train"
    labels.mkdir(parents=True)
    pictures.mkdir(parents=True)
    classes = {label: number for number, label in enumerate(recording.labels)}
    of_frame: dict[int, list[TrackBox]] = {
        frame: list(boxes)
        for frame, boxes in groupby(
            sorted((box for boxes in recording.tracks.values() for box in boxes), key=attrgetter("frame")),
            key=attrgetter("frame"),
        )
    }
    for frame in recording.frames:
        lines = (_yolo_line(box, classes[box.label], frame) for box in of_frame.get(frame.index, ()))
        (labels / frame.file_name).with_suffix(".txt").write_text("".join(lines))
        if (saved := folder / IMAGES / frame.file_name).is_file():
            link_file(saved, pictures / frame.file_name)
    names = dict(enumerate(recording.labels))
    text = yaml.safe_dump(
        {"train": "images/train", "val": "images/train", "names": names}, sort_keys=False, allow_unicode=True
    )
    (target / "data.yaml").write_text(text, encoding="utf-8")


def _yolo_line(box: TrackBox, number: int, frame: ListedFrame) -> str:
    """The middle and the size of a box as fractions of the frame."""
    x, y = (box.left + box.width / 2) / frame.width, (box.top + box.height / 2) / frame.height
    return f"{number} {x:.8f} {y:.8f} {box.width / frame.width:.8f} {box.height / frame.height:.8f}\n"


def link_file(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _main_label(boxes: Sequence[TrackBox]) -> str:
    """The label that most boxes of a track have: a track of these tools has one label."""
    return Counter(box.label for box in boxes).most_common(1)[0][0]


def clean_text(text: str) -> str:
    return text.translate(_NOT_IN_XML)


def xml_text(text: str) -> str:
    return escape(clean_text(text))


EXPORTS: Mapping[str, Callable[[Path, LabelledRecording], None]] = {
    "cvat": _write_cvat,
    "label-studio": _write_label_studio,
    "yolo": _write_yolo,
}
"""Formats by the name of `--export`."""
