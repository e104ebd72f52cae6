"""The `annotate` command: sampled frames become a COCO data set with phrases, GranD records, GLIGEN input and a
review page."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from rich.console import Console

from detectors import Detector, Prompt, PromptError, Request
from detectors.detector import clean_queries
from detectors.phrases import prepare_sentence
from detectors.registry import default_detector
from sinks.address import redact
from streamer.analysis.label_scores import calibrate_scores, sure_detections
from streamer.detector_choice import DetectorChoice
from streamer.errors import ConfigError, StreamerError
from streamer.frame import Frame
from streamer.recorders.picture_exports import check_picture_exports, write_picture_exports
from streamer.sources import Source, open_sources
from streamer.sources.file import FileSource
from streamer.sources.images import ImageSource
from streamer.sources.sampled import sampled_frames
from streamer.tasks.caption_files import picture_key, read_captions
from streamer.tasks.captioned_pictures import CaptionedPictures
from streamer.tasks.closing import INTERRUPTED, ClosingDeadline
from streamer.tasks.console import make_folder, report_line, user_console, write_text
from streamer.tasks.picture_data_set import NO_TRACK, ImageWords, PictureDataSet
from streamer.tasks.review_page import review_page
from trackers import Tracker, create_tracker

if TYPE_CHECKING:
    import supervision as sv

    from streamer.enrichment.loading import GlammLoading
    from streamer.tasks.grand_records import GrandAnnotator

_JPEG_QUALITY = 92
_DATA_SET_FILES = ("annotations.json", "review.html", "gligen.jsonl", "grand.json", "images",
                   "cvat.zip", "label-studio", "yolo", "datumaro")  # fmt: skip


@dataclass(frozen=True)
class AnnotateTask:
    """Options of `groundstream annotate`. Without `detectors` the queries decide which one is used.

    `captions` is a file of captions in place of queries: the things that its caption names are labelled in each
    picture.
    """

    sources: Sequence[str]
    queries: Sequence[str]
    detectors: Sequence[str]
    out: Path
    weights: Path | None = None
    tuned: Path | None = None
    device: str | None = None
    threshold: float | None = None
    detector_options: Sequence[str] = ()
    every: int = 1
    fps: float | None = None
    batch: int = 8
    tracker: str | None = None
    sam: str | None = None
    gligen: bool = False
    exports: Sequence[str] = ()
    describe: GlammLoading | None = None
    captions: Path | None = None


def run_annotate(task: AnnotateTask, *, as_json: bool = False, quiet: bool = False) -> None:
    """Runs the task and prints what was written. Raises what sources, detectors and the model raise."""
    if (task.captions is None) != bool(task.queries):
        problem = "both queries and captions are given" if task.queries else "neither queries nor captions are given"
        raise ConfigError(f"{problem}: use --query WORDS, or --captions FILE")
    if task.captions is not None and task.tracker is not None:
        raise ConfigError("--tracks follows queries from frame to frame: it does not go with --captions")
    work = _AnnotateWork(task)
    console = user_console(stderr=True, quiet=quiet or as_json or not sys.stderr.isatty())
    with ClosingDeadline(interrupted_code=INTERRUPTED) as deadline:
        written = deadline.run(work.run(console))
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps(written))
    else:
        user_console(quiet=quiet).print(
            f"{written['images']} images, {written['annotations']} boxes: {written['annotations_file']}; "
            f"review page: {written['review']}"
        )
        for name, count in written.get("captions", {}).items():
            if count:
                report_line(f"{task.captions}: {name.replace('_', ' ')}: {count}")


@dataclass(frozen=True)
class _FrameView:
    """A frame with one caption, and the prompts of the caption by the detector's name."""

    frame: Frame
    words: ImageWords
    prompts: Mapping[str, Prompt]
    is_first: bool  # of the views of its frame


