"""Stored events: filters, pages, words and counts."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks.event import EventType
from streamer.errors import ConfigError
from streamer.web.event_store import (
    EventQuery,
    EventStore,
    decode_cursor,
    encode_cursor,
    match_expression,
    utc_offset_minutes,
)
from tests.web.rooms import START_NS, event, match

EVERYTHING = EventQuery()


def filled(path=None, count: int = 10) -> EventStore:
    store = EventStore(path)
    store.add_events([event(number) for number in range(1, count + 1)])
    return store


def crossing(direction: str) -> dict[str, str]:
    return {"id": "gate", "direction": direction}


def ids(found) -> list[int]:
    return [found_event.row for found_event in found]


def test_an_event_is_stored_once_however_often_it_is_sent():
    store = filled(count=3)
    store.add_events([event(2), event(3), event(4)])
    assert len(store.find_page(EVERYTHING, limit=100)) == 4


def test_pages_of_a_list_hold_every_event_once_while_events_are_added_and_removed(tmp_path):
    store = filled(tmp_path / "e.sqlite", 30)
    seen, after = [], None
    while page := store.find_page(EVERYTHING, limit=7, after=after):
        seen += ids(page)
        after = decode_cursor(encode_cursor(page[-1]))
        store.add_events([event(100 + len(seen))])
    assert seen == list(range(30, 0, -1))


def test_events_are_found_by_every_filter():
    store = EventStore(None)
    store.add_events(
        [
            event(
                1,
                EventType.ZONE_ENTER,
                subject="T1",
                zone={"id": "yard"},
                matches=[match("red car")],
            ),
            event(2, EventType.ZONE_EXIT, subject="T1", zone={"id": "yard"}),
            event(
                3,
                EventType.LINE_CROSS,
                subject="T2",
                line={"id": "gate", "direction": "in"},
                matches=[match("a person")],
            ),
            event(4, EventType.STREAM_OFFLINE, stream="back"),
        ]
    )

    def found(**values) -> list[int]:
        return ids(store.find_page(replace(EVERYTHING, **values), limit=10, newest_first=False))

    assert found(streams=["back"]) == [4]
    assert found(kinds=["zone.*"]) == [1, 2]
    assert found(kinds=["zone"]) == [1, 2]
    assert found(kinds=["zone.enter", "line.cross"]) == [1, 3]
    assert found(queries=["red-car"]) == found(queries=["red car"]) == [1]
    assert found(place="yard") == [1, 2]
    assert found(subject="T2") == [3]
    start_ms = START_NS // 1_000_000
    assert found(since_ms=start_ms + 2000, until_ms=start_ms + 4000) == [2, 3]
    assert found(words="car yard") == [1]
    assert found(words="PERS") == [3]
    assert found(words="car nothing") == []
    assert found(words="...") == []


def test_the_time_of_day_is_local_and_may_span_midnight():
    store = filled(count=2)  # 2026-02-02 02:40 UTC
    inside = EventQuery(day_minutes=(22 * 60, 3 * 60), zone_name="UTC")
    assert len(store.find_page(inside, limit=10)) == 2
    assert store.find_page(replace(inside, day_minutes=(3 * 60, 22 * 60)), limit=10) == []
    assert store.find_page(replace(inside, zone_name="Asia/Tokyo"), limit=10) == []
    assert utc_offset_minutes(START_NS // 1_000_000, "Asia/Tokyo") == 540


def test_an_unknown_time_zone_is_named():
    with pytest.raises(ConfigError, match="Europe/Berlin"):
        utc_offset_minutes(0, "Mars/Base")


@given(st.text(max_size=80))
@settings(max_examples=300, deadline=None)
def test_no_text_of_a_person_breaks_the_search(words):
    store = STORE
    store.find_page(EventQuery(words=words), limit=5)


STORE = filled(count=3)


@pytest.mark.parametrize("words", ['a "red', "red AND", "*", "col:x", "-", "NEAR(", "a OR b", "^a", "'", "\x00"])
def test_operators_of_the_search_language_are_words(words):
    assert isinstance(STORE.find_page(EventQuery(words=words), limit=5), list)


def test_the_last_word_may_be_a_beginning_and_all_are_quoted():
    assert match_expression('red "car') == '"red" "car"*'
    assert match_expression("  ") is None


@pytest.mark.parametrize("cursor", ["", "x", "MS4y!", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5Ljk5", "LjE"])
def test_a_text_that_is_no_cursor_is_refused_in_a_sentence(cursor):
    with pytest.raises(ConfigError, match="not a cursor"):
        decode_cursor(cursor)


def test_counts_are_summed_for_each_bucket_kind_and_direction():
    store = EventStore(None)
    store.add_events(
        [event(n, EventType.LINE_CROSS, line={"id": "g", "direction": "in" if n % 2 else "out"}) for n in range(20)]
    )
    rows = store.count_buckets(EVERYTHING, bucket_ms=10_000)
    assert sum(row["events"] for row in rows) == 20
    assert {row["direction"] for row in rows} == {"in", "out"}
    assert all(row["time_ms"] % 10_000 == 0 for row in rows)


def test_events_older_than_they_are_kept_are_removed_from_the_search_too(tmp_path):
    store = EventStore(tmp_path / "e.sqlite", keep_days=5 / 86_400)
    store.add_events([event(1, matches=[match("old")])])
    store._pruned_s = -1000.0
    store.add_events([event(100, matches=[match("new")])])
    assert ids(store.find_page(EVERYTHING, limit=10)) == [2]
    assert store.find_page(EventQuery(words="old"), limit=10) == []


def test_readers_work_while_events_are_written(tmp_path):
    store = EventStore(tmp_path / "e.sqlite")
    errors: list[Exception] = []

    def read() -> None:
        try:
            for _ in range(50):
                store.find_page(EventQuery(words="gate"), limit=10)
        except Exception as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(100):
        store.add_events([event(number)])
    for reader in readers:
        reader.join()
    assert errors == []
    assert store.newest_row() == 100
    store.close()
