"""Answers from a script instead of a model: for tests, rehearsals and measuring everything but the detector."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detectors.detector import DetectorError, Prompt, Request, clean_queries, detections

if TYPE_CHECKING:
    import supervision as sv

EVERY_STREAM = "*"

# One frame is a list of answers, one answer {"query": "person", "box": [x1, y1, x2, y2], "confidence": 0.9}.
Frames = Sequence[Sequence[Mapping[str, Any]]]


class ScriptError(DetectorError, ValueError):
    """A script cannot be read: what was found, where, and what is allowed."""


@dataclass(frozen=True)
class ScriptedPrompt(Prompt):
    """`class_ids[word]` is the query's index for a word of the script, -1 where no query asks for it."""

    class_ids: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _ScriptFile:
    """All answers for one stream: those of frame i are the rows from `starts[i]` to `starts[i + 1]`."""

    xyxy: npt.NDArray[np.float32]  # (N, 4)
    confidence: npt.NDArray[np.float32]  # (N,)
    word: npt.NDArray[np.int64]  # (N,)
    starts: npt.NDArray[np.int64]  # (frames + 1,)

    def rows(self, turn: int, repeat: bool) -> slice:
        frames = len(self.starts) - 1
        if repeat and frames:
            turn %= frames
        if turn >= frames:
            return slice(0, 0)
        return slice(int(self.starts[turn]), int(self.starts[turn + 1]))


