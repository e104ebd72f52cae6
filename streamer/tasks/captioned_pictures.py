"""Captions of pictures as words to label, with a count of what could not be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from detectors.detector import PromptError
from detectors.phrases import find_phrases
from streamer.tasks.console import report_line
from streamer.tasks.picture_data_set import ImageWords

_SHOWN = 5  # captions that a detector refuses, reported one by one


class CaptionedPictures:
    """Captions by the names of pictures. Nothing is left out without being counted."""

    def __init__(self, captions: Mapping[str, Sequence[str]]) -> None:
        self._captions = captions
        self._taken: set[str] = set()
        self._without_caption = 0
        self._without_things = 0
        self._refused = 0

    def take(self, name: str) -> Iterator[ImageWords]:
        """The captions of a picture, each with the things that it names."""
        captions = self._captions.get(name)
        if captions is None:
            self._without_caption += 1
            return
        self._taken.add(name)
        for caption in captions:
            if phrases := find_phrases(caption):
                yield ImageWords(caption, phrases)
            else:
                self._without_things += 1

    def refuse(self, caption: str, error: PromptError) -> None:
        """Counts a caption that a detector cannot read, and reports the first few."""
        self._refused += 1
        if self._refused <= _SHOWN:
            report_line(f"the caption {caption!r:.80} is left out: {error}")

    def counts(self) -> dict[str, int]:
        """Pictures and captions that could not be used, by reason."""
        return {
            "pictures_without_a_caption": self._without_caption,
            "captions_of_no_picture_here": len(self._captions.keys() - self._taken),
            "captions_that_name_nothing": self._without_things,
            "captions_that_a_detector_refused": self._refused,
        }
