"""Jobs on recordings: units of work, result folders that appear when they are complete, and the runner."""

from streamer.jobs.job import ProcessJob, StreamSummary
from streamer.jobs.runner import JobReport, run_job

__all__ = ["JobReport", "ProcessJob", "StreamSummary", "run_job"]
