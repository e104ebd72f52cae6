"""How long frames, batches of the detector and deliveries take, as histograms."""

from __future__ import annotations

from sinks.histogram import Histogram

_SIZES = (1, 2, 4, 8, 16, 32, 64)


class PipelineTimings:
    """Batches of the detector: seconds and frames; seconds from capture to events of frames, by stream."""

    def __init__(self) -> None:
        self.batch_seconds = Histogram()
        self.batch_frames = Histogram(_SIZES)
        self.frame_seconds: dict[str, Histogram] = {}

    def note_batch(self, frames: int, seconds: float) -> None:
        """Counts one call of the detector."""
        self.batch_seconds.observe(seconds)
        self.batch_frames.observe(frames)

    def note_frame(self, stream: str, seconds: float) -> None:
        """Counts a frame of a live stream whose events were made `seconds` after its capture."""
        histogram = self.frame_seconds.get(stream)
        if histogram is None:
            histogram = self.frame_seconds[stream] = Histogram()
        histogram.observe(max(0.0, seconds))
