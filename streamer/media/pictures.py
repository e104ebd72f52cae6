"""JPEG pictures of frames: encoding, the part around a box, and a drawn box."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""BGR, (height, width, 3)."""

_BOX_COLOUR = (255, 155, 47)
_REFERENCE_HEIGHT = 200.0
"""Height in pixels of a picture whose boxes are one pixel thick."""


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Returns the image as JPEG of `quality` 1 to 100. Raises `ValueError` when OpenCV refuses it."""
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("OpenCV could not encode the picture")
    return data.tobytes()


def decode_jpeg(picture: bytes) -> Image:
    """Returns the image of a JPEG. Raises `ValueError` when it is none."""
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("OpenCV could not decode the picture")
    return np.asarray(image, np.uint8)


def cut_around(image: Image, box: Sequence[float]) -> Image:
    """Returns the part of the image around a box (x1, y1, x2, y2, fractions), with a margin, 5:3 where that fits."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = box
    high = max(abs(y2 - y1) * height * 1.3, 24.0)
    wide = max(abs(x2 - x1) * width * 1.3, high * 5 / 3)
    high = max(high, wide * 3 / 5)
    wide, high = min(wide, width), min(high, height)
    left = min(max(0.0, (x1 + x2) / 2 * width - wide / 2), width - wide)
    top = min(max(0.0, (y1 + y2) / 2 * height - high / 2), height - high)
    return image[int(top) : int(top + high), int(left) : int(left + wide)]


def draw_box(image: Image, box: Sequence[float]) -> Image:
    """Returns a copy of the image with the box (x1, y1, x2, y2, fractions) drawn on it."""
    canvas = image.copy()
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = box
    start, end = (round(x1 * width), round(y1 * height)), (round(x2 * width), round(y2 * height))
    cv2.rectangle(canvas, start, end, _BOX_COLOUR, max(1, round(height / _REFERENCE_HEIGHT)))
    return canvas


def fit_within(image: Image, longest_side: int) -> Image:
    """Returns the image, made smaller where a side is longer than `longest_side` pixels."""
    height, width = image.shape[:2]
    factor = longest_side / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def square_pixels(image: Image, pixel_aspect: float) -> Image:
    """Returns the image with square pixels; `pixel_aspect` is the width of its pixels by their height."""
    width = round(image.shape[1] * pixel_aspect)
    if width == image.shape[1] or width < 1:
        return image
    return np.asarray(cv2.resize(image, (width, image.shape[0]), interpolation=cv2.INTER_LINEAR), np.uint8)
