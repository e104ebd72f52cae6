"""groundstream's detectors: objects named in plain words, found in images.

`Detector` is the contract of every model, `create_detector(name)` makes one by name. The package is independent of
streams, tracks and events.
"""

from detectors.detector import Detector, DetectorError, Prompt, PromptError, Request
from detectors.registry import create_detector, detector_names

__all__ = ["Detector", "DetectorError", "Prompt", "PromptError", "Request", "create_detector", "detector_names"]
