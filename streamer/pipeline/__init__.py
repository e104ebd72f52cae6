"""The pipeline: frames of all streams through one detector, then through tracking, rules and the spool."""

from streamer.pipeline.merge import FrameMerge
from streamer.pipeline.pipeline import NewEnricher, Pipeline
from streamer.pipeline.stream import Recorder, StateRelay, Stream, StreamReport

__all__ = ["FrameMerge", "NewEnricher", "Pipeline", "Recorder", "StateRelay", "Stream", "StreamReport"]
