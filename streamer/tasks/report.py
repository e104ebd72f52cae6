"""The `report` command: reads stored events and writes a page of charts and CSV files."""

from __future__ import annotations

import asyncio
import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from sinks.subscribe import subscribe
from streamer.errors import ConfigError
from streamer.jobs.event_archive import DATABASE
from streamer.tasks.console import user_console, write_text
from streamer.tasks.report_figures import ReportFigures, StreamFigures, format_time
from streamer.tasks.report_gallery import TrackGallery
from streamer.tasks.report_page import DWELL_EDGES_S, dwell_classes, hour_of, report_page


def write_report(events: Path, out: Path | None = None, *, quiet: bool = False) -> Path:
    """Writes `report.html` and its CSV files into `out` (default: the folder of the events) and returns the page.

    `events` is an SQLite file of events, or a folder with `events.sqlite`. Raises `ConfigError` where there is none,
    `SinkError` where the file cannot be read, `StreamerError` where the page cannot be written.
    """
    database = events / DATABASE if events.is_dir() else events
    if not database.is_file():
        raise ConfigError(
            f"there are no events at {database}: give the --out folder of `groundstream process`, or the file of a "
            "sqlite: sink"
        )
    figures, galleries, unreadable = asyncio.run(_read_events(f"sqlite:{database.resolve()}"))
    folder = out or database.parent
    page = write_text(folder / "report.html", report_page(figures, galleries, database.name))
    for name, table in csv_tables(figures).items():
        write_text(folder / f"report-{name}.csv", _to_csv(table))
    console = user_console(stderr=True)
    if unreadable:
        console.print(f"{len(unreadable)} rows or more of {database} are no events and were left out: {unreadable[-1]}")
    if not quiet:
        console.print(f"report    {page} ({figures.events} events, {len(figures.streams)} streams)")
    return page


async def _read_events(address: str) -> tuple[ReportFigures, dict[str, TrackGallery], list[str]]:
    figures = ReportFigures()
    galleries: defaultdict[str, TrackGallery] = defaultdict(TrackGallery)
    async with subscribe(address, since="earliest") as events:
        async for event in events:
            figures.add_event(event)
            galleries[event.data.stream].add_event(event)
    return figures, galleries, events.unreadable


def csv_tables(figures: ReportFigures) -> dict[str, list[Sequence[object]]]:
    """Returns the rows of the CSV files by name, each with a first row of headings."""
    streams = [figures.streams[name] for name in sorted(figures.streams)]
    hours: list[Sequence[object]] = [("hour", "stream", "kind", "name", "direction", "count")]
    dwell: list[Sequence[object]] = [("stream", "zone", "from_s", "to_s", "visits")]
    queries: list[Sequence[object]] = [
        ("stream", "query_id", "query", "tracks", "zone_entries", "crossed_in", "crossed_out", "best_score", "first",
         "last")
    ]  # fmt: skip
    heat: list[Sequence[object]] = [("stream", "column", "row", "columns", "rows", "seconds")]
    for stream in streams:
        hours += _hour_rows(stream)
        for zone in stream.zones:
            edges = zip(
                DWELL_EDGES_S, (*DWELL_EDGES_S[1:], ""), dwell_classes(stream.dwell_s.get(zone, ())), strict=True
            )
            dwell += [(stream.name, zone, low, high, visits) for low, high, visits in edges]
        for query_id, query in sorted(stream.queries.items()):
            times = [format_time(moment, is_dated=stream.is_dated) for moment in (query.first_ns or 0, query.last_ns)]
            ways = (query.crossings["in"], query.crossings["out"])
            tracks = stream.count_tracks(query.tracks)
            queries.append(
                (
                    stream.name,
                    query_id,
                    query.text,
                    tracks,
                    query.zone_entries,
                    *ways,
                    f"{query.best_score:.4f}",
                    *times,
                )
            )
        heat += [
            (stream.name, column, row, *stream.grid, f"{seconds:.3f}")
            for (column, row), seconds in sorted(stream.presence_s.items())
        ]
    return {"hours": hours, "dwell": dwell, "queries": queries, "heatmap": heat}


def _hour_rows(stream: StreamFigures) -> Iterable[Sequence[object]]:
    """The counts of every hour with anything in it, by line, zone and direction."""
    counts: Counter[tuple[int, str, str, str]] = Counter()
    for minute, uids in stream.tracks.items():
        counts[hour_of(minute), "tracks", "", "new"] += len(uids - stream.merged.keys())
    for (minute, line, direction), count in stream.crossings.items():
        counts[hour_of(minute), "line", line, direction] += count
    for (minute, zone), count in stream.entries.items():
        counts[hour_of(minute), "zone", zone, "entered"] += count
    for (minute, zone), count in stream.exits.items():
        counts[hour_of(minute), "zone", zone, "left"] += count
    for (hour, kind, name, direction), count in sorted(counts.items()):
        yield format_time(hour, is_dated=stream.is_dated), stream.name, kind, name, direction, count


def _plain_cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula, with the apostrophe that makes it text; all else as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _to_csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[_plain_cell(value) for value in row] for row in rows])
    return text.getvalue()
