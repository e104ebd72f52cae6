"""The life of tracks and the words they answer to."""

from __future__ import annotations

import dataclasses

import numpy as np
import supervision as sv

from streamer.rules.matches import QueryMatches
from streamer.rules.track_ids import derived_uids
from streamer.rules.tracks import TrackLives
from tests.streamer.scenes import reported, seen

HERE = (0.5, 0.5)


def tracks(**options) -> TrackLives:
    return TrackLives(derived_uids("test"), **options)


def test_one_object_has_one_begin_and_one_end():
    rule = tracks()
    said = [reported(rule.update(seen(t / 10, {1: HERE}))) for t in range(5)]
    said.append(reported(rule.update(seen(0.5, {}, alive=[]))))
    assert said == [[("track.begin", 1)], [], [], [], [], [("track.end", 1)]]


def test_a_track_that_ends_at_the_border_has_left_the_view_and_others_are_lost():
    rule = tracks()
    rule.update(seen(0, {1: (0.5, 0.5), 2: (0.99, 0.5)}))
    rule.update(seen(1, {}, alive=[]))
    assert rule.find(1).end_reason == "lost"
    assert rule.find(2).end_reason == "left_view"


def test_a_short_occlusion_is_not_worth_an_event_a_long_one_is_reported_both_ways():
    rule = tracks(lost_after_s=0.5)
    rule.update(seen(0, {1: HERE}))
    assert rule.update(seen(0.3, {}, alive=[1])) == []
    assert rule.update(seen(0.4, {1: HERE})) == []
    assert reported(rule.update(seen(1.0, {}, alive=[1]))) == [("track.update", 1)]
    assert rule.records[1].state == "lost"
    assert reported(rule.update(seen(1.1, {1: HERE}))) == [("track.update", 1)]
    assert rule.records[1].state == "confirmed"


def test_a_parked_object_does_not_alert_again_and_again():
    rule = tracks(update_every_s=1.0)
    said = [reported(rule.update(seen(second, {1: HERE}, still=[1] if second else []))) for second in range(30)]
    assert sum(said, []) == [("track.begin", 1), ("track.update", 1)]
    assert rule.records[1].stationary


def test_a_moving_track_is_reported_every_so_often():
    rule = tracks(update_every_s=10)
    said = [reported(rule.update(seen(second, {1: HERE}))) for second in range(31)]
    assert sum(said, []) == [("track.begin", 1)] + [("track.update", 1)] * 3


def test_closing_ends_every_track_with_the_reason():
    rule = tracks()
    rule.update(seen(0, {1: HERE, 2: HERE}))
    assert reported(rule.close(int(1e9), reason="stream_down")) == [("track.end", 1), ("track.end", 2)]
    assert {rule.find(number).end_reason for number in (1, 2)} == {"stream_down"}
    assert rule.records == {}


def test_a_track_that_comes_back_under_another_number_is_reported_to_be_the_same():
    rule = tracks()
    rule.update(seen(0, {1: HERE}))
    rule.update(seen(2, {}, alive=[]))
    said = rule.update(dataclasses.replace(seen(3, {2: HERE}), merges=[(1, 2)]))
    assert reported(said) == [("track.begin", 2), ("track.merge", 1)]
    assert rule.find(1).merged_into == rule.records[2].uid


def test_a_track_that_left_the_view_departs_although_the_tracker_remembers_it():
    rule = tracks()
    rule.update(seen(0, {1: (0.5, 0.5), 2: (0.99, 0.5), 3: (0.99, 0.8)}, still=[3]))
    assert rule.departed(seen(0.5, {}, alive=[1, 2, 3])) == []
    assert rule.departed(seen(1.0, {}, alive=[1, 2, 3])) == [2]


def test_a_stationary_track_that_is_missing_after_an_interruption_ends_with_it():
    rule = tracks()
    rule.update(seen(0, {1: HERE, 2: (0.2, 0.5)}, still=[1, 2]))
    assert rule.close(int(1e9), keep={1, 2}, reason="stream_down") == []
    assert rule.departed(seen(60, {1: HERE}, alive=[1, 2])) == []
    rule.update(seen(60, {1: HERE}, alive=[1, 2]))
    assert rule.departed(seen(70, {1: HERE}, alive=[1, 2])) == [2]
    assert ("track.end", 2) in reported(rule.update(seen(70, {1: HERE}, alive=[1])))
    assert rule.find(2).end_reason == "stream_down"


def test_a_merged_track_keeps_the_first_time_of_both():
    rule = tracks()
    rule.update(seen(0, {1: HERE}))
    rule.update(dataclasses.replace(seen(3, {2: HERE}, alive=[2]), merges=[(1, 2)]))
    assert rule.records[2].first_seen_ns == 0


def test_doubles_become_one():
    rule = tracks()
    rule.update(seen(0, {1: HERE, 2: HERE}))
    said = rule.update(dataclasses.replace(seen(1, {1: HERE}, alive=[1]), merges=[(2, 1)]))
    assert reported(said) == [("track.end", 2)]
    assert (rule.find(2).end_reason, rule.find(2).merged_into) == ("merged", rule.records[1].uid)


