"""The report: what its page and CSV files say is what the events in the SQLite file say."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import re
import sqlite3
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sinks.event import Box, Event, EventType, LineInfo, Media, ZoneInfo, rfc3339
from sinks.sqlite import SqliteSink
from streamer.cli import app
from streamer.errors import ConfigError
from streamer.tasks.report import _to_csv, write_report
from streamer.tasks.report_figures import ReportFigures, StreamFigures
from streamer.tasks.report_gallery import MOST_CARDS, TrackGallery
from streamer.tasks.report_page import DWELL_EDGES_S, DWELL_NAMES, TimeBins, dwell_classes, heat_color, report_page
from tests.sinks.makes import event

DAY_NS = 1_795_564_800_000_000_000  # 2026-11-25 00:00 UTC
HOUR_NS = 3_600_000_000_000
UIDS = [f"01HZX3V5Q8M4T7W9Y2B6C8D0E{number}" for number in range(8)]


def at(
    time_ns: int,
    kind: EventType,
    number: int,
    *,
    uid: str = UIDS[0],
    stream: str = "gate",
    query: str = "red car",
    box: tuple[float, float, float, float] = (0.1, 0.2, 0.3, 0.4),
    line: str | None = None,
    zone: tuple[str, float | None] | None = None,
    into: str | None = None,
    basis: str = "arrival",
) -> Event:
    made = event(number, kind=kind, uid=uid, stream=stream, query=query)
    data = made.data
    track = data.track
    if track is not None:
        shape = Box(x1=box[0], y1=box[1], x2=box[2], y2=box[3])
        track = track.model_copy(update={"box": shape, "last_seen_ns": time_ns, "merged_into": into})
    place = {
        "line": LineInfo.model_validate({"id": line[:-1], "direction": {">": "in", "<": "out"}[line[-1]]})
        if line
        else None,
        "zone": ZoneInfo(id=zone[0], dwell_s=zone[1]) if zone else None,
    }
    clock = data.clock.model_copy(update={"basis": basis, "captured_ns": time_ns})
    return made.model_copy(
        update={
            "time": rfc3339(time_ns),
            "data": data.model_copy(update={"track": track, "clock": clock, **place}),
        }
    )


def store(path: Path, events: Iterable[Event]) -> Path:
    async def send() -> None:
        sink = SqliteSink(path)
        await sink.send_batch(list(events))
        await sink.aclose()

    asyncio.run(send())
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def two_hours() -> list[Event]:
    start, later = DAY_NS + 10 * HOUR_NS + 60_000_000_000, DAY_NS + 13 * HOUR_NS
    return [
        at(start, EventType.TRACK_BEGIN, 0),
        at(start + 1, EventType.MATCH_BEGIN, 1),
        at(start + 2_000_000_000, EventType.LINE_CROSS, 2, line="door>"),
        at(start + 3_000_000_000, EventType.ZONE_ENTER, 3, zone=("yard", None)),
        at(start + 10_000_000_000, EventType.ZONE_EXIT, 4, zone=("yard", 7.0)),
        at(start + 11_000_000_000, EventType.TRACK_END, 5),
        at(later, EventType.TRACK_BEGIN, 6, uid=UIDS[1]),
        at(later + 1_000_000_000, EventType.LINE_CROSS, 7, uid=UIDS[1], line="door<"),
        at(later + 2_000_000_000, EventType.LINE_CROSS, 8, uid=UIDS[1], line="door<"),
        at(later + 3_000_000_000, EventType.ZONE_ENTER, 9, uid=UIDS[1], zone=("yard", None)),
    ]


def test_the_csv_files_count_by_hour_line_zone_and_direction(tmp_path: Path) -> None:
    store(tmp_path / "events.sqlite", two_hours())
    write_report(tmp_path, quiet=True)
    counted = {
        (row["hour"], row["kind"], row["name"], row["direction"]): int(row["count"])
        for row in rows(tmp_path / "report-hours.csv")
    }
    assert counted == {
        ("2026-11-25 10:00:00", "tracks", "", "new"): 1,
        ("2026-11-25 10:00:00", "line", "door", "in"): 1,
        ("2026-11-25 10:00:00", "zone", "yard", "entered"): 1,
        ("2026-11-25 10:00:00", "zone", "yard", "left"): 1,
        ("2026-11-25 13:00:00", "tracks", "", "new"): 1,
        ("2026-11-25 13:00:00", "line", "door", "out"): 2,
        ("2026-11-25 13:00:00", "zone", "yard", "entered"): 1,
    }
    visits = {row["from_s"]: int(row["visits"]) for row in rows(tmp_path / "report-dwell.csv")}
    assert {low: count for low, count in visits.items() if count} == {"5": 1}
    [query] = rows(tmp_path / "report-queries.csv")
    assert (query["query"], query["tracks"], query["crossed_in"], query["crossed_out"]) == ("red car", "2", "1", "2")
    assert query["zone_entries"] == "2"


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1"])
def test_no_name_is_a_formula_in_a_spreadsheet(name: str) -> None:
    rows = list(csv.reader(io.StringIO(_to_csv([[name, "gate", -3.5, 7]]))))
    assert rows == [[f"'{name}", "gate", "-3.5", "7"]]


def test_the_page_is_whole_without_any_other_file(tmp_path: Path) -> None:
    store(tmp_path / "events.sqlite", two_hours())
    text = write_report(tmp_path, tmp_path / "else", quiet=True).read_text()
    assert "<script" not in text
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import""", text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)
    assert "Line door: crossings per hour" in text
    assert "2026-11-25 13:00: out 2" in text
    assert sorted(path.name for path in (tmp_path / "else").iterdir()) == [
        "report-dwell.csv",
        "report-heatmap.csv",
        "report-hours.csv",
        "report-queries.csv",
        "report.html",
    ]


