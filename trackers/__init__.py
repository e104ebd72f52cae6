"""Multi-object trackers over `sv.Detections`. This package knows nothing of video, models or events."""

from __future__ import annotations

from typing import Any

from trackers.tracker import Tracker, TrackerError, TrackerInputError

__all__ = ["Tracker", "TrackerError", "TrackerInputError", "create_tracker", "tracker_names"]


def create_tracker(name: str = "default", **options: Any) -> Tracker:
    """A new tracker for one stream: `default`, `bytetrack`, `botsort`, `ocsort` or `sort`, with some options changed.

    `trackers.options.Options` lists the options. Raises `TrackerInputError` for a name, option or value that does not
    exist.
    """
    from trackers.engine import Engine
    from trackers.options import build

    return Engine(build(name, options))


def tracker_names() -> tuple[str, ...]:
    """The names that `create_tracker` knows."""
    from trackers.options import PRESETS

    return tuple(PRESETS)