def test_the_same_recording_gives_the_same_names_and_another_gives_others():
    first, again, other = derived_uids("a"), derived_uids("a"), derived_uids("b")
    assert first(1, 5) == again(1, 5)
    assert len({first(1, 5), first(2, 5), first(1, 6), other(1, 5)}) == 4
    assert len(first(1, 5)) == 26


def test_a_track_is_reported_with_its_mask():
    rule = tracks()
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 5:10, 5:10] = True
    rule.update(dataclasses.replace(seen(0, {1: HERE}), masks=mask))
    told_mask = rule.records[1].describe().mask
    assert told_mask.size == (20, 30)
    assert sv.rle_to_mask(told_mask.counts, (30, 20)).sum() == 25


def test_the_masks_of_ended_tracks_are_reported_and_then_leave_the_memory():
    rule = tracks()
    rule.update(dataclasses.replace(seen(0, {1: HERE}), masks=np.ones((1, 20, 30), bool)))
    assert reported(rule.update(seen(0.1, {}, alive=[]))) == [("track.end", 1)]
    assert rule.find(1).describe().mask is not None
    rule.update(seen(0.2, {}))
    assert rule.find(1).mask is None


def votes(rule: QueryMatches, frames, step_s=0.1, labels=(1, 2)):
    return [
        [(*entry, happening.data["query_number"]) for happening, entry in zip(said, reported(said), strict=True)]
        for said in (
            rule.update(seen(number * step_s, {1: HERE}, labels=labels, scores={1: scores}))
            for number, scores in enumerate(frames)
        )
    ]


def test_a_match_begins_when_it_has_lasted_and_ends_with_the_track():
    rule = QueryMatches(settle_s=0.2)
    said = votes(rule, [(0.8, 0)] * 4)
    assert said == [[], [], [("match.begin", 1, 1)], []]
    assert reported(rule.update(seen(1, {}, alive=[]))) == [("match.end", 1)]


def test_a_label_that_flickers_for_some_frames_is_neither_a_match_nor_the_end_of_one():
    rule = QueryMatches(settle_s=0.2)
    car, bus = (0.8, 0), (0, 0.9)
    said = votes(rule, [car] * 10 + [bus] * 2 + [car] * 10)
    assert sum(said, []) == [("match.begin", 1, 1)]


def test_a_thing_that_changes_for_good_changes_its_match():
    rule = QueryMatches(settle_s=0.2, half_life_s=0.5)
    said = votes(rule, [(0.8, 0)] * 10 + [(0, 0.9)] * 30)
    assert sum(said, []) == [("match.begin", 1, 1), ("match.begin", 1, 2), ("match.end", 1, 1)]


def test_one_track_may_answer_two_queries_at_once():
    rule = QueryMatches(settle_s=0)
    assert votes(rule, [(0.8, 0.7)]) == [[("match.begin", 1, 1), ("match.begin", 1, 2)]]
    assert rule.scores(1) == {1: 0.8, 2: 0.7}


def test_a_score_under_the_threshold_is_no_match():
    rule = QueryMatches(settle_s=0)
    rule.thresholds = {1: 0.5}
    assert sum(votes(rule, [(0.4, 0)] * 20), []) == []


def test_a_withdrawn_query_ends_its_matches():
    rule = QueryMatches(settle_s=0)
    votes(rule, [(0.8, 0.7)])
    assert reported(rule.withdraw(1)) == [("match.end", 1)]
    assert rule.matched == {1: {2}}


def test_a_poster_of_a_person_is_no_person_and_a_person_before_a_poster_is_one():
    def matches(frames):
        rule = QueryMatches(settle_s=0.2)
        rule.denied_by, rule.denials = {1: (2,)}, frozenset({2})
        return sum(votes(rule, frames), [])

    poster, person = (0.6, 0.8), (0.9, 0.3)
    assert matches([poster] * 10) == []
    assert matches([person] * 10) == [("match.begin", 1, 1)]
    assert matches([person] * 10 + [poster] * 2 + [person] * 5) == [("match.begin", 1, 1)]


def test_a_match_continues_when_two_tracks_are_found_to_be_one():
    rule = QueryMatches(settle_s=0.2)
    votes(rule, [(0.8, 0)] * 5)
    said = rule.update(dataclasses.replace(seen(2, {2: HERE}, alive=[2], labels=(1, 2)), merges=[(1, 2)]))
    assert said == []
    assert rule.matched == {2: {1}}
    assert reported(rule.close(int(3e9))) == [("match.end", 2)]


def test_a_match_that_both_tracks_have_ends_once_for_each():
    rule = QueryMatches(settle_s=0)
    rule.update(seen(0, {1: HERE, 2: HERE}))
    said = rule.update(dataclasses.replace(seen(1, {1: HERE}, alive=[1]), merges=[(2, 1)]))
    assert reported(said) == [("match.end", 2)]
    assert rule.score(2, 1) == 0.9
    assert reported(rule.close(int(3e9))) == [("match.end", 1)]


def test_matches_of_remembered_tracks_stay_open_through_an_interruption():
    rule = QueryMatches(settle_s=0)
    rule.update(seen(0, {1: HERE, 2: HERE}))
    assert reported(rule.close(int(1e9), keep={1})) == [("match.end", 2)]
    assert rule.matched[1] == {1}
