"""Choice of a detector by name and options: one way from the command line, a configuration or Python to a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from streamer.errors import ConfigError

if TYPE_CHECKING:
    from detectors import Detector
    from streamer.config import DetectorConfig


@dataclass(frozen=True, slots=True)
class DetectorChoice:
    """The detector options of a command. What is None or empty was not given; `options` are texts `NAME=VALUE`."""

    name: str | None = None
    weights: Path | None = None
    tuned: Path | None = None
    device: str | None = None
    threshold: float | None = None
    masks: str | None = None
    options: Sequence[str] = ()

    def section(self) -> dict[str, Any]:
        """The `detector:` section of a configuration. Raises `ConfigError` on an option that is not `NAME=VALUE`."""
        named = {
            "name": self.name,
            "weights": self.weights,
            "tuned": self.tuned,
            "device": self.device,
            "threshold": self.threshold,
            "masks": self.masks,
        }
        given = {name: value for name, value in named.items() if value is not None}
        for name, value in parse_options(self.options).items():
            if name in given:
                flag = "--detector" if name == "name" else f"--{name}"
                raise ConfigError(
                    f"detector option {name!r} is given twice, by --detector-option and by {flag}: keep one"
                )
            given[name] = value
        return given

    @property
    def flags(self) -> dict[str, object]:
        """The command-line flag of each option that was given, with its value."""
        values = {
            "--detector": self.name,
            "--weights": self.weights,
            "--tuned": self.tuned,
            "--device": self.device,
            "--threshold": self.threshold,
            "--masks": self.masks,
            "--detector-option": list(self.options) or None,
        }
        return {flag: value for flag, value in values.items() if value is not None}

    def load(self, queries: Sequence[str] = ()) -> Detector:
        """The detector itself; `queries` decide which one it is where no name was given."""
        from streamer.config import parse_detector

        return load_detector(parse_detector(self.section(), queries))


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """`["short_side=544", "dtype=bfloat16"]` as a mapping; values are read as YAML. Raises `ConfigError`."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise ConfigError(f"cannot parse detector option {text!r}: expected NAME=VALUE, such as short_side=544")
        if name in found:
            raise ConfigError(f"detector option {name!r} is given twice: keep one")
        try:
            found[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):  # a date that does not exist is a ValueError
            found[name] = value
    return found


def load_detector(config: DetectorConfig) -> Detector:
    """The detector that a configuration names, with masks where it asks for them.

    Options that were not given keep the detector's own defaults. Raises `DetectorError` on an unknown name or option
    and on whatever loading fails of, `ConfigError` where embeddings are wanted that the detector does not have.
    """
    from detectors import create_detector
    from detectors.registry import detector_options

    options: Mapping[str, Any] = {
        "weights": config.weights,
        "tuned": config.tuned,
        "device": config.device,
        "threshold": config.threshold,
        **(config.model_extra or {}),
    }
    if options.get("embed") and "embed" not in detector_options(config.name):
        raise ConfigError(
            f"the detector {config.name!r} gives no embeddings: for tracker.reid use a GLIP model, or a function of "
            "your own, MODULE:FUNCTION"
        )
    detector = create_detector(config.name, **{name: value for name, value in options.items() if value is not None})
    if config.gate is not None:
        detector = _put_behind_gate(detector, config, config.gate)
    if config.masks is None:
        return detector
    from detectors.glamm.box_masks import BoxMasks, WithMasks

    return WithMasks(detector, BoxMasks.load(config.masks, config.device))


def _put_behind_gate(detector: Detector, config: DetectorConfig, gate_name: str) -> Detector:
    """The detector as the large one of a cascade. Raises `ConfigError` where it is as cheap as its gate."""
    from detectors import create_detector
    from detectors.cascade import CascadeDetector
    from detectors.nanodet.vocabulary import NAMES
    from detectors.registry import ANYTHING_THAT_MOVES

    if config.name in ("motion", gate_name):
        raise ConfigError(f"the detector {config.name} needs no gate: leave `gate` out, or name a larger detector")
    gate = create_detector(gate_name)
    queries = [ANYTHING_THAT_MOVES] if gate_name == "motion" else list(NAMES)
    return CascadeDetector(
        detector, gate, queries, moving_every=config.gate_moving_every, still_every=config.gate_still_every
    )
