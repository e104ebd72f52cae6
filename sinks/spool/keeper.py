"""Background thread that brings commits to the disk and checkpoints the write-ahead log of a spool's file."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

from sinks.spool.schema import connect_file
from sinks.supervision import start_thread

log = logging.getLogger("sinks.spool")

SYNC_WINDOW_S = 0.2
CHECKPOINT_BYTES = 8 << 20
CHECKPOINT_S = 1.0
RESTART_BYTES = 128 << 20
_IDLE_S = 1.0
_RETRY_S = 1.0
_CLOSE_S = 5.0


class StoreKeeper:
    """Brings commits to the disk: at most `SYNC_WINDOW_S` of them are lost in a power cut.

    Checkpoints happen here too, on a connection of their own, so that no commit waits for one. Only where events come
    so fast that the log never ends before the next commit must it restart while commits wait, tens of milliseconds:
    as rarely as its size allows. (The log file stays as large as it once was.)

    `committed` and `close` may be called from any thread; everything else runs in the keeper's own.
    """

    def __init__(self, path: Path, *, sync: bool) -> None:
        self._path = path
        self._sync = sync
        self._log_file = -1  # the write-ahead log: the same file as long as one connection is open
        self._page_bytes = 4096
        self._warned = False
        self._checkpoint_at = 0.0
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._thread = start_thread(self._run, name="spool-keeper")

    def committed(self) -> None:
        """There is something to bring to the disk."""
        if not self._dirty.is_set():
            self._dirty.set()

    def close(self) -> None:
        """Ends the thread; a disk that does not answer is waited for `_CLOSE_S` seconds."""
        self._closing.set()
        self._dirty.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        """Keeps at it until closed: an error costs one round, is logged once, and is tried again."""
        while not self._closing.is_set():
            try:
                self._keep_up()
            except Exception as error:
                self._warn_once(error)
                self._closing.wait(_RETRY_S)

    def _keep_up(self) -> None:
        db = connect_file(self._path)
        try:
            self._page_bytes = int(db.execute("PRAGMA page_size").fetchone()[0])
            checkpointed = True
            while not self._closing.is_set():
                if not self._dirty.wait(None if checkpointed else _IDLE_S):
                    checkpointed, _ = self._checkpoint(db, "TRUNCATE")
                    continue
                self._dirty.clear()
                checkpointed = False
                try:
                    self._bring_to_disk(db)
                except OSError as error:
                    self._warn_once(error)
                self._closing.wait(SYNC_WINDOW_S)
        finally:
            if self._log_file >= 0:
                os.close(self._log_file)
                self._log_file = -1
            db.close()

    def _bring_to_disk(self, db: sqlite3.Connection) -> None:
        if self._log_file < 0:
            self._log_file = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        if self._sync:
            os.fdatasync(self._log_file)
        if os.fstat(self._log_file).st_size > CHECKPOINT_BYTES and time.monotonic() >= self._checkpoint_at:
            _, size = self._checkpoint(db, "PASSIVE")
            if size > RESTART_BYTES:
                self._checkpoint(db, "RESTART")
            self._checkpoint_at = time.monotonic() + CHECKPOINT_S

    def _checkpoint(self, db: sqlite3.Connection, mode: str) -> tuple[bool, int]:
        """Whether it was not hindered, and the size of the log in bytes."""
        try:
            hindered, pages, _ = db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            return not hindered, pages * self._page_bytes
        except sqlite3.Error as error:  # a full disk: the log is longer for a while
            log.debug("spool %s: checkpoint postponed (%s)", self._path, error)
            return False, 0

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            log.error("spool %s: commits are not brought to the disk (%s): check the disk", self._path, error)
        self._warned = True


def checkpoint_all(db: sqlite3.Connection) -> None:
    """Brings the whole log into the file, as far as the disk allows."""
    with contextlib.suppress(sqlite3.Error):
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
