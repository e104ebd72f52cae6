"""The public door of groundstream: everything that an application needs, in one import.

    import groundstream

    async for event in groundstream.watch("street.mp4", ["a red car"]):
        print(event.time, event.type, event.subject)

    for event in groundstream.watch_sync("street.mp4", "a red car"):  # without an event loop
        print(event.time, event.type, event.subject)

Names load on first use, so that `import groundstream` takes milliseconds. `python -m groundstream` is the command line.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectors import Detector, DetectorError, PromptError, Request, create_detector
    from sinks import Event, PoisonError, Sink, SinkAddressError, SinkError, open_sink
    from sinks.subscribe import subscribe
    from streamer.api import TrackedFrame, process, watch, watch_frames, watch_frames_sync, watch_sync
    from streamer.build import open_pipeline
    from streamer.config import Config, load_config, parse_config
    from streamer.errors import ConfigError, SourceAddressError, SourceError, StreamerError
    from streamer.frame import Frame
    from streamer.pipeline import Pipeline, Recorder
    from streamer.rules.rule import Rule
    from streamer.sources import Source, open_sources
    from streamer.web.client import connect
    from trackers import Tracker, TrackerError, create_tracker

__version__ = "0.1.0"

__all__ = [
    "Config",
    "ConfigError",
    "Detector",
    "DetectorError",
    "Event",
    "Frame",
    "GroundstreamError",
    "Pipeline",
    "PoisonError",
    "PromptError",
    "Recorder",
    "Request",
    "Rule",
    "Sink",
    "SinkAddressError",
    "SinkError",
    "Source",
    "SourceAddressError",
    "SourceError",
    "StreamerError",
    "TrackedFrame",
    "Tracker",
    "TrackerError",
    "__version__",
    "connect",
    "create_detector",
    "create_tracker",
    "load_config",
    "main",
    "open_pipeline",
    "open_sink",
    "open_sources",
    "parse_config",
    "process",
    "subscribe",
    "watch",
    "watch_frames",
    "watch_frames_sync",
    "watch_sync",
]

_PLACES = {
    "detectors": ("Detector", "DetectorError", "PromptError", "Request", "create_detector"),
    "sinks": ("Event", "PoisonError", "Sink", "SinkAddressError", "SinkError", "open_sink"),
    "sinks.subscribe": ("subscribe",),
    "streamer.api": ("TrackedFrame", "process", "watch", "watch_frames", "watch_frames_sync", "watch_sync"),
    "streamer.build": ("open_pipeline",),
    "streamer.config": ("Config", "load_config", "parse_config"),
    "streamer.errors": ("ConfigError", "SourceAddressError", "SourceError", "StreamerError"),
    "streamer.frame": ("Frame",),
    "streamer.pipeline": ("Pipeline", "Recorder"),
    "streamer.rules.rule": ("Rule",),
    "streamer.web.client": ("connect",),
    "streamer.sources": ("Source", "open_sources"),
    "trackers": ("Tracker", "TrackerError", "create_tracker"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}
_PACKAGES = ("streamer", "detectors", "trackers", "sinks")


class GroundstreamError(Exception):
    """Base of every error that groundstream raises on purpose; its text is one sentence for the user.

    Families: `DetectorError`, `SinkError`, `StreamerError` (with `SourceError` and `ConfigError`), `TrackerError`.
    Errors in what the caller asked for are `ValueError`s too.
    """


def __getattr__(name: str) -> Any:
    place = _PLACE_OF.get(name)
    if place is None:
        raise AttributeError(f"module 'groundstream' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(place), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def foreign_package() -> str | None:
    """Returns one sentence when another distribution or folder hides one of our import packages, else None."""
    for name in _PACKAGES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            return f"the package {name!r} is incomplete: another distribution of that name was removed; {_REPAIR}"
        with open(spec.origin, encoding="utf-8", errors="replace") as file:
            if "groundstream" not in file.read(400):
                return (
                    f"the package {name!r} at {spec.origin} belongs to another project, not to groundstream: uninstall "
                    f"that project (or rename that folder), then {_REPAIR}, or use an environment of its own"
                )
    return None


_REPAIR = "run pip install --force-reinstall --no-deps groundstream"


def main() -> None:
    """Runs the command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
    try:
        if (problem := foreign_package()) is not None:
            sys.stderr.write(f"groundstream: {problem}\n")
            sys.exit(1)
        import_module("streamer.cli").main()
    except KeyboardInterrupt:  # also while modules load
        sys.exit(130)


if __name__ == "__main__":
    main()
