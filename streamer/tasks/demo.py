"""The demonstration: the main job on the synthetic street, and what to look at afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from detectors.registry import default_detector
from streamer.jobs import ProcessJob
from streamer.tasks.console import user_console
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
    """Process `seconds` of street number `seed`, show tracks and events; returns whether it failed."""
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
        user_console().print(f"\nask it    sqlite3 {database} '{query}'")
    return failed != 0


def _show_database(path: Path) -> None:
    """The longest tracks and the first crossings and zone entries."""
    console = user_console()
    database = sqlite3.connect(path)
    tracks = Table("track", "what", "seen from", "to", "score", title="tracks", title_justify="left")
    for row in database.execute(
        """SELECT track, coalesce((SELECT json_extract(m.queries, '$[0]') FROM events m WHERE m.subject = e.subject
                  AND m.queries != '[]' LIMIT 1), ''), min(substr(time, 12, 12)), max(substr(time, 12, 12)),
                  round(max(score), 2)
           FROM events e WHERE track IS NOT NULL GROUP BY subject
           ORDER BY max(time) > min(time) DESC, min(time) LIMIT ?""",
        (_SHOWN,),
    ):
        tracks.add_row(*map(str, row))
    events = Table("time", "event", "track", "where", title="events", title_justify="left")
    for time, kind, track, place in database.execute(
        """SELECT substr(time, 12, 12), type, track, coalesce(zone, line) FROM events
           WHERE zone IS NOT NULL OR line IS NOT NULL ORDER BY position LIMIT ?""",
        (_SHOWN,),
    ):
        events.add_row(time, kind.removeprefix("groundstream.").rpartition(".")[0], str(track), place)
    database.close()
    console.print(tracks)
    console.print(events)