def test_names_from_users_do_not_become_markup(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\x1b[31m&\"'"
    begin = at(DAY_NS, EventType.TRACK_BEGIN, 0, stream=bad, query=bad)
    cross = at(DAY_NS, EventType.LINE_CROSS, 1, stream=bad, query=bad, line=f"{bad}>")
    enter = at(DAY_NS, EventType.ZONE_EXIT, 2, stream=bad, query=bad, zone=(bad, 1.0))
    store(tmp_path / "events.sqlite", [begin, cross, enter])
    text = write_report(tmp_path, quiet=True).read_text()
    assert "<script" not in text
    assert "\x1b" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


def test_merged_tracks_are_one(tmp_path: Path) -> None:
    begin = [at(DAY_NS + n, EventType.TRACK_BEGIN, n, uid=UIDS[n]) for n in range(3)]
    merges = [
        at(DAY_NS + 5, EventType.TRACK_MERGE, 5, uid=UIDS[2], into=UIDS[1]),
        at(DAY_NS + 6, EventType.TRACK_MERGE, 6, uid=UIDS[1], into=UIDS[0]),
    ]
    store(tmp_path / "events.sqlite", [*begin, *merges])
    write_report(tmp_path, quiet=True)
    assert [row["count"] for row in rows(tmp_path / "report-hours.csv")] == ["1"]
    assert [row["tracks"] for row in rows(tmp_path / "report-queries.csv")] == ["1"]


def test_the_heat_map_holds_the_time_of_every_track_once(tmp_path: Path) -> None:
    """A walk from left to right in ten seconds along the lower edge of the box, then a stay of one minute."""
    walk = [
        at(DAY_NS, EventType.TRACK_BEGIN, 0, box=(0.0, 0.2, 0.1, 0.5)),
        at(DAY_NS + 10_000_000_000, EventType.TRACK_UPDATE, 1, box=(0.9, 0.2, 1.0, 0.5)),
        at(DAY_NS + 70_000_000_000, EventType.TRACK_END, 2, box=(0.9, 0.2, 1.0, 0.5)),
        at(DAY_NS + 90_000_000_000, EventType.TRACK_BEGIN, 3, uid=UIDS[1], box=(0.0, 0.2, 1.0, 1.0)),
    ]
    store(tmp_path / "events.sqlite", walk)
    write_report(tmp_path, quiet=True)
    cells = {(int(row["column"]), int(row["row"])): row for row in rows(tmp_path / "report-heatmap.csv")}
    seconds = {place: float(row["seconds"]) for place, row in cells.items()}
    assert sum(seconds.values()) == pytest.approx(70, abs=0.1)
    height = int(cells[3, next(row for _, row in cells)]["rows"])
    assert {row for _, row in seconds} == {height // 2}
    assert {column for column, _ in seconds} == set(range(3, 61))
    assert seconds[60, height // 2] == pytest.approx(60, abs=1)


def test_a_recording_without_a_date_counts_from_its_start(tmp_path: Path) -> None:
    minute = 60_000_000_000
    events = [at(n * 20 * minute, EventType.TRACK_BEGIN, n, uid=UIDS[n], basis="file_pts") for n in range(5)]
    store(tmp_path / "events.sqlite", events)
    text = write_report(tmp_path, quiet=True).read_text()
    assert "1970" not in text
    assert "New tracks per minute" in text
    assert "01:20: tracks 1" in text
    assert [row["hour"] for row in rows(tmp_path / "report-hours.csv")] == ["00:00:00", "01:00:00"]


def test_rows_that_are_no_events_are_reported(tmp_path: Path) -> None:
    path = store(tmp_path / "events.sqlite", two_hours())
    with sqlite3.connect(path) as database:
        database.execute("UPDATE events SET event = '{' WHERE position = 3")
    done = CliRunner().invoke(app, ["report", str(path)])
    assert done.exit_code == 0
    assert "are no events and were left out" in done.output
    assert "9 events, 1 streams" in done.output


def test_a_file_without_events_gives_a_page_that_says_so(tmp_path: Path) -> None:
    text = write_report(store(tmp_path / "events.sqlite", []), quiet=True).read_text()
    assert "The file holds no events." in text


def test_what_is_no_result_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there are no events at .*events\.sqlite: give the --out folder"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("hours", "unit"), [(0.5, "minute"), (1.5, "minute"), (2, "hour"), (90, "hour"), (24 * 30, "day")]
)
def test_the_bins_of_a_chart_follow_the_length(hours: float, unit: str) -> None:
    stream = StreamFigures("gate", first_ns=DAY_NS, last_ns=DAY_NS + int(hours * HOUR_NS), is_dated=True)
    bins = TimeBins.covering(stream)
    assert bins.unit == unit
    assert bins.count <= 96
    minute = stream.last_ns // 60_000_000_000
    assert bins.sum_up({minute: 4, DAY_NS // 60_000_000_000: 3}) == [3, *[0] * (bins.count - 2), 4]


def test_dwell_classes_have_closed_lower_edges() -> None:
    assert dwell_classes([0, 0.99, 1, 4.999, 5, 1e9])[:4] == [2, 1, 1, 1]
    assert sum(dwell_classes([0, 0.99, 1, 4.999, 5, 1e9])) == 6
    assert len(DWELL_NAMES) == len(DWELL_EDGES_S)


def test_colours_are_valid_at_both_ends() -> None:
    assert heat_color(-1) == heat_color(0) == "#21114a"
    assert heat_color(2) == heat_color(1) == "#fcf6b2"


def test_a_page_of_many_streams_links_to_each() -> None:
    figures = ReportFigures()
    for number in range(4):
        figures.add_event(at(DAY_NS, EventType.TRACK_BEGIN, 0, stream=f"gate {number}"))
    text = report_page(figures, {}, "events.sqlite")
    links = re.findall(r'href="#(stream-\d)"', text)
    assert links == re.findall(r'<section id="(stream-\d)"', text)
    assert len(links) == 4


def cards_of(path: Path) -> list[str]:
    """The cards of a page, each as its text."""
    found = re.findall(r'<article class="card">(.*?)</article>', path.read_text(), re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", card).split()) for card in found]


def test_the_gallery_has_a_card_for_each_track_with_its_words_times_and_places(tmp_path: Path) -> None:
    second = 1_000_000_000
    reported = [
        at(DAY_NS, EventType.TRACK_BEGIN, 0, box=(0.1, 0.2, 0.3, 0.4)),
        at(DAY_NS + second, EventType.ZONE_ENTER, 1, zone=("yard", None), box=(0.2, 0.2, 0.4, 0.6)),
        at(DAY_NS + 2 * second, EventType.LINE_CROSS, 2, line="door>", box=(0.3, 0.2, 0.5, 0.8)),
        at(DAY_NS + 3 * second, EventType.LINE_CROSS, 3, line="door>", box=(0.3, 0.2, 0.5, 0.8)),
        at(DAY_NS + 9 * second, EventType.TRACK_END, 4, box=(0.5, 0.2, 0.7, 1.0)),
    ]
    store(tmp_path / "events.sqlite", reported)
    page = write_report(tmp_path, quiet=True)
    [card] = cards_of(page)
    assert card.startswith("#3 red car 0.80 ")
    assert card.endswith("to 2026-11-25 00:00:09 entered yard crossed door (in) 2 times")
    [points] = re.findall(r'<polyline points="([^"]+)"', page.read_text())
    assert points == "12.80,14.40 19.20,21.60 25.60,28.80 25.60,28.80 38.40,36.00"


def test_the_gallery_prefers_tracks_with_events_at_places_and_counts_all(tmp_path: Path) -> None:
    uids = [f"01HZX3V5Q8M4T7W9Y2B6C8D{number:03d}" for number in range(40)]
    reported = [at(DAY_NS + n, EventType.TRACK_BEGIN, n, uid=uid) for n, uid in enumerate(uids)]
    reported += [at(DAY_NS + 99, EventType.ZONE_ENTER, 99, uid=uids[-1], zone=("yard", None))]
    store(tmp_path / "events.sqlite", reported)
    page = write_report(tmp_path, quiet=True)
    cards = cards_of(page)
    assert len(cards) == MOST_CARDS
    assert [card for card in cards if "entered yard" in card]
    assert f"{MOST_CARDS} of 40, those with most events" in page.read_text()


def test_the_gallery_shows_merged_tracks_as_one() -> None:
    gallery = TrackGallery()
    for event_ in (
        at(DAY_NS, EventType.TRACK_BEGIN, 0, uid=UIDS[0], box=(0.1, 0.1, 0.2, 0.2)),
        at(DAY_NS + 1, EventType.TRACK_BEGIN, 1, uid=UIDS[1], query="van", box=(0.5, 0.1, 0.6, 0.2)),
        at(DAY_NS + 2, EventType.ZONE_ENTER, 2, uid=UIDS[1], query="van", zone=("yard", None)),
        at(DAY_NS + 3, EventType.TRACK_MERGE, 3, uid=UIDS[1], into=UIDS[0]),
    ):
        gallery.add_event(event_)
    [card], total = gallery.best_cards()
    assert total == 1
    assert card.words == {"red car": 0.8, "van": 0.8}
    assert card.places == ["entered yard"]
    assert [moment for moment, _, _ in card.path] == [DAY_NS, DAY_NS + 1, DAY_NS + 2]


def test_the_gallery_of_a_long_time_is_bounded() -> None:
    gallery = TrackGallery()
    for number in range(3000):
        uid = f"01HZX3V5Q8M4T7W9Y2B6C8{number:04d}"
        gallery.add_event(at(DAY_NS + number, EventType.TRACK_BEGIN, number, uid=uid))
        gallery.add_event(at(DAY_NS + number, EventType.TRACK_END, number, uid=uid))
    cards, total = gallery.best_cards()
    assert (len(cards), total) == (MOST_CARDS, 3000)
    assert len(gallery._cards) < 1500


@pytest.mark.parametrize("fault", ["", "gone", "changed", "no picture", "elsewhere"])
def test_a_stored_picture_is_part_of_the_page_when_it_is_the_one_of_the_event(tmp_path: Path, fault: str) -> None:
    picture = b"\xff\xd8\xff\xe0 a picture"
    file = tmp_path / "a b.jpg"
    file.write_bytes({"changed": picture + b"!", "no picture": b"GIF89a"}.get(fault, picture))
    sha256 = hashlib.sha256(file.read_bytes() if fault == "no picture" else picture).hexdigest()
    uri = f"https://h/{file.name}" if fault == "elsewhere" else file.as_uri()
    if fault == "gone":
        file.unlink()
    reported = at(DAY_NS + 1, EventType.MEDIA, 1)
    media = reported.model_copy(
        update={"data": reported.data.model_copy(update={"media": [Media(kind="crop", uri=uri, sha256=sha256)]})}
    )
    store(tmp_path / "events.sqlite", [at(DAY_NS, EventType.TRACK_BEGIN, 0), media])
    text = write_report(tmp_path, quiet=True).read_text()
    assert ("data:image/jpeg;base64," in text) is (not fault)
    assert len(cards_of(tmp_path / "report.html")) == 1
