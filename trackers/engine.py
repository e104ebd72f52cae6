"""The engine behind every tracker: filter, life cycle and output of all tracks of one stream, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trackers import kalman, snapshot
from trackers.adaptive import BirthRecord, RateNoise, normalised
from trackers.appearance import LookCentre
from trackers.association import (
    LAST_PIXEL,
    FrameDetections,
    associate_at_once,
    associate_in_stages,
    reference_boxes,
    remember_looks,
    unit_vectors,
)
from trackers.boxes import Bools, Floats, Ints, box_centres, from_centre, overlapping, to_centre
from trackers.memory import TrackSlots
from trackers.options import TrackerOptions
from trackers.relink import STAND_S, LostGallery, LostTracks, NewTracks
from trackers.tracker import TrackerError, TrackerInputError, TrackMerge
from trackers.tracks import Scores, TrackStates, TrackTable

if TYPE_CHECKING:
    import supervision as sv

MIN_STEP_S, MAX_STEP_S = 0.001, 1.0  # shortest and longest step of the filter
CLOCK_S = 1e-6  # rounding of times: a limit is passed when it is passed by more than this
MIN_DOUBT = 0.05  # a perfect score still leaves this share of the measurement noise
MOVED = 0.25  # shares of its height that a stationary track may drift


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
        self._clear_state()

    def _clear_state(self) -> None:
        options = self.options
        self._tracks = TrackStates.empty()
        self._memory = TrackSlots(options.history)
        self._gallery = LostGallery(options)
        self._centre = LookCentre()
        self._rate_noise = RateNoise(options.adapt_rate_noise)
        self._motion.scale_rate_noise(np.ones((4, 1)))
        self._births = BirthRecord()
        self._frame = 0
        self._first_frame = 0  # number of frames before the start or the last interruption
        self._now = 0.0
        self._shown: sv.Detections | None = None
        self._shown_state: Floats = np.empty((20, 0))
        self._merges: list[TrackMerge] = []

    def reset(self) -> None:
        """Forgets all tracks; ids continue to count, so none is used twice."""
        self._clear_state()

    @property
    def alive_ids(self) -> Ints:
        """Sorted ids of tracks that were shown and may be shown again; all others have ended."""
        ids = self._tracks.id
        return np.sort(np.concatenate((ids[ids > 0], self._gallery.ids)))

    def suspend(self) -> None:
        """Ends all tracks but stationary ones, which are remembered: the stream is interrupted."""
        tracks = self._tracks
        self._remember_lost((tracks.id > 0).nonzero()[0], only_stationary=True)
        self._gallery.forget_moving()
        self._tracks, self._memory = TrackStates.empty(), TrackSlots(self.options.history)
        self._shown, self._shown_state = None, np.empty((20, 0))
        self._first_frame = self._frame
        self._merges = []

    def forget(self, ids: Ints) -> None:
        """Ends lost tracks: a later detection at their place is a new track. Tracks that are not lost stay."""
        self._gallery.forget(ids)
        tracks = self._tracks
        gone = np.isin(tracks.id, ids) & (tracks.id > 0) & (tracks.misses > 0)
        if gone.any():
            self._memory.give_back(tracks.slot[gone])
            tracks.keep(~gone)

    @property
    def merges(self) -> list[TrackMerge]:
        """Pairs of ids that the last update found to be one object."""
        return self._merges

    def update(
        self, detections: sv.Detections, time_s: float, camera: npt.NDArray[np.float64] | None = None
    ) -> sv.Detections:
        """The confirmed tracks seen in this frame, each with its `tracker_id`, rows sorted by id. See `Tracker`."""
        found, affine = self._read_detections(detections), _read_camera(camera)
        self._predict_tracks(self._advance_clock(time_s), affine)
        self._merges = []
        match, free = self._associate(found)
        seen = match >= 0
        self._correct_tracks(found, match, seen)
        kept = self._end_lost_tracks(seen)
        source = match if kept is None else match[kept]
        options = self.options
        newborn = (free & (found.scores >= options.birth_score)).nonzero()[0]
        if newborn.size:
            self._start_tracks(found, newborn)
            source = np.concatenate((source, newborn))
        if options.mask_weight or options.appearance:
            remember_looks(self._tracks, found, options, self._memory, source)
        return self._confirm_and_show(detections, found.index, source)

    def predict(self, time_s: float) -> sv.Detections:
        """Predicted boxes of the tracks shown last at `time_s`, for frames without detections. Changes nothing."""
        import supervision as sv

        shown = self._shown
        if shown is None or not len(shown):
            return _output_rows(
                sv.Detections.empty(), np.empty(0, dtype=np.int64), np.empty((4, 0)), self.alive_ids[:0]
            )
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

    def stationary_ids(self, for_s: float = STAND_S) -> Ints:
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
        return snapshot.to_arrays(
            self.options,
            snapshot.EngineState(
                tracks=self._tracks,
                memory=self._memory,
                gallery=self._gallery,
                centre=self._centre,
                rate_noise=self._rate_noise,
                rates=self._motion.rate,
                births=self._births,
                last_id=self._last_id,
                dropped_boxes=self.dropped_boxes,
                frame=self._frame,
                first_frame=self._first_frame,
                now=self._now,
                shown=self._shown,
                shown_state=self._shown_state,
            ),
        )

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continue exactly where the tracker that gave `state` stopped; it must have had the same options."""
        saved = snapshot.from_arrays(self.options, state)
        self._clear_state()
        self._tracks, self._memory, self._gallery = saved.tracks, saved.memory, saved.gallery
        self._centre = saved.centre
        self._rate_noise, self._births = saved.rate_noise, saved.births
        self._motion.rate = saved.rates
        self._last_id, self.dropped_boxes = saved.last_id, saved.dropped_boxes
        self._frame, self._first_frame, self._now = saved.frame, saved.first_frame, saved.now
        self._shown, self._shown_state = saved.shown, saved.shown_state

    def _read_detections(self, detections: sv.Detections) -> FrameDetections:
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
            return FrameDetections(boxes, scores, labels, index, detections)
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
        return FrameDetections(boxes.take(index, axis=1), scores[index], labels[index], index, detections)

    def _advance_clock(self, time_s: float) -> float:
        """Seconds since the last frame; makes this frame the present one."""
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

    def _predict_tracks(self, dt: float, camera: Floats | None) -> None:
        tracks = self._tracks
        self._gallery.expire(self._now)
        if not len(tracks):
            if camera is not None:
                self._follow_camera(camera)
            return
        if self.options.freeze_lost_size:
            lost = tracks.misses > 0
            if lost.any():
                for row in self._motion.size_rates:
                    tracks.state[row, lost] = 0.0
        still = ~tracks.confirmed if self.options.tentative_limit is not None else None
        if still is not None and self.options.newborn_reach:
            still &= tracks.hits == 1  # of those that were found again the motion is known
        self._motion.predict(tracks.state, min(max(dt, MIN_STEP_S), MAX_STEP_S), still)
        if camera is not None:
            self._follow_camera(camera)

    def _follow_camera(self, affine: Floats) -> None:
        """Moves all remembered pixel positions with the camera: x' = A x + t (BoT-SORT, section 3.2)."""
        turn, shift = affine[:, :2], affine[:, 2:]
        zoom = float(np.sqrt(abs(np.linalg.det(turn))))
        tracks = self._tracks
        tracks.state = self._motion.follow_camera(tracks.state, turn, shift, zoom)
        centre, half = box_centres(tracks.observed), (tracks.observed[2:] - tracks.observed[:2]) * (0.5 * zoom)
        centre = turn @ centre + shift
        tracks.observed = np.concatenate((centre - half, centre + half))
        tracks.anchor[:2] = turn @ tracks.anchor[:2] + shift
        self._gallery.follow_camera(turn, shift, zoom)

    def _associate(self, found: FrameDetections) -> tuple[Ints, Bools]:
        """(T,) the detection of every track, -1 for none; (N,) confident detections that are left."""
        tracks, options = self._tracks, self.options
        match = np.full(len(tracks), -1)
        free = found.scores > options.high_score
        if len(tracks) and found.scores.size:
            if options.solve_first:
                reference = reference_boxes(tracks, self._memory, self._frame) if options.direction else None
                associate_at_once(tracks, found, options, self._motion, reference, match, free)
            else:
                associate_in_stages(tracks, found, options, self._motion, self._memory, self._centre, match, free)
        return match, free

    def _correct_tracks(self, found: FrameDetections, match: Ints, seen: Bools) -> None:
        tracks, options = self._tracks, self.options
        if not len(tracks):
            return
        who = seen.nonzero()[0]
        leapt = tracks.streak < 0
        if leapt.any():  # the velocity of these follows from the way between their first two detections
            self._motion.predict(tracks.state, self._now - tracks.last_s, ~leapt)
        if options.re_update:
            starting = ~seen & (tracks.misses == 0)
            tracks.saved = np.where(starting, tracks.state, tracks.saved)
        if who.size:
            what = match.take(who)
            boxes, scores = found.boxes.take(what, axis=1), found.scores.take(what)
            if options.re_update:
                self._replay_gap(boxes, who)
            if options.direction:
                reference, known = reference_boxes(tracks, self._memory, self._frame)
                heading = unit_vectors(box_centres(boxes) - box_centres(reference)[:, who])
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
            self._remember_observations(who, boxes, scores)
            self._mark_movement(seen)
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

    def _remember_observations(self, who: Ints, boxes: Floats, scores: Scores) -> None:
        tracks = self._tracks
        rows = np.empty((who.size, 7))
        rows[:, 0] = self._now
        rows[:, 1:5] = boxes.T
        rows[:, 5] = scores
        rows[:, 6] = self._frame
        self._memory.write(tracks.slot.take(who), tracks.hits.take(who), rows)

    def _mark_movement(self, seen: Bools) -> None:
        tracks = self._tracks
        centre = self._motion.centre(tracks.state)
        off = centre - tracks.anchor[:2]
        reach = MOVED * (tracks.observed[3] - tracks.observed[1])
        moved = (seen & (off[0] * off[0] + off[1] * off[1] > reach * reach)).nonzero()[0]
        if moved.size:
            tracks.anchor[:2, moved] = centre[:, moved]
            tracks.anchor[2, moved] = self._now

    def _replay_gap(self, found: Floats, who: Ints) -> None:
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

    def _end_lost_tracks(self, seen: Bools) -> Bools | None:
        """Ends tracks that were missed for too long; (T,) mask of the remaining ones, None for all."""
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
        if options.relink_s or options.stationary_s or options.appearance:
            self._remember_lost((ended & (tracks.id > 0)).nonzero()[0])
        self._memory.give_back(tracks.slot[ended])
        kept = ~ended
        tracks.keep(kept)
        return kept

    def _remember_lost(self, who: Ints, *, only_stationary: bool = False) -> None:
        tracks = self._tracks
        merged = [merge.ended_id for merge in self._merges]
        if merged:
            who = who[~np.isin(tracks.id[who], merged)]
        if who.size:
            lost = LostTracks(
                id=tracks.id[who],
                last_s=tracks.last_s[who],
                first_s=tracks.first_s[who],
                standing_s=tracks.last_s[who] - tracks.anchor[2, who],
                position=to_centre(tracks.observed[:, who]),
                velocity=tracks.state[4:6, who],
                label=tracks.label[who],
                looks=self._looks(who),
            )
            self._centre.add(lost.looks)
            self._gallery.add(lost, only_stationary=only_stationary)

    def _looks(self, who: Ints) -> Floats:
        """(N, D) embeddings of tracks; D is 0 without appearance."""
        kept = self._memory.rows.get("embedding") if self.options.appearance else None
        return np.zeros((who.size, 0)) if kept is None else kept[self._tracks.slot[who]]

    def _end_doubles(self, seen: Bools, ended: Bools, overlap: float) -> None:
        """Marks in `ended` the younger one of a lost and a seen track at the same place."""
        tracks = self._tracks
        lost = (~seen & tracks.confirmed & ~ended).nonzero()[0]
        found = seen.nonzero()[0]
        if not (lost.size and found.size):
            return
        boxes = self._motion.decode(tracks.state[:4])
        if self.options.whole_pixels:
            boxes += LAST_PIXEL
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

    def _start_tracks(self, found: FrameDetections, newborn: Ints) -> None:
        boxes, scores = found.boxes.take(newborn, axis=1), found.scores[newborn]
        state = self._motion.start(self._motion.encode(boxes))
        new = TrackStates.newborn(state, boxes, scores, found.labels[newborn], self._now)
        new.slot = self._memory.take(newborn.size)
        who = np.arange(len(self._tracks), len(self._tracks) + newborn.size)
        self._tracks.add(new)
        self._remember_observations(who, boxes, scores)
        self._tracks.hits[who] = 1

    def _confirm_and_show(self, detections: sv.Detections, index: Ints, source: Ints) -> sv.Detections:
        """Confirms tracks, assigns ids, and makes the rows of this frame."""
        tracks, options = self._tracks, self.options
        seen = source >= 0
        needed = options.confirm_hits
        if options.doubtful_births is not None and self._births.death_share > options.doubtful_births:
            needed += 1
        earned = seen & (tracks.streak >= needed)
        if self._frame - self._first_frame <= options.warmup_frames:
            earned |= seen
        if options.requalify:
            tracks.confirmed = earned
        else:
            tracks.confirmed |= earned
        new = (tracks.confirmed & (tracks.id == 0)).nonzero()[0]
        if new.size:
            self._assign_ids(new)
        who = (tracks.confirmed & seen).nonzero()[0]
        who = who[np.argsort(tracks.id[who], kind="stable")]
        self._shown_state = tracks.state.take(who, axis=1)
        boxes = tracks.observed[:, who] if options.show_observed else self._motion.decode(self._shown_state[:4])
        self._shown = _output_rows(detections, index.take(source.take(who)), boxes, tracks.id.take(who))
        return self._shown

    def _assign_ids(self, new: Ints) -> None:
        """Assigns ids to newly confirmed tracks: those of lost tracks that they continue, or new ones."""
        tracks = self._tracks
        if self._frame - self._first_frame > self.options.warmup_frames:
            self._births.learn(new.size, 0)
        looks = self._looks(new)
        self._centre.add(looks)
        if len(self._gallery.rows):
            found = NewTracks(
                first_s=tracks.first_s[new],
                position=to_centre(tracks.observed[:, new]),
                label=tracks.label[new],
                likeness=self._centre.likeness(self._gallery.looks, looks) if looks.size else None,
            )
            others = self._motion.centre(tracks.state[:, tracks.id > 0])
            claims, ids, first_s = self._gallery.claim(found, others)
            tracks.id[new[claims]], tracks.first_s[new[claims]] = ids, first_s
            new = new[tracks.id[new] == 0]
        tracks.id[new] = np.arange(self._last_id + 1, self._last_id + 1 + new.size)
        self._last_id += new.size


def _read_camera(camera: npt.NDArray[np.float64] | None) -> Floats | None:
    if camera is None:
        return None
    affine = np.asarray(camera, dtype=np.float64)
    if affine.shape != (2, 3) or not np.isfinite(affine).all():
        raise TrackerInputError(f"camera is {affine.tolist()}: give the motion as a (2, 3) matrix of finite numbers")
    return affine


def _output_rows(detections: sv.Detections, rows: Ints, boxes: Floats, ids: Ints) -> sv.Detections:
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
