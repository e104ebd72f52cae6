"""The `demo` command: processes a synthetic street and prints its tracks and events."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from detectors.registry import default_detector
from streamer.detector_choice import DetectorChoice
from streamer.jobs import ProcessJob
from streamer.tasks.console import user_console
from streamer.tasks.monitor import MonitorOptions, run_monitor
from streamer.tasks.process import process_videos

_SIZE = "640x384"
_FPS = 12
_ZONES = ("crossing:0.35,0.55 0.65,0.55 0.75,0.98 0.25,0.98",)
_LINES = ("middle:0.5,0.3 0.5,1",)
_SHOWN = 12
QUERIES = ("a person", "a car", "a bus", "a bicycle", "a dog")


def show_street(
    queries: Sequence[str], out: Path, seed: int, seconds: float, detector_options: Sequence[str] = ()
) -> bool:
    """Processes `seconds` of street number `seed` and prints tracks and events; returns whether it failed."""
    chosen = list(queries) or list(QUERIES)
    job = ProcessJob(
        videos=[f"synthetic:street?seed={seed}&size={_SIZE}&fps={_FPS}&duration={seconds:g}"],
        queries=chosen,
        detector=default_detector(chosen, "glip-mini"),
        detector_options=detector_options,
        out=out,
        zones=_ZONES,
        lines=_LINES,
        again=True,
    )
    failed = process_videos(job)
    if not failed:
        database = out / "events.sqlite"
        _show_database(database)
        query = "SELECT type, count(*) FROM events GROUP BY type"
        user_console().print(f"\nquery it  sqlite3 {database} '{query}'")
    return failed != 0


def watch_street(
    queries: Sequence[str], out: Path, seed: int, address: tuple[str, int], detector_options: Sequence[str] = ()
) -> bool:
    """Watches two live streets with the page until it is interrupted; returns whether one failed."""
    chosen = list(queries) or list(QUERIES)
    live = f"size={_SIZE}&fps={_FPS}&live=1"
    options = MonitorOptions(
        DetectorChoice(default_detector(chosen, "glip-mini"), options=detector_options),
        sources=[f"synthetic:street?seed={seed}&{live}", f"synthetic:street?seed={seed + 4}&{live}"],
        names=["street", "yard"],
        queries=chosen,
        zones=_ZONES,
        lines=_LINES,
        web=address,
    )
    return run_monitor(options, spool=out / "demo.spool", duration_s=None, quiet=True)


def _show_database(path: Path) -> None:
    """Prints the first tracks, and the first zone and line events, with how many there are in all."""
    console = user_console()
    database = sqlite3.connect(path)
    tracks = Table("track", "what", "from", "to", "score", title_justify="left")
    for row in database.execute(
        """SELECT track, coalesce((SELECT json_extract(m.queries, '$[0]') FROM events m WHERE m.subject = e.subject
                  AND m.queries != '[]' LIMIT 1), ''), min(substr(time, 15, 7)), max(substr(time, 15, 7)),
                  round(max(score), 2)
           FROM events e WHERE track IS NOT NULL GROUP BY subject
           ORDER BY max(time) > min(time) DESC, min(time), track LIMIT ?""",
        (_SHOWN,),
    ):
        tracks.add_row(*map(str, row))
    tracks.title = _table_title(
        "tracks", database, "SELECT count(DISTINCT subject) FROM events WHERE track IS NOT NULL"
    )
    events = Table("at", "event", "track", "where", title_justify="left")
    for time, kind, track, place, direction in database.execute(
        """SELECT substr(time, 15, 7), type, track, coalesce(zone, line),
                  coalesce(json_extract(event, '$.data.line.direction'), '') FROM events
           WHERE zone IS NOT NULL OR line IS NOT NULL ORDER BY position LIMIT ?""",
        (_SHOWN,),
    ):
        short = kind.removeprefix("groundstream.").rpartition(".")[0]
        events.add_row(time, short, str(track), f"{place} {direction}".rstrip())
    count = "SELECT count(*) FROM events WHERE zone IS NOT NULL OR line IS NOT NULL"
    events.title = _table_title("zone and line events", database, count)
    database.close()
    console.print(tracks)
    console.print(events)


def _table_title(what: str, database: sqlite3.Connection, count: str) -> str:
    (total,) = database.execute(count).fetchone()
    return f"{what}: {min(total, _SHOWN)} of {total}"
