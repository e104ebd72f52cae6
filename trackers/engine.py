"""The one engine behind every tracker: arrays over all tracks, no loop over tracks or detections."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trackers import appearance, kalman
from trackers.adaptive import BirthRecord, RateNoise, common_shift, normalised
from trackers.assignment import assign, assign_then_filter
from trackers.boxes import Bools, Floats, Ints, from_centre, grown, overlapping, pair_iou, to_centre
from trackers.memory import TrackSlots
from trackers.options import TrackerOptions
from trackers.relink import LostGallery
from trackers.tracker import TrackerError, TrackerInputError, TrackMerge

if TYPE_CHECKING:
    import supervision as sv

Scores = npt.NDArray[np.floating[Any]]

MIN_STEP_S, MAX_STEP_S = 0.001, 1.0  # what the filter is asked to bridge at once
CLOCK_S = 1e-6  # rounding of times: a limit is passed when it is passed by more than this
MIN_DOUBT = 0.05  # a perfect score still leaves this share of the measurement noise
MOVED = 0.25  # shares of its height that a thing may drift and still be standing
_LAST_PIXEL = np.array([[0.0], [0.0], [1.0], [1.0]])


@dataclass
class TrackStates:
    """All tracks of one stream, oldest first: one array per field, the track along the last axis."""

    state: Floats  # (20, T) filter, see kalman.MotionModel
    observed: Floats  # (4, T) box of the last detection, moved with the camera since
    innovation: Floats  # (2, T) error of the last prediction in standard deviations, 0 when there was none
    heading: Floats  # (2, T) unit vector of the motion between the last observations, 0 when unknown
    saved: Floats  # (20, T) filter at the first frame of the present gap
    anchor: Floats  # (3, T) x, y where it was last seen to have moved to, and when
    steady: Bools  # whether `innovation` is known
    id: Ints  # public identity, 0 until confirmed
    hits: Ints  # detections matched, the first included
    streak: Ints  # ... since the first one or the last miss, whichever is later
    misses: Ints  # frames since the last match
    confirmed: Bools
    first_s: Floats  # time of the first detection
    last_s: Floats  # time of the last one
    score: Floats  # score of the last one
    label: Ints  # class_id of the last one, -1 when it had none
    slot: Ints  # row in the memory

    @classmethod
    def none(cls) -> TrackStates:
        return cls.newborn(np.empty((20, 0)), np.empty((4, 0)), np.empty(0), np.empty(0, dtype=np.int64), 0.0)

    @classmethod
    def newborn(
        cls, state: Floats, boxes: Floats, scores: Scores, labels: npt.NDArray[np.integer[Any]], now: float
    ) -> TrackStates:
        count = boxes.shape[1]

        def whole() -> Ints:
            return np.zeros(count, dtype=np.int64)

        anchor = np.concatenate((_centres(boxes), np.full((1, count), now)))
        return cls(
            state=state,
            observed=boxes,
            innovation=np.zeros((2, count)),
            heading=np.zeros((2, count)),
            saved=state,
            anchor=anchor,
            steady=np.zeros(count, dtype=np.bool_),
            id=whole(),
            hits=whole(),
            streak=whole(),
            misses=whole(),
            confirmed=np.zeros(count, dtype=np.bool_),
            first_s=anchor[2],
            last_s=anchor[2],
            score=scores.astype(np.float64),
            label=labels.astype(np.int64),
            slot=whole(),
        )

    def __len__(self) -> int:
        return self.id.size

    def keep(self, those: Bools) -> None:
        kept = those.nonzero()[0]
        for name, values in vars(self).items():
            setattr(self, name, values.take(kept, axis=-1))

    def add(self, new: TrackStates) -> None:
        for name, values in vars(self).items():
            setattr(self, name, np.concatenate((values, getattr(new, name)), axis=-1))


@dataclass(frozen=True)
class TrackTable:
    """What is known of every track that was shown and has not ended, by id: one array per field."""

    id: Ints  # (N,)
    xyxy: Floats  # (N, 4) where the filter has it now
    observed_xyxy: Floats  # (N, 4) its last detection
    velocity: Floats  # (N, 2) pixels per second
    score: Floats  # (N,) of the last detection
    label: Ints  # (N,) class_id of the last detection, -1 without one
    hits: Ints  # (N,) detections so far
    first_s: Floats  # (N,) time of the first detection
    last_s: Floats  # (N,) time of the last one
    standing_s: Floats  # (N,) seconds for which it has not moved by more than a quarter of its height
    predicted: Bools  # (N,) whether it was not seen in the last frame


@dataclass(frozen=True)
class _FrameDetections:
    """The usable detections of one frame."""

    boxes: Floats  # (4, N)
    scores: Scores
    labels: npt.NDArray[np.integer[Any]]
    index: Ints  # row of each in the input


class TrackerEngine:
    """A tracker of one stream, made of options. See `trackers.create_tracker`.

    Beyond the `Tracker` contract: `table()`, `history()`, `stationary_ids()`, `merges`, `dropped_boxes`, and
    `state_dict()` with `load_state_dict()`.
    """

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self._motion = kalman.MOTIONS[options.motion](options.rate_noise, options.size_rate_noise)
        self._last_id = 0
        self.dropped_boxes = 0  # detections left out because a side was under one pixel
        self._start()

    def _start(self) -> None:
        options = self.options
        self._tracks = TrackStates.none()
        self._memory = TrackSlots(options.history)
        self._gallery = LostGallery(options.relink_s)
        self._rate_noise = RateNoise(options.adapt_rate_noise)
        self._motion.scale_rate_noise(np.ones((4, 1)))
        self._births = BirthRecord()
        self._frame = 0
        self._now = 0.0
        self._shown: sv.Detections | None = None
        self._shown_state: Floats = np.empty((20, 0))
        self._merges: list[TrackMerge] = []

    def reset(self) -> None:
        """Forget all tracks; ids go on counting, so none is ever used again."""
        self._start()

    @property
    def alive_ids(self) -> Ints:
        """Sorted ids of tracks that were shown and may be shown again (confirmed or lost); the others have ended."""
        ids = self._tracks.id
        return np.sort(ids[ids > 0])

    @property
    def merges(self) -> list[TrackMerge]:
        """Ids that the last update found to be one thing: a double that ended, or a thing that had been gone."""
        return self._merges

    def update(
        self, detections: sv.Detections, time_s: float, camera: npt.NDArray[np.float64] | None = None
    ) -> sv.Detections:
        """The confirmed tracks seen in this frame, each with its `tracker_id`, rows sorted by id. See `Tracker`."""
        found, affine = self._read(detections), _read_camera(camera)
        self._predict(self._elapsed(time_s), affine)
        self._merges = []
        match, free = self._associate(found, detections)
        seen = match >= 0
        self._correct(found, match, seen)
        kept = self._bury(seen)
        source = match if kept is None else match[kept]
        options = self.options
        newborn = (free & (found.scores >= options.birth_score)).nonzero()[0]
        if newborn.size:
            self._bear(found, newborn)
            source = np.concatenate((source, newborn))
        if options.mask_weight or options.appearance:
            self._remember_looks(detections, found, source)
        return self._show(detections, found.index, source)

    def predict(self, time_s: float) -> sv.Detections:
        """Where the tracks shown last would be at `time_s`, for frames that no detector looked at. Changes nothing."""
        import supervision as sv

        shown = self._shown
        if shown is None or not len(shown):
            return _rows(sv.Detections.empty(), np.empty(0, dtype=np.int64), np.empty((4, 0)), self.alive_ids[:0])
        state = self._shown_state.copy()
        self._motion.predict(state, min(max(time_s - self._now, 0.0), MAX_STEP_S))
        return sv.Detections(
            xyxy=np.ascontiguousarray(self._motion.decode(state[:4]).T, dtype=np.float32),
            confidence=shown.confidence,
            class_id=shown.class_id,
            tracker_id=shown.tracker_id,
            data={**shown.data, "detection_index": np.full(len(shown), -1)},
        )

    def table(self) -> TrackTable:
        """All tracks that were shown and have not ended, sorted by id."""
        tracks = self._tracks
        who = (tracks.id > 0).nonzero()[0]
        who = who[np.argsort(tracks.id[who], kind="stable")]
        return TrackTable(
            id=tracks.id[who],
            xyxy=np.ascontiguousarray(self._motion.decode(tracks.state[:4, who]).T),
            observed_xyxy=np.ascontiguousarray(tracks.observed[:, who].T),
            velocity=np.ascontiguousarray(tracks.state[4:6, who].T),
            score=tracks.score[who],
            label=tracks.label[who],
            hits=tracks.hits[who],
            first_s=tracks.first_s[who],
            last_s=tracks.last_s[who],
            standing_s=tracks.last_s[who] - tracks.anchor[2, who],
            predicted=tracks.misses[who] > 0,
        )

    def stationary_ids(self, for_s: float = 2.0) -> Ints:
        """Sorted ids of tracks that have stood for `for_s` seconds (within a quarter of their height)."""
        tracks = self._tracks
        standing = (tracks.id > 0) & (tracks.last_s - tracks.anchor[2] >= for_s - CLOCK_S)
        return np.sort(tracks.id[standing])

    def history(self, tracker_id: int) -> Floats:
        """(n, 6) the last observations of one living track, oldest first: time in seconds, x1, y1, x2, y2, score."""
        row = (self._tracks.id == tracker_id).nonzero()[0]
        if tracker_id < 1 or not row.size:
            raise TrackerInputError(f"track {tracker_id} is not alive: ask for one of alive_ids")
        return self._memory.series(int(self._tracks.slot[row[0]]), int(self._tracks.hits[row[0]]))

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that decides what comes next, as arrays that `numpy.savez` can keep without pickling."""
        shown = self._shown
        state = {f"tracks.{name}": values.copy() for name, values in vars(self._tracks).items()}
        state.update({f"memory.{name}": values for name, values in self._memory.state().items()})
        state["options"] = np.array(json.dumps(asdict(self.options), sort_keys=True))
        state["counters"] = np.array([self._last_id, self.dropped_boxes, self._frame])
        state["now"] = np.array(self._now)
        state["gallery"] = self._gallery.rows.copy()
        state["rate_noise"] = np.array([*self._rate_noise.products, self._rate_noise.pairs])
        state["rates"] = self._motion.rate.copy()
        state["births"] = np.array([self._births.confirmed, self._births.died])
        state["shown_state"] = self._shown_state.copy()
        if shown is not None and shown.tracker_id is not None:
            state["shown.xyxy"], state["shown.tracker_id"] = shown.xyxy.copy(), shown.tracker_id.copy()
            if shown.confidence is not None:
                state["shown.confidence"] = shown.confidence.copy()
            if shown.class_id is not None:
                state["shown.class_id"] = shown.class_id.copy()
        return state

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on exactly where the tracker that gave `state` stopped; it must have had the same options."""
        import supervision as sv

        try:
            theirs, ours = json.loads(str(state["options"])), asdict(self.options)
            differing = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
            if differing:
                name = differing[0]
                raise TrackerError(
                    f"the saved tracker had {name}={theirs.get(name)!r}, this one has {ours.get(name)!r}: "
                    "build it with the same options"
                )
            tracks = TrackStates(
                **{field.name: np.array(state[f"tracks.{field.name}"]) for field in fields(TrackStates)}
            )
            memory = TrackSlots(self.options.history)
            memory.load({key[7:]: np.array(state[key]) for key in state if key.startswith("memory.")})
            last_id, dropped, frame = (int(number) for number in state["counters"])
            self._start()
            self._tracks, self._memory = tracks, memory
            self._last_id, self.dropped_boxes, self._frame = last_id, dropped, frame
            self._now = float(state["now"])
            self._gallery.rows = np.array(state["gallery"])
            *products, self._rate_noise.pairs = (float(number) for number in state["rate_noise"])
            self._rate_noise.products = products
            self._motion.rate = np.array(state["rates"])
            self._births.confirmed, self._births.died = (float(number) for number in state["births"])
            self._shown_state = np.array(state["shown_state"])
            if "shown.xyxy" in state:
                self._shown = sv.Detections(
                    xyxy=np.array(state["shown.xyxy"]),
                    confidence=np.array(state["shown.confidence"]) if "shown.confidence" in state else None,
                    class_id=np.array(state["shown.class_id"]) if "shown.class_id" in state else None,
                    tracker_id=np.array(state["shown.tracker_id"]),
                )
        except (KeyError, ValueError) as error:
            raise TrackerError(f"this is no saved tracker, or one of another version ({error})") from error

    def _read(self, detections: sv.Detections) -> _FrameDetections:
        boxes = np.array(detections.xyxy.T, dtype=np.float64, order="C")
        count = boxes.shape[1]
        scores, labels = detections.confidence, detections.class_id
        if scores is None:
            scores = np.ones(count)
        if labels is None:
            labels = np.full(count, -1)
        sides = boxes[2:] - boxes[:2]
        index = np.arange(count)
        if not count or (sides.min() >= 1.0 and np.isfinite(sides.sum() + scores.sum())):
            return _FrameDetections(boxes, scores, labels, index)
        bad = ~np.isfinite(boxes).all(axis=0) | ~np.isfinite(scores)
        if bad.any():
            row = int(bad.argmax())
            raise TrackerInputError(
                f"detection {row} is {detections.xyxy[row].tolist()} with score {scores[row]}: "
                "boxes and scores must be finite numbers"
            )
        inverted = (sides < 0).any(axis=0)
        if inverted.any():
            row = int(inverted.argmax())
            raise TrackerInputError(
                f"detection {row} is {detections.xyxy[row].tolist()}: "
                "boxes are x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"
            )
        index = np.flatnonzero((sides >= 1.0).all(axis=0))
        self.dropped_boxes += count - index.size
        return _FrameDetections(boxes.take(index, axis=1), scores[index], labels[index], index)

    def _elapsed(self, time_s: float) -> float:
        """Seconds since the last frame; this one is now the present."""
        if not np.isfinite(time_s):
            raise TrackerInputError(f"time is {time_s}: give the capture time of the frame in seconds")
        if self._frame and time_s < self._now:
            if self.options.on_backwards == "error":
                raise TrackerError(
                    f"time went back from {self._now:.6f} s to {time_s:.6f} s: give frames in the order they were "
                    "captured, call reset() before a new recording, or build the tracker with on_backwards='reset'"
                )
            self.reset()
        dt = float(time_s) - self._now if self._frame else 0.0
        self._frame += 1
        self._now = float(time_s)
        return dt

    def _predict(self, dt: float, camera: Floats | None) -> None:
        tracks = self._tracks
        if not len(tracks):
            return
        if self.options.freeze_lost_size:
            lost = tracks.misses > 0
            if lost.any():
                for row in self._motion.size_rates:
                    tracks.state[row, lost] = 0.0
        still = ~tracks.confirmed if self.options.tentative_limit is not None else None
        self._motion.predict(tracks.state, min(max(dt, MIN_STEP_S), MAX_STEP_S), still)
        if camera is not None:
            self._follow_camera(camera)

    def _follow_camera(self, affine: Floats) -> None:
        """Move everything that is remembered in pixels with the picture: x' = A x + t (BoT-SORT, section 3.2)."""
        turn, shift = affine[:, :2], affine[:, 2:]
        zoom = float(np.sqrt(abs(np.linalg.det(turn))))
        tracks = self._tracks
        tracks.state = self._motion.follow_camera(tracks.state, turn, shift, zoom)
        centre, half = _centres(tracks.observed), (tracks.observed[2:] - tracks.observed[:2]) * (0.5 * zoom)
        centre = turn @ centre + shift
        tracks.observed = np.concatenate((centre - half, centre + half))
        tracks.anchor[:2] = turn @ tracks.anchor[:2] + shift

    def _associate(self, found: _FrameDetections, detections: sv.Detections) -> tuple[Ints, Bools]:
        """(T,) the detection of every track, -1 for none; (N,) confident detections that are left."""
        match = np.full(len(self._tracks), -1)
        free = found.scores > self.options.high_score
        if len(self._tracks) and found.scores.size:
            if self.options.solve_first:
                self._associate_at_once(found, match, free)
            else:
                self._associate_in_stages(found, detections, match, free)
        return match, free

    def _associate_in_stages(
        self, found: _FrameDetections, detections: sv.Detections, match: Ints, free: Bools
    ) -> None:
        """The cascade of ByteTrack: confident detections, then the others, then tracks not yet confirmed."""
        tracks, options = self._tracks, self.options
        scores = found.scores
        predicted = self._motion.decode(tracks.state[:4])
        shift = self._common_shift(predicted, found.boxes, free) if options.common_motion else None
        if shift is not None:
            predicted += np.concatenate((shift, shift))
        rows, cols, overlap = self._first_stage(predicted, found, detections, match, free)
        if options.low_score is not None:
            low = (scores > options.low_score) & (scores <= options.high_score)
            if low.any():
                left = (match < 0) & (tracks.misses == 0)
                if options.tentative_limit is not None:
                    left &= tracks.confirmed
                _stage(match, low, rows, cols, 1.0 - overlap, left, options.low_limit)
        if options.tentative_limit is not None and not tracks.confirmed.all():
            weight = scores.take(cols) if options.fuse_score else 1.0
            _stage(match, free, rows, cols, 1.0 - overlap * weight, ~tracks.confirmed, options.tentative_limit)
        if shift is not None:
            self._carry_along(shift, match < 0)

    def _first_stage(
        self, predicted: Floats, found: _FrameDetections, detections: sv.Detections, match: Ints, free: Bools
    ) -> tuple[Ints, Ints, Floats]:
        """Match confirmed tracks to confident detections; the candidate pairs and their overlaps for what follows."""
        tracks, options = self._tracks, self.options
        boxes = found.boxes
        if options.whole_pixels:
            predicted, boxes = predicted + _LAST_PIXEL, boxes + _LAST_PIXEL
        if options.grow:
            rows, cols, near = overlapping(grown(predicted, options.grow), grown(boxes, options.grow))
            overlap = pair_iou(predicted, boxes, rows, cols)
        else:
            rows, cols, overlap = overlapping(predicted, boxes)
            near = overlap
        if options.per_class:
            same = (tracks.label[rows] == found.labels[cols]).nonzero()[0]
            rows, cols, overlap, near = rows[same], cols[same], overlap[same], near[same]
        if options.mask_weight and detections.mask is not None:
            near = self._with_masks(near, predicted, found, detections, rows, cols)
        costs = 1.0 - near * found.scores.take(cols) if options.fuse_score else 1.0 - near
        if options.class_weight:
            costs += options.class_weight * (tracks.label[rows] != found.labels[cols])
        if options.appearance:
            costs = self._with_appearance(costs, 1.0 - overlap, detections, found, rows, cols)
        pool = tracks.confirmed if options.tentative_limit is not None else np.ones_like(tracks.confirmed)
        _stage(match, free, rows, cols, costs, pool, options.limit)
        return rows, cols, overlap

    def _common_shift(self, predicted: Floats, boxes: Floats, high: Bools) -> Floats | None:
        tracks = self._tracks
        known = (tracks.confirmed & (tracks.misses == 0) & (tracks.hits > 1)).nonzero()[0]
        centres = tracks.state[:2].take(known, axis=1)
        return common_shift(predicted.take(known, axis=1), centres, boxes.take(high.nonzero()[0], axis=1))

    def _carry_along(self, shift: Floats, unseen: Bools) -> None:
        """Tracks that were not seen take part in the common motion as if it had been measured on them."""
        who = unseen.nonzero()[0]
        if who.size:
            state = self._tracks.state[:, who]
            variance = state[8:10] + self._motion.measurement_variance(state[:4])[:2]
            self._tracks.state[:2, who] += state[8:10] / variance * shift
            self._tracks.state[4:6, who] += state[12:14] / variance * shift

    def _with_masks(
        self,
        near: Floats,
        predicted: Floats,
        found: _FrameDetections,
        detections: sv.Detections,
        rows: Ints,
        cols: Ints,
    ) -> Floats:
        crops = appearance.crop_masks(detections, found.index, found.boxes)
        kept = self._memory.column("mask", crops.shape[1:], np.bool_)[self._tracks.slot]
        return appearance.mask_similarity(
            near, self.options.mask_weight, (predicted, kept), (found.boxes, crops), rows, cols
        )

    def _with_appearance(
        self, costs: Floats, apart: Floats, detections: sv.Detections, found: _FrameDetections, rows: Ints, cols: Ints
    ) -> Floats:
        vectors = appearance.read_embeddings(detections, found.index)
        kept = self._memory.column("embedding", vectors.shape[1:], np.float64)
        if kept.shape[1:] != vectors.shape[1:]:
            raise TrackerInputError(
                f"embeddings have {vectors.shape[1]} numbers, those before had {kept.shape[1]}: "
                "use one model per tracker"
            )
        return appearance.fuse(costs, apart, kept[self._tracks.slot], vectors, rows, cols)

    def _remember_looks(self, detections: sv.Detections, found: _FrameDetections, source: Ints) -> None:
        """Masks and embeddings of this frame's detections, for the next one."""
        who = (source >= 0).nonzero()[0]
        what, slots = source[who], self._tracks.slot[who]
        if self.options.mask_weight and detections.mask is not None:
            crops = appearance.crop_masks(detections, found.index, found.boxes)
            self._memory.column("mask", crops.shape[1:], np.bool_)[slots] = crops[what]
        if self.options.appearance:
            vectors = appearance.read_embeddings(detections, found.index)
            kept = self._memory.column("embedding", vectors.shape[1:], np.float64)
            fresh = self._tracks.hits[who] <= 1
            sure = fresh | (found.scores[what] > self.options.high_score)
            mixed = appearance.blend(kept[slots], vectors[what], fresh)
            kept[slots[sure]] = mixed[sure]

    def _associate_at_once(self, found: _FrameDetections, match: Ints, free: Bools) -> None:
        """One stage for all tracks, assigned without a limit: SORT, and OC-SORT with its two additions."""
        options = self.options
        rows, cols, overlap = overlapping(self._motion.decode(self._tracks.state[:4]), found.boxes)
        offered = free[cols].nonzero()[0]
        rows, cols, overlap = rows[offered], cols[offered], overlap[offered]
        gains = overlap
        if options.direction:
            gains = overlap + self._direction(found, rows, cols)
        chosen = assign_then_filter(rows, cols, gains, overlap >= 1 - options.limit)
        match[rows[chosen]] = cols[chosen]
        free[cols[chosen]] = False
        if options.recover is not None:
            self._recover(found.boxes, match, free, options.recover)

    def _direction(self, found: _FrameDetections, rows: Ints, cols: Ints) -> Floats:
        """OC-SORT's momentum: how well the way to the detection goes on with the way of the track, per pair."""
        reference, known = self._reference()
        way = _unit(_centres(found.boxes)[:, cols] - _centres(reference)[:, rows])
        cosine = np.clip((way * self._tracks.heading[:, rows]).sum(axis=0), -1.0, 1.0)
        agreement: Floats = (np.pi / 2 - np.arccos(cosine)) / np.pi
        return self.options.direction * agreement * found.scores[cols] * known[rows]

    def _reference(self) -> tuple[Floats, Bools]:
        """(4, T) the oldest observation of the last three frames, or else the latest; (T,) whether there is one.

        The detection that a track was born from does not count (as in the original).
        """
        tracks = self._tracks
        rows = self._memory.read(tracks.slot, tracks.hits - 1)
        for back in (2, 3):
            older = self._memory.read(tracks.slot, tracks.hits - back)
            recent = (tracks.hits - back >= 1) & (older[:, 6] >= self._frame - 3)
            rows = np.where(recent[:, None], older, rows)
        return rows[:, 1:5].T, tracks.hits > 1

    def _recover(self, boxes: Floats, match: Ints, free: Bools, overlap: float) -> None:
        """Second chance by the last observation instead of the prediction."""
        tracks = self._tracks
        left = ((match < 0) & (tracks.hits > 1)).nonzero()[0]
        found = free.nonzero()[0]
        if not (left.size and found.size):
            return
        rows, cols, iou = overlapping(tracks.observed[:, left], boxes[:, found])
        chosen = assign_then_filter(rows, cols, iou, iou >= overlap, shortcut=False)
        match[left[rows[chosen]]] = found[cols[chosen]]
        free[found[cols[chosen]]] = False

    def _correct(self, found: _FrameDetections, match: Ints, seen: Bools) -> None:
        tracks, options = self._tracks, self.options
        if not len(tracks):
            return
        who = seen.nonzero()[0]
        if options.re_update:
            starting = ~seen & (tracks.misses == 0)
            tracks.saved = np.where(starting, tracks.state, tracks.saved)
        if who.size:
            what = match.take(who)
            boxes, scores = found.boxes.take(what, axis=1), found.scores.take(what)
            if options.re_update:
                self._replay(boxes, who)
            if options.direction:
                reference, known = self._reference()
                heading = _unit(_centres(boxes) - _centres(reference)[:, who])
                tracks.heading[:, who] = np.where(known[who], heading, 0.0)
            measured = np.zeros((4, len(tracks)))
            measured[:, who] = self._motion.encode(boxes)
            if options.adapt_rate_noise:
                self._learn_rate_noise(measured, seen)
            doubt: Floats | float = 1.0
            if options.score_doubt is not None:
                doubt = np.ones(len(tracks))
                doubt[who] = np.maximum(options.score_doubt - scores, MIN_DOUBT)
            self._motion.correct(tracks.state, measured, seen, doubt)
            tracks.observed[:, who] = boxes
            tracks.score[who] = scores
            tracks.label[who] = found.labels.take(what)
            tracks.last_s[who] = self._now
            self._note(who, boxes, scores)
            self._note_movement(seen)
        elif options.adapt_rate_noise:
            tracks.steady[:] = False
        tracks.hits += seen
        tracks.streak += 1
        tracks.streak *= seen
        tracks.misses += 1
        tracks.misses *= ~seen

    def _learn_rate_noise(self, measured: Floats, seen: Bools) -> None:
        tracks = self._tracks
        steady = seen & (tracks.misses == 0) & (tracks.hits > 1)
        variance = tracks.state[8:10] + self._motion.measurement_variance(tracks.state[:4])[:2]
        innovation = normalised(measured[:2] - tracks.state[:2], variance, steady)
        both = int(np.count_nonzero(steady & tracks.steady))
        self._motion.scale_rate_noise(self._rate_noise.learn(tracks.innovation, innovation, both))
        tracks.innovation, tracks.steady = innovation, steady

    def _note(self, who: Ints, boxes: Floats, scores: Scores) -> None:
        tracks = self._tracks
        rows = np.empty((who.size, 7))
        rows[:, 0] = self._now
        rows[:, 1:5] = boxes.T
        rows[:, 5] = scores
        rows[:, 6] = self._frame
        self._memory.write(tracks.slot.take(who), tracks.hits.take(who), rows)

    def _note_movement(self, seen: Bools) -> None:
        tracks = self._tracks
        centre = self._motion.centre(tracks.state)
        off = centre - tracks.anchor[:2]
        reach = MOVED * (tracks.observed[3] - tracks.observed[1])
        moved = (seen & (off[0] * off[0] + off[1] * off[1] > reach * reach)).nonzero()[0]
        if moved.size:
            tracks.anchor[:2, moved] = centre[:, moved]
            tracks.anchor[2, moved] = self._now

    def _replay(self, found: Floats, who: Ints) -> None:
        """OC-SORT's re-update: tracks found again go through their gap once more, along a straight line.

        The filter restarts where the gap began; one virtual observation a missed frame. As in the original the
        detection that ends the gap is then taken into account a second time.
        """
        tracks = self._tracks
        back = (tracks.misses[who] > 0) & (tracks.hits[who] > 1)
        if not back.any():
            return
        who, found = who[back], found[:, back]
        steps = tracks.misses[who] + 1
        last = self._memory.read(tracks.slot[who], tracks.hits[who] - 1)
        dt = (self._now - last[:, 0]) / steps
        start, end = to_centre(last[:, 1:5].T), to_centre(found)
        state = tracks.saved[:, who]
        for step in range(1, int(steps.max()) + 1):
            line = from_centre(start + (end - start) * (step / steps))
            self._motion.correct(state, self._motion.encode(line), step <= steps)
            self._motion.predict(state, dt, step >= steps)
        tracks.state[:, who] = state

    def _bury(self, seen: Bools) -> Bools | None:
        """End what was missed for too long; (T,) who is left, None for everyone."""
        tracks, options = self._tracks, self.options
        if seen.all():
            return None
        missed = ~seen
        ended = missed & (self._now - tracks.last_s > options.lost_s + CLOCK_S) & (tracks.misses > options.lost_frames)
        if options.tentative_limit is not None:
            dead = missed & ~tracks.confirmed
            self._births.learn(0, int(np.count_nonzero(dead)))
            ended |= dead
        if options.merge_overlap is not None:
            self._end_doubles(seen, ended, options.merge_overlap)
        if not ended.any():
            return None
        if options.relink_s:
            gone = (ended & (tracks.id > 0)).nonzero()[0]
            self._gallery.add(
                tracks.id[gone], tracks.last_s[gone], to_centre(tracks.observed[:, gone]), tracks.state[4:8, gone]
            )
        self._memory.give_back(tracks.slot[ended])
        kept = ~ended
        tracks.keep(kept)
        return kept

    def _end_doubles(self, seen: Bools, ended: Bools, overlap: float) -> None:
        """Of a lost and a seen track on the same spot the younger one ends; marks it in `ended`."""
        tracks = self._tracks
        lost = (~seen & tracks.confirmed & ~ended).nonzero()[0]
        found = seen.nonzero()[0]
        if not (lost.size and found.size):
            return
        boxes = self._motion.decode(tracks.state[:4])
        if self.options.whole_pixels:
            boxes += _LAST_PIXEL
        rows, cols, iou = overlapping(boxes[:, lost], boxes[:, found])
        same = iou > overlap
        if not same.any():
            return
        lost, found = lost[rows[same]], found[cols[same]]
        older = tracks.last_s[found] - tracks.first_s[found] > tracks.last_s[lost] - tracks.first_s[lost]
        younger, elder = np.where(older, lost, found), np.where(older, found, lost)
        ended[younger] = True
        shown = (tracks.id[younger] > 0) & (tracks.id[elder] > 0)
        self._merges += [
            TrackMerge(int(tracks.id[gone]), int(tracks.id[into]), 0.0)
            for gone, into in zip(younger[shown], elder[shown], strict=True)
        ]

    def _bear(self, found: _FrameDetections, newborn: Ints) -> None:
        boxes, scores = found.boxes.take(newborn, axis=1), found.scores[newborn]
        state = self._motion.start(self._motion.encode(boxes))
        new = TrackStates.newborn(state, boxes, scores, found.labels[newborn], self._now)
        new.slot = self._memory.take(newborn.size)
        who = np.arange(len(self._tracks), len(self._tracks) + newborn.size)
        self._tracks.add(new)
        self._note(who, boxes, scores)
        self._tracks.hits[who] = 1

    def _show(self, detections: sv.Detections, index: Ints, source: Ints) -> sv.Detections:
        """Confirm who has earned it, give out ids, and make the rows of this frame."""
        tracks, options = self._tracks, self.options
        seen = source >= 0
        needed = options.confirm_hits
        if options.doubtful_births is not None and self._births.death_share > options.doubtful_births:
            needed += 1
        earned = seen & (tracks.streak >= needed)
        if self._frame <= options.warmup_frames:
            earned |= seen
        if options.requalify:
            tracks.confirmed = earned
        else:
            tracks.confirmed |= earned
        new = (tracks.confirmed & (tracks.id == 0)).nonzero()[0]
        if new.size:
            self._name(new)
        who = (tracks.confirmed & seen).nonzero()[0]
        who = who[np.argsort(tracks.id[who], kind="stable")]
        self._shown_state = tracks.state.take(who, axis=1)
        boxes = tracks.observed[:, who] if options.show_observed else self._motion.decode(self._shown_state[:4])
        self._shown = _rows(detections, index.take(source.take(who)), boxes, tracks.id.take(who))
        return self._shown

    def _name(self, new: Ints) -> None:
        """Give the newly confirmed tracks their ids, and see which of them are things that were there before."""
        tracks = self._tracks
        tracks.id[new] = np.arange(self._last_id + 1, self._last_id + 1 + new.size)
        self._last_id += new.size
        if self._frame > self.options.warmup_frames:
            self._births.learn(new.size, 0)
        if self.options.relink_s and len(self._gallery.rows):
            self._merges += self._gallery.claim(
                tracks.id[new], tracks.first_s[new], to_centre(tracks.observed[:, new]), self._now
            )