class _AnnotateWork:
    """One run of a task."""

    def __init__(self, task: AnnotateTask) -> None:
        self._task = task
        queries = clean_queries(task.queries) if task.captions is None else ()
        self._data = PictureDataSet.of_queries(queries)
        self._words: ImageWords | CaptionedPictures = (
            ImageWords.of_queries(queries) if task.captions is None else CaptionedPictures(read_captions(task.captions))
        )
        self._exports = check_picture_exports(task.exports)
        self._sources = open_sources(task.sources)  # reports a wrong address before models are loaded
        self._by_name = {source.name: source for source in self._sources}
        _check_outputs(task.out, self._sources)
        self._names = list(task.detectors) or [default_detector(queries)]
        self._detectors = {name: self._load_detector(name) for name in self._names}
        self._prompts = {name: detector.prepare(queries) for name, detector in self._detectors.items() if queries}
        self._trackers: dict[str, Tracker] = {}
        if task.tracker is not None:
            create_tracker(task.tracker)  # reports a wrong name before anything is opened
        self._describer: GrandAnnotator | None = None
        self._records: dict[str, dict[str, Any]] = {}

    def _load_detector(self, name: str) -> Detector:
        task = self._task
        choice = DetectorChoice(
            name, task.weights, task.tuned, task.device, task.threshold, task.sam, task.detector_options
        )
        return choice.load()

    def _load_describer(self) -> None:
        if self._task.describe is None:
            return
        from detectors.glamm.box_masks import BoxMasks
        from streamer.tasks.grand_records import GrandAnnotator

        glamm = self._task.describe.load()
        self._describer = GrandAnnotator(glamm, BoxMasks(glamm.model.sam))

    async def run(self, console: Console) -> dict[str, Any]:
        self._load_describer()
        if (aside := set_aside(self._task.out)) is not None:
            report_line(f"{self._task.out} held a data set already: it is kept in {aside}")
        make_folder(self._task.out / "images")
        batch: list[Frame] = []
        try:
            async for frame in sampled_frames(self._sources, every=self._task.every, fps=self._task.fps):
                batch.append(frame)
                if len(batch) == self._task.batch:
                    await asyncio.to_thread(self._label_frames, batch)
                    console.print(f"{len(self._data.images)} images, {len(self._data.annotations)} boxes", end="\r")
                    batch = []
            if batch:
                await asyncio.to_thread(self._label_frames, batch)
        finally:
            written = self._write()  # what was labelled before an interruption is worth keeping
        return written

    def _label_frames(self, frames: Sequence[Frame]) -> None:
        views = [view for frame in frames for view in self._views_of(frame)]
        results = {
            name: detector.detect([Request(view.frame.image, view.prompts[name], view.frame.stream) for view in views])
            for name, detector in self._detectors.items()
        }
        for place, view in enumerate(views):
            frame = view.frame
            found = {name: rows[place] for name, rows in results.items()}
            first = self._names[0]
            if self._task.tracker is not None:
                self._track_frame(frame, found[first], self._detectors[first].threshold)
            # Trackers use doubtful detections, so these are removed after them.
            found = {name: sure_detections(rows, self._detectors[name].threshold) for name, rows in found.items()}
            file_name = f"{frame.stream}-{frame.index:06d}.jpg"
            if view.is_first:
                _save_jpeg(self._task.out / "images" / file_name, frame)
            self._data.add(file_name, frame, view.words, found[first], self._origin_of(frame))
            if self._describer is not None and view.is_first:
                record = self._describer.annotate(frame.image, found, frame.index, frame.time_s)
                self._records[file_name] = record

    def _views_of(self, frame: Frame) -> Iterator[_FrameView]:
        """The frame with the words to label in it: the queries, or each of its captions."""
        if isinstance(self._words, ImageWords):
            yield _FrameView(frame, self._words, self._prompts, is_first=True)
            return
        is_first = True
        for words in self._words.take(picture_key(self._origin_of(frame))):
            try:
                prompts = {
                    name: prepare_sentence(detector, words.caption, words.phrases)
                    for name, detector in self._detectors.items()
                }
            except PromptError as error:
                self._words.refuse(words.caption, error)
                continue
            yield _FrameView(frame, words, prompts, is_first=is_first)
            is_first = False

    def _origin_of(self, frame: Frame) -> str:
        """The picture file, video file or address, without secrets, that a frame comes from."""
        source = self._by_name[frame.stream]
        if isinstance(source, ImageSource):
            return str(source.file_of(frame.index))
        if isinstance(source, FileSource):
            return str(source.recording)
        return redact(self._task.sources[0]) if len(self._task.sources) == 1 else source.name

    def _track_frame(self, frame: Frame, found: sv.Detections, threshold: float) -> None:
        """Give what is on a track its identity; what is on none is a label all the same."""
        assert self._task.tracker is not None
        if frame.stream not in self._trackers:
            self._trackers[frame.stream] = create_tracker(self._task.tracker)
        assert found.confidence is not None
        scores = calibrate_scores(found.confidence.astype(np.float64)[:, None], np.array([threshold]))
        tracked = self._trackers[frame.stream].update(replace(found, confidence=scores), frame.time_s)
        assert tracked.tracker_id is not None
        identities = np.full(len(found), NO_TRACK)
        identities[tracked.data["detection_index"]] = tracked.tracker_id
        found.tracker_id = identities

    def _write(self) -> dict[str, Any]:
        out, coco = self._task.out, self._data.as_coco()
        files = {"annotations.json": json.dumps(coco), "review.html": review_page(coco, "images")}
        if self._task.gligen:
            entries = self._data.as_gligen(own_captions=self._task.captions is not None)
            files["gligen.jsonl"] = "".join(json.dumps(entry) + "\n" for entry in entries)
        if self._task.describe is not None:
            files["grand.json"] = json.dumps(self._records, ensure_ascii=False)
            files["review.html"] = review_page(coco, "images", self._records)
        for name, text in files.items():
            write_text(out / name, text)
        exported = write_picture_exports(out, self._exports, coco)
        counts = {} if isinstance(self._words, ImageWords) else {"captions": self._words.counts()}
        return {
            "images": len(self._data.images),
            "annotations": len(self._data.annotations),
            "annotations_file": str(out / "annotations.json"),
            "review": str(out / "review.html"),
            "files": [*(str(out / name) for name in files), *map(str, exported)],
            **counts,
        }


def _check_outputs(out: Path, sources: Sequence[Source]) -> None:
    """Raises `ConfigError` where a source lies in the folder that its labelled pictures go to."""
    for source in sources:
        if not isinstance(source, ImageSource | FileSource):
            continue
        if source.recording is None:
            continue
        place = source.recording.resolve()
        if (out / "images").resolve() in (place, *place.parents):
            raise ConfigError(
                f"cannot write a data set into {out}: its source {source.recording} lies there; choose another --out"
            )


def set_aside(out: Path) -> Path | None:
    """Moves an earlier data set in `out` to a folder of its own there; returns that folder, None without one."""
    if not (out / "annotations.json").exists():
        return None
    number = 1
    while (aside := out / f"earlier-{number}").exists():
        number += 1
    make_folder(aside)
    try:
        for name in _DATA_SET_FILES:
            if (out / name).exists():
                (out / name).rename(aside / name)
    except OSError as error:
        raise StreamerError(f"cannot move the data set in {out} to {aside}: {error.strerror}") from error
    return aside


def _save_jpeg(path: Path, frame: Frame) -> None:
    if not cv2.imwrite(str(path), frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
        raise StreamerError(f"cannot write {path}: the disk may be full or the folder gone")
