"""Pictures that cross as they were decoded: the same pixels as a conversion in place, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.sources.decode import DecodedPicture, VideoReader
from streamer.sources.planes import from_planes
from tests.support.clips import make_clip


def pictures(path: Path) -> list[DecodedPicture]:
    with VideoReader(str(path)) as video:
        return [picture for picture in video.pictures() if isinstance(picture, DecodedPicture)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("padded.mp4", {"size": (324, 244)}),  # rows that a decoder pads
        ("turned.mp4", {"rotation": 90}),
        ("full-range.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("bt709.mp4", {"options": {"x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709"}}),
        ("full-range.mp4", {"options": {"x264-params": "fullrange=on:colormatrix=smpte170m"}}),
    ],
)
def test_packed_pictures_have_the_pixels_of_converted_ones(tmp_path: Path, name: str, options: dict[str, Any]):
    decoded = pictures(make_clip(tmp_path / name, 6, **options))
    assert decoded
    for picture in decoded:
        packing = picture.packing()
        assert packing is not None
        layout, fill = packing
        buffer = memoryview(bytearray(layout.byte_count + 64))
        fill(buffer)
        assert np.array_equal(from_planes(layout, buffer), picture())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("height.mp4", {"size": (320, 242)}),  # PyAV reads arrays of planes by six rows
        ("chroma-422.mp4", {"pix_fmt": "yuv422p"}),
        ("ten-bit.mkv", {"pix_fmt": "yuv420p10le"}),
    ],
)
def test_formats_that_cannot_be_read_in_place_are_converted_first(tmp_path: Path, name: str, options: dict[str, Any]):
    assert [picture.packing() for picture in pictures(make_clip(tmp_path / name, 2, **options))] == [None, None]