def _stage(match: Ints, free: Bools, rows: Ints, cols: Ints, costs: Floats, left: Bools, limit: float) -> None:
    """Match tracks that are `left` to `free` detections; both `match` and `free` are changed."""
    part = (left.take(rows) & free.take(cols)).nonzero()[0]
    if not part.size:
        return
    rows, cols = rows.take(part), cols.take(part)
    chosen = assign(rows, cols, costs.take(part), limit)
    cols = cols.take(chosen)
    match[rows.take(chosen)] = cols
    free[cols] = False


def _read_camera(camera: npt.NDArray[np.float64] | None) -> Floats | None:
    if camera is None:
        return None
    affine = np.asarray(camera, dtype=np.float64)
    if affine.shape != (2, 3) or not np.isfinite(affine).all():
        raise TrackerInputError(f"camera is {affine.tolist()}: give the motion as a (2, 3) matrix of finite numbers")
    return affine


def _centres(boxes: Floats) -> Floats:
    return (boxes[:2] + boxes[2:]) * 0.5


def _unit(vectors: Floats) -> Floats:
    """(2, N) vectors of length one; the shortest ones stay shorter."""
    units: Floats = vectors / (np.hypot(vectors[0], vectors[1]) + 1e-6)
    return units


def _rows(detections: sv.Detections, rows: Ints, boxes: Floats, ids: Ints) -> sv.Detections:
    """The given rows of the detections, with the tracks' boxes and ids."""
    import supervision as sv

    data: dict[str, Any] = {
        name: values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
        for name, values in detections.data.items()
    }
    data["detection_index"] = rows
    return sv.Detections(
        xyxy=np.ascontiguousarray(boxes.T, dtype=np.float32),
        mask=None if detections.mask is None else detections.mask[rows],
        confidence=None if detections.confidence is None else detections.confidence[rows],
        class_id=None if detections.class_id is None else detections.class_id[rows],
        tracker_id=ids,
        data=data,
        metadata=detections.metadata,
    )
