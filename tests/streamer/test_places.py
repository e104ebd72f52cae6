"""Zones, lines, counts and masks."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamer.errors import ConfigError
from streamer.rules.geometry import Inside, Region, polygon, signed_distance
from streamer.rules.places import Count, IgnoredRegion, Line, PlaceRules, Zone
from tests.streamer.scenes import reported, seen

YARD = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]
OUTSIDE, INSIDE = (0.1, 0.5), (0.5, 0.5)


def run(rule, frames, step_s=0.1):
    """What the rule says of each frame, a foot point or None per frame for track 1."""
    said = []
    for number, foot in enumerate(frames):
        feet = {} if foot is None else {1: foot}
        said.append(reported(rule.update(seen(number * step_s, feet, alive=[1] if foot is None else None))))
    return said


def test_a_zone_reports_who_enters_and_leaves_once_it_is_sure():
    said = run(Zone("yard", YARD, settle_s=0.2), [OUTSIDE, INSIDE, INSIDE, INSIDE, OUTSIDE, OUTSIDE, OUTSIDE])
    assert said == [[], [], [], [("zone.enter", 1)], [], [], [("zone.exit", 1)]]


def test_a_box_that_trembles_on_the_edge_enters_once():
    edge = [(0.199, 0.5), (0.201, 0.5)] * 20
    said = run(Zone("yard", YARD, settle_s=0.3), [INSIDE] * 5 + edge)
    assert sum(said, []) == [("zone.enter", 1)]


def test_dwell_is_reported_once_for_each_limit_and_the_exit_reports_how_long():
    zone = Zone("yard", YARD, dwell_s=[0.5, 1.0], settle_s=0)
    happenings = []
    for tenth in range(16):
        happenings += zone.update(seen(tenth / 10, {1: INSIDE}))
    happenings += zone.update(seen(1.6, {1: OUTSIDE}))
    assert reported(happenings) == [("zone.enter", 1), ("zone.dwell", 1), ("zone.dwell", 1), ("zone.exit", 1)]
    assert [happening.data["zone"].dwell_s for happening in happenings] == [None, 0.5, 1.0, 1.6]


def test_a_track_that_ends_inside_leaves_the_zone():
    zone = Zone("yard", YARD, settle_s=0)
    zone.update(seen(0, {1: INSIDE}))
    assert reported(zone.update(seen(1, {}, alive=[]))) == [("zone.exit", 1)]
    assert zone.occupants == []


def test_a_track_hidden_for_a_moment_stays_in_the_zone():
    zone = Zone("yard", YARD, settle_s=0)
    zone.update(seen(0, {1: INSIDE}))
    assert zone.update(seen(0.1, {}, alive=[1])) == []
    assert zone.occupants == [1]


def test_closing_a_zone_leaves_no_one_inside():
    zone = Zone("yard", YARD, settle_s=0)
    zone.update(seen(0, {1: INSIDE, 2: INSIDE}))
    assert reported(zone.close(int(3e9))) == [("zone.exit", 1), ("zone.exit", 2)]
    assert zone.close(int(4e9)) == []


WALL = [(0.5, 0.0), (0.5, 1.0)]
LEFT, RIGHT = (0.4, 0.5), (0.6, 0.5)


def crossings(line, frames, step_s=0.1):
    """Direction and time of each crossing of track 1, the end of the stream included."""
    found = []
    for number, foot in enumerate(frames):
        feet = {} if foot is None else {1: foot}
        found += line.update(seen(number * step_s, feet, alive=[1]))
    found += line.close(round(len(frames) * step_s * 1e9))
    return [(finding.data["line"].direction, finding.time_ns / 1e9) for finding in found]


def test_a_line_knows_its_directions_and_the_time_of_the_crossing():
    # Drawn downwards: its left is the right of the picture.
    assert crossings(Line("door", WALL), [LEFT] * 3 + [RIGHT] * 10 + [LEFT] * 10) == [("out", 0.3), ("in", 1.3)]


def test_a_line_counts_its_crossings_by_direction():
    line = Line("door", WALL)
    crossings(line, [LEFT] * 3 + [RIGHT] * 10 + [LEFT] * 10 + [RIGHT] * 10)
    assert line.counts == {"out": 2, "in": 1}


def test_a_crossing_counts_once_it_has_settled():
    line = Line("door", WALL, settle_s=0.5)
    frames = [LEFT] * 3 + [RIGHT] * 6
    said = [reported(line.update(seen(number / 10, {1: foot}))) for number, foot in enumerate(frames)]
    assert said == [[]] * 8 + [[("line.cross", 1)]]


def test_passing_beside_the_end_of_a_line_is_no_crossing():
    line = Line("door", [(0.5, 0.4), (0.5, 0.6)])
    assert crossings(line, [(0.3, 0.2)] * 10 + [(0.7, 0.2)] * 10) == []


def test_a_crossing_behind_an_obstacle_is_seen_when_the_track_comes_back():
    assert crossings(Line("door", WALL), [LEFT] * 3 + [None] * 14 + [RIGHT] * 10) == [("out", 1.7)]


def test_standing_on_a_line_crosses_nothing():
    steps = [LEFT] * 3 + [(0.49, 0.5), (0.51, 0.5)] * 50 + [RIGHT] * 10
    assert [direction for direction, _ in crossings(Line("door", WALL), steps)] == ["out"]


@given(st.lists(st.integers(0, 9), min_size=200, max_size=200))
def test_jitter_around_a_line_is_at_most_one_crossing(jitter):
    # As much as a tenth of the box of 0.1 that the scene has, for 10 s.
    steps = [(0.4955 + 0.001 * value, 0.5) for value in jitter]
    assert len(crossings(Line("door", WALL), steps, step_s=0.05)) <= 1


@given(st.integers(2, 40), st.integers(1, 5))
def test_feet_that_are_hidden_for_less_than_half_a_second_cross_nothing(before, hidden):
    level = [(0.0, 0.5), (1.0, 0.5)]
    steps = [(0.5, 0.55)] * before + [(0.5, 0.45)] * hidden + [(0.5, 0.55)] * 20
    assert crossings(Line("door", level), steps, step_s=0.08) == []


def test_a_single_frame_on_the_other_side_is_no_crossing_even_as_the_first_or_the_last():
    assert crossings(Line("door", WALL), [LEFT] + [RIGHT] * 20) == []
    assert crossings(Line("door", WALL), [LEFT] * 20 + [RIGHT]) == []


def test_a_track_that_ends_shortly_behind_the_line_has_crossed_it():
    assert crossings(Line("door", WALL), [LEFT] * 5 + [RIGHT] * 3) == [("out", 0.5)]


def test_a_line_near_the_edge_of_the_frame_counts():
    near = [(0.0, 0.997), (1.0, 0.997)]
    steps = [(0.5, 0.9)] * 5 + [(0.5, 1.0)] * 10
    assert [direction for direction, _ in crossings(Line("gate", near), steps)] == ["in"]


@given(st.floats(0.003, 0.997))
def test_every_line_that_is_accepted_can_count(y):
    steps = [(0.5, 0.0)] * 8 + [(0.5, 1.0)] * 8
    assert [direction for direction, _ in crossings(Line("gate", [(0.0, y), (1.0, y)]), steps)] == ["in"]


def test_a_line_on_the_edge_of_the_frame_is_refused():
    with pytest.raises(ConfigError, match="line 'gate' lies on the edge of the frame"):
        Line("gate", [(0.0, 1.0), (1.0, 1.0)])


def test_with_any_corner_a_track_crosses_with_its_first_corner_and_not_again_while_it_straddles():
    line = Line("door", WALL, anchor="any_corner")
    assert crossings(line, [(0.44, 0.5)] * 5 + [(0.46, 0.5)] * 2 + [(0.49, 0.5)] * 30 + [(0.6, 0.5)] * 10) == [
        ("out", 0.5)
    ]
    assert len(crossings(Line("door", WALL, anchor="any_corner"), [LEFT] * 5 + [RIGHT] * 10 + [LEFT] * 10)) == 2


def test_the_centre_of_a_box_can_decide():
    level = [(0.0, 0.5), (1.0, 0.5)]
    steps = [(0.5, 0.4)] * 5 + [(0.5, 0.52)] * 10  # feet beyond the line, the centre is not
    assert crossings(Line("door", level, anchor="centre"), steps) == []
    assert len(crossings(Line("door", level), steps)) == 1


def test_a_pending_crossing_continues_when_two_tracks_are_found_to_be_one():
    line = Line("door", WALL)
    for tenth in range(5):
        line.update(seen(tenth / 10, {1: LEFT}))
    line.update(replace(seen(1.9, {2: RIGHT}), merges=[(1, 2)]))
    found = [finding for tenth in range(20, 30) for finding in line.update(seen(tenth / 10, {2: RIGHT}))]
    assert [(finding.track, finding.time_ns) for finding in found] == [(2, 1_900_000_000)]


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30))
def test_crossings_of_one_track_alternate(xs):
    line = Line("door", [(0.5, 0.0), (0.5, 1.0)])
    directions = [
        happening.data["line"].direction
        for number, x in enumerate(xs)
        for happening in line.update(seen(number / 10, {1: (x, 0.5)}))
    ]
    assert all(first != second for first, second in itertools.pairwise(directions))


AXIS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))


@given(AXIS, AXIS)
def test_a_point_is_inside_a_square_when_its_coordinates_say_so(x, y):
    corners = polygon("square", YARD)
    expected = 0.2 <= x <= 0.8 and 0.2 <= y <= 0.8
    is_close = min(abs(side - value) for side in (0.2, 0.8) for value in (x, y)) < 2e-9
    is_exact = {x, y} <= {0.0, 0.2, 0.5, 0.8, 1.0}
    assert (is_close and not is_exact) or Inside(corners)(np.array([[x, y]]))[0] == expected


CORNERS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=6)


@given(CORNERS, st.floats(0, 1))
def test_every_point_of_the_edge_of_a_zone_is_inside(points, share):
    try:
        corners = polygon("zone", points)
    except ConfigError:
        assume(False)
    following = np.roll(corners, -1, axis=0)
    assert Inside(corners)(corners + share * (following - corners)).all()


@given(AXIS, AXIS)
def test_zones_with_a_common_edge_leave_no_gap(x, y):
    left, right = (
        Inside(polygon("a", [(0, 0), (0.5, 0), (0.5, 1), (0, 1)])),
        Inside(polygon("b", [(0.5, 0), (1, 0), (1, 1), (0.5, 1)])),
    )
    point = np.array([[x, y]])
    assert left(point)[0] or right(point)[0]
    assert x != 0.5 or (left(point)[0] and right(point)[0])


@given(CORNERS, st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_the_order_and_the_first_corner_of_a_zone_do_not_matter(points, probes):
    try:
        corners = polygon("zone", points)
    except ConfigError:
        assume(False)
    probe = np.array(probes)
    expected = Inside(corners)(probe)
    far = ~Inside(corners).on_edge(probe)
    for other in (np.roll(corners, 1, axis=0), corners[::-1]):
        assert (Inside(other)(probe) == expected)[far].all()


def test_feet_at_the_last_row_of_the_frame_are_inside_a_zone_that_reaches_it():
    zone = Zone("yard", [(0.1, 0.4), (0.9, 0.4), (0.9, 1), (0.1, 1)])
    assert sum(run(zone, [(0.5, 1.0)] * 10), []) == [("zone.enter", 1)]


def test_the_hole_of_a_zone_is_outside_and_its_edge_is_inside():
    hole = [(0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6)]
    region = Region("zone 'yard'", YARD, [hole])
    assert region(np.array([[0.3, 0.3], [0.5, 0.5], [0.4, 0.5], [0.1, 0.1]])).tolist() == [True, False, True, False]
    with pytest.raises(ConfigError, match="hole 1 of zone 'yard' reaches outside of it"):
        Region("zone 'yard'", YARD, [[(0.5, 0.5), (0.9, 0.5), (0.5, 0.9)]])


SQUARE = [(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)]
LEFT_HALF = [(0.1, 0.1), (0.5, 0.1), (0.5, 0.9), (0.1, 0.9)]
RIGHT_HALF = [(0.5, 0.1), (0.9, 0.1), (0.9, 0.9), (0.5, 0.9)]
LETTER_U = [(0.1, 0.1), (0.3, 0.1), (0.3, 0.7), (0.7, 0.7), (0.7, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)]
ACROSS_THE_GAP = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.3), (0.2, 0.3)]


@pytest.mark.parametrize(
    ("points", "holes", "sentence"),
    [
        (SQUARE, [SQUARE], "leave no area"),
        (SQUARE, [LEFT_HALF, RIGHT_HALF], "leave no area"),
        (LETTER_U, [ACROSS_THE_GAP], "hole 1 of zone 'z' reaches outside"),
    ],
)
def test_holes_that_leave_nothing_or_reach_outside_are_refused(points, holes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Zone("z", points, holes=holes)
    assert Zone("z", SQUARE, holes=[LEFT_HALF]).region(np.array([[0.7, 0.5]])).all()


def test_a_dwell_time_that_is_given_twice_is_reported_once():
    assert Zone("z", SQUARE, [3.0, 1.0, 3.0]).dwell_s == [1.0, 3.0]


def test_a_mask_hides_boxes_whose_feet_are_in_it():
    mask = IgnoredRegion("sky", [(0, 0), (1, 0), (1, 0.3), (0, 0.3)])
    assert mask.covers(np.array([[0.1, 0.0, 0.2, 0.25], [0.1, 0.0, 0.2, 0.5]])).tolist() == [True, False]
    whole = IgnoredRegion("sky", [(0, 0), (1, 0), (1, 0.3), (0, 0.3)], anchor="any_corner")
    assert whole.covers(np.array([[0.1, 0.0, 0.2, 0.25], [0.1, 0.0, 0.2, 0.5]])).tolist() == [True, False]


def test_the_times_of_a_visit_are_those_of_the_steps_over_the_edge():
    zone = Zone("yard", YARD, settle_s=0.5)
    found = []
    for tenth in range(30):
        found += zone.update(seen(tenth / 10, {1: INSIDE if 5 <= tenth < 20 else OUTSIDE}))
    assert [(reported([one])[0][0], one.time_ns / 1e9) for one in found] == [("zone.enter", 0.5), ("zone.exit", 2.0)]
    assert found[1].data["zone"].dwell_s == 1.5


def test_feet_that_flicker_into_a_zone_are_no_visit():
    zone = Zone("yard", YARD, settle_s=0.5)
    steps = [(0.3, 0.85)] * 5 + [(0.31, 0.78)] * 3 + [(0.32, 0.85)] * 5 + [(0.33, 0.5)] + [(0.34, 0.85)] * 5
    assert sum(run(zone, steps), []) == []


def test_presence_ends_at_the_last_sight():
    zone = Zone("yard", YARD)
    for tenth in range(51):
        zone.update(seen(tenth / 10, {1: INSIDE}))
    for tenth in range(51, 61):
        assert zone.update(seen(tenth / 10, {}, alive=[1])) == []
    (end,) = zone.update(seen(6.1, {}, alive=[]))
    assert (end.data["zone"].dwell_s, end.time_ns) == (5.0, 5_000_000_000)


def test_a_visit_continues_when_two_tracks_are_found_to_be_one():
    zone = Zone("yard", YARD, dwell_s=[3.0])
    for tenth in range(10):
        zone.update(seen(tenth / 10, {1: INSIDE}))
    found = zone.update(replace(seen(3.5, {2: INSIDE}), merges=[(1, 2)]))
    assert reported(found) == [("zone.dwell", 2)]
    (end,) = zone.close(int(4e9))
    assert (end.track, end.data["zone"].dwell_s) == (2, 3.5)


def test_where_both_tracks_have_entered_each_leaves_once():
    zone = Zone("yard", YARD, settle_s=0)
    zone.update(seen(0, {1: INSIDE, 2: INSIDE}))
    assert reported(zone.update(replace(seen(1, {1: INSIDE}), merges=[(2, 1)]))) == [("zone.exit", 2)]
    assert reported(zone.close(int(2e9))) == [("zone.exit", 1)]


def test_visits_of_remembered_tracks_stay_open_through_an_interruption():
    zone = Zone("yard", YARD, settle_s=0)
    zone.update(seen(0, {1: INSIDE, 2: INSIDE}))
    assert reported(zone.close(int(1e9), keep={1})) == [("zone.exit", 2)]
    assert zone.update(seen(60, {1: INSIDE})) == []
    assert zone.occupants == [1]


def test_right_of_a_line_is_right_of_who_walks_along_it():
    eastward = np.array([[0.0, 0.5], [1.0, 0.5]])
    assert signed_distance(np.array([[0.5, 0.7]]), eastward)[0] == pytest.approx(0.2)  # below, in the picture


def test_counts_report_occupancy_and_traffic_of_a_zone_by_window():
    zone = Zone("yard", YARD, settle_s=0)
    places = PlaceRules([zone], [], [Count("yard", 1.0, zone)])
    happenings = []
    for tenth in range(21):
        feet = {1: INSIDE if tenth >= 5 else OUTSIDE, 2: INSIDE if 7 <= tenth < 12 else OUTSIDE}
        happenings += places.update(seen(tenth / 10, feet))
    counts = [happening.data["count"] for happening in happenings if "count" in happening.data]
    assert [(count.entered, count.left, count.occupancy, count.occupancy_max) for count in counts] == [
        (2, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    assert counts[0].occupancy_mean == pytest.approx(0.5 + 0.3)
    assert counts[1].occupancy_mean == pytest.approx(1.0 + 0.2)


def test_counts_of_a_query_leave_the_others_out():
    zone = Zone("yard", YARD, settle_s=0)
    places = PlaceRules([zone], [], [Count("yard", 1.0, zone, query=7, query_text="a red car")])
    matched = {1: {7}, 2: {8}}
    for tenth in range(10):
        places.update(seen(tenth / 10, {1: INSIDE, 2: INSIDE}, matched=matched))
    (count,) = [
        happening.data["count"]
        for happening in places.update(seen(1.0, {1: INSIDE, 2: INSIDE}, matched=matched))
        if "count" in happening.data
    ]
    assert (count.query, count.entered, count.occupancy) == ("a red car", 1, 1)


def test_windows_without_a_frame_are_reported_as_unknown():
    places = PlaceRules(counts=[Count("street", 10.0)])
    findings = places.update(seen(0, {1: INSIDE})) + places.update(seen(45, {1: INSIDE}))
    windows = [finding.data["count"] for finding in findings]
    assert [(one.from_ns / 1e9, one.to_ns / 1e9, one.state) for one in windows] == [
        (0, 10, None),
        (10, 20, "unknown"),
        (20, 30, "unknown"),
        (30, 40, "unknown"),
    ]
    assert [one.occupancy for one in windows] == [1, None, None, None]


def test_a_day_without_frames_is_not_a_thousand_events():
    places = PlaceRules(counts=[Count("street", 1.0)])
    places.update(seen(0.0, {}))
    windows = [finding.data["count"] for finding in places.update(seen(86_400.0, {}))]
    assert [(one.from_ns / 1e9, one.to_ns / 1e9, one.state) for one in windows] == [
        (0, 1, None),
        (1, 86_400, "unknown"),
    ]


def test_a_window_after_the_last_sight_is_empty_although_the_track_is_remembered():
    zone = Zone("yard", YARD)
    places = PlaceRules([zone], [], [Count("yard", 5.0, zone)])
    findings = [one for tenth in range(50) for one in places.update(seen(tenth / 10, {1: INSIDE}))]
    findings += [one for tenth in range(50, 101) for one in places.update(seen(tenth / 10, {}, alive=[1]))]
    windows = [finding.data["count"] for finding in findings if "count" in finding.data]
    assert [(one.entered, one.occupancy, one.occupancy_max, one.occupancy_mean) for one in windows] == [
        (1, 1, 1, 0.98),
        (0, 0, 0, 0.0),
    ]


def test_a_track_that_is_missed_for_a_moment_stays_present_over_the_end_of_a_window():
    zone = Zone("yard", YARD)
    places = PlaceRules([zone], [], [Count("yard", 1.0, zone)])
    findings = []
    for tenth in range(21):
        feet = {} if tenth in (9, 10) else {1: INSIDE}
        findings += places.update(seen(tenth / 10, feet, alive=[1]))
    windows = [finding.data["count"] for finding in findings if "count" in finding.data]
    assert [(one.occupancy, one.occupancy_max) for one in windows] == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Zone("yard", YARD[:2]), "zone 'yard' has 2 different points: a polygon needs at least 3"),
        (lambda: Zone("yard", [(0, 0), (0.5, 0.5), (1, 1)]), "zone 'yard' has no area"),
        (lambda: Zone("yard", [(0, 0), (1, 0), (100, 100)]), "as fractions of the frame"),
        (lambda: Zone("yard", [(0, 0), (1, 1), (1, 0), (0, 1)]), r"edges 1 \(0,0 to 1,1\) and 3 \(1,0 to 0,1\) cross"),
        (lambda: Zone("yard", [(0, 0), (1, 0), (0.5, 0), (0, 1)]), "edges 1 .* and 2 .* run over each other"),
        (lambda: Zone("yard", YARD, settle_s=-1), "settle_s -1: give seconds from 0 on"),
        (lambda: Zone("yard", YARD, anchor="head"), "anchor 'head': use one of feet, centre, any_corner"),
        (lambda: Zone("yard", YARD, dwell_s=[0]), "dwell time 0: give seconds above 0"),
        (lambda: Line("door", YARD), "line 'door' has 4 points"),
        (lambda: Line("door", [(0.5, 0.5), (0.5, 0.5)]), "begins and ends at the same point"),
        (lambda: Count("yard", 0), "window 0: give seconds above 0"),
    ],
)
def test_what_cannot_be_is_reported_in_a_sentence(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_a_track_that_ends_in_a_zone_leaves_the_count_of_its_query():
    zone = Zone("yard", YARD, settle_s=0)
    places = PlaceRules([zone], [], [Count("yard", 1.0, zone, query=7, query_text="a red car")])
    places.update(seen(0.1, {1: INSIDE, 2: INSIDE}))  # not yet matched
    places.update(seen(0.2, {1: INSIDE, 2: INSIDE}, matched={1: {7}, 2: {7}}))
    places.update(seen(0.5, {2: INSIDE}, alive=[2], matched={1: {7}, 2: {7}}))  # 1 has ended in this frame
    (count,) = [h.data["count"] for h in places.update(seen(1.0, {2: INSIDE}, matched={2: {7}})) if "count" in h.data]
    assert (count.entered, count.left, count.occupancy) == (2, 1, 1)
    (last,) = [h.data["count"] for h in places.close(int(1.5e9)) if "count" in h.data]
    assert (last.entered, last.left, last.occupancy) == (0, 1, 0)


def test_count_windows_never_overlap_and_know_only_what_was_seen():
    counts = PlaceRules(counts=[Count("street", 10.0)])
    happenings = []
    for second in range(4, 8):
        happenings += counts.update(seen(second, {1: INSIDE}))
    happenings += counts.close(int(8e9))
    happenings += counts.update(seen(12, {1: INSIDE})) + counts.update(seen(21, {1: INSIDE}))
    windows = [h.data["count"] for h in happenings]
    assert [(count.from_ns / 1e9, count.to_ns / 1e9) for count in windows] == [(4, 8), (12, 20)]
    assert [count.occupancy_mean for count in windows] == [0.75, 1.0]
