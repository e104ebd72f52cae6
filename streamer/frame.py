"""One picture of one stream, and what is known of the time it was taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class FrameClock:
    """How a frame's capture time was found.

    `uncertainty_ms` is None where nothing is known of the absolute time, as in a file without a recording date, whose
    times then count from 1970. `received_ns` (UTC) is None for files. `connection` rises with each reconnect.
    """

    basis: Literal["rtcp_sr", "file_pts", "arrival"]
    uncertainty_ms: float | None = None
    received_ns: int | None = None
    connection: int = 0


class Frame:
    """One picture of one stream. Read-only.

    `stream` is the stream's name; `index` counts every frame received, so a gap is a drop; `time_ns` is the capture
    time, UTC nanoseconds, rising within a stream; `image` is BGR, (height, width, 3), uint8. `pixel_aspect` is the
    width of a pixel by its height, 1 for nearly all cameras. A decoder may hand over a function instead of pixels:
    converting to BGR costs more than a tenth of decoding, and dropped frames need none.
    """

    __slots__ = ("_pixels", "clock", "height", "index", "pixel_aspect", "stream", "time_ns", "width")

    def __init__(
        self,
        stream: str,
        index: int,
        time_ns: int,
        clock: FrameClock,
        pixels: npt.NDArray[np.uint8] | Callable[[], npt.NDArray[np.uint8]],
        size: tuple[int, int],
        pixel_aspect: float = 1.0,
    ) -> None:
        """`size` is (width, height) of the picture that `pixels` is or makes."""
        self.stream = stream
        self.index = index
        self.time_ns = time_ns
        self.clock = clock
        self.width, self.height = size
        self.pixel_aspect = pixel_aspect
        self._pixels = pixels

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """BGR, (height, width, 3), uint8; converted at the first look, from any thread."""
        pixels = self._pixels
        if callable(pixels):
            pixels = self._pixels = pixels()
        return pixels

    @property
    def pixels(self) -> npt.NDArray[np.uint8] | Callable[[], npt.NDArray[np.uint8]]:
        """The image, or the function that makes it where it has not been converted yet."""
        return self._pixels

    @property
    def time_s(self) -> float:
        return self.time_ns / 1e9

    def __repr__(self) -> str:
        return f"Frame({self.stream!r}, {self.index}, {self.time_s:.3f} s, {self.width}x{self.height})"
