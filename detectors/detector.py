"""The contract between words, pictures and boxes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from groundstream import GroundstreamError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import supervision as sv


class DetectorError(GroundstreamError):
    """A detector cannot do its work: weights missing, checkpoint unreadable, device out of memory."""


class PromptError(DetectorError, ValueError):
    """Queries that a detector cannot use: the message says what was found, what is allowed and what to do."""


class OptionError(DetectorError, ValueError):
    """An option of a detector with a value that it cannot have."""


DOUBTFUL_SHARE = 0.5
"""Share of a threshold down to which detectors return detections, so that trackers can follow half hidden objects.
With less, trackers are misled: glip-mini's HOTA over six synthetic streets was 56.8 with 0.2 and 59.7 with 0.5."""


@dataclass(frozen=True)
class Prompt:
    """Words made ready for one detector: `queries[i]` is what `class_id == i` means. Models add their encodings."""

    queries: tuple[str, ...]


class Request:
    """One picture to analyse: `image` is BGR, (height, width, 3), uint8; `prompt` comes from the same detector.

    `stream` names the camera for detectors that remember what they saw (motion); the others ignore it.
    `thresholds` are the scores (0..1) from which the prompt's queries count, one for each; the detector's own for all
    where they are left out.
    A function may stand in for the pixels: it is called only by a detector that reads them.
    """

    __slots__ = ("_pixels", "prompt", "stream", "thresholds")

    def __init__(
        self,
        image: npt.NDArray[np.uint8] | Callable[[], npt.NDArray[np.uint8]],
        prompt: Prompt,
        stream: str = "",
        thresholds: Sequence[float] | None = None,
    ) -> None:
        """Raises `PromptError` for thresholds that do not fit the queries."""
        if thresholds is not None:
            if len(thresholds) != len(prompt.queries):
                raise PromptError(f"{len(thresholds)} thresholds for {len(prompt.queries)} queries: give one for each")
            if not all(0 <= threshold <= 1 for threshold in thresholds):
                raise PromptError(f"thresholds are {list(thresholds)}: they must lie between 0 and 1")
        self._pixels = image
        self.prompt = prompt
        self.stream = stream
        self.thresholds = None if thresholds is None else tuple(thresholds)

    def least_scores(self, default: float) -> tuple[float, ...]:
        """The lowest score to return for each query: `DOUBTFUL_SHARE` of its threshold, which is `default` for all
        where none is given."""
        thresholds = self.thresholds or (default,) * len(self.prompt.queries)
        return tuple(DOUBTFUL_SHARE * threshold for threshold in thresholds)

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        pixels = self._pixels
        if callable(pixels):
            pixels = self._pixels = pixels()
        return pixels


class Detector(Protocol):
    """Finds what the words name. Called from one thread at a time.

    A detector that remembers the pictures of a stream may also have `forget(stream)`, which is called when the stream
    has ended.
    """

    @property
    def threshold(self) -> float:
        """Default score threshold (0..1) for requests that set none.

        `detect` also returns doubtful detections, down to `DOUBTFUL_SHARE` of a query's threshold: trackers continue
        tracks with them but begin none.
        """
        ...

    def prepare(self, queries: Sequence[str]) -> Prompt:
        """Tokenise and encode the words once. Raises `PromptError` on words that the model cannot read."""
        ...

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        """One result per request, in the same order.

        `xyxy` float32 pixels of that image, inside it; `confidence` float32 in 0..1; `class_id` int, an index into
        the prompt's queries; `data["class_name"]` the query's text. A result does not depend on what else is in the
        batch beyond float rounding.
        """
        ...


@dataclass(frozen=True, slots=True)
class GroundedSpan:
    """Characters [start, end) of a text that stand for the masks in the rows `masks`, none when nothing was shown."""

    start: int
    end: int
    phrase: str
    masks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GroundedText:
    """A text tied to the picture: `masks` (K, height, width) bool, in the order of the text; not each needs a span.

    `answer` is what the model wrote, marks and all: a conversation carries on from it. It is not `complete` when it
    broke off at the most tokens that the model may write.
    """

    text: str
    spans: tuple[GroundedSpan, ...]
    masks: npt.NDArray[np.bool_]
    answer: str
    complete: bool = True


