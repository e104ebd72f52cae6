"""The words a stream looks for, and how they change."""

from __future__ import annotations

import pytest

from streamer.analysis.queries import Query, QueryBook
from streamer.errors import ConfigError


def texts(book: QueryBook, time_ns: int | None = None) -> list[str]:
    return [query.text for query in book.at(time_ns)]


def test_a_frame_is_asked_what_was_in_force_when_it_was_captured():
    book = QueryBook(["person"])
    book.replace(["person", "red car"], time_ns=100)
    assert texts(book, 99) == ["person"]
    assert texts(book, 100) == ["person", "red car"]
    assert texts(book) == ["person", "red car"]


def test_an_edited_list_reports_what_changed_and_keeps_numbers():
    book = QueryBook(["person", Query("red car", threshold=0.4)])
    person = book.at()[0]
    changes = book.replace(["person", Query("red car", threshold=0.6), "dog"], time_ns=1)
    assert [(change.query.text, change.change) for change in changes] == [("red car", "changed"), ("dog", "added")]
    assert book.at()[0] is person
    assert [query.number for query in book.at()] == [1, 2, 3]
    assert book.at()[1].revision == 2
    assert [change.change for change in book.replace(["dog"], time_ns=2)] == ["removed", "removed"]


def test_a_query_keeps_its_number_and_its_revision_never_falls():
    book = QueryBook(["person"])
    book.replace([], time_ns=1)
    [again] = book.replace(["person"], time_ns=2)
    assert (again.query.number, again.query.revision) == (1, 2)
    [added] = book.replace(["person", "dog"], time_ns=3)
    assert added.query.number == 2
    assert book.known(1).text == "person"


def test_words_may_be_exchanged_between_queries():
    book = QueryBook([Query("car", id="a"), Query("dog", id="b")])
    changes = book.replace([Query("dog", id="a"), Query("car", id="b")], time_ns=1)
    assert [change.change for change in changes] == ["changed", "changed"]
    assert [(query.id, query.text) for query in book.at()] == [("a", "dog"), ("b", "car")]


def test_a_paused_query_is_not_asked_and_comes_back_as_it_was():
    book = QueryBook(["person", "dog"])
    before = book.at()[0]
    assert [change.change for change in book.replace([Query("person", is_paused=True), "dog"], time_ns=1)] == ["paused"]
    assert texts(book) == ["dog"]
    assert texts(book, 0) == ["person", "dog"]
    assert book.find("person").is_paused
    assert [change.change for change in book.replace(["person", "dog"], time_ns=2)] == ["resumed"]
    assert book.at()[0] == before


def test_a_query_may_be_added_paused_and_changed_while_it_is_paused():
    book = QueryBook([Query("person", is_paused=True)])
    assert texts(book) == []
    changes = book.replace([Query("person", threshold=0.3, is_paused=True)], time_ns=1)
    assert [(change.change, change.query.revision) for change in changes] == [("changed", 2)]
    assert [change.change for change in book.replace([Query("person", threshold=0.3)], time_ns=2)] == ["resumed"]


def test_a_paused_query_that_denies_another_is_still_asked_for_its_sake():
    book = QueryBook([Query("person", unless=("a statue",)), Query("a statue", is_paused=True)])
    assert [(query.text, query.is_denial) for query in book.at()] == [("person", False), ("a statue", True)]


def test_a_threshold_may_be_changed_to_nothing_less_than_zero():
    book = QueryBook(["person"])
    [change] = book.replace([Query("person", threshold=0.0)], time_ns=1)
    assert (change.change, change.query.threshold) == ("changed", 0.0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        book.replace([Query("person", threshold=2)], time_ns=2)


def test_a_frame_older_than_every_remembered_change_is_asked_the_oldest_list():
    book = QueryBook(["person"])
    assert texts(book, -5) == ["person"]
    for number in range(200):
        book.replace([f"thing {number}"], time_ns=number + 1)
    assert texts(book, 0) != texts(book)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda book: book.replace(["person", "  "], time_ns=1), "a query is empty"),
        (lambda book: book.replace(["a", "a"], time_ns=1), "'a' is given twice"),
        (lambda book: book.replace(["person", "person"], time_ns=1), "'person' is given twice"),
    ],
)
def test_a_wrong_change_changes_nothing(act, sentence):
    book = QueryBook(["person"])
    with pytest.raises(ConfigError, match=sentence):
        act(book)
    assert texts(book) == ["person"]


def test_what_denies_a_query_is_asked_too_once_and_matches_nothing():
    book = QueryBook(
        [Query("person", unless=("a poster", "a statue")), Query("a statue"), Query("dog", unless=("a poster",))]
    )
    assert texts(book) == ["person", "a statue", "dog", "a poster"]
    assert [query.is_denial for query in book.at()] == [False, False, False, True]
    changes = book.replace(["person"], time_ns=1)
    assert [(change.query.text, change.change) for change in changes] == [
        ("person", "changed"),
        ("a statue", "removed"),
        ("dog", "removed"),
    ]
    assert texts(book) == ["person"]


def test_a_query_cannot_deny_itself():
    with pytest.raises(ConfigError, match="equal to the query"):
        QueryBook([Query("person", unless=("person",))])
