"""Comparison of this GLIP with reference tensors, stage by stage: `python -m detectors.glip.check FOLDER`."""

from detectors.glip.check.command import main
from detectors.glip.check.model import check, measure_drift
from detectors.glip.check.report import CheckReport, ComparisonRow

__all__ = ["CheckReport", "ComparisonRow", "check", "main", "measure_drift"]
