"""Snapshot of a tracker: all of its state as arrays that `numpy.savez` can keep without pickling, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trackers.adaptive import BirthRecord, RateNoise
from trackers.appearance import LookCentre
from trackers.boxes import Floats
from trackers.memory import TrackSlots
from trackers.relink import LostGallery
from trackers.tracker import TrackerError
from trackers.tracks import TrackStates

if TYPE_CHECKING:
    import supervision as sv

    from trackers.options import TrackerOptions


@dataclass(slots=True)
class EngineState:
    """All that an engine remembers between two frames."""

    tracks: TrackStates
    memory: TrackSlots
    gallery: LostGallery
    centre: LookCentre
    rate_noise: RateNoise
    rates: Floats  # (4, 1) variances of the noise of the rates, as learnt
    births: BirthRecord
    last_id: int
    dropped_boxes: int
    frame: int
    first_frame: int
    now: float
    shown: sv.Detections | None
    shown_state: Floats  # (20, S)


def to_arrays(options: TrackerOptions, state: EngineState) -> dict[str, npt.NDArray[Any]]:
    """The state and the options it belongs to, by name."""
    arrays = {f"tracks.{name}": values.copy() for name, values in vars(state.tracks).items()}
    arrays.update({f"memory.{name}": values for name, values in state.memory.state().items()})
    arrays["options"] = np.array(json.dumps(asdict(options), sort_keys=True))
    arrays["counters"] = np.array([state.last_id, state.dropped_boxes, state.frame, state.first_frame])
    arrays["now"] = np.array(state.now)
    arrays["gallery"], arrays["gallery.looks"] = state.gallery.rows.copy(), state.gallery.looks.copy()
    arrays["looks"], arrays["looks.count"] = state.centre.total.copy(), np.array(state.centre.count)
    arrays["rate_noise"] = np.array([*state.rate_noise.products, state.rate_noise.pairs])
    arrays["rates"] = state.rates.copy()
    arrays["births"] = np.array([state.births.confirmed, state.births.died])
    arrays["shown_state"] = state.shown_state.copy()
    shown = state.shown
    if shown is not None and shown.tracker_id is not None:
        arrays["shown.xyxy"], arrays["shown.tracker_id"] = shown.xyxy.copy(), shown.tracker_id.copy()
        if shown.confidence is not None:
            arrays["shown.confidence"] = shown.confidence.copy()
        if shown.class_id is not None:
            arrays["shown.class_id"] = shown.class_id.copy()
    return arrays


def from_arrays(options: TrackerOptions, arrays: Mapping[str, npt.NDArray[Any]]) -> EngineState:
    """The state in the arrays. Raises `TrackerError` for other options, and for arrays of something else."""
    try:
        _check_options(options, json.loads(str(arrays["options"])))
        memory = TrackSlots(options.history)
        memory.load({key[7:]: np.array(arrays[key]) for key in arrays if key.startswith("memory.")})
        gallery, centre = LostGallery(options), LookCentre()
        gallery.rows, gallery.looks = np.array(arrays["gallery"]), np.array(arrays["gallery.looks"])
        centre.total, centre.count = np.array(arrays["looks"]), int(arrays["looks.count"])
        rate_noise = RateNoise(options.adapt_rate_noise)
        *products, rate_noise.pairs = (float(number) for number in arrays["rate_noise"])
        rate_noise.products = products
        births = BirthRecord()
        births.confirmed, births.died = (float(number) for number in arrays["births"])
        last_id, dropped, frame, first_frame = (int(number) for number in arrays["counters"])
        return EngineState(
            tracks=TrackStates(
                **{field.name: np.array(arrays[f"tracks.{field.name}"]) for field in fields(TrackStates)}
            ),
            memory=memory,
            gallery=gallery,
            centre=centre,
            rate_noise=rate_noise,
            rates=np.array(arrays["rates"]),
            births=births,
            last_id=last_id,
            dropped_boxes=dropped,
            frame=frame,
            first_frame=first_frame,
            now=float(arrays["now"]),
            shown=_shown(arrays),
            shown_state=np.array(arrays["shown_state"]),
        )
    except (KeyError, ValueError) as error:
        raise TrackerError(f"not a saved tracker of this version ({error}): use what state_dict() returned") from error


def _check_options(ours: TrackerOptions, theirs: Mapping[str, Any]) -> None:
    mine = asdict(ours)
    for name in sorted({*theirs, *mine}):
        if theirs.get(name) != mine.get(name):
            raise TrackerError(
                f"the saved tracker had {name}={theirs.get(name)!r}, this one has {mine.get(name)!r}: "
                "build it with the same options"
            )


def _shown(arrays: Mapping[str, npt.NDArray[Any]]) -> sv.Detections | None:
    import supervision as sv

    if "shown.xyxy" not in arrays:
        return None
    return sv.Detections(
        xyxy=np.array(arrays["shown.xyxy"]),
        confidence=np.array(arrays["shown.confidence"]) if "shown.confidence" in arrays else None,
        class_id=np.array(arrays["shown.class_id"]) if "shown.class_id" in arrays else None,
        tracker_id=np.array(arrays["shown.tracker_id"]),
    )
