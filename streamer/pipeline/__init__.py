"""The pipeline: frames of all streams through one detector, then through tracking, rules and the spool."""

from streamer.pipeline.merge import FrameMerge
from streamer.pipeline.pipeline import Camera, Pipeline, Recorder, StateRelay, StreamReport

__all__ = ["Camera", "FrameMerge", "Pipeline", "Recorder", "StateRelay", "StreamReport"]
