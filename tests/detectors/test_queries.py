"""Queries as people write them: marks at their ends are left out, alike and joined ones are refused."""

from __future__ import annotations

import pytest

from detectors.detector import PromptError, clean_queries, read_words


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("person.", "person"),
        (' "a red car" ', "a red car"),
        ("“Person”!", "Person"),
        ("'dog'.", "dog"),
        ("person.…", "person"),
        ("人。", "人"),
        ("man's hat", "man's hat"),
        ("St. Bernard", "St. Bernard"),
        ("U.S. flag", "U.S. flag"),
        ("c++", "c++"),
    ],
)
def test_marks_around_a_query_are_not_read(query: str, words: str) -> None:
    assert read_words(query) == words
    assert clean_queries([query]) == (" ".join(query.split()),)


@pytest.mark.parametrize(
    "query", ["person . bus", "person, bus", "person ,bus", "person; bus", "person|bus", "person. bus"]
)
def test_a_query_of_several_things_is_refused(query: str) -> None:
    with pytest.raises(PromptError, match="names several things"):
        clean_queries([query])
    assert clean_queries([query], free_words=False) == (query,)


@pytest.mark.parametrize("alike", [("person", "Person"), ("person", "person."), ("a  car", '"A car"')])
def test_queries_that_read_alike_are_refused(alike: tuple[str, str]) -> None:
    with pytest.raises(PromptError, match="read alike"):
        clean_queries(alike)


@pytest.mark.parametrize("query", ["...", "?!", '""', " ' ' "])
def test_a_query_without_words_is_refused(query: str) -> None:
    with pytest.raises(PromptError, match="holds no words"):
        clean_queries([query])


def test_emoji_are_left_to_the_model() -> None:
    assert clean_queries(["😀"]) == ("😀",)
