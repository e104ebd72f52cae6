"""Structured logs: one JSON object a line on standard error, for log collectors."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from streamer.tasks.console import UserConsole

log = logging.getLogger("groundstream")


class LogFormat(StrEnum):
    """Forms of the log."""

    TEXT = "text"
    JSON = "json"


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: `time` (RFC 3339, UTC), `level`, `logger`, `message`, and `exception` with
    the traceback where there is one. Everything outside ASCII is escaped, so that a line is always one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as JSON."""
        moment = datetime.fromtimestamp(record.created, UTC)
        fields = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json.dumps(fields)


class JsonConsole(UserConsole):
    """A console that logs what is printed to it."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Logs the objects as one message, without the blanks that align columns."""
        log.info("%s", " ".join(" ".join(map(str, objects)).split()))


def use_json_log() -> None:
    """Makes the log of this process JSON on standard error, warnings of libraries included."""
    root = logging.getLogger()
    for handler in [one for one in root.handlers if type(one) is logging.StreamHandler]:
        root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root.addHandler(handler)
    logging.captureWarnings(True)


def is_json_log() -> bool:
    """Returns whether the log of this process is JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
