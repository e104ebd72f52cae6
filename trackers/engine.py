"""The one engine behind every tracker: arrays over all tracks, no loop over tracks or detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trackers import kalman
from trackers.assignment import assign, assign_then_filter
from trackers.boxes import Bools, Floats, Ints, overlapping
from trackers.options import Options
from trackers.tracker import TrackerError, TrackerInputError

if TYPE_CHECKING:
    import supervision as sv

MIN_STEP_S, MAX_STEP_S = 0.001, 1.0  # what the filter is asked to bridge at once
_LAST_PIXEL = np.array([[0.0], [0.0], [1.0], [1.0]])
CLOCK_S = 1e-6  # rounding of times: a limit is passed when it is passed by more than this


@dataclass
class Tracks:
    """All tracks of one stream, oldest first: one array per field, the track along the last axis."""

    state: Floats  # (20, T) filter, see kalman.Motion
    observed: Floats  # (4, T) box of the last detection, moved with the camera since
    heading: Floats  # (2, T) unit vector of the motion between the last observations, 0 when unknown
    saved: Floats  # (20, T) filter at the first frame of the present gap
    id: Ints  # public identity, 0 until confirmed
    hits: Ints  # detections matched, the first included
    streak: Ints  # ... since the first one or the last miss, whichever is later
    misses: Ints  # frames since the last match
    confirmed: Bools
    first_s: Floats  # time of the first detection
    last_s: Floats  # time of the last one
    score: npt.NDArray[np.floating[Any]]  # score of the last one
    slot: Ints  # row of the history

    @classmethod
    def none(cls) -> Tracks:
        def whole() -> Ints:
            return np.empty(0, dtype=np.int64)

        def real(*rows: int) -> Floats:
            return np.empty((*rows, 0))

        return cls(
            state=real(20),
            observed=real(4),
            heading=real(2),
            saved=real(20),
            id=whole(),
            hits=whole(),
            streak=whole(),
            misses=whole(),
            confirmed=np.empty(0, dtype=np.bool_),
            first_s=real(),
            last_s=real(),
            score=real(),
            slot=whole(),
        )

    def __len__(self) -> int:
        return self.id.size

    def keep(self, those: Bools) -> None:
        kept = those.nonzero()[0]
        for name, values in vars(self).items():
            setattr(self, name, values.take(kept, axis=-1))

    def add(self, new: Tracks) -> None:
        for name, values in vars(self).items():
            setattr(self, name, np.concatenate((values, getattr(new, name)), axis=-1))


class History:
    """The last observations of every track in one ring per track: (slots, length, 7) time, box, score, frame."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._rows = np.zeros((0, length, 7))
        self._free: Ints = np.empty(0, dtype=np.int64)

    def take_slots(self, count: int) -> Ints:
        if self._free.size < count:
            used = self._rows.shape[0]
            more = max(count - self._free.size, used, 16)
            self._rows = np.concatenate((self._rows, np.zeros((more, self.length, 7))))
            self._free = np.concatenate((self._free, np.arange(used, used + more)))
        slots, self._free = self._free[:count], self._free[count:]
        return slots

    def give_back(self, slots: Ints) -> None:
        self._free = np.concatenate((self._free, slots))

    def write(self, slots: Ints, counts: Ints, rows: Floats) -> None:
        """Observation number `counts` (from 0) of each slot; `rows` (N, 7)."""
        self._rows[slots, counts % self.length] = rows

    def read(self, slots: Ints, counts: Ints) -> Floats:
        """(N, 7) observation number `counts` of each slot."""
        return self._rows[slots, counts % self.length]


