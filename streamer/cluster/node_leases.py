"""The leases of one node: joins, renews and releases, and says at any moment which epochs may send events."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from streamer.cluster.lease_book import (
    READY_AFTER_S,
    RENEW_EVERY_S,
    BeatWatch,
    CameraLease,
    LeaseAnswer,
    LeaseBook,
    LeaseFence,
)
from streamer.cluster.lease_store import LeaseStore

_MOST_FORMER = 20
_LATE_S = 3 * RENEW_EVERY_S
"""After so many seconds without a granted renewal of its own a node measures the beats of the others afresh: the store
may have been away for all of them."""


def boot_time_s() -> float:
    """Seconds of a clock that never jumps and goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class NodeLeases:
    """One node's side of the leases. `join`, `renew`, `release` and `leave` block and come from one thread at a time;
    `is_good` may be called from anywhere.

    When a session is over (not renewed in time, or its name lost) none of its epochs is good ever again; the next
    `join` begins another session.
    """

    def __init__(
        self,
        store: LeaseStore,
        name: str,
        *,
        capacity: int | None = None,
        page: str = "",
        clock: Callable[[], float] = boot_time_s,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`clock` counts seconds and never jumps; `wall_ns` is the time of day, UTC nanoseconds."""
        self.name = name
        self._store = store
        self._capacity = capacity
        self._page = page
        self._book: LeaseBook | None = None
        self._clock = clock
        self._wall_ns = wall_ns
        self._watch = BeatWatch()
        self._session = ""
        self._former: list[str] = []  # sessions of this process that are over; one may still be in the store
        self._fence: LeaseFence | None = None
        self._epochs: dict[tuple[str, int], LeaseFence] = {}
        self._joined_s = self._renewed_s = 0.0
        self._granted_s: float | None = None  # when the last granted renewal was asked for

    @property
    def is_joined(self) -> bool:
        """Whether the present session may go on."""
        return self._fence is not None and self._fence.is_good(self._clock())

    @property
    def book(self) -> LeaseBook | None:
        """All nodes and cameras as they were at the last renewal, None before the first. Not to be changed."""
        return self._book

    @property
    def renewed_s(self) -> float | None:
        """Seconds since the last granted renewal was asked for, None before the first."""
        return None if self._granted_s is None else self._clock() - self._granted_s

    def is_good(self, camera: str, epoch: int) -> bool | None:
        """Whether this node may send events of a camera under an epoch; None for an epoch that it never had."""
        fence = self._epochs.get((camera, epoch))
        return None if fence is None else fence.is_good(self._clock())

    def join(self) -> bool:
        """Begin a session; false while another process has the name and renews. Raises `LeaseError`."""
        if self._fence is not None:
            self._fence.end()
            self._fence = None
        former, self._session = list(self._former), ""
        session, started_s = secrets.token_hex(8), self._clock()
        # Also where the answer is lost, this process alone knows the session: it may replace it.
        self._former = [*former[-_MOST_FORMER:], session]
        self._watch_from(started_s)

        def change(book: LeaseBook) -> bool:
            expired = self._watch.find_expired(book.nodes.values(), self._clock())
            return book.join_node(
                self.name,
                session,
                self._wall_ns(),
                capacity=self._capacity,
                page=self._page,
                replaces=former,
                expired=expired,
            )

        joined = self._store.update(change)
        self._renewed_s = started_s
        if joined:
            self._session, self._joined_s, self._granted_s = session, started_s, started_s
            self._fence = LeaseFence(started_s)
        return joined

    def renew(self, revision: int) -> LeaseAnswer | None:
        """Renew all leases, and get new ones; None where the session is over, also because this took too long.

        `revision` is that of the configuration in use. Raises `LeaseError`.
        """
        fence, started_s = self._fence, self._clock()
        if fence is None or not fence.is_good(started_s):
            return None
        self._watch_from(started_s)

        def change(book: LeaseBook) -> LeaseAnswer | None:
            now_s = self._clock()
            self._book = book
            return book.renew_node(
                self.name,
                self._session,
                self._wall_ns(),
                is_ready=now_s - self._joined_s >= READY_AFTER_S,
                revision=revision,
                expired=self._watch.find_expired(book.nodes.values(), now_s),
            )

        answer = self._store.update(change)
        self._renewed_s = started_s
        if answer is None:
            fence.end()
            return None
        if not fence.extend(started_s, self._clock()):
            return None
        self._granted_s = started_s
        for lease in answer.leases.values():
            self._epochs.setdefault((lease.camera, lease.epoch), fence)
        return answer

    def release(self, lease: CameraLease) -> None:
        """Give a camera back whose last event is safe; no event of this epoch may follow. Raises `LeaseError`."""
        ended = LeaseFence(self._clock())
        ended.end()
        self._epochs[lease.camera, lease.epoch] = ended
        self._store.update(
            lambda book: book.release_camera(self.name, self._session, lease.camera, lease.epoch, self._wall_ns())
        )

    def leave(self) -> None:
        """Give all cameras back whose last events are safe, and end the session. Raises `LeaseError`."""
        if self._fence is not None:
            is_good = self._fence.is_good(self._clock())
            self._fence.end()
            if is_good:  # else the camera may have gone dark unreported: the others find that out by themselves
                self._store.update(lambda book: book.leave_node(self.name, self._session, self._wall_ns()))

    def _watch_from(self, now_s: float) -> None:
        if now_s - self._renewed_s > _LATE_S:
            self._watch.forget_all()
