"""Small test videos whose frames carry their own number, readable by a machine after any encoding."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

_BITS = 12
_CHECK_BITS = 4
_TIME_BASE = Fraction(1, 90_000)


def draw(index: int, size: tuple[int, int] = (320, 240)) -> npt.NDArray[np.uint8]:
    """A picture of `size` (width, height), BGR: a drifting pattern, and `index` as black and white cells on top."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([(x + 3 * index) % 256, (y + 2 * index) % 256, (x + y - 5 * index) % 256], axis=-1)
    cell = width // (_BITS + _CHECK_BITS)
    code = index % 2**_BITS
    bits = [(code >> n) & 1 for n in range(_BITS)] + [(_check(code) >> n) & 1 for n in range(_CHECK_BITS)]
    for n, bit in enumerate(bits):
        image[0:cell, n * cell : (n + 1) * cell] = 255 * bit
    return image.astype(np.uint8)


def read_index(image: npt.NDArray[np.uint8]) -> int | None:
    """The number that `draw` put into the picture (modulo 4096); None where it cannot be read or is damaged."""
    cell = image.shape[1] // (_BITS + _CHECK_BITS)
    inner = slice(cell // 4, cell - cell // 4)
    means = [float(image[inner, n * cell + cell // 4 : (n + 1) * cell - cell // 4].mean()) for n in range(16)]
    if any(64 < mean < 192 for mean in means):
        return None
    bits = [mean > 128 for mean in means]
    code = sum(bit << n for n, bit in enumerate(bits[:_BITS]))
    check = sum(bit << n for n, bit in enumerate(bits[_BITS:]))
    return code if check == _check(code) else None


def _check(code: int) -> int:
    """Four bits that differ between numbers that differ in a few bits, and are not all zero for zero."""
    return (code * 7 + (code >> 4) * 3 + (code >> 8) * 5 + 9) % 2**_CHECK_BITS


def make_clip(
    path: Path | str,
    frames: int = 50,
    *,
    size: tuple[int, int] = (320, 240),
    fps: float = 25.0,
    times_s: Sequence[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 10,
    rotation: int = 0,
    metadata: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
    form: str | None = None,
    first: int = 0,
) -> Path:
    """Encode frames numbered from `first`, shown at `times_s` (seconds, else every 1/`fps`). Returns `path`."""
    with own_scheduling(), av.open(str(path), "w", format=form) as container:
        container.metadata.update(metadata or {})
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.gop_size = gop
        stream.codec_context.time_base = _TIME_BASE if codec not in _COARSE else 1 / rate
        stream.options = {**_OPTIONS.get(codec, {}), **(options or {})}
        if rotation:
            stream.set_display_rotation(rotation)
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(first + n, size), format="bgr24").reformat(format=pix_fmt)
            frame.time_base = stream.codec_context.time_base
            frame.pts = round((times_s[n] if times_s is not None else n / fps) / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


@contextlib.contextmanager
def own_scheduling() -> Iterator[None]:
    """Restores the scheduling of the calling thread.

    Run by root, SVT-AV1 puts the thread that opens it on real-time priority 99, which all later threads and processes
    of the tests would inherit.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


# Every key frame opens a closed group of pictures, as cameras make them, unless a test asks for something else.
_OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "20", "sc_threshold": "0"},
    "libx265": {"preset": "ultrafast", "crf": "20", "x265-params": "log-level=none:scenecut=0:open-gop=0"},
}

_COARSE = {"mpeg2video", "mpeg4", "mjpeg", "wrapped_avframe"}  # codecs whose containers count frames, not ticks