class ScriptedDetector:
    """Gives each stream the answers written for it, one frame after the other; it never looks at a picture.

    `answers` is a list of frames, the same for every stream, or a mapping from stream names to such lists, where "*"
    stands for all other streams. A frame is a list of `{"query": "person", "box": [x1, y1, x2, y2], "confidence":
    0.9}`: the box in pixels, passed on as written; the confidence in 0..1, 1 where it is left out. The first request
    that names a stream gets that stream's first frame, and so on; after the last frame nothing is found, or with
    `repeat` the script begins again. A query that is not in the script finds nothing. Answers under the
    thresholds count as doubtful, and all are returned.
    """

    def __init__(self, answers: Frames | Mapping[str, Frames], *, repeat: bool = False, threshold: float = 0.5) -> None:
        scripts = answers if isinstance(answers, Mapping) else {EVERY_STREAM: answers}
        self._repeat = repeat
        self.threshold = threshold
        self._words: dict[str, int] = {}
        self._scripts = {stream: self._read(stream, frames) for stream, frames in scripts.items()}
        self._turns: Counter[str] = Counter()

    @classmethod
    def load(cls, path: str | Path, *, repeat: bool | None = None, threshold: float = 0.5) -> ScriptedDetector:
        """From a JSON file: a list of frames, or `{"frames": [...]}`, or `{"streams": {"gate": [...], "*": [...]}}`.

        An object may also say `"repeat": true`; the argument, where given, decides instead.
        """
        try:
            script = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ScriptError(f"the script {path} cannot be read ({error.strerror}): give a JSON file") from None
        except (ValueError, RecursionError) as error:
            raise ScriptError(f"the script {path} is not JSON: {error}") from None
        if isinstance(script, list):
            script = {"frames": script}
        if not isinstance(script, dict) or len(script.keys() & {"frames", "streams"}) != 1:
            raise ScriptError(f"the script {path} must be a list of frames, or an object with 'frames' or 'streams'")
        if unknown := sorted(script.keys() - {"frames", "streams", "repeat"}):
            raise ScriptError(f"the script {path} has the key {unknown[0]!r}: allowed are frames, streams, repeat")
        written = script.get("repeat", False)
        answers = script["frames"] if "frames" in script else script["streams"]
        try:
            return cls(answers, repeat=bool(written) if repeat is None else repeat, threshold=threshold)
        except ScriptError as error:
            raise ScriptError(f"the script {path}: {error}") from None

    def prepare(self, queries: Sequence[str]) -> ScriptedPrompt:
        cleaned = clean_queries(queries)
        class_ids = np.full(len(self._words), -1, dtype=np.int64)
        for index, query in enumerate(cleaned):
            if query in self._words:
                class_ids[self._words[query]] = index
        return ScriptedPrompt(cleaned, class_ids)

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> sv.Detections:
        prompt = request.prompt
        if not isinstance(prompt, ScriptedPrompt):
            raise TypeError("the prompt comes from another detector: use this detector's prepare()")
        turn = self._turns[request.stream]
        self._turns[request.stream] += 1
        script = self._scripts.get(request.stream) or self._scripts.get(EVERY_STREAM)
        if script is None:
            return detections([], [], [], prompt.queries)
        rows = script.rows(turn, self._repeat)
        class_id = prompt.class_ids[script.word[rows]]
        confidence = script.confidence[rows]
        wanted = class_id >= 0
        return detections(script.xyxy[rows][wanted], confidence[wanted], class_id[wanted], prompt.queries)

    def _read(self, stream: str, frames: Frames) -> _ScriptFile:
        """Checks the answers and lays them out in arrays, so that a long script costs little per frame."""
        rows: list[tuple[list[float], float, int]] = []
        starts = [0]
        if not _is_list(frames):
            raise ScriptError(f"stream {stream!r} must have a list of frames, found {frames!r:.60}")
        for number, frame in enumerate(frames):
            where = f"stream {stream!r}, frame {number}"
            if not _is_list(frame):
                raise ScriptError(f"{where} must be a list of answers, found {frame!r:.60}")
            for answer in frame:
                query, box, confidence = _read_answer(answer, where)
                rows.append((box, confidence, self._words.setdefault(query, len(self._words))))
            starts.append(len(rows))
        return _ScriptFile(
            np.array([box for box, _, _ in rows], dtype=np.float32).reshape(-1, 4),
            np.array([confidence for _, confidence, _ in rows], dtype=np.float32),
            np.array([word for _, _, word in rows], dtype=np.int64),
            np.array(starts, dtype=np.int64),
        )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _read_answer(answer: Any, where: str) -> tuple[str, list[float], float]:
    if not isinstance(answer, Mapping):
        raise ScriptError(f"{where}: an answer must be an object with query, box and confidence, found {answer!r:.60}")
    if unknown := sorted(answer.keys() - {"query", "box", "confidence"}):
        raise ScriptError(f"{where}: an answer has the key {unknown[0]!r}: allowed are query, box, confidence")
    query = answer.get("query")
    if not isinstance(query, str) or not query.strip():
        raise ScriptError(f"{where}: 'query' must be words, found {query!r:.60}")
    try:
        box = [float(value) for value in answer.get("box", ())]
        confidence = float(answer.get("confidence", 1.0))
    except (TypeError, ValueError, OverflowError):
        raise ScriptError(f"{where}: box and confidence must be numbers, found {answer!r:.80}") from None
    if len(box) != 4 or not np.isfinite(box).all() or box[0] > box[2] or box[1] > box[3]:
        raise ScriptError(f"{where}: 'box' must be [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2, found {box}")
    if not 0 <= confidence <= 1:
        raise ScriptError(f"{where}: 'confidence' must lie in 0..1, found {confidence}")
    return " ".join(query.split()), box, confidence


def create(
    name: str,
    *,
    argument: str | None = None,
    answers: Frames | Mapping[str, Frames] | None = None,
    repeat: bool | None = None,
    threshold: float = 0.5,
) -> ScriptedDetector:
    """`scripted:FILE.json`, or `scripted` with `answers`; at most one of the two."""
    if (argument is None) == (answers is None):
        raise ScriptError("the scripted detector needs one script: write scripted:FILE.json, or give it answers")
    if argument is not None:
        return ScriptedDetector.load(argument, repeat=repeat, threshold=threshold)
    assert answers is not None
    return ScriptedDetector(answers, repeat=bool(repeat), threshold=threshold)
