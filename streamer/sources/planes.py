"""Decoded pictures as plain bytes: packed by one process into shared memory, converted to BGR by another.

The decoder's own format takes half of the room of BGR, and converting to BGR costs more than copying. So pictures cross
as they were decoded where `from_planes` can read them in place; others are converted before they cross.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from streamer.sources.orientation import UPRIGHT, Orientation

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

BGR = "bgr24"
_PLANAR = frozenset({"yuv420p", "yuvj420p", "nv12"})  # 3/2 bytes a pixel, readable in place

_converters = threading.local()


class PictureLayout(NamedTuple):
    """How the bytes of one picture are to be read. `orientation` is still to be applied; `width` and `height` are those
    before it. `colorspace` and `color_range` are FFmpeg's numbers."""

    pixel_format: str
    width: int
    height: int
    orientation: Orientation = UPRIGHT
    colorspace: int = 2  # unspecified
    color_range: int = 0  # unspecified

    @property
    def byte_count(self) -> int:
        pixels = self.width * self.height
        return pixels * 3 if self.pixel_format == BGR else pixels * 3 // 2


def layout_of(frame: VideoFrame, orientation: Orientation) -> PictureLayout | None:
    """How `frame` would be packed; None where it has to be converted to BGR first."""
    name = frame.format.name
    # PyAV derives the height of an array of planes by whole units of six rows, and wants even widths.
    if name not in _PLANAR or frame.height % 4 or frame.width % 2:
        return None
    return PictureLayout(name, frame.width, frame.height, orientation, int(frame.colorspace), int(frame.color_range))


def pack_planes(frame: VideoFrame, buffer: memoryview) -> None:
    """Copy the planes of `frame` into `buffer`, row after row without padding."""
    offset = 0
    for plane in frame.planes:
        width = plane.width * (2 if frame.format.name == "nv12" and offset else 1)  # bytes: U and V side by side
        height = plane.height
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]  # type: ignore[call-overload]
        np.copyto(np.frombuffer(buffer, np.uint8, height * width, offset).reshape(height, width), rows)
        offset += height * width


def from_planes(layout: PictureLayout, buffer: memoryview) -> npt.NDArray[np.uint8]:
    """The picture in `buffer`: BGR, (height, width, 3), uint8, upright, in memory of its own."""
    data = np.frombuffer(buffer, np.uint8, layout.byte_count)
    if layout.pixel_format == BGR:
        return data.reshape(layout.height, layout.width, 3).copy()
    planes = data.reshape(layout.height * 3 // 2, layout.width)
    frame = av.VideoFrame.from_numpy_buffer(planes, layout.pixel_format)
    frame.colorspace = layout.colorspace
    frame.color_range = layout.color_range
    return upright_bgr(frame, layout.orientation)


def upright_bgr(frame: VideoFrame, orientation: Orientation) -> npt.NDArray[np.uint8]:
    """`frame` as BGR, (height, width, 3), uint8, made upright."""
    # A converter keeps its tables, so one serves a thread for all its pictures; more threads inside it cost more
    # than they give at these sizes.
    if not hasattr(_converters, "mine"):
        _converters.mine = VideoReformatter()
    converter: VideoReformatter = _converters.mine
    bgr = converter.reformat(frame, format=BGR, threads=1).to_ndarray()
    return orientation.apply(cast("npt.NDArray[np.uint8]", bgr))
