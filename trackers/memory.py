"""Memory of tracks beside their state: ring buffers of observations, masks and embeddings, in fixed slots.

A track keeps its slot for life, so no data moves when other tracks end; slots are reused, so memory is bounded by the
greatest number of tracks at one time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trackers.boxes import Floats, Ints

COLUMNS = 7  # of an observation: time, x1, y1, x2, y2, score, frame
FIRST_SLOTS = 16


class TrackSlots:
    """Arrays with one row per slot that grow together, and the list of free slots."""

    def __init__(self, history: int) -> None:
        self.length = history
        self.rows: dict[str, npt.NDArray[Any]] = {"history": np.zeros((0, history, COLUMNS))}
        self._free: Ints = np.empty(0, dtype=np.int64)

    def take(self, count: int) -> Ints:
        """Reserves `count` free slots."""
        if self._free.size < count:
            used = len(self.rows["history"])
            more = max(count - self._free.size, used, FIRST_SLOTS)
            for name, rows in self.rows.items():
                self.rows[name] = np.concatenate((rows, np.zeros((more, *rows.shape[1:]), dtype=rows.dtype)))
            self._free = np.concatenate((self._free, np.arange(used, used + more)))
        slots, self._free = self._free[:count], self._free[count:]
        return slots

    def give_back(self, slots: Ints) -> None:
        self._free = np.concatenate((self._free, slots))

    def column(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The array called `name` with a row of `shape` per slot, made at the first request."""
        rows = self.rows.get(name)
        if rows is None:
            rows = self.rows[name] = np.zeros((len(self.rows["history"]), *shape), dtype=dtype)
        return rows

    def write(self, slots: Ints, counts: Ints, observations: Floats) -> None:
        """Stores (N, 7) observations, number `counts` (from 0) of each slot."""
        self.rows["history"][slots, counts % self.length] = observations

    def read(self, slots: Ints, counts: Ints) -> Floats:
        """(N, 7) observations, number `counts` of each slot."""
        found: Floats = self.rows["history"][slots, counts % self.length]
        return found

    def series(self, slot: int, count: int) -> Floats:
        """(n, 6) the last observations of one slot out of `count`, oldest first: time, box, score."""
        numbers = np.arange(max(count - self.length, 0), count)
        found: Floats = self.rows["history"][slot, numbers % self.length, :6]
        return found

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {"free": self._free.copy(), **{f"slots.{name}": rows.copy() for name, rows in self.rows.items()}}

    def load(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self._free = np.array(state["free"])
        self.rows = {key[6:]: np.array(rows) for key, rows in state.items() if key.startswith("slots.")}
        self.length = self.rows["history"].shape[1]
