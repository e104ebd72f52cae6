"""Registry of detectors: names, factories and their options. A detector's module is imported when it is created.

Other distributions add detectors by entry points: group `groundstream.detectors`, name = the detector's name, value = a
function that takes the name and the options and returns a `Detector`.
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from detectors.detector import Detector, DetectorError, OptionError

ANYTHING_THAT_MOVES = "anything that moves"
"""The one query of the motion detector."""

# name (or prefix ending in "-") -> "module:factory"; a factory takes the full name and the options
_FACTORIES: dict[str, str] = {
    "motion": "detectors.motion:create",
    "scripted": "detectors.scripted:create",
    "coco-nano": "detectors.nanodet.detector:create",
    "glip-": "detectors.glip.detector:create",
    "grounding-dino-": "detectors.zero_shot:create",
    "mm-grounding-dino-": "detectors.zero_shot:create",
    "llmdet-": "detectors.zero_shot:create",
    "owlv2-": "detectors.zero_shot:create",
    "omdet-turbo-": "detectors.omdet:create",
    "sam3": "detectors.sam3:create",
    "rf-detr-": "detectors.closed:create",
    "d-fine-": "detectors.closed:create",
    "rt-detr-v2-": "detectors.closed:create",
}
_REMEMBERING = frozenset({"motion", "scripted"})
"""Detectors whose results depend on the pictures that the stream showed before."""

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    Mapping: "a mapping",
    Sequence: "a list",
}
"""How an error names the kinds of values that options take."""


class UnknownDetector(DetectorError, ValueError):
    """No detector has that name."""


class UnknownOption(OptionError):
    """The detector does not take that option."""


def default_detector(queries: Sequence[str], usual: str = "glip-tiny") -> str:
    """The detector for queries where none is named: `usual`, or motion for the one query that needs no model."""
    words = {" ".join(query.split()).lower() for query in queries}
    return "motion" if words == {ANYTHING_THAT_MOVES} else usual


def detector_names() -> list[str]:
    """Every name that `create_detector` takes; a name ending in "-" stands for a family."""
    return list(_FACTORIES)


def create_detector(name: str, **options: Any) -> Detector:
    """The detector called `name`: `motion`, `scripted:ANSWERS.json`, `glip-tiny`, `grounding-dino-tiny`, ...

    Text after a colon in the name is passed to the factory as `argument`. Options are those of the detector's own
    factory (`detector_options`): `weights`, `device`, `threshold`, ...; None stands for the default.
    Raises `UnknownDetector` with the nearest names, `UnknownOption` with those that exist, `OptionError` for a value
    of the wrong kind, and what the detector's own loading raises.
    """
    base, _, argument = name.partition(":")
    create = _find_factory(base)
    _check_options(base, argument, options, _option_types(create))
    given = {option: value for option, value in options.items() if value is not None}
    return create(base, **given, **({"argument": argument} if argument else {}))


def is_frame_detector(name: str) -> bool:
    """Whether results of the detector `name` depend on one picture alone. Of those that other distributions add this is
    not known: they count as detectors that remember."""
    base = name.partition(":")[0]
    is_ours = any(base == key or (key.endswith("-") and base.startswith(key)) for key in _FACTORIES)
    return is_ours and base not in _REMEMBERING


def detector_options(name: str) -> dict[str, str]:
    """The options of a detector and the kind of value of each. Raises `UnknownDetector`."""
    kinds = _option_types(_find_factory(name.partition(":")[0]))
    return {option: _describe_kinds(accepted) for option, accepted in kinds.items() if option != "argument"}


def _find_factory(base: str) -> Callable[..., Detector]:
    for key, target in _FACTORIES.items():
        if base == key or (key.endswith("-") and base.startswith(key)):
            module, _, factory = target.partition(":")
            create: Callable[..., Detector] = getattr(import_module(module), factory)
            return create
    for point in entry_points(group="groundstream.detectors", name=base):
        added: Callable[..., Detector] = point.load()
        return added
    near = difflib.get_close_matches(base, [key.rstrip("-") for key in _FACTORIES], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    known = ", ".join(f"{key}*" if key.endswith("-") else key for key in _FACTORIES)
    raise UnknownDetector(f"no detector is called {base!r}: {hint}known are {known}")


def _option_types(create: Callable[..., Any]) -> dict[str, tuple[type, ...]]:
    """The keyword options of a factory, each with the types that it accepts; None always means its default."""
    hints = typing.get_type_hints(create)
    return {
        option: tuple(_plain_types(hints[option]))
        for option in inspect.signature(create).parameters
        if option != "name"
    }


def _plain_types(hint: Any) -> list[type]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [plain for part in typing.get_args(hint) for plain in _plain_types(part)]
    return [] if hint is type(None) else [typing.get_origin(hint) or hint]


def _describe_kinds(accepted: Sequence[type]) -> str:
    names = [_KINDS.get(kind, kind.__name__) for kind in accepted if not (kind is str and Path in accepted)]
    return " or ".join(names)


def _check_options(
    name: str, argument: str, options: Mapping[str, Any], allowed: Mapping[str, tuple[type, ...]]
) -> None:
    if argument and "argument" not in allowed:
        raise UnknownOption(f"no detector is called '{name}:{argument}': {name!r} takes nothing after a colon")
    ours = sorted(allowed.keys() - {"argument"})
    for option, value in options.items():
        if option not in ours:
            near = difflib.get_close_matches(option, ours, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownOption(f"the detector {name!r} has no option {option!r}: {hint}it takes {', '.join(ours)}")
        if value is not None and not _is_of_kind(value, allowed[option]):
            raise OptionError(
                f"option {option!r} of the detector {name!r} is {value!r}: expected {_describe_kinds(allowed[option])}"
            )


def _is_of_kind(value: Any, accepted: Sequence[type]) -> bool:
    if isinstance(value, bool):
        return bool in accepted
    if isinstance(value, int) and float in accepted:
        return True
    if isinstance(value, str) and not {str, Path} & set(accepted):
        return False
    return isinstance(value, tuple(accepted))
