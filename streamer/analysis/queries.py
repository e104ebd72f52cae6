"""The words that a stream looks for, and how they change while it runs.

Every query has a number that is never given to another one in its stream, so that a track's memory of labels and the
counts of a query stay true when the list changes, and a revision that rises whenever it is changed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from streamer.errors import ConfigError

Change = Literal["added", "changed", "paused", "resumed", "removed"]

_HISTORY = 64


@dataclass(frozen=True, slots=True)
class Query:
    """Words to look for. A detection under `threshold` (0..1) does not count; None leaves it to the detector.

    A thing that answers one of the texts `unless` better is no match: "a person", unless "a poster of a person".
    These texts are asked too; a query that is only asked for the sake of others `is_denial` and matches nothing itself.
    """

    text: str
    id: str = ""
    threshold: float | None = None
    unless: tuple[str, ...] = ()
    number: int = 0
    revision: int = 1
    is_denial: bool = False

    def least_score(self, default: float) -> float:
        """Its threshold, or the detector's `default` where it has none of its own."""
        return default if self.threshold is None else self.threshold


@dataclass(frozen=True, slots=True)
class QueryChange:
    """What happened to a query; `query` is its state after the change."""

    query: Query
    change: Change


QuerySet = tuple[Query, ...]


def slug(text: str) -> str:
    """'A red car!' -> 'a-red-car'."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "query"


class QueryBook:
    """The queries of one stream. Thread-safe: changes come from outside while frames are analysed.

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
        """The queries to ask of a frame that was captured then, denials included; the present ones without a time."""
        with self._lock:
            if time_ns is not None:
                for since, queries in reversed(self._history):
                    if since <= time_ns:
                        return queries
            return self._history[-1][1]

    def known(self, number: int) -> Query:
        """The latest state of the query with that number, also after it was removed."""
        return self._known[number]

    def add(self, query: Query | str, *, time_ns: int) -> QueryChange:
        """Look for one thing more from `time_ns` (UTC) on."""
        with self._lock:
            made = self._number(_checked(query), taken=[*self._active, *self._paused.values()])
            self._set((*self._active, made), time_ns)
            return QueryChange(made, "added")

    def remove(self, query_id: str, *, time_ns: int) -> QueryChange:
        with self._lock:
            query = self._paused.pop(query_id, None) or self._find(query_id)
            self._set(tuple(other for other in self._active if other.id != query_id), time_ns)
            return QueryChange(query, "removed")

    def pause(self, query_id: str, *, time_ns: int) -> QueryChange:
        """Stop looking, but keep the query and its number for `resume`."""
        with self._lock:
            query = self._find(query_id)
            self._paused[query_id] = query
            self._set(tuple(other for other in self._active if other.id != query_id), time_ns)
            return QueryChange(query, "paused")

    def resume(self, query_id: str, *, time_ns: int) -> QueryChange:
        with self._lock:
            if query_id not in self._paused:
                raise ConfigError(f"query {query_id!r} is not paused; paused are {_names(self._paused.values())}")
            query = self._paused.pop(query_id)
            self._set((*self._active, query), time_ns)
            return QueryChange(query, "resumed")

    def change(
        self, query_id: str, *, text: str | None = None, threshold: float | None = None, time_ns: int
    ) -> QueryChange:
        """Give a query other words or another threshold; its revision rises."""
        with self._lock:
            old = self._find(query_id)
            asked = replace(
                old,
                text=old.text if text is None else text,
                threshold=old.threshold if threshold is None else threshold,
                revision=old.revision + 1,
            )
            new = _checked(asked)
            _refuse_twice(new, [other for other in self._active if other.id != query_id])
            self._revisions[query_id] = new.revision
            self._set(tuple(new if other.id == query_id else other for other in self._active), time_ns)
            return QueryChange(new, "changed")

    def replace(self, queries: Iterable[Query | str], *, time_ns: int) -> list[QueryChange]:
        """Make the list look like `queries`, as a configuration file that was edited asks for; tells what changed."""
        wanted = [_checked(query) for query in queries]
        with self._lock:
            old = {query.id: query for query in (*self._active, *self._paused.values())}
            made: list[Query] = []
            changes: list[QueryChange] = []
            for query in wanted:
                before = old.get(query.id or slug(query.text))
                new = query if before is None else replace(query, id=before.id, number=before.number)
                _refuse_twice(replace(new, id=new.id or slug(new.text)), made)
                if before is None:
                    made.append(self._number(new, taken=made))
                    changes.append(QueryChange(made[-1], "added"))
                elif replace(new, revision=before.revision) == before:
                    made.append(before)
                    if before.id in self._paused:
                        changes.append(QueryChange(before, "resumed"))
                else:
                    made.append(replace(new, revision=before.revision + 1))
                    changes.append(QueryChange(made[-1], "changed"))
            kept = {query.id for query in made}
            changes += [QueryChange(query, "removed") for query in old.values() if query.id not in kept]
            self._revisions.update({query.id: query.revision for query in made})
            self._paused.clear()
            self._set(tuple(made), time_ns)
            return changes

    def _find(self, query_id: str) -> Query:
        for query in self._active:
            if query.id == query_id:
                return query
        raise ConfigError(f"there is no query {query_id!r}; there are {_names(self._active)}")

    def _number(self, query: Query, taken: Sequence[Query]) -> Query:
        query = replace(query, id=query.id or slug(query.text))
        _refuse_twice(query, taken)
        revision = self._revisions[query.id] = self._revisions.get(query.id, 0) + 1
        return replace(query, number=self._numbers.setdefault(query.id, len(self._numbers) + 1), revision=revision)

    def _set(self, queries: QuerySet, time_ns: int) -> None:
        self._active = queries
        asked = (*queries, *self._denials_of(queries))
        self._known.update({query.number: query for query in asked})
        self._history = [*self._history[1 - _HISTORY :], (time_ns, asked)]

    def _denials_of(self, queries: QuerySet) -> list[Query]:
        """What must be asked besides, each text once and under one number for ever."""
        texts = dict.fromkeys(text for query in queries for text in query.unless)
        asked = {query.text for query in queries}
        for text in texts:
            if text not in asked and text not in self._denials:
                number = self._numbers.setdefault(f"unless {text}", len(self._numbers) + 1)
                self._denials[text] = Query(text, slug(text), number=number, is_denial=True)
        return [self._denials[text] for text in texts if text not in asked]


def _checked(query: Query | str) -> Query:
    if isinstance(query, str):
        query = Query(query)
    text = " ".join(query.text.split())
    if not text:
        raise ConfigError("a query is empty: write what to look for, such as 'person' or 'red car'")
    if query.threshold is not None and not 0 <= query.threshold <= 1:
        raise ConfigError(f"query {text!r} has threshold {query.threshold}: it must lie between 0 and 1")
    unless = tuple(" ".join(other.split()) for other in query.unless)
    if not all(unless) or text in unless:
        raise ConfigError(f"query {text!r} has an `unless` that is empty or the query itself: write other words")
    return replace(query, text=text, unless=unless)


def _refuse_twice(query: Query, others: Iterable[Query]) -> None:
    for other in others:
        if other.id == query.id or other.text == query.text:
            raise ConfigError(f"query {query.text!r} is given twice: keep one of them")


def _names(queries: Iterable[Query]) -> str:
    return ", ".join(repr(query.id) for query in queries) or "none"
