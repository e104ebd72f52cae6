"""The words a stream looks for, and how they change."""

from __future__ import annotations

import pytest

from streamer.analysis.queries import Query, QueryBook
from streamer.errors import ConfigError


def texts(book: QueryBook, time_ns: int | None = None) -> list[str]:
    return [query.text for query in book.at(time_ns)]


def test_a_frame_is_asked_what_was_in_force_when_it_was_captured():
    book = QueryBook(["person"])
    book.add("red car", time_ns=100)
    assert texts(book, 99) == ["person"]
    assert texts(book, 100) == ["person", "red car"]
    assert texts(book) == ["person", "red car"]


def test_an_edited_list_tells_what_changed_and_keeps_numbers():
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
    book.remove("person", time_ns=1)
    again = book.add("person", time_ns=2).query
    assert (again.number, again.revision) == (1, 2)
    assert book.add("dog", time_ns=3).query.number == 2
    assert book.known(1).text == "person"


def test_words_may_be_exchanged_between_queries():
    book = QueryBook([Query("car", id="a"), Query("dog", id="b")])
    changes = book.replace([Query("dog", id="a"), Query("car", id="b")], time_ns=1)
    assert [change.change for change in changes] == ["changed", "changed"]
    assert [(query.id, query.text) for query in book.at()] == [("a", "dog"), ("b", "car")]


def test_a_paused_query_that_is_listed_again_is_there_once():
    book = QueryBook(["car"])
    book.pause("car", time_ns=1)
    assert [change.change for change in book.replace(["car"], time_ns=2)] == ["resumed"]
    assert texts(book) == ["car"]
    with pytest.raises(ConfigError, match="not paused"):
        book.resume("car", time_ns=3)


def test_a_paused_query_comes_back_as_it_was():
    book = QueryBook(["person", "dog"])
    before = book.at()[0]
    book.pause("person", time_ns=1)
    assert texts(book) == ["dog"]
    assert book.resume("person", time_ns=2).query == before


def test_a_threshold_may_be_changed_to_nothing_less_than_zero():
    book = QueryBook(["person"])
    assert book.change("person", threshold=0.0, time_ns=1).query.threshold == 0.0
    with pytest.raises(ConfigError, match="between 0 and 1"):
        book.change("person", threshold=2, time_ns=2)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda book: book.add("  ", time_ns=1), "a query is empty"),
        (lambda book: book.add("person", time_ns=1), "'person' is given twice"),
        (lambda book: book.remove("cat", time_ns=1), "there is no query 'cat'; there are 'person'"),
        (lambda book: book.resume("person", time_ns=1), "not paused"),
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
    with pytest.raises(ConfigError, match="the query itself"):
        QueryBook([Query("person", unless=("person",))])
