"""What every tracker of the family promises, and what single ones do."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trackers.scenes import EMPTY, boxes, crowd, ids, walker
from trackers import Tracker, TrackerError, TrackerInputError, create_tracker, tracker_names

NAMES = tracker_names()


def run(name: str, scene: list[sv.Detections], fps: float = 30.0, start_s: float = 0.0, **options: Any) -> list[Any]:
    tracker = create_tracker(name, **options)
    return [tracker.update(detections, start_s + frame / fps) for frame, detections in enumerate(scene)]


def same(first: list[Any], second: list[Any]) -> bool:
    return all(
        np.array_equal(a.tracker_id, b.tracker_id) and np.array_equal(a.xyxy, b.xyxy)
        for a, b in zip(first, second, strict=True)
    )


def test_ids_count_from_one_in_every_tracker() -> None:
    first, second = create_tracker("bytetrack"), create_tracker("bytetrack")
    assert ids(first, [boxes(walker(0))] * 2) == ids(second, [boxes(walker(0))] * 2) == [[1], [1]]


def test_a_track_survives_a_short_occlusion() -> None:
    frames = [boxes(walker(x)) if not 30 < x < 50 else EMPTY for x in range(0, 90, 3)]
    for name in ("bytetrack", "botsort", "ocsort", "default"):
        assert {number for shown in ids(create_tracker(name), frames) for number in shown} == {1}, name


def test_a_track_ends_after_lost_s_and_its_id_is_never_used_again() -> None:
    tracker = create_tracker("bytetrack", lost_s=0.5)
    ids(tracker, [boxes(walker(100))] * 3)
    ids(tracker, [EMPTY] * 14, start_s=0.1)
    assert tracker.alive_ids.tolist() == [1]
    ids(tracker, [EMPTY] * 5, start_s=0.6)
    assert tracker.alive_ids.tolist() == []
    assert ids(tracker, [boxes(walker(900))] * 4, start_s=2.0)[-1] == [2]


def test_a_box_seen_once_is_never_shown() -> None:
    frames = [boxes(walker(0)), boxes(walker(2), walker(600)), boxes(walker(4)), boxes(walker(6))]
    for name in NAMES:
        if name not in {"sort", "ocsort"}:  # these show everything in their first frames
            assert ids(create_tracker(name), frames) == [[1]] * 4, name


def test_default_follows_what_leaves_its_own_box_between_two_frames() -> None:
    def rider(frame: int) -> tuple[float, float, float, float, float]:
        return (20.0 + 18 * frame, 100, 48.0 + 18 * frame, 157, 0.8)

    start = [boxes(walker(900))] * 3
    frames = start + [boxes(walker(900), rider(frame)) for frame in range(12)]
    assert ids(create_tracker("default"), frames, fps=10)[6:] == [[1, 2]] * 9
    assert all(shown == [1] for shown in ids(create_tracker("default", newborn_reach=0.0), frames, fps=10))


def test_detections_far_apart_that_move_on_no_common_way_are_no_track() -> None:
    spots = (300, 320, 300, 330, 305, 335, 300)
    frames = [boxes(walker(900))] * 3 + [boxes(walker(900), (x, 100, x + 18, 140, 0.8)) for x in spots]
    assert all(shown == [1] for shown in ids(create_tracker("default"), frames, fps=10))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_input_gives_the_same_output(name: str) -> None:
    scene = crowd(1, 25, 60)
    assert same(run(name, scene), run(name, scene))


@pytest.mark.parametrize("name", NAMES)
def test_the_callers_arrays_are_not_written_to(name: str) -> None:
    scene = crowd(2, 10, 20)
    for detections in scene:
        detections.xyxy.setflags(write=False)
        assert detections.confidence is not None
        detections.confidence.setflags(write=False)
    shown = run(name, scene)
    shown[5].xyxy[:] = 0
    assert same(shown[6:], run(name, scene)[6:])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_tracker_goes_on_as_if_nothing_had_been(name: str) -> None:
    scene = crowd(3, 30, 80)
    whole = run(name, scene)
    first, second = create_tracker(name), create_tracker(name)
    for frame in range(40):
        first.update(scene[frame], frame / 30)
    file = io.BytesIO()
    np.savez(file, **first.state_dict())  # type: ignore[arg-type]
    file.seek(0)
    with np.load(file) as saved:
        second.load_state_dict(dict(saved))
    assert np.array_equal(second.predict(1.35).xyxy, first.predict(1.35).xyxy)
    assert same([second.update(scene[frame], frame / 30) for frame in range(40, 80)], whole[40:])


def test_a_saved_tracker_with_other_options_is_refused() -> None:
    saved = create_tracker("bytetrack").state_dict()
    with pytest.raises(TrackerError, match=r"lost_s=1\.0, this one has 2\.0"):
        create_tracker("bytetrack", lost_s=2.0).load_state_dict(saved)
    with pytest.raises(TrackerError, match="not a saved tracker"):
        create_tracker().load_state_dict({})


@pytest.mark.parametrize("name", NAMES)
def test_ids_do_not_depend_on_the_order_of_detections(name: str) -> None:
    scene = crowd(4, 20, 50)
    random = np.random.default_rng(0)
    mixed = [detections[random.permutation(len(detections))] for detections in scene]
    for ours, theirs in zip(run(name, scene), run(name, mixed), strict=True):
        ordered, others = np.lexsort(ours.xyxy.T), np.lexsort(theirs.xyxy.T)
        np.testing.assert_allclose(ours.xyxy[ordered], theirs.xyxy[others], atol=1e-3)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_default_does_not_depend_on_the_size_of_the_picture(factor: float) -> None:
    scene = crowd(5, 20, 50)
    scaled = [sv.Detections(xyxy=d.xyxy * factor, confidence=d.confidence, class_id=d.class_id) for d in scene]
    for ours, theirs in zip(run("default", scene), run("default", scaled), strict=True):
        assert np.array_equal(ours.tracker_id, theirs.tracker_id)
        np.testing.assert_allclose(ours.xyxy * factor, theirs.xyxy, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_only_elapsed_time_counts_not_the_clock(name: str) -> None:
    scene = crowd(6, 15, 50)
    for ours, theirs in zip(run(name, scene), run(name, scene, start_s=1_700_000_000.0), strict=True):
        assert np.array_equal(ours.tracker_id, theirs.tracker_id)
        np.testing.assert_allclose(ours.xyxy, theirs.xyxy, atol=0.05)


@pytest.mark.parametrize("fps", [7, 14, 30, 60])
def test_one_setting_serves_every_frame_rate(fps: int) -> None:
    seconds = np.arange(0, 6, 1 / fps)
    frames = [boxes(walker(20 + 60 * s), walker(700 - 60 * s, y=300)) for s in seconds]
    assert ids(create_tracker("default"), frames, fps=fps)[1:] == [[1, 2]] * (len(frames) - 1)


def test_a_gap_is_bridged_by_time_not_by_frames() -> None:
    """Half of the frames are missing: with true times the prediction goes twice as far."""
    tracker = create_tracker("default")
    times = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 14, 15, 18, 19]
    shown = [tracker.update(boxes(walker(14.0 * t)), t / 30).tracker_id for t in times]
    assert {int(number) for numbers in shown if numbers is not None for number in numbers} == {1}


def test_time_that_falls_is_an_error_or_a_fresh_start() -> None:
    tracker = create_tracker("bytetrack")
    ids(tracker, [boxes(walker(0))] * 3, start_s=5.0)
    with pytest.raises(TrackerError, match=r"time went back from 5\.066667 s to 4\.000000 s"):
        tracker.update(boxes(walker(0)), 4.0)
    assert tracker.update(boxes(walker(0)), 5.1).tracker_id.tolist() == [1]  # type: ignore[union-attr]
    other = create_tracker("bytetrack", on_backwards="reset")
    ids(other, [boxes(walker(0))] * 3, start_s=5.0)
    assert ids(other, [boxes(walker(0))] * 2, start_s=1.0) == [[2], [2]]


@pytest.mark.parametrize("name", NAMES)
def test_a_reset_forgets_everything_but_the_ids(name: str) -> None:
    scene = crowd(7, 20, 60)
    fresh, used = create_tracker(name), create_tracker(name)
    for frame, found in enumerate(scene):
        used.update(found, frame / 30)
    highest = int(used.state_dict()["counters"][0])
    used.reset()
    for frame, found in enumerate(scene):
        ours, theirs = used.update(found, frame / 30), fresh.update(found, frame / 30)
        np.testing.assert_array_equal(ours.xyxy, theirs.xyxy)
        np.testing.assert_array_equal(ours.tracker_id, theirs.tracker_id + highest)


def test_predict_moves_the_shown_boxes_and_changes_nothing() -> None:
    tracker = create_tracker("default")
    scene = [boxes(walker(3.0 * frame)) for frame in range(30)]
    ids(tracker, scene[:20])
    before = tracker.state_dict()
    ahead = tracker.predict(24 / 30)
    assert ahead.tracker_id is not None
    assert ahead.tracker_id.tolist() == [1]
    assert ahead.xyxy[0] == pytest.approx(np.array(walker(72.0)[:4]), abs=4)
    after = tracker.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert len(create_tracker().predict(1.0)) == 0


def test_camera_motion_keeps_a_still_thing_under_one_id() -> None:
    """The camera jumps sideways by a whole width every frame; only the matrices show it."""
    jump = np.array([[1.0, 0, 60], [0, 1, 0]])
    frames = [boxes(walker(100 + 60 * frame)) for frame in range(12)]
    reported, untold = create_tracker("botsort"), create_tracker("botsort")
    assert [reported.update(found, n / 30, jump).tracker_id.tolist() for n, found in enumerate(frames)] == [[1]] * 12  # type: ignore[union-attr]
    assert ids(untold, frames)[1:] != [[1]] * 11
    with pytest.raises(TrackerInputError, match=r"\(2, 3\) matrix"):
        reported.update(frames[0], 1.0, np.eye(2))


def test_default_notices_by_itself_that_the_camera_pans() -> None:
    """Everything starts to move at once; each thing alone would be lost, all together show a common motion."""
    places = [0, 150, 300, 450, 600, 750]
    pan = [0.0] * 10 + [18.0 * step for step in range(1, 8)]
    frames = [boxes(*(walker(place + shift) for place in places)) for shift in pan]
    found = ids(create_tracker("default"), frames)
    assert found == [[1, 2, 3, 4, 5, 6]] * len(frames)


def test_a_class_can_keep_tracks_apart() -> None:
    def one(kind: int, x: float) -> sv.Detections:
        found = boxes(walker(x))
        found.class_id = np.array([kind])
        return found

    frames = [one(0, 0), one(0, 2), one(1, 4), one(1, 6)]
    assert ids(create_tracker("default"), frames) == [[1]] * 4
    assert ids(create_tracker("default", per_class=True), frames)[-1] == [2]


def test_appearance_decides_between_boxes_that_are_equally_near() -> None:
    def pair(left: float, right: float, swapped: bool) -> sv.Detections:
        found = boxes(walker(left), walker(right))
        looks = np.array([[1.0, 0, 0], [0, 1, 0]])
        found.data["embedding"] = looks[::-1] if swapped else looks
        return found

    frames = [pair(100, 112, False)] * 4 + [pair(105, 107, True)]
    plain, seeing = create_tracker("botsort"), create_tracker("botsort", appearance=True)
    for tracker, first in ((plain, 1), (seeing, 2)):
        for number, found in enumerate(frames):
            tracked = tracker.update(found, number / 30)
        by_detection = dict(zip(tracked.data["detection_index"].tolist(), tracked.tracker_id.tolist(), strict=True))  # type: ignore[union-attr]
        assert by_detection[0] == first
    with pytest.raises(TrackerInputError, match='needs data\\["embedding"\\]'):
        seeing.update(boxes(walker(100)), 1.0)


LOOKS = np.random.default_rng(5).normal(size=(12, 32)) + 4.0  # a large common part, as real embeddings have


def dressed(*people: tuple[int, tuple[float, ...]]) -> sv.Detections:
    """Detections of people, each with the number of its look."""
    found = boxes(*(box for _, box in people)) if people else EMPTY
    noise = np.random.default_rng(len(people)).normal(scale=0.2, size=(len(people), 32))
    return replace(found, data={"embedding": LOOKS[[look for look, _ in people]] + noise})


def meet_everybody(tracker: Tracker) -> None:
    """Ten people in turn, so that the common part of looks is known; their tracks are over afterwards."""
    for number in range(10):
        ids(tracker, [dressed((number, walker(150 * number + 8 * n, y=900))) for n in range(6)], start_s=10.0 * number)
    ids(tracker, [dressed()] * 2, start_s=200.0)


def hide_and_show(tracker: Tracker, gap_s: float, *, look: int) -> list[int]:
    """Ids after two people went and one with `look` came back elsewhere, off the way of both."""
    way = [dressed((1, walker(100 + 3.0 * n)), (2, walker(100 + 3.0 * n, y=400))) for n in range(30)]
    first, second = ids(tracker, way, start_s=300.0)[-1]
    ids(tracker, [dressed()] * 40, start_s=301.0)
    back = ids(tracker, [dressed((look, walker(300, y=250)))] * 4, start_s=301.0 + gap_s)[-1]
    return [{first: 1, second: 2}.get(number, 0) for number in back]


@pytest.mark.parametrize("gap_s", [3.0, 10.0, 25.0])
def test_a_look_that_returns_off_its_way_is_the_same_track(gap_s: float) -> None:
    for look in (1, 2):
        seeing, plain = create_tracker("default", appearance=True), create_tracker("default")
        meet_everybody(seeing)
        meet_everybody(plain)
        assert hide_and_show(seeing, gap_s, look=look) == [look]
        assert hide_and_show(plain, gap_s, look=look) == [0]


def test_another_look_on_the_way_of_a_lost_track_is_a_new_one() -> None:
    for look, same in ((1, True), (7, False)):
        tracker = create_tracker("default", appearance=True)
        meet_everybody(tracker)
        [before] = ids(tracker, [dressed((1, walker(100 + 3.0 * n))) for n in range(30)], start_s=300.0)[-1]
        ids(tracker, [dressed()] * 60, start_s=301.0)
        after = [dressed((look, walker(100 + 3.0 * n))) for n in range(90, 94)]
        assert (ids(tracker, after, start_s=303.0)[-1] == [before]) is same


def test_two_lost_tracks_that_look_alike_are_not_taken_for_one_another() -> None:
    tracker = create_tracker("default", appearance=True)
    meet_everybody(tracker)
    way = [dressed((1, walker(100 + 3.0 * n)), (1, walker(100 + 3.0 * n, y=400))) for n in range(30)]
    before = ids(tracker, way, start_s=300.0)[-1]
    ids(tracker, [dressed()] * 40, start_s=301.0)
    assert not set(ids(tracker, [dressed((1, walker(300, y=250)))] * 4, start_s=306.0)[-1]) & set(before)


def test_a_look_is_forgotten_after_its_time() -> None:
    tracker = create_tracker("default", appearance=True, reid_s=8.0)
    meet_everybody(tracker)
    assert hide_and_show(tracker, 12.0, look=1) == [0]


def test_before_the_common_part_of_looks_is_known_the_way_decides() -> None:
    tracker = create_tracker("default", appearance=True)
    ids(tracker, [dressed((1, walker(100 + 3.0 * n))) for n in range(30)])
    ids(tracker, [dressed()] * 60, start_s=1.0)
    assert ids(tracker, [dressed((1, walker(100 + 3.0 * n))) for n in range(90, 94)], start_s=3.0)[-1] == [1]


def test_a_tracker_with_looks_goes_on_after_it_was_stored() -> None:
    whole, first, second = (create_tracker("default", appearance=True) for _ in range(3))
    for tracker in (whole, first):
        meet_everybody(tracker)
    second.load_state_dict(first.state_dict())
    assert hide_and_show(second, 10.0, look=2) == hide_and_show(whole, 10.0, look=2) == [2]


def test_masks_decide_where_boxes_cannot() -> None:
    """Two things share a box: one is its left half, the other its right half; then the rows change places."""

    def scene(swapped: bool) -> sv.Detections:
        masks = np.zeros((2, 200, 300), dtype=np.bool_)
        masks[0, 50:150, 100:140] = True
        masks[1, 50:150, 140:180] = True
        order = [1, 0] if swapped else [0, 1]
        xyxy = np.array([[100.0, 50, 180, 150], [101.0, 50, 181, 150]])
        return sv.Detections(xyxy=xyxy, confidence=np.array([0.9, 0.9]), mask=masks[order])

    tracker = create_tracker("botsort", mask_weight=0.5, merge_overlap=None)
    for number in range(4):
        tracked = tracker.update(scene(False), number / 30)
    before = tracked.tracker_id.tolist()  # type: ignore[union-attr]
    swapped = tracker.update(scene(True), 4 / 30)
    assert swapped.data["detection_index"][swapped.tracker_id == before[0]].tolist() == [1]
    assert swapped.mask is not None
    assert swapped.mask.shape == (2, 200, 300)


def test_a_track_that_returns_on_its_way_keeps_its_id() -> None:
    tracker = create_tracker("default", lost_s=0.5, relink_s=5.0)
    way = [boxes(walker(100 + 3.0 * frame)) for frame in range(130)]
    assert ids(tracker, way[:30])[-1] == [1]
    assert ids(tracker, [EMPTY] * 70, start_s=30 / 30) == [[]] * 70
    assert tracker.alive_ids.tolist() == [1]
    assert ids(tracker, way[100:], start_s=100 / 30)[-1] == [1]


def test_a_track_that_appears_elsewhere_gets_a_new_id() -> None:
    tracker = create_tracker("default", lost_s=0.5, relink_s=5.0)
    ids(tracker, [boxes(walker(300))] * 10)
    ids(tracker, [EMPTY] * 40, start_s=10 / 30)
    assert ids(tracker, [boxes(walker(900))] * 4, start_s=2.0)[-1] == [2]


def test_two_new_tracks_on_the_way_of_a_lost_one_are_too_doubtful_to_continue_it() -> None:
    tracker = create_tracker("default", lost_s=0.5, relink_s=5.0)
    ids(tracker, [boxes(walker(100 + 3.0 * frame)) for frame in range(30)])
    ids(tracker, [EMPTY] * 90, start_s=1.0)
    found = boxes(walker(440), walker(480))
    assert ids(tracker, [found] * 4, start_s=4.0)[-1] == [2, 3]


def test_of_two_new_tracks_on_the_way_of_one_lost_lately_the_nearest_continues_it() -> None:
    tracker = create_tracker("default", lost_s=0.5, relink_s=5.0)
    ids(tracker, [boxes(walker(100 + 3.0 * frame)) for frame in range(30)])
    ids(tracker, [EMPTY] * 40, start_s=1.0)
    found = boxes(walker(290), walker(350))
    assert ids(tracker, [found] * 4, start_s=70 / 30)[-1] == [1, 2]


@pytest.mark.parametrize("away_s", [3.0, 60.0])
def test_a_stationary_track_is_remembered_for_minutes(away_s: float) -> None:
    tracker = create_tracker("default")
    parked = boxes(walker(300))
    ids(tracker, [parked] * 150)
    assert ids(tracker, [EMPTY] * 90, start_s=5.0)[-1] == []
    assert ids(tracker, [parked] * 3, start_s=5.0 + away_s)[-1] == [1]
    assert tracker.table().first_s.tolist() == [0.0]


def test_the_memory_of_a_stationary_track_ends() -> None:
    tracker = create_tracker("default", stationary_s=30.0)
    ids(tracker, [boxes(walker(300))] * 150)
    ids(tracker, [EMPTY] * 3, start_s=34.0)
    assert tracker.alive_ids.tolist() == [1]
    ids(tracker, [EMPTY] * 3, start_s=36.0)
    assert tracker.alive_ids.tolist() == []


def test_another_object_that_passes_a_remembered_place_does_not_get_its_id() -> None:
    tracker = create_tracker("default")
    ids(tracker, [boxes(walker(300))] * 150)
    ids(tracker, [EMPTY] * 90, start_s=5.0)
    passing = ids(tracker, [boxes(walker(100 + 4.0 * frame)) for frame in range(100)], start_s=8.0)
    assert {number for row in passing for number in row} == {2}
    assert tracker.alive_ids.tolist() == [1, 2]


def test_a_suspended_tracker_remembers_what_stood_and_nothing_else() -> None:
    tracker = create_tracker("default")
    frames = [boxes(walker(300), walker(600 + 3.0 * frame)) for frame in range(90)]
    ids(tracker, frames)
    tracker.suspend()
    assert tracker.alive_ids.tolist() == [1]
    assert len(tracker.predict(3.1)) == 0
    assert ids(tracker, [frames[-1]] * 3, start_s=20.0)[-1] == [1, 3]


def test_forgotten_tracks_are_not_continued() -> None:
    tracker = create_tracker("default")
    ids(tracker, [boxes(walker(300))] * 150)
    tracker.forget(np.array([1]))
    assert tracker.alive_ids.tolist() == [1], "a track that is seen stays"
    ids(tracker, [EMPTY] * 90, start_s=5.0)
    tracker.forget(np.array([1]))
    assert tracker.alive_ids.tolist() == []
    assert ids(tracker, [boxes(walker(300))] * 3, start_s=9.0)[-1] == [2]


def test_what_stands_is_stationary_and_what_walks_is_not() -> None:
    random = np.random.default_rng(0)
    tracker = create_tracker("default")
    frames = [boxes(walker(100 + random.normal(0, 1)), walker(300 + 2.0 * frame, y=400)) for frame in range(90)]
    ids(tracker, frames[:30])
    assert tracker.stationary_ids(2.0).tolist() == []
    ids(tracker, frames[30:], start_s=1.0)
    assert tracker.stationary_ids(2.0).tolist() == [1]
    table = tracker.table()
    assert table.velocity[1] == pytest.approx([60, 0], abs=12)
    assert table.standing_s[0] > 2.0 > table.standing_s[1]


def test_the_history_of_a_track_is_bounded_and_in_order() -> None:
    tracker = create_tracker("default", history=16)
    ids(tracker, [boxes(walker(2.0 * frame)) for frame in range(40)])
    past = tracker.history(1)
    assert past.shape == (16, 6)
    np.testing.assert_allclose(past[:, 0], np.arange(24, 40) / 30)
    np.testing.assert_allclose(past[:, 1], 2.0 * np.arange(24, 40))
    with pytest.raises(TrackerInputError, match="track 7 is not alive"):
        tracker.history(7)


def test_rows_keep_what_came_with_their_detection() -> None:
    found = boxes(walker(0), walker(200), walker(400))
    found.class_id = np.array([2, 0, 1])
    found.data = {"class_name": np.array(["dog", "person", "car"], dtype=object), "note": ["a", "b", "c"]}
    tracked = create_tracker("default").update(found, 0.0)
    rows = tracked.data["detection_index"]
    assert tracked.data["class_name"].tolist() == [["dog", "person", "car"][row] for row in rows]
    assert tracked.data["note"] == ["abc"[row] for row in rows]
    assert tracked.class_id is not None
    assert tracked.class_id.tolist() == [[2, 0, 1][row] for row in rows]


def test_boxes_under_a_pixel_are_left_out_and_counted() -> None:
    tracker = create_tracker("default")
    tracked = tracker.update(boxes(walker(0), (50, 50, 50.4, 90), walker(300)), 0.0)
    assert tracked.data["detection_index"].tolist() == [0, 2]
    assert tracker.dropped_boxes == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((0, 0, float("nan"), 10, 0.9), "finite numbers"),
        ((0, 0, float("inf"), 10, 0.9), "finite numbers"),
        ((0, 0, 10, 10, float("nan")), "finite numbers"),
        ((10, 0, 0, 10, 0.9), "x1 <= x2"),
    ],
)
def test_boxes_that_are_none_are_refused_and_nothing_changes(row: tuple[float, ...], words: str) -> None:
    tracker = create_tracker("default")
    ids(tracker, [boxes(walker(0))] * 3)
    found = boxes(walker(0), walker(0))
    found.xyxy[1], found.confidence[1] = row[:4], row[4]  # type: ignore[index]  # supervision checks what it is built from
    with pytest.raises(TrackerInputError, match=words):
        tracker.update(found, 0.5)
    assert ids(tracker, [boxes(walker(0))], start_s=0.1) == [[1]]


def test_a_time_that_is_no_number_is_refused() -> None:
    with pytest.raises(TrackerInputError, match="time is nan"):
        create_tracker().update(EMPTY, float("nan"))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("bytetrak", {}, r"tracker 'bytetrak' is unknown: use one of .*did you mean 'bytetrack'"),
        ("sort", {"lost": 1}, r"has no option 'lost': use one of .*did you mean"),
        ("default", {"high_score": 2}, "high_score is 2: use a number from 0 to 1"),
        ("default", {"lost_s": -1}, "lost_s is -1: use 0 or more"),
        ("default", {"lost_s": "1"}, "lost_s is '1': use a number"),
        ("default", {"confirm_hits": 1.5}, r"confirm_hits is 1\.5: use a whole number"),
        ("default", {"motion": "fast"}, "motion is 'fast': use one of 'centre-size'"),
        ("default", {"per_class": 1}, "per_class is 1: use true or false"),
    ],
)
def test_what_cannot_be_asked_for_is_reported_in_a_sentence(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TrackerInputError, match=words):
        create_tracker(name, **options)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    frames=st.lists(
        st.tuples(
            st.lists(
                st.tuples(
                    st.floats(-200, 2000), st.floats(-200, 1200), st.floats(0, 500), st.floats(0, 500), st.floats(0, 1)
                ),
                max_size=8,
            ),
            st.sampled_from([0.0, 1e-4, 1 / 60, 1 / 7, 3.0, 3600.0]),
        ),
        max_size=15,
    ),
)
def test_nothing_a_detector_may_say_upsets_a_tracker(name: str, frames: list[Any]) -> None:
    tracker = create_tracker(name)
    time_s, highest = 0.0, 0
    for rows, step in frames:
        time_s += step
        table = np.array(rows, dtype=np.float64).reshape(-1, 5)
        found = sv.Detections(
            xyxy=np.concatenate((table[:, :2], table[:, :2] + table[:, 2:4]), axis=1), confidence=table[:, 4]
        )
        tracked = tracker.update(found, time_s)
        assert tracked.tracker_id is not None
        shown = tracked.tracker_id.tolist()
        assert shown == sorted(set(shown))
        assert np.isfinite(tracked.xyxy).all()
        assert (tracked.xyxy[:, 2:] > tracked.xyxy[:, :2]).all()
        assert set(shown) <= set(tracker.alive_ids.tolist())
        indices = tracked.data["detection_index"].tolist()
        assert len(set(indices)) == len(indices)
        for number in shown:
            assert number >= 1
        new = [number for number in shown if number > highest]
        highest = max([highest, *shown])
        assert not new or min(new) > highest - len(new) - 20


@pytest.mark.parametrize("name", NAMES)
def test_hard_scenes_are_only_scenes(name: str) -> None:
    tracker = create_tracker(name)
    same_box = boxes(*[walker(100)] * 30)
    teleport = boxes(walker(-5000), walker(9000))
    for number, found in enumerate([same_box, same_box, teleport, EMPTY, same_box, boxes((0, 0, 1, 1, 0.0))]):
        tracker.update(found, number * 0.1)
    tracker.update(same_box, 3600.0)
    tracker.update(same_box, 3600.0)
    for number, found in enumerate(crowd(8, 3000, 8, size=(16000, 9000))):
        tracked = tracker.update(found, 3601 + number / 30)
    assert len(tracked) > 1000


def test_memory_does_not_grow_with_the_length_of_a_stream() -> None:
    tracker = create_tracker("default")
    scene = crowd(9, 6, 400)
    size = []
    for turn in range(12):
        for frame, found in enumerate(scene):
            tracker.update(found, turn * 60.0 + frame / 30)
        size.append(sum(values.nbytes for values in tracker.state_dict().values()))
    assert max(size[6:]) <= max(size[:6])
    for frame in range(200):
        tracker.update(EMPTY, 2000 + frame / 30)
    assert tracker.alive_ids.size == 0
