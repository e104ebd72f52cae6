"""Options of a tracker and the named option sets."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from trackers.tracker import TrackerInputError

MotionName = Literal["centre-size", "centre-aspect-height", "centre-area-aspect"]
Backwards = Literal["error", "reset"]


@dataclass(frozen=True)
class TrackerOptions:
    """Options of the engine. Scores and overlaps are 0..1, costs are 1 - overlap, times are in seconds."""

    motion: MotionName = "centre-size"
    rate_noise: float = 1 / 160  # noise of velocities in 1/30 s: shares of the box's side, pixels for sort
    size_rate_noise: float = 1 / 160  # ... and the rates of the size
    adapt_rate_noise: float = 0.0  # how strongly the noise of velocities adapts to the stream
    score_doubt: float | None = None  # the measurement noise is multiplied by this less the score
    freeze_lost_size: bool = True  # a lost track keeps its size

    high_score: float = 0.6  # detections above it take part in the first stage
    low_score: float | None = 0.1  # from here up to `high_score`: second stage; None: no second stage
    birth_score: float = 0.7  # a confident detection that fits no track starts one from this score on

    fuse_score: bool = True  # overlaps are weighted with the detection's score
    grow: float = 0.0  # share of its sides by which every box is grown in the first stage
    limit: float = 0.8  # highest cost of a match in the first stage
    low_limit: float = 0.5  # ... in the second
    tentative_limit: float | None = 0.7  # ... of unconfirmed tracks, which come last; None: they join the first stage
    newborn_reach: float = 0.0  # distance, in sizes of its box, at which a track seen once is found without an overlap
    common_motion: bool = False  # the common part of all prediction errors counts as camera motion
    whole_pixels: bool = False  # overlaps count both edge pixels as part of a box, as in the original code
    solve_first: bool = False  # assign without a limit and drop bad pairs afterwards, as SORT does
    direction: float = 0.0  # weight of the agreement of directions (solve_first only)
    recover: float | None = None  # overlap with the last observation that brings a track back (solve_first only)

    per_class: bool = False  # only detections of the track's last class_id are its own
    class_weight: float = 0.0  # what a differing class_id adds to the cost of the first stage
    mask_weight: float = 0.0  # share of the masks' overlap in the first stage, where detections have masks
    appearance: bool = False  # detections carry data["embedding"], which association and re-linking use
    appearance_weight: float | None = None  # what an unlike look adds to a cost of the first stage; None: as BoT-SORT

    confirm_hits: int = 1  # a track is shown once it was found again this often in a row
    doubtful_births: float | None = None  # ... once more where a larger share of new tracks than this vanishes
    warmup_frames: int = 1  # tracks born in the first frames are shown at once
    requalify: bool = False  # a track that was missed once must be confirmed again
    lost_s: float = 1.0  # seconds without a match after which a track ends
    lost_frames: int = 0  # ... but never before it was missed in more frames than these
    merge_overlap: float | None = 0.85  # of a lost and a seen track that overlap more, the younger ends
    stationary_s: float = 0.0  # longest time in seconds for which lost tracks that stood still can be found again
    relink_s: float = 0.0  # seconds for which lost tracks can be found again; 0: not at all
    reid_s: float = 0.0  # ... by their appearance, where the option `appearance` is on

    re_update: bool = False  # replay the filter along a straight line through a gap (OC-SORT)
    show_observed: bool = False  # output the detection's box, not the filter's
    on_backwards: Backwards = "error"  # time that falls: an error, or a reset
    history: int = 64  # observations kept of every track

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))


_CHOICES = {"motion": get_args(MotionName), "on_backwards": get_args(Backwards)}
_MAY_BE_NONE = {
    "score_doubt",
    "low_score",
    "tentative_limit",
    "recover",
    "doubtful_births",
    "merge_overlap",
    "appearance_weight",
}
_SHARES = {"high_score", "low_score", "birth_score", "recover", "merge_overlap", "doubtful_births", "mask_weight"}
_LEAST = {"history": 4, "score_doubt": 1.0}
_KINDS = {field.name: type(field.default) for field in fields(TrackerOptions)}


def _check(name: str, value: Any) -> None:
    if value is None and name in _MAY_BE_NONE:
        return
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise TrackerInputError(f"{name} is {value!r}: use one of {', '.join(map(repr, _CHOICES[name]))}")
        return
    if _KINDS[name] is bool:
        if not isinstance(value, bool):
            raise TrackerInputError(f"{name} is {value!r}: use true or false")
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:  # nan, infinite, or too large a whole number
        raise TrackerInputError(f"{name} is {value!r:.60}: use a number")
    if _KINDS[name] is int and not isinstance(value, int):
        raise TrackerInputError(f"{name} is {value!r}: use a whole number")
    least = _LEAST.get(name, 0)
    if name in _SHARES and not 0 <= value <= 1:
        raise TrackerInputError(f"{name} is {value}: use a number from 0 to 1")
    if value < least:
        raise TrackerInputError(f"{name} is {value}: use {least} or more")


PRESETS: Mapping[str, TrackerOptions] = {
    # this project's own: BoT-SORT's core that adapts to the motion in the stream and to the detector's reliability
    "default": TrackerOptions(
        rate_noise=1 / 180,
        size_rate_noise=1 / 720,
        adapt_rate_noise=6.0,
        score_doubt=1.5,
        freeze_lost_size=False,
        high_score=0.57,
        low_score=0.05,
        grow=0.05,
        tentative_limit=0.6,
        newborn_reach=1.0,
        appearance_weight=0.3,
        common_motion=True,
        doubtful_births=0.5,
        relink_s=5.0,
        reid_s=30.0,
        stationary_s=300.0,
    ),
    # arXiv:1602.00763, code abewley/sort
    "sort": TrackerOptions(
        motion="centre-area-aspect",
        rate_noise=0.1,
        size_rate_noise=0.01,
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
    "bytetrack": TrackerOptions(motion="centre-aspect-height", limit=0.9, whole_pixels=True),
    # arXiv:2203.14360, code noahcao/OC_SORT
    "ocsort": TrackerOptions(
        motion="centre-area-aspect",
        rate_noise=0.1,
        size_rate_noise=0.01,
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
    "botsort": TrackerOptions(whole_pixels=True),
}


def build(name: str, options: Mapping[str, Any]) -> TrackerOptions:
    """The named option set with some options changed. Raises `TrackerInputError`."""
    if name not in PRESETS:
        raise TrackerInputError(f"tracker {name!r} is unknown: use one of {', '.join(PRESETS)}{_meant(name, PRESETS)}")
    known = {field.name: None for field in fields(TrackerOptions)}
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
