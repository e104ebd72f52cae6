"""What the commands around GLaMM do: load it, ask it, show the answer."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from detectors.detector import DetectorError, GroundedText, PromptError
from detectors.glamm import prompts
from streamer.enrichment import grounded
from streamer.enrichment.grounded import Image
from streamer.enrichment.loading import GlammLoading
from streamer.errors import ConfigError, StreamerError
from streamer.sources.picture import read_picture
from streamer.sources.sampled import sampled_frames
from streamer.sources.web_kind import VIDEO_SUFFIXES
from streamer.tasks.closing import INTERRUPTED, ClosingDeadline

if TYPE_CHECKING:
    import supervision as sv

    from detectors.glamm.segmenter import Glamm


def _print_text(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class NoMask(DetectorError):
    """The model answered, but showed nothing."""


def run_segment(
    address: str,
    phrases: Sequence[str],
    loading: GlammLoading,
    *,
    generate: bool,
    fps: float,
    out: Path | None,
    as_json: bool,
) -> int:
    """Returns the exit code: 1 when no phrase got any mask."""
    for phrase in phrases:
        prompts.clean(phrase)
    if _is_video(address):
        with ClosingDeadline(interrupted_code=INTERRUPTED) as deadline:
            return deadline.run(_segment_video(address, phrases, loading, generate, fps, out, as_json))
    image = read_picture(Path(address))
    glamm = loading.load()
    found = glamm.segment(image, phrases, generate=generate)
    _save_segments(out, Path(address).stem, image, found)
    if as_json:
        _print_json({"image": address, **_answer_facts(image, glamm), **_segment_record(found, phrases)})
    else:
        _print_segments(found)
    for complaint in _unanswered_phrases(found, phrases):
        _print_text(str(complaint))
    return 0 if len(found) else 1


async def _segment_video(
    address: str,
    phrases: Sequence[str],
    loading: GlammLoading,
    generate: bool,
    fps: float,
    out: Path | None,
    as_json: bool,
) -> int:
    from streamer.sources import open_sources

    frames = sampled_frames(open_sources(address), fps=fps)
    glamm = loading.load()
    total = 0
    async for frame in frames:
        found = await asyncio.to_thread(glamm.segment, frame.image, phrases, generate=generate)
        total += len(found)
        _save_segments(out, f"{frame.stream}-{frame.index:06d}", frame.image, found)
        if as_json:
            facts = {"video": address, "frame": frame.index, "time_s": frame.time_s}
            _print_json({**facts, **_answer_facts(frame.image, glamm), **_segment_record(found, phrases)})
        else:
            sys.stdout.write(f"frame {frame.index}, {frame.time_s:.2f} s\n")
            _print_segments(found)
    return 0 if total else 1


def _is_video(address: str) -> bool:
    return ":" in address or Path(address).is_dir() or Path(address).suffix.lower() in VIDEO_SUFFIXES


def _segment_record(found: sv.Detections, phrases: Sequence[str]) -> dict[str, Any]:
    answers = found.metadata["answers"]
    return {
        "segments": grounded.segments_as_json(found),
        "answers": [{"phrase": phrase, "answer": answer} for phrase, answer in zip(phrases, answers, strict=True)],
    }


def _unanswered_phrases(found: sv.Detections, phrases: Sequence[str]) -> Iterator[NoMask]:
    assert found.class_id is not None
    for number, (phrase, answer) in enumerate(zip(phrases, found.metadata["answers"], strict=True)):
        if number not in found.class_id:
            fault = "an empty mask" if "[SEG]" in answer else f"no mask, but the words {answer!r}"
            yield NoMask(f"GLaMM answered to {phrase!r} with {fault}: it may not be there, or try other words")


def _print_segments(found: sv.Detections) -> None:
    assert found.confidence is not None
    boxes, masks = found.xyxy.round().astype(int), grounded.masks_of(found)
    for phrase, score, mask, box in zip(found.data["class_name"], found.confidence, masks, boxes, strict=True):
        place = ",".join(map(str, box))
        sys.stdout.write(f"{phrase}: {mask.mean():.1%} of the picture, in {place}, score {score:.2f}\n")


def _save_segments(out: Path | None, name: str, image: Image, found: sv.Detections) -> None:
    if out is not None and len(found):
        labels = [str(phrase) for phrase in found.data["class_name"]]
        _save_record(
            out, f"{name}.png", grounded.encode_png(grounded.paint_masks(image, grounded.masks_of(found), labels))
        )


def run_describe(path: Path, loading: GlammLoading, *, out: Path, as_json: bool) -> None:
    image = read_picture(path)
    glamm = loading.load()
    answer = glamm.describe(image)
    picture = _save_record(out, f"{path.stem}.png", grounded.encode_png(grounded.paint_grounded(image, answer)))
    page = _save_record(out, f"{path.stem}.html", grounded.grounded_page(image, answer, path.name).encode())
    if as_json:
        _print_json({"image": str(path), **_answer_facts(image, glamm), **grounded.as_json(answer)})
    else:
        _print_grounded(answer)
        _print_text(f"{page} and {picture} show it")


def run_region(path: Path, boxes: Sequence[str], loading: GlammLoading, *, as_json: bool) -> None:
    places = [grounded.parse_box(box) for box in boxes]
    image = read_picture(path)
    _check_boxes(places, image)
    glamm = loading.load()
    texts = glamm.caption_regions(image, places)
    if as_json:
        answer = [{"box": list(place), "text": text} for place, text in zip(places, texts, strict=True)]
        _print_json({"image": str(path), **_answer_facts(image, glamm), "regions": answer})
    else:
        for box, text in zip(boxes, texts, strict=True):
            sys.stdout.write(f"{box}: {text}\n" if len(boxes) > 1 else f"{text}\n")


def run_caption(path: Path, loading: GlammLoading, *, as_json: bool) -> None:
    image = read_picture(path)
    glamm = loading.load()
    text = glamm.caption(image)
    if as_json:
        _print_json({"image": str(path), **_answer_facts(image, glamm), "text": text})
    else:
        sys.stdout.write(f"{text}\n")


def run_chat(
    path: Path, messages: Sequence[str], boxes: Sequence[str], loading: GlammLoading, *, out: Path | None, as_json: bool
) -> None:
    places = [grounded.parse_box(box) for box in boxes]
    image = read_picture(path)
    if as_json and not messages:
        raise ConfigError("chat --json needs what to ask: give --message, once for each turn")
    _check_boxes(places, image)
    glamm = loading.load()
    (look,) = glamm.encode_images([image])
    history: list[tuple[str, GroundedText]] = []
    marks = 0
    for message in messages or _typed_messages():
        wanted = marks + message.count("<bbox>")
        try:
            answer = glamm.chat(look, history, message, places[:wanted])
        except PromptError as error:
            if messages:
                raise
            _print_text(str(error))  # a slip of the fingers does not end a conversation
            continue
        marks = wanted
        history.append((message, answer))
        if out is not None and len(answer.masks):
            name = f"{path.stem}-{len(history)}.png"
            _save_record(out, name, grounded.encode_png(grounded.paint_grounded(image, answer)))
        if not as_json:
            _print_grounded(answer)
    if as_json:
        turns = [{"message": message, **grounded.as_json(answer)} for message, answer in history]
        _print_json({"image": str(path), **_answer_facts(image, glamm), "turns": turns})


def _check_boxes(boxes: Sequence[Sequence[float]], image: Image) -> None:
    """Before gigabytes are loaded. Raises `ImageError`."""
    from detectors.glamm.segmenter import box_fractions

    for box in boxes:
        box_fractions(box, (image.shape[0], image.shape[1]))


def _typed_messages() -> Iterator[str]:
    """Lines that the user types, until an empty one or the end."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _answer_facts(image: Image, glamm: Glamm) -> dict[str, Any]:
    return {"width": image.shape[1], "height": image.shape[0], "model": glamm.name}


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _print_grounded(answer: GroundedText) -> None:
    text = Text()
    for words, span in grounded.text_pieces(answer):
        if span is not None and span.masks:
            text.append(words, style=f"bold {grounded.color_of(span.masks[0]).as_hex()}")
        else:
            text.append(words)
    Console(soft_wrap=True).print(text)


def _save_record(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StreamerError(f"cannot write {path}: {error.strerror}") from error
    return path
