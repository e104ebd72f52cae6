"""What a tracker can be told, and the named option sets."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from trackers.tracker import TrackerInputError

MotionName = Literal["centre-size", "centre-aspect-height", "centre-area-aspect"]
Backwards = Literal["error", "reset"]


@dataclass(frozen=True)
class Options:
    """Everything that makes one tracker different from another. Scores and overlaps 0..1, costs are 1 - overlap."""

    motion: MotionName = "centre-size"
    rate_noise: float = 1 / 160  # standard deviation of the rates per 1/30 s, as a share of the box's side

    high_score: float = 0.6  # detections above it take part in the first stage
    low_score: float | None = 0.1  # from here up to `high_score`: second stage; None: no second stage
    birth_score: float = 0.7  # a detection that fits no track starts one from this score on

    fuse_score: bool = True  # the overlap counts as much as the detection's score says
    limit: float = 0.8  # highest cost of a match in the first stage
    low_limit: float = 0.5  # ... in the second
    tentative_limit: float | None = 0.7  # ... of unconfirmed tracks, which come last; None: they join the first stage
    whole_pixels: bool = False  # overlaps count both edge pixels as part of a box, as the original code does
    solve_first: bool = False  # assign without a limit and drop bad pairs afterwards, as SORT does
    direction: float = 0.0  # weight of the agreement of directions in the first stage
    recover: float | None = None  # overlap with the last observation that brings back a track no stage could match

    confirm_hits: int = 1  # a track is shown once it was found again this often in a row
    warmup_frames: int = 1  # tracks born in the first frames are shown at once
    requalify: bool = False  # a track that was missed once has to earn its confirmation again
    lost_s: float = 1.0  # seconds without a match after which a track ends
    lost_frames: int = 0  # ... but never before it was missed in more frames than these
    merge_overlap: float | None = 0.85  # of a lost and a seen track that overlap more, the younger ends

    re_update: bool = False  # replay the filter along a straight line through a gap (OC-SORT)
    show_observed: bool = False  # give out the detection's box, not the filter's
    on_backwards: Backwards = "error"  # time that falls: an error, or a fresh start
    history: int = 64  # observations kept of every track

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))


_SHARES = {"high_score", "low_score", "birth_score", "recover", "merge_overlap"}
_AT_LEAST = {
    "rate_noise": 0.0,
    "limit": 0.0,
    "low_limit": 0.0,
    "tentative_limit": 0.0,
    "direction": 0.0,
    "lost_s": 0.0,
    "confirm_hits": 0,
    "warmup_frames": 0,
    "lost_frames": 0,
    "history": 4,
}
_CHOICES = {"motion": get_args(MotionName), "on_backwards": get_args(Backwards)}
_MAY_BE_NONE = {"low_score", "tentative_limit", "recover", "merge_overlap"}
_SWITCHES = {"fuse_score", "whole_pixels", "solve_first", "requalify", "re_update", "show_observed"}
_WHOLE = {"confirm_hits", "warmup_frames", "lost_frames", "history"}


def _check(name: str, value: Any) -> None:
    if value is None and name in _MAY_BE_NONE:
        return
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise TrackerInputError(f"{name} is {value!r}: use one of {', '.join(map(repr, _CHOICES[name]))}")
    elif name in _SWITCHES:
        if not isinstance(value, bool):
            raise TrackerInputError(f"{name} is {value!r}: use true or false")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TrackerInputError(f"{name} is {value!r}: use a number")
    elif name in _WHOLE and not isinstance(value, int):
        raise TrackerInputError(f"{name} is {value!r}: use a whole number")
    elif name in _SHARES:
        if not 0 <= value <= 1:
            raise TrackerInputError(f"{name} is {value}: use a number from 0 to 1")
    elif value < _AT_LEAST[name]:
        raise TrackerInputError(f"{name} is {value}: use {_AT_LEAST[name]} or more")


PRESETS: Mapping[str, Options] = {
    "default": Options(rate_noise=1 / 110),
    # arXiv:1602.00763, code abewley/sort
    "sort": Options(
        motion="centre-area-aspect",
        high_score=0.5,
        low_score=None,
        birth_score=0.0,
        fuse_score=False,
        limit=0.7,
        tentative_limit=None,
        solve_first=True,
        confirm_hits=3,
        warmup_frames=3,
        requalify=True,
        lost_s=0.0,
        lost_frames=1,
        merge_overlap=None,
    ),
    # arXiv:2110.06864, code ifzhang/ByteTrack
    "bytetrack": Options(motion="centre-aspect-height", limit=0.9, whole_pixels=True),
    # arXiv:2203.14360, code noahcao/OC_SORT
    "ocsort": Options(
        motion="centre-area-aspect",
        low_score=None,
        birth_score=0.0,
        fuse_score=False,
        limit=0.7,
        tentative_limit=None,
        solve_first=True,
        direction=0.2,
        recover=0.3,
        confirm_hits=3,
        warmup_frames=3,
        requalify=True,
        merge_overlap=None,
        re_update=True,
        show_observed=True,
    ),
    # arXiv:2206.14651, code NirAharon/BoT-SORT; camera motion comes with each update
    "botsort": Options(whole_pixels=True),
}


def build(name: str, options: Mapping[str, Any]) -> Options:
    """The named option set with some options changed. Raises `TrackerInputError`."""
    if name not in PRESETS:
        raise TrackerInputError(f"tracker {name!r} is unknown: use one of {', '.join(PRESETS)}{_meant(name, PRESETS)}")
    known = {field.name: None for field in fields(Options)}
    for option in options:
        if option not in known:
            raise TrackerInputError(
                f"tracker {name!r} has no option {option!r}: use one of {', '.join(sorted(known))}"
                f"{_meant(option, known)}"
            )
    return replace(PRESETS[name], **options)


def _meant(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
