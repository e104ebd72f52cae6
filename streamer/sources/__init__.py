"""Sources of frames: files, cameras, folders of images and the synthetic street."""

from streamer.sources.opening import open_sources
from streamer.sources.source import OnState, Source, SourceState, StateChange

__all__ = ["OnState", "Source", "SourceState", "StateChange", "open_sources"]
