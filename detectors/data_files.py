"""Text and JSON files of data sets: encodings, byte order marks, and errors that name the place."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from detectors.detector import DetectorError

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class DataSetError(DetectorError, ValueError):
    """A data set or a file of results that cannot be used; the message names file, place and remedy."""


def read_text(path: Path) -> str:
    """A text file in UTF-8, or as its byte order mark says. Raises `DataSetError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataSetError(f"cannot read {path}: {error.strerror}") from error
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataSetError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def parse_json(text: str, path: Path) -> Any:
    """JSON without NaN and infinity. Raises `DataSetError`."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number in JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise DataSetError(f"{path} line {error.lineno}, column {error.colno} is not JSON: {error.msg}") from error
    except ValueError as error:
        raise DataSetError(f"{path} is not JSON: {error}") from error
    except RecursionError:
        raise DataSetError(f"{path} is nested too deeply to be a data set") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `DataSetError`."""
    return parse_json(read_text(path), path)
