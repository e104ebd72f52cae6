"""Detection of one long recording in parts: what can be divided, the work on one part, and where its result lies."""

from __future__ import annotations

from pathlib import Path

from detectors import Detector, Request
from detectors.registry import is_frame_detector
from streamer.analysis.queries import QueryBook
from streamer.assembly import settings_hash
from streamer.jobs.job import ProcessJob, job_config
from streamer.jobs.result_folder import ResultFolder
from streamer.jobs.stored_detections import DetectionWriter
from streamer.jobs.units import RecordingUnit, digest, identify_settings
from streamer.pipeline.sections import default_threshold, make_queries, make_sampling
from streamer.sources import open_sources
from streamer.sources.file import FileSource
from streamer.sources.identity import identify_recording
from streamer.sources.segments import Segment, find_segments, read_segment

LEAST_SEGMENT_S = 60.0
SEGMENTS_PER_WORKER = 4
"""More parts than workers, so that a slow one does not hold up the others."""


def can_split(job: ProcessJob) -> bool:
    """Whether detections of the job depend on one picture alone."""
    return is_frame_detector(job_config(job).detector.name)


def plan_segments(
    job: ProcessJob, unit: RecordingUnit, workers: int, least_s: float = LEAST_SEGMENT_S
) -> list[Segment]:
    """Returns the parts of a recording for so many workers; none where it is complete, short or cannot be divided.

    `least_s` is the least length of a part in seconds. Raises `SourceError`.
    """
    source = _open_file(unit)
    earlier = ResultFolder(job.out, unit.name).read_summary()
    if source is None or (earlier is not None and not (job.again or earlier.get("error"))):
        return []
    sampling = make_sampling(job_config(job).streams[0])
    return find_segments(
        source, sampling, batch=job.batch, length_s=least_s, most=max(1, SEGMENTS_PER_WORKER * workers)
    )


def segment_path(job: ProcessJob, unit: RecordingUnit, segment: Segment) -> Path:
    """Returns where the detections of a part lie: among the attempts of the recording, which go when it is complete."""
    config = job_config(job)
    identity = digest([identify_recording(unit.address), identify_settings(job, settings_hash(config)), str(job.batch)])
    return ResultFolder(job.out, unit.name).parts / f"{identity}-{segment.first}-{segment.end}.npz"


def detect_segment(job: ProcessJob, unit: RecordingUnit, segment: Segment, detector: Detector) -> Path:
    """Detects in a part of a recording, unless that was done before; returns the file of its detections.

    Raises `SegmentError`, `DetectorError` and `OSError`.
    """
    path = segment_path(job, unit, segment)
    if path.exists():
        return path
    source = _open_file(unit)
    assert source is not None, "a planned segment is part of a file"
    config = job_config(job)
    queries = QueryBook(make_queries(config.streams[0], config)).at()
    prompt = detector.prepare([query.text for query in queries])
    thresholds = [query.least_score(default_threshold(config, detector)) for query in queries]
    writer = DetectionWriter(detector.threshold, prompt.queries)
    wanted = set(segment.wanted)
    batch: list[Request] = []

    def detect_batch() -> None:
        for request, found in zip(batch, detector.detect(batch) if batch else (), strict=True):
            writer.add(request.image, found)
        batch.clear()

    for number, picture in read_segment(source, segment):
        if number % job.batch == 0:
            detect_batch()
        if number in wanted:
            batch.append(Request(picture, prompt, unit.name, thresholds))
    detect_batch()
    writer.save(path)
    return path


def _open_file(unit: RecordingUnit) -> FileSource | None:
    """The recording as a file; None for cameras, pictures and what can be read only once."""
    if unit.error or unit.live:
        return None
    sources = open_sources(unit.address)
    if len(sources) != 1 or not isinstance(sources[0], FileSource):
        return None
    source = sources[0]
    return source if source.recording is not None or "://" in (source.remote or "") else None
