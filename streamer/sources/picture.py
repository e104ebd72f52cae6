"""Reader of single picture files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from streamer.errors import SourceError


class PictureError(SourceError, ValueError):
    """A picture file that cannot be read."""


def read_picture(path: Path, *, as_stored: bool = False) -> npt.NDArray[np.uint8]:
    """The picture as BGR, (height, width, 3), uint8, turned upright by its EXIF data unless it is wanted `as_stored`.

    Raises `PictureError`.
    """
    turning = cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise PictureError(f"cannot read the picture {path}: {error.strerror}") from error
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | turning) if data.size else None
    except cv2.error:
        image = None  # more pixels than OpenCV decodes
    if image is None:
        raise PictureError(f"cannot decode the picture {path}: expected a JPEG, PNG, WebP, BMP or TIFF file")
    return np.asarray(image, dtype=np.uint8)
