"""Things named in words, found in pictures.

`Detector` is the contract that every model fulfils; `create_detector(name)` makes one by name.
This package knows nothing of streams, tracks or events.
"""

from detectors.detector import Detector, DetectorError, Prompt, PromptError, Request
from detectors.registry import create_detector, detector_names

__all__ = ["Detector", "DetectorError", "Prompt", "PromptError", "Request", "create_detector", "detector_names"]