class Segmenter(Protocol):
    """Ties words to pixels and describes; too slow for every frame. Images as in `Request`, one thread at a time."""

    def segment(self, image: npt.NDArray[np.uint8], phrases: Sequence[str]) -> sv.Detections:
        """One mask for each phrase that is seen; `class_id` is an index into the phrases."""
        ...

    def describe(self, image: npt.NDArray[np.uint8]) -> GroundedText: ...

    def caption_region(self, image: npt.NDArray[np.uint8], xyxy: Sequence[float]) -> str:
        """What stands in the box, in pixels."""
        ...

    def chat(
        self, image: npt.NDArray[np.uint8], history: Sequence[tuple[str, GroundedText]], message: str
    ) -> GroundedText: ...


_LAST_MARK = 0x2FFF  # of Unicode: symbols and punctuation lie below, scripts and emoji above
_QUOTES = "\"'`´“”„‟‘’‚«»‹›"
_END_MARKS = ".,;:!?…。、，"
_SEPARATOR = re.compile(r"\s[.,;|]|[,;|](?=\s)|;|\||(?<![A-Z])(?<![A-Z]\w)(?<![A-Z]\w\w)\.(?=\s)")
"""Marks that part phrases in captions. A dot behind a short capitalised word, as in "St. Bernard", is none."""


def clean_queries(queries: Sequence[str], *, free_words: bool = True) -> tuple[str, ...]:
    """The queries with white space folded.

    Raises `PromptError` when there is none, one holds no words, two read alike for a model, or, with `free_words`, one
    names several things; names of a data set may hold commas.
    """
    cleaned = tuple(" ".join(query.split()) for query in queries)
    if not cleaned:
        raise PromptError("no query given: name at least one object to detect, such as 'person' or 'red car'")
    alike: dict[str, str] = {}
    for position, query in enumerate(cleaned):
        if not query:
            raise PromptError(f"query {position + 1} is empty: write what to detect, such as 'person' or 'red car'")
        words = read_words(query)
        if not any(letter.isalnum() or ord(letter) > _LAST_MARK for letter in words):
            raise PromptError(f"query {query!r} holds no words: write what to detect, such as 'person' or 'red car'")
        if query in cleaned[:position]:
            raise PromptError(f"query {query!r} is given twice: keep one of them")
        if (same := alike.setdefault(words.lower(), query)) != query:
            raise PromptError(f"queries {same!r} and {query!r} read alike: keep one of them")
        if free_words and (mark := _SEPARATOR.search(words)):
            raise PromptError(
                f"query {query!r} names several things (it holds {mark[0].strip()!r}): give each its own query, or "
                "write one thing without that mark"
            )
    return cleaned


def read_words(query: str) -> str:
    """The words of a query as models should read them, without quotes around it and marks at its ends."""
    words = query
    while (bare := words.strip().strip(_QUOTES).strip().strip(_END_MARKS).strip()) != words:
        words = bare
    return words


def detections(
    xyxy: Any, confidence: Any, class_id: Any, queries: Sequence[str], mask: npt.NDArray[np.bool_] | None = None
) -> sv.Detections:
    """`sv.Detections` as the contract wants it, from N boxes (N, 4), scores (N,) and query indices (N,)."""
    import numpy as np
    import supervision as sv

    ids = np.asarray(class_id, dtype=np.int64).reshape(-1)
    return sv.Detections(
        xyxy=np.asarray(xyxy, dtype=np.float32).reshape(-1, 4),
        confidence=np.asarray(confidence, dtype=np.float32).reshape(-1),
        class_id=ids,
        mask=mask,
        data={"class_name": np.asarray(queries, dtype=object)[ids] if len(ids) else np.empty(0, dtype=object)},
    )
