"""The queries of a stream, and their changes while it runs.

Every query has a number that no other query of its stream ever gets, so that a track's memory of labels and the counts
of a query stay true when the list changes, and a revision that rises with every change of it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from streamer.errors import ConfigError

Change = Literal["added", "changed", "paused", "resumed", "removed"]

_HISTORY = 64


@dataclass(frozen=True, slots=True)
class Query:
    """Words to detect. A detection under `threshold` (0..1) does not count; None means the detector's own threshold.

    An object that scores higher for one of the texts `unless` is no match: "a person", unless "a poster of a person".
    These texts are detected too: such a query `is_denial`, it only vetoes others and never matches. A query that
    `is_paused` is not detected and keeps its number.
    """

    text: str
    id: str = ""
    threshold: float | None = None
    unless: tuple[str, ...] = ()
    number: int = 0
    revision: int = 1
    is_denial: bool = False
    is_paused: bool = False

    def least_score(self, default: float) -> float:
        """Its threshold, or the detector's `default` where it has none of its own."""
        return default if self.threshold is None else self.threshold


@dataclass(frozen=True, slots=True)
class QueryChange:
    """A change of a query; `query` is its state after it."""

    query: Query
    change: Change


QuerySet = tuple[Query, ...]


def query_slug(text: str) -> str:
    """'A red car!' -> 'a-red-car'."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "query"


class QueryBook:
    """The queries of one stream. Thread-safe: changes come while frames are analysed.

    Raises `ConfigError` for an empty query, a threshold outside 0..1, and an id or a text given twice.
    """

    def __init__(self, queries: Iterable[Query | str]) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._revisions: dict[str, int] = {}
        self._known: dict[int, Query] = {}
        self._paused: dict[str, Query] = {}
        self._denials: dict[str, Query] = {}
        self._active: QuerySet = ()
        self._history: list[tuple[int, QuerySet]] = []
        self.replace(queries, time_ns=0)

    def at(self, time_ns: int | None = None) -> QuerySet:
        """The queries for a frame captured at `time_ns`, denials included; the present ones without a time."""
        with self._lock:
            if time_ns is None:
                return self._history[-1][1]
            for since, queries in reversed(self._history):
                if since <= time_ns:
                    return queries
            return self._history[0][1]

    def find(self, query_id: str) -> Query | None:
        """The present query with that id, paused ones included."""
        with self._lock:
            return self._paused.get(query_id) or next((q for q in self._active if q.id == query_id), None)

    def known(self, number: int) -> Query:
        """The latest state of the query with that number, even after its removal."""
        return self._known[number]

    def replace(self, queries: Iterable[Query | str], *, time_ns: int) -> list[QueryChange]:
        """Make `queries` the list of the stream, for frames captured at `time_ns` (UTC) or later; returns the changes.

        A query is recognised by its id, or by the id made from its text. Raises `ConfigError` and changes nothing when
        the list cannot be used.
        """
        wanted = [_check_query(query) for query in queries]
        with self._lock:
            old = {query.id: query for query in (*self._active, *self._paused.values())}
            made: list[Query] = []
            changes: list[QueryChange] = []
            for query in wanted:
                named = replace(query, id=query.id or query_slug(query.text))
                _refuse_twice(named, made)
                before = old.get(named.id)
                made.append(self._number_query(named) if before is None else _revise_query(named, before))
                changes += _changes_between(before, made[-1])
            kept = {query.id for query in made}
            changes += [QueryChange(query, "removed") for query in old.values() if query.id not in kept]
            self._numbers.update({query.id: query.number for query in made})
            self._revisions.update({query.id: query.revision for query in made})
            self._paused = {query.id: query for query in made if query.is_paused}
            self._set_queries(tuple(query for query in made if not query.is_paused), time_ns)
            self._known.update({query.number: query for query in made})
            return changes

    def _number_query(self, query: Query) -> Query:
        """A new query with a number of its own; one that was removed and came back keeps its former number."""
        number = self._numbers.get(query.id)
        if number is None:
            number = self._numbers[query.id] = len(self._numbers) + 1
        return replace(query, number=number, revision=self._revisions.get(query.id, 0) + 1)

    def _set_queries(self, queries: QuerySet, time_ns: int) -> None:
        self._active = queries
        asked = (*queries, *self._denials_of(queries))
        self._known.update({query.number: query for query in asked})
        self._history = [*self._history[1 - _HISTORY :], (time_ns, asked)]

    def _denials_of(self, queries: QuerySet) -> list[Query]:
        """The texts to detect besides the queries, each once and always under the same number."""
        texts = dict.fromkeys(text for query in queries for text in query.unless)
        asked = {query.text for query in queries}
        for text in texts:
            if text not in asked and text not in self._denials:
                number = self._numbers.setdefault(f"unless {text}", len(self._numbers) + 1)
                self._denials[text] = Query(text, query_slug(text), number=number, is_denial=True)
        return [self._denials[text] for text in texts if text not in asked]


def _check_query(query: Query | str) -> Query:
    if isinstance(query, str):
        query = Query(query)
    text = " ".join(query.text.split())
    if not text:
        raise ConfigError("a query is empty: write words to detect, such as 'person' or 'red car'")
    if query.threshold is not None and not 0 <= query.threshold <= 1:
        raise ConfigError(f"query {text!r} has threshold {query.threshold}: it must lie between 0 and 1")
    unless = tuple(" ".join(other.split()) for other in query.unless)
    if not all(unless) or text in unless:
        raise ConfigError(f"query {text!r} has an `unless` that is empty or equal to the query: write other words")
    return replace(query, text=text, unless=unless)


def _refuse_twice(query: Query, others: Iterable[Query]) -> None:
    for other in others:
        if other.id == query.id or other.text == query.text:
            raise ConfigError(f"query {query.text!r} is given twice: keep one of them")


def _revise_query(wanted: Query, before: Query) -> Query:
    """`wanted` as the present form of the query `before`; the revision rises where more than a pause changes."""
    same = replace(wanted, number=before.number, revision=before.revision)
    if replace(same, is_paused=before.is_paused) != before:
        return replace(same, revision=before.revision + 1)
    return before if same == before else same


def _changes_between(before: Query | None, after: Query) -> list[QueryChange]:
    changes: list[QueryChange] = []
    if before is None:
        changes.append(QueryChange(after, "added"))
    elif after.revision != before.revision:
        changes.append(QueryChange(after, "changed"))
    if after.is_paused != (before is not None and before.is_paused):
        changes.append(QueryChange(after, "paused" if after.is_paused else "resumed"))
    return changes
