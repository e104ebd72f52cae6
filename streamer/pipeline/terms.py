"""Terms of streams: for how long a pipeline may send events of a stream, and under which run number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StreamTerm:
    """One stretch of time in which a stream is this pipeline's. `run` numbers its events. `outage_since_ns` (UTC) is
    since when it was not watched before, None where it never was; `is_outage_reported` whether an event says so."""

    run: int
    outage_cause: str = ""
    outage_since_ns: int | None = None
    is_outage_reported: bool = False


@dataclass(frozen=True, slots=True)
class TermTally:
    """Counts of the terms of a pipeline since it began. `is_valid`: its streams may send events now. `renewed_s`:
    seconds since the last renewal, None before the first. `renewals` were granted, `failures` were not answered or
    refused; `granted` counts terms, several where a stream came and went, `streams` those that it has now."""

    is_valid: bool
    renewed_s: float | None
    renewals: int
    failures: int
    granted: int
    streams: int


class StreamTerms(Protocol):
    """The terms of all streams of a pipeline."""

    def find_term(self, name: str) -> StreamTerm:
        """The present term of the stream of a name."""
        ...

    def admits(self, stream: str, run: int) -> bool:
        """Whether events of the stream's run may be sent now; asked directly before they become safe."""
        ...

    def tally(self) -> TermTally:
        """The counts so far."""
        ...
