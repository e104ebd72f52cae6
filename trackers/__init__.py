"""groundstream's multi-object trackers over `sv.Detections`, independent of video, models and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trackers.tracker import Tracker, TrackerError, TrackerInputError

if TYPE_CHECKING:
    from trackers.engine import TrackerEngine

__all__ = ["Tracker", "TrackerError", "TrackerInputError", "create_tracker", "tracker_names"]


def create_tracker(name: str = "default", **options: Any) -> TrackerEngine:
    """A new tracker for one stream.

    - `default`: this project's own. Adapts to how freely objects move, how the camera moves and how reliable the
      detector is, so that one setting serves pedestrians, sports, weak detectors and 7 to 60 frames a second.
    - `bytetrack`, `botsort`, `ocsort`, `sort`: the published trackers with their published constants.

    Any option of `trackers.options.TrackerOptions` may be changed, most useful: `high_score`, `low_score` and
    `birth_score` (which detections count), `lost_s` (seconds without a match after which a track is lost),
    `confirm_hits` (matches before a track is shown), `per_class`, `mask_weight` and `appearance` (further evidence).

        tracker = create_tracker("default", lost_s=2.0)
        for frame in frames:
            tracked = tracker.update(detections, frame.time_s)
            for box, number in zip(tracked.xyxy, tracked.tracker_id):
                ...

    The same input gives the same output, bit for bit. Raises `TrackerInputError` for an unknown name or option and for
    a value out of range.
    """
    from trackers.engine import TrackerEngine
    from trackers.options import build

    return TrackerEngine(build(name, options))


def tracker_names() -> tuple[str, ...]:
    """The names that `create_tracker` knows."""
    from trackers.options import PRESETS

    return tuple(PRESETS)
