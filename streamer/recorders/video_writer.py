"""Video file writer: H.264 in MP4, each image shown at its capture time."""

from __future__ import annotations

import logging
import queue
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import av
import numpy as np

from sinks.sink import SinkAddressError, SinkError
from sinks.supervision import describe_error, new_thread

if TYPE_CHECKING:
    import numpy.typing as npt

log = logging.getLogger("groundstream")

_TICKS = 90_000  # per second: the usual clock of video
_QUEUE = 8
_MOST_ASPECT = 1000  # H.264 has 16 bits for either part of the ratio
_SAME_ASPECT = 0.01  # a relative difference that is less than a pixel in a hundred


class VideoWriter:
    """Encodes in its own thread; after a crash the file can be played up to the last key frame.

    `size` is (width, height) of the first image and `pixel_aspect` the width of its pixels by their height, which
    players apply; odd sizes lose their last row or column, which H.264 cannot store. Images of another size or aspect
    are scaled to fit, with black bars where their shape differs: no part is cut off.
    With `when_full="block"` a slow encoder blocks `write`; with "drop" images are left out and counted in
    `dropped`. Raises `SinkError` when the file cannot be written, at the latest in `close`.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        *,
        pixel_aspect: float = 1.0,
        when_full: Literal["block", "drop"] = "block",
        quality: int = 23,
    ) -> None:
        """`quality` is x264's constant rate factor: 18 looks lossless, 28 is small."""
        self.dropped = 0
        self.written = 0
        self._path = Path(path)
        self._size = size
        self._aspect = pixel_aspect
        self._width, self._height = size[0] // 2 * 2, size[1] // 2 * 2
        if min(self._width, self._height) < 2:
            raise SinkAddressError(f"a video of {size[0]}x{size[1]} pixels is too small: it needs 2x2 at least")
        self._when_full = when_full
        self._error = ""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.open("wb").close()
            # fragments while it grows, an ordinary file once it is closed
            self._container = av.open(
                str(self._path), "w", format="mp4", container_options={"movflags": "hybrid_fragmented"}
            )
        except OSError as error:
            raise self._cannot_write(error) from None
        stream = self._container.add_stream("libx264", options={"preset": "veryfast", "crf": str(quality), "bf": "0"})
        stream.width, stream.height = self._width, self._height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(pixel_aspect).limit_denominator(_MOST_ASPECT)
        stream.codec_context.time_base = stream.time_base = Fraction(1, _TICKS)
        stream.codec_context.thread_type = "SLICE"
        self._stream = stream
        self._queue: queue.Queue[tuple[npt.NDArray[np.uint8], int, float] | None] = queue.Queue(_QUEUE)
        self._thread = new_thread(self._run, name="video-writer")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, image: npt.NDArray[np.uint8], time_ns: int, pixel_aspect: float | None = None) -> None:
        """Adds an image, BGR (height, width, 3), which must not change afterwards.

        `time_ns` is its capture time; `pixel_aspect` that of the first image when absent.
        """
        item = (image, time_ns, self._aspect if pixel_aspect is None else pixel_aspect)
        if self._error:
            raise SinkError(self._error)
        if self._when_full == "block":
            self._queue.put(item)
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Encodes the remaining images and finishes the file. Safe to call twice."""
        if self._thread.is_alive():
            self._queue.put(None)
        self._thread.join()
        if self._error:
            raise SinkError(self._error)

    def _run(self) -> None:
        try:
            self._encode_all()
        except Exception as error:  # of any kind: otherwise `write` would block for ever
            if isinstance(error, OSError | av.FFmpegError):
                self._error = str(self._cannot_write(error))
            else:
                self._error = f"{self._path} cannot be written ({describe_error(error)})"
                log.error("%s", self._error, exc_info=error)
            while self._queue.get() is not None:
                self.dropped += 1

    def _encode_all(self) -> None:
        with self._container as container:
            first_ns = 0
            last = -1
            while (item := self._queue.get()) is not None:
                image, time_ns, aspect = item
                if last < 0:
                    first_ns = time_ns
                if image.shape[:2] != self._size[::-1] or abs(aspect / self._aspect - 1) > _SAME_ASPECT:
                    image = _fit_picture(image, self._size, aspect / self._aspect)
                picture = np.ascontiguousarray(image[: self._height, : self._width])
                frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
                # presentation times must rise even where capture times do not
                last = frame.pts = max((time_ns - first_ns) * _TICKS // 1_000_000_000, last + 1)
                frame.time_base = Fraction(1, _TICKS)
                container.mux(self._stream.encode(frame))
                self.written += 1
            if self.written:
                container.mux(self._stream.encode(None))
        if not self.written:
            self._path.unlink()  # a video without an image cannot be played

    def _cannot_write(self, error: OSError | av.FFmpegError) -> SinkError:
        return SinkError(
            f"{self._path} cannot be written ({error.strerror or error}): check the path, its rights and the space on "
            "the disk"
        )


def _fit_picture(image: npt.NDArray[np.uint8], size: tuple[int, int], stretch: float) -> npt.NDArray[np.uint8]:
    """The whole picture, as large as fits amid a black one of `size` (width, height).

    `stretch` is the width of its pixels by that of the result's.
    """
    import cv2

    height, width = image.shape[0], image.shape[1] * stretch
    scale = min(size[0] / width, size[1] / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
    return canvas
