"""The one reader of image files for all commands."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from streamer.errors import SourceError


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Returns an image file as BGR, (height, width, 3), uint8, turned upright by its EXIF orientation.

    Raises `SourceError` where the file cannot be read or holds no image.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise SourceError(f"cannot read the image {path}: {error.strerror}") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise SourceError(f"cannot decode the image {path}: give a JPEG, PNG, WebP, BMP or TIFF file")
    return np.asarray(image, dtype=np.uint8)
