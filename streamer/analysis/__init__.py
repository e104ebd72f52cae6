"""Analysis of one stream: from detections to tracks, findings of the rules and events."""

from streamer.analysis.queries import Query, QueryBook, QueryChange, QuerySet
from streamer.analysis.stream_analysis import CoverageMeter, StreamAnalysis

__all__ = ["CoverageMeter", "Query", "QueryBook", "QueryChange", "QuerySet", "StreamAnalysis"]
