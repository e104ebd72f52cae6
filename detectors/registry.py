"""Detectors by name. The module of a detector is imported when that detector is created.

Other distributions add detectors by entry points: group `groundstream.detectors`, name = the detector's name, value = a
function that takes the name and the options and returns a `Detector`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from detectors.detector import Detector, DetectorError

ANYTHING_THAT_MOVES = "anything that moves"
"""The one query of the motion detector."""

# name (or prefix ending in "-") -> "module:factory"; a factory takes the full name and the options
_FACTORIES: dict[str, str] = {
    "motion": "detectors.motion:create",
    "scripted": "detectors.scripted:create",
    "glip-": "detectors.glip.detector:create",
    "grounding-dino-": "detectors.zero_shot:create",
    "mm-grounding-dino-": "detectors.zero_shot:create",
    "owlv2-": "detectors.zero_shot:create",
}


class UnknownDetector(DetectorError, ValueError):
    """No detector has that name."""


class UnknownOption(DetectorError, ValueError):
    """The detector does not take that option."""


def detector_names() -> list[str]:
    """Every name that `create_detector` takes; a name ending in "-" stands for a family."""
    return list(_FACTORIES)


def create_detector(name: str, **options: Any) -> Detector:
    """The detector called `name`: `motion`, `scripted:ANSWERS.json`, `glip-tiny`, `grounding-dino-tiny`, ...

    What stands behind a colon in the name is passed to the factory as `argument`. Options are those of the detector's
    own factory: `weights`, `device`, `threshold`, ...
    Raises `UnknownDetector` with the nearest names, `UnknownOption` with those there are, and what the detector's own
    loading raises.
    """
    base, _, argument = name.partition(":")
    for key, target in _FACTORIES.items():
        if base == key or (key.endswith("-") and base.startswith(key)):
            module, _, factory = target.partition(":")
            create: Callable[..., Detector] = getattr(import_module(module), factory)
            _check_options(base, argument, options, set(inspect.signature(create).parameters) - {"name"})
            return create(base, **options, **({"argument": argument} if argument else {}))
    for point in entry_points(group="groundstream.detectors", name=base):
        added: Detector = point.load()(base, **options, **({"argument": argument} if argument else {}))
        return added
    near = difflib.get_close_matches(base, [key.rstrip("-") for key in _FACTORIES], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UnknownDetector(f"no detector is called {base!r}: {hint}known are {', '.join(_FACTORIES)}")


def _check_options(name: str, argument: str, options: Mapping[str, Any], allowed: set[str]) -> None:
    if argument and "argument" not in allowed:
        raise UnknownOption(f"{name}:{argument} is no detector: {name!r} takes nothing after a colon")
    if unknown := sorted(options.keys() - allowed):
        ours = ", ".join(sorted(allowed - {"argument"}))
        raise UnknownOption(f"the detector {name!r} has no option {unknown[0]!r}: it takes {ours}")
