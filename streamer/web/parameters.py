"""Parameters of requests that several routes read."""

from __future__ import annotations

from datetime import UTC, datetime

from streamer.web.problems import Problem


def parse_time(name: str, text: str) -> int:
    """Returns the UTC milliseconds of an RFC 3339 time. Raises `Problem` 422."""
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise Problem(422, f"{name} {text!r} is not a time: write it as 2026-05-04T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return int(moment.timestamp() * 1000)
    except (OverflowError, ValueError):
        raise Problem(422, f"{name} {text!r} lies outside of the years 1 to 9999") from None