class Engine:
    """A tracker of one stream, made of options. See `create_tracker`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._motion = {
            "centre-size": lambda: kalman.centre_size(options.rate_noise),
            "centre-aspect-height": kalman.centre_aspect_height,
            "centre-area-aspect": kalman.centre_area_aspect,
        }[options.motion]()
        self._last_id = 0
        self.dropped_boxes = 0
        self._start()

    def _start(self) -> None:
        self._tracks = Tracks.none()
        self._history = History(self.options.history)
        self._frame = 0
        self._now = 0.0
        self._shown: sv.Detections | None = None
        self._shown_state: Floats = np.empty((20, 0))

    def reset(self) -> None:
        """Forget all tracks; ids go on counting, so none is ever used again."""
        self._start()

    @property
    def alive_ids(self) -> Ints:
        """Sorted ids of tracks that were shown and may be shown again (confirmed or lost); the others have ended."""
        ids = self._tracks.id
        return np.sort(ids[ids > 0])

    def update(
        self, detections: sv.Detections, time_s: float, camera: npt.NDArray[np.float64] | None = None
    ) -> sv.Detections:
        """The confirmed tracks seen in this frame, each with its `tracker_id`, rows sorted by id. See `Tracker`."""
        boxes, scores, index = self._read(detections)
        dt = self._elapsed(time_s)
        tracks, options = self._tracks, self.options
        if len(tracks):
            self._predict(dt)
        match = self._associate(boxes, scores)
        seen = match >= 0
        free = np.ones(scores.size, dtype=np.bool_)
        free[match[seen]] = False
        self._correct(boxes, scores, match, seen)
        self._bury(seen)
        source = match if len(tracks) == match.size else match[self._kept]
        newborn = (free & (scores > options.high_score) & (scores >= options.birth_score)).nonzero()[0]
        if newborn.size:
            self._bear(boxes, scores, newborn)
            source = np.concatenate((source, newborn))
        return self._show(detections, index, source)

    def predict(self, time_s: float) -> sv.Detections:
        """Where the tracks shown last would be at `time_s`, for frames that no detector looked at. Changes nothing."""
        import supervision as sv

        shown = self._shown
        if shown is None or not len(shown):
            empty = sv.Detections.empty()
            empty.tracker_id = np.empty(0, dtype=np.int64)
            empty.data = {"detection_index": np.empty(0, dtype=np.int64)}
            return empty
        state = self._shown_state.copy()
        self._motion.predict(state, min(max(time_s - self._now, 0.0), MAX_STEP_S))
        return sv.Detections(
            xyxy=np.ascontiguousarray(self._motion.decode(state[:4]).T, dtype=np.float32),
            confidence=shown.confidence,
            class_id=shown.class_id,
            tracker_id=shown.tracker_id,
            data={**shown.data, "detection_index": np.full(len(shown), -1)},
        )

    def _read(self, detections: sv.Detections) -> tuple[Floats, npt.NDArray[np.floating[Any]], Ints]:
        boxes = np.array(detections.xyxy.T, dtype=np.float64, order="C")
        count = boxes.shape[1]
        scores = detections.confidence
        if scores is None:
            scores = np.ones(count)
        sides = boxes[2:] - boxes[:2]
        index = np.arange(count)
        if (not count or sides.min() >= 1.0) and np.isfinite(sides.sum() + scores.sum()):
            return boxes, scores, index
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
        return boxes.take(index, axis=1), scores[index], index

    def _elapsed(self, time_s: float) -> float:
        """Seconds since the last frame; this one is now the present."""
        if not np.isfinite(time_s):
            raise TrackerInputError(f"time is {time_s}: give the capture time of the frame in seconds")
        last = self._now
        if self._frame and time_s < last:
            if self.options.on_backwards == "error":
                raise TrackerError(
                    f"time went back from {last:.6f} s to {time_s:.6f} s: give frames in the order they were captured, "
                    "call reset() before a new recording, or build the tracker with on_backwards='reset'"
                )
            self.reset()
        first = self._frame == 0
        self._frame += 1
        self._now = float(time_s)
        return 0.0 if first else self._now - last

    def _predict(self, dt: float) -> None:
        tracks = self._tracks
        state = tracks.state
        lost = tracks.misses > 0
        if self._motion.frozen_when_lost and lost.any():
            for row in self._motion.frozen_when_lost:
                state[row, lost] = 0.0
        still = ~tracks.confirmed if self.options.tentative_limit is not None else None
        self._motion.predict(state, min(max(dt, MIN_STEP_S), MAX_STEP_S), still)

    def _associate(self, boxes: Floats, scores: npt.NDArray[np.floating[Any]]) -> Ints:
        """(T,) the detection of every track, -1 for none."""
        tracks, options = self._tracks, self.options
        match = np.full(len(tracks), -1)
        if not (len(tracks) and scores.size):
            return match
        rows, cols, iou = self._overlapping(self._motion.decode(tracks.state[:4]), boxes)
        high = scores > options.high_score
        free = high.copy()
        if options.solve_first:
            gains = iou
            offered = free[cols].nonzero()[0]
            if options.direction:
                gains = iou + self._direction(boxes, scores, rows, cols)
            if offered.size:
                rows, cols, iou, gains = rows[offered], cols[offered], iou[offered], gains[offered]
            chosen = assign_then_filter(rows, cols, gains, iou >= 1 - options.limit)
            match[rows[chosen]] = cols[chosen]
            free[cols[chosen]] = False
            if options.recover is not None:
                self._recover(boxes, match, free, options.recover)
            return match
        costs = 1 - iou * scores[cols] if options.fuse_score else 1 - iou
        pool = tracks.confirmed if options.tentative_limit is not None else np.ones(len(tracks), dtype=np.bool_)
        self._stage(match, free, rows, cols, costs, pool, options.limit)
        if options.low_score is not None:
            low = (scores > options.low_score) & (scores < options.high_score)
            left = pool & (match < 0) & (tracks.misses == 0)
            self._stage(match, low, rows, cols, 1 - iou, left, options.low_limit)
        if options.tentative_limit is not None:
            self._stage(match, free, rows, cols, costs, ~pool, options.tentative_limit)
        return match

    def _overlapping(self, first: Floats, second: Floats) -> tuple[Ints, Ints, Floats]:
        if self.options.whole_pixels:
            first, second = first + _LAST_PIXEL, second + _LAST_PIXEL
        return overlapping(first, second)

    @staticmethod
    def _stage(match: Ints, free: Bools, rows: Ints, cols: Ints, costs: Floats, left: Bools, limit: float) -> None:
        """Match tracks that are `left` to `free` detections; both `match` and `free` are changed."""
        part = (left[rows] & free[cols]).nonzero()[0]
        if not part.size:
            return
        rows, cols = rows[part], cols[part]
        chosen = assign(rows, cols, costs[part], limit)
        cols = cols[chosen]
        match[rows[chosen]] = cols
        free[cols] = False

    def _direction(self, boxes: Floats, scores: npt.NDArray[np.floating[Any]], rows: Ints, cols: Ints) -> Floats:
        """OC-SORT's momentum: how well the way to the detection goes on with the way of the track, per pair."""
        reference, known = self._reference()
        way = _unit(_centres(boxes)[:, cols] - _centres(reference)[:, rows])
        cosine = np.clip((way * self._tracks.heading[:, rows]).sum(axis=0), -1.0, 1.0)
        agreement: Floats = (np.pi / 2 - np.arccos(cosine)) / np.pi
        return self.options.direction * agreement * scores[cols] * known[rows]

    def _reference(self) -> tuple[Floats, Bools]:
        """(4, T) the oldest observation of the last three frames, or else the latest; (T,) whether there is one.

        The detection that a track was born from does not count (as in the original).
        """
        tracks = self._tracks
        rows = self._history.read(tracks.slot, tracks.hits - 1)
        for back in (2, 3):
            older = self._history.read(tracks.slot, tracks.hits - back)
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

    def _correct(self, boxes: Floats, scores: npt.NDArray[np.floating[Any]], match: Ints, seen: Bools) -> None:
        tracks, options = self._tracks, self.options
        if not len(tracks):
            return
        if options.re_update:
            starting = ~seen & (tracks.misses == 0)
            tracks.saved = np.where(starting, tracks.state, tracks.saved)
        who, what = seen.nonzero()[0], match[seen]
        if who.size:
            found = boxes.take(what, axis=1)
            if options.re_update:
                self._replay(found, who)
            if options.direction:
                reference, known = self._reference()
                heading = _unit(_centres(found) - _centres(reference)[:, who])
                tracks.heading[:, who] = np.where(known[who], heading, 0.0)
            measured = np.zeros((4, len(tracks)))
            measured[:, who] = self._motion.encode(found)
            self._motion.correct(tracks.state, measured, seen)
            tracks.observed[:, who] = found
            tracks.score[who] = scores[what]
            tracks.last_s[who] = self._now
            self._note(who, found, scores[what])
        tracks.hits += seen
        tracks.streak += 1
        tracks.streak *= seen
        tracks.misses += 1
        tracks.misses *= ~seen

    def _note(self, who: Ints, found: Floats, scores: npt.NDArray[np.floating[Any]]) -> None:
        tracks = self._tracks
        rows = np.empty((who.size, 7))
        rows[:, 0] = self._now
        rows[:, 1:5] = found.T
        rows[:, 5] = scores
        rows[:, 6] = self._frame
        self._history.write(tracks.slot[who], tracks.hits[who], rows)

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
        last = self._history.read(tracks.slot[who], tracks.hits[who] - 1)
        dt = (self._now - last[:, 0]) / steps
        start, end = _sides(last[:, 1:5].T), _sides(found)
        state = tracks.saved[:, who]
        for step in range(1, int(steps.max()) + 1):
            at = start + (end - start) * (step / steps)
            line = np.concatenate((at[:2] - at[2:] / 2, at[:2] + at[2:] / 2))
            self._motion.correct(state, self._motion.encode(line), step <= steps)
            self._motion.predict(state, dt, step >= steps)
        tracks.state[:, who] = state

    def _bury(self, seen: Bools) -> None:
        """End what was missed for too long."""
        tracks, options = self._tracks, self.options
        if not len(tracks):
            return
        missed = ~seen
        ended = missed & (self._now - tracks.last_s > options.lost_s + CLOCK_S)
        ended &= tracks.misses > options.lost_frames
        if options.tentative_limit is not None:
            ended |= missed & ~tracks.confirmed
        if options.merge_overlap is not None:
            self._end_doubles(seen, ended, options.merge_overlap)
        if ended.any():
            self._history.give_back(tracks.slot[ended])
            self._kept = ~ended
            tracks.keep(self._kept)

    def _end_doubles(self, seen: Bools, ended: Bools, overlap: float) -> None:
        """Of a lost and a seen track on the same spot the younger one ends; marks it in `ended`."""
        tracks = self._tracks
        lost = (~seen & tracks.confirmed & ~ended).nonzero()[0]
        if not lost.size:
            return
        found = seen.nonzero()[0]
        boxes = self._motion.decode(tracks.state[:4])
        rows, cols, iou = self._overlapping(boxes[:, lost], boxes[:, found])
        same = iou > overlap
        lost, found = lost[rows[same]], found[cols[same]]
        lost_age = tracks.last_s[lost] - tracks.first_s[lost]
        found_age = tracks.last_s[found] - tracks.first_s[found]
        older = found_age > lost_age
        ended[lost[older]] = True
        ended[found[~older]] = True

    def _bear(self, boxes: Floats, scores: npt.NDArray[np.floating[Any]], newborn: Ints) -> None:
        count = newborn.size
        found = boxes.take(newborn, axis=1)
        zeros = np.zeros(count, dtype=np.int64)
        now = np.full(count, self._now)
        state = self._motion.start(self._motion.encode(found))
        new = Tracks(
            state=state,
            observed=found,
            heading=np.zeros((2, count)),
            saved=state,
            id=zeros,
            hits=zeros,
            streak=zeros,
            misses=zeros,
            confirmed=np.zeros(count, dtype=np.bool_),
            first_s=now,
            last_s=now,
            score=scores[newborn],
            slot=self._history.take_slots(count),
        )
        who = np.arange(len(self._tracks), len(self._tracks) + count)
        self._tracks.add(new)
        self._note(who, found, scores[newborn])
        self._tracks.hits[who] = 1

    def _show(self, detections: sv.Detections, index: Ints, source: Ints) -> sv.Detections:
        """Confirm who has earned it, give out ids, and make the rows of this frame."""
        tracks, options = self._tracks, self.options
        seen = source >= 0
        earned = seen & (tracks.streak >= options.confirm_hits)
        if self._frame <= options.warmup_frames:
            earned |= seen
        if options.requalify:
            tracks.confirmed = earned
        else:
            tracks.confirmed |= earned
        new = (tracks.confirmed & (tracks.id == 0)).nonzero()[0]
        if new.size:
            tracks.id[new] = np.arange(self._last_id + 1, self._last_id + 1 + new.size)
            self._last_id += new.size
        who = (tracks.confirmed & seen).nonzero()[0]
        who = who[np.argsort(tracks.id[who], kind="stable")]
        self._shown_state = tracks.state.take(who, axis=1)
        boxes = tracks.observed[:, who] if options.show_observed else self._motion.decode(self._shown_state[:4])
        rows = index[source[who]]
        self._shown = _rows(detections, rows, boxes, tracks.id[who])
        return self._shown


def _centres(boxes: Floats) -> Floats:
    return (boxes[:2] + boxes[2:]) / 2


def _sides(boxes: Floats) -> Floats:
    return np.concatenate((_centres(boxes), boxes[2:] - boxes[:2]))


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
