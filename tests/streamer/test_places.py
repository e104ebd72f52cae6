"""Zones, lines and counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import ConfigError
from streamer.rules.geometry import Inside, polygon, signed_distance
from streamer.rules.places import Count, Line, PlaceRules, Zone
from tests.streamer.scenes import seen, told

YARD = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]
OUTSIDE, INSIDE = (0.1, 0.5), (0.5, 0.5)


def run(rule, frames, step_s=0.1):
    """What the rule says of each frame, a foot point or None per frame for track 1."""
    said = []
    for number, foot in enumerate(frames):
        feet = {} if foot is None else {1: foot}
        said.append(told(rule.update(seen(number * step_s, feet, alive=[1] if foot is None else None))))
    return said


def test_a_zone_tells_who_enters_and_leaves_once_it_is_sure():
    said = run(Zone("yard", YARD, settle_s=0.2), [OUTSIDE, INSIDE, INSIDE, INSIDE, OUTSIDE, OUTSIDE, OUTSIDE])
    assert said == [[], [], [], [("zone.enter", 1)], [], [], [("zone.exit", 1)]]


def test_a_box_that_trembles_on_the_edge_enters_once():
    edge = [(0.199, 0.5), (0.201, 0.5)] * 20
    said = run(Zone("yard", YARD, settle_s=0.3), [INSIDE] * 5 + edge)
    assert sum(said, []) == [("zone.enter", 1)]


def test_dwell_is_told_once_for_each_limit_and_the_exit_tells_how_long():
    zone = Zone("yard", YARD, dwell_s=[0.5, 1.0], settle_s=0)
    happenings = []
    for tenth in range(16):
        happenings += zone.update(seen(tenth / 10, {1: INSIDE}))
    happenings += zone.update(seen(1.6, {1: OUTSIDE}))
    assert told(happenings) == [("zone.enter", 1), ("zone.dwell", 1), ("zone.dwell", 1), ("zone.exit", 1)]
    assert [happening.data["zone"].dwell_s for happening in happenings] == [None, 0.5, 1.0, 1.6]


def test_a_track_that_ends_inside_leaves_the_zone():
    zone = Zone("yard", YARD, settle_s=0)
    zone.update(seen(0, {1: INSIDE}))
    assert told(zone.update(seen(1, {}, alive=[]))) == [("zone.exit", 1)]
    assert zone.occupants == []


def test_a_track_hidden_for_a_moment_stays_in_the_zone():
    zone = Zone("yard", YARD, settle_s=0)
    zone.update(seen(0, {1: INSIDE}))
    assert zone.update(seen(0.1, {}, alive=[1])) == []
    assert zone.occupants == [1]


def test_closing_a_zone_leaves_nobody_inside():
    zone = Zone("yard", YARD, settle_s=0)
    zone.update(seen(0, {1: INSIDE, 2: INSIDE}))
    assert told(zone.close(int(3e9))) == [("zone.exit", 1), ("zone.exit", 2)]
    assert zone.close(int(4e9)) == []


def test_a_line_knows_its_directions():
    line = Line("door", [(0.5, 0.0), (0.5, 1.0)])  # drawn downwards: its left is the picture's right
    eastward = [line.update(seen(t, {1: (0.3 + t, 0.5)})) for t in (0.0, 0.1, 0.3)]
    westward = line.update(seen(0.4, {1: (0.3, 0.5)}))
    assert [told(said) for said in eastward] == [[], [], [("line.cross", 1)]]
    assert eastward[2][0].data["line"].direction == "out"
    assert westward[0].data["line"].direction == "in"


def test_passing_beside_the_end_of_a_line_is_no_crossing():
    line = Line("door", [(0.5, 0.4), (0.5, 0.6)])
    assert run(line, [(0.3, 0.2), (0.7, 0.2)]) == [[], []]


def test_a_crossing_behind_an_obstacle_is_seen_when_the_track_comes_back():
    line = Line("door", [(0.5, 0.0), (0.5, 1.0)])
    assert run(line, [(0.4, 0.5), None, None, (0.6, 0.5)])[-1] == [("line.cross", 1)]


def test_standing_on_a_line_crosses_nothing():
    line = Line("door", [(0.5, 0.0), (0.5, 1.0)])
    said = run(line, [(0.4, 0.5)] + [(0.499, 0.5), (0.501, 0.5)] * 10 + [(0.6, 0.5)])
    assert [entry for entry in said if entry] == [[("line.cross", 1)]]


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30))
def test_crossings_of_one_track_alternate(xs):
    line = Line("door", [(0.5, 0.0), (0.5, 1.0)])
    directions = [
        happening.data["line"].direction
        for number, x in enumerate(xs)
        for happening in line.update(seen(number / 10, {1: (x, 0.5)}))
    ]
    assert all(first != second for first, second in itertools.pairwise(directions))


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_point_is_inside_a_square_when_its_coordinates_say_so(x, y):
    corners = polygon("square", YARD)
    expected = 0.2 < x < 0.8 and 0.2 < y < 0.8
    on_edge = min(abs(x - 0.2), abs(x - 0.8), abs(y - 0.2), abs(y - 0.8)) < 1e-12
    assert on_edge or Inside(corners)(np.array([[x, y]]))[0] == expected


def test_right_of_a_line_is_right_of_who_walks_along_it():
    eastward = np.array([[0.0, 0.5], [1.0, 0.5]])
    assert signed_distance(np.array([[0.5, 0.7]]), eastward)[0] == pytest.approx(0.2)  # below, in the picture


def test_counts_tell_occupancy_and_traffic_of_a_zone_by_window():
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


def test_a_day_without_frames_is_not_a_thousand_events():
    places = PlaceRules(counts=[Count("street", 1.0)])
    places.update(seen(0.0, {}))
    assert len(places.update(seen(86_400.0, {}))) == 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Zone("yard", YARD[:2]), "zone 'yard' has 2 points: a zone needs at least 3"),
        (lambda: Zone("yard", [(0, 0), (0.5, 0.5), (1, 1)]), "zone 'yard' has no area"),
        (lambda: Zone("yard", [(0, 0), (1, 0), (100, 100)]), "as fractions of the frame"),
        (lambda: Zone("yard", YARD, dwell_s=[0]), "dwell time 0: give seconds above 0"),
        (lambda: Line("door", YARD), "line 'door' has 4 points"),
        (lambda: Line("door", [(0.5, 0.5), (0.5, 0.5)]), "begins and ends at the same point"),
        (lambda: Count("yard", 0), "window 0: give seconds above 0"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(make, sentence):
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
    assert [count.occupancy_mean for count in windows] == [1.0, 1.0]
