"""Folders of images as sources, in the order people count."""

from __future__ import annotations

import asyncio
import configparser
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from streamer.errors import SourceError
from streamer.frame import Frame, FrameClock
from streamer.sources.address import natural
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.source import OnState, SourceRecipe, SourceState, StateChange

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_DEFAULT_FPS = 25.0


class ImageSource:
    """The images of a folder as one stream: `2.jpg` before `10.jpg`, each turned upright.

    Images carry no common clock: they are `fps` a second apart, else as the `seqinfo.ini` of a MOTChallenge sequence
    beside them says, else 25, from `start_time_ns` (UTC) on, else from 1970. Files that cannot be decoded
    are counted as `corrupt`. `recording` is the folder.
    """

    live = False

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        fps: float | None = None,
        start_time_ns: int | None = None,
        on_state: OnState | None = None,
    ) -> None:
        self.name = name
        self.account = FrameCounter()
        self.recording: Path | None = folder
        self.remote: str | None = None
        self._folder = folder
        self._arguments = {"folder": folder, "name": name, "fps": fps, "start_time_ns": start_time_ns}
        self._paths = [folder / entry for entry in natural(image_names(folder))]
        self.expected_frames: int | None = len(self._paths)
        self._period_ns = round(1e9 / (fps or _sequence_fps(folder) or _DEFAULT_FPS))
        self._start_ns = start_time_ns or 0
        self._clock = FrameClock("file_pts", None if start_time_ns is None else 0.0)
        self._on_state = on_state
        self._next = 0
        self._closed = False

    def file_of(self, index: int) -> Path:
        """The file that the frame with this index was read from."""
        return self._paths[index]

    def __repr__(self) -> str:
        return f"ImageSource({str(self._folder)!r}, {len(self._paths)} images)"

    def recipe(self) -> SourceRecipe:
        return SourceRecipe(ImageSource, self._arguments)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        while not self._closed and self._next < len(self._paths):
            if self._next == 0:
                self._report_state(SourceState.LIVE)
            path, number = self._paths[self._next], self._next
            self._next += 1
            image = await asyncio.to_thread(_read, path)
            if self._closed:  # the reader has gone, and this one was never counted
                break
            index = self.account.receive()
            if image is None:
                self.account.drop("corrupt")
                continue
            height, width = image.shape[:2]
            time_ns = self._start_ns + number * self._period_ns
            return Frame(self.name, index, time_ns, self._clock, image, (width, height))
        if not self._closed:
            await self.aclose()
            tally = self.account.tally()
            if tally.dropped.get("corrupt", 0) == tally.received:
                raise SourceError(f"none of the {tally.received} images in {self._folder} can be read")
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._report_state(SourceState.CLOSED)

    def _report_state(self, state: SourceState) -> None:
        if self._on_state is not None:
            self._on_state(StateChange(self.name, state, time.time_ns()))


def image_names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES]


def _sequence_fps(folder: Path) -> float | None:
    for place in (folder, folder.parent):
        settings = configparser.ConfigParser()
        try:
            settings.read(place / "seqinfo.ini")
            return settings.getfloat("Sequence", "frameRate")
        except (configparser.Error, ValueError):
            continue
    return None


def _read(path: Path) -> npt.NDArray[np.uint8] | None:
    import cv2
    import numpy as np

    try:
        encoded = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    # Decoding from memory keeps OpenCV from printing its own words about a file that is no image.
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    return None if image is None else np.asarray(image, dtype=np.uint8)
