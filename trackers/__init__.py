"""Multi-object trackers over `sv.Detections`. This package knows nothing of video, models or events."""

from trackers.tracker import Tracker, TrackerError

__all__ = ["Tracker", "TrackerError"]
