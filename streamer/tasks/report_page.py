"""HTML page of a report: tables and inline SVG charts, without scripts and other files."""

from __future__ import annotations

import html
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from streamer.tasks.console import visible_text
from streamer.tasks.report_figures import HOUR_NS, MINUTE_NS, ReportFigures, StreamFigures, format_time
from streamer.tasks.report_gallery import TrackGallery, gallery_block

DWELL_EDGES_S = (0, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600)
"""Lower edges of the classes of dwell times; the last has no upper edge."""
DWELL_NAMES = (
    "under 1 s", "1-2 s", "2-5 s", "5-10 s", "10-30 s", "30-60 s", "1-2 min", "2-5 min", "5-10 min", "10-30 min",
    "30-60 min", "1-4 h", "over 4 h",
)  # fmt: skip
_COLORS = ("#2563a8", "#e08a1e")
_MOST_BARS = 96
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 560, 200, 46, 34, 12


@dataclass(frozen=True, slots=True)
class TimeBins:
    """Bins of a chart over time: `first` is the number of the first bin of `minutes` minutes since 1970."""

    minutes: int
    first: int
    count: int
    is_dated: bool

    @classmethod
    def covering(cls, stream: StreamFigures) -> TimeBins:
        """Returns hours; minutes where everything happened within an hour or so; days where hours would be too many."""
        start, end = (stream.first_ns or 0) // MINUTE_NS, stream.last_ns // MINUTE_NS
        if not stream.is_dated:
            start = 0
        for minutes in (1, 60, 24 * 60):
            first, count = start // minutes, end // minutes - start // minutes + 1
            if count <= _MOST_BARS:
                break
        return cls(minutes, first, count, stream.is_dated)

    @property
    def unit(self) -> str:
        """The length of a bin in words."""
        return {1: "minute", 60: "hour"}.get(self.minutes, "day")

    def sum_up(self, counts: Mapping[int, int]) -> list[int]:
        """Returns counts per minute as counts per bin."""
        sums = [0] * self.count
        for minute, count in counts.items():
            sums[min(max(minute // self.minutes - self.first, 0), self.count - 1)] += count
        return sums

    def name_bin(self, index: int) -> str:
        """Returns the beginning of a bin as text."""
        text = format_time((self.first + index) * self.minutes * MINUTE_NS, is_dated=self.is_dated)
        return text[:10] if self.minutes > 60 and self.is_dated else text[:-3]


def report_page(figures: ReportFigures, galleries: Mapping[str, TrackGallery], origin: str) -> str:
    """Returns the page; `galleries` are the tracks by stream, `origin` names the file that the events came from."""
    streams = [figures.streams[name] for name in sorted(figures.streams)]
    sections = (_stream_section(stream, galleries, number) for number, stream in enumerate(streams, 1))
    body = _overview_section(streams) + "".join(sections) if streams else "<p>The file holds no events.</p>"
    links = (f'<a href="#stream-{number}">{_cell_text(one.name)}</a>' for number, one in enumerate(streams, 1))
    contents = f"<nav>{' · '.join(links)}</nav>" if len(streams) > 1 else ""
    subtitle = (
        f"{figures.events:,} events from {_cell_text(origin)}. Times are UTC; those of recordings without a date "
    )
    subtitle += "count from the start of the recording."
    return _PAGE.format(subtitle=subtitle, contents=contents, body=body, style=_STYLE)


def _overview_section(streams: Sequence[StreamFigures]) -> str:
    rows = [
        (
            stream.name,
            format_time(stream.first_ns or 0, is_dated=stream.is_dated),
            format_time(stream.last_ns, is_dated=stream.is_dated),
            stream.track_count,
            sum(stream.entries.values()),
            sum(stream.crossings.values()),
            format_seconds(stream.blind_s) if stream.blind_s else "none",
        )
        for stream in streams
    ]
    heads = ("stream", "from", "to", "tracks", "zone entries", "line crossings", "time without picture")
    return f"<section><h2>Overview</h2>{_table_block(heads, rows, numbers=3)}</section>"


def _stream_section(stream: StreamFigures, galleries: Mapping[str, TrackGallery], number: int) -> str:
    bins = TimeBins.covering(stream)
    charts = [_figure_block(f"New tracks per {bins.unit}", _time_chart(bins, {"tracks": _track_counts(stream)}))]
    for line in stream.lines:
        ways = {
            way: Counter({minute: n for (minute, name, to), n in stream.crossings.items() if (name, to) == (line, way)})
            for way in ("in", "out")
        }
        total = " · ".join(f"{way} {sum(counts.values())}" for way, counts in ways.items())
        charts.append(_figure_block(f"Line {line}: crossings per {bins.unit}", _time_chart(bins, ways), total))
    for zone in stream.zones:
        ways = {
            way: Counter({minute: n for (minute, name), n in counts.items() if name == zone})
            for way, counts in (("entered", stream.entries), ("left", stream.exits))
        }
        total = " · ".join(f"{way} {sum(counts.values())}" for way, counts in ways.items())
        charts.append(_figure_block(f"Zone {zone}: entries and exits per {bins.unit}", _time_chart(bins, ways), total))
        charts.append(_figure_block(f"Zone {zone}: dwell time of visits", _dwell_chart(stream.dwell_s.get(zone, []))))
    if stream.presence_s:
        charts.append(_figure_block("Where tracks spent their time", _heat_map(stream), _HEAT_NOTE))
    return (
        f'<section id="stream-{number}"><h2>{_cell_text(stream.name)}</h2>{_query_table(stream)}'
        f'<div class="charts">{"".join(charts)}</div>{_gallery(stream, galleries)}</section>'
    )


def _gallery(stream: StreamFigures, galleries: Mapping[str, TrackGallery]) -> str:
    return gallery_block(stream, galleries[stream.name]) if stream.name in galleries else ""


def _track_counts(stream: StreamFigures) -> Counter[int]:
    return Counter({minute: len(uids - stream.merged.keys()) for minute, uids in stream.tracks.items()})


def _query_table(stream: StreamFigures) -> str:
    rows = [
        (
            query.text,
            stream.count_tracks(query.tracks),
            query.zone_entries,
            query.crossings["in"],
            query.crossings["out"],
            f"{query.best_score:.2f}",
            format_time(query.first_ns or 0, is_dated=stream.is_dated),
            format_time(query.last_ns, is_dated=stream.is_dated),
        )
        for query in sorted(stream.queries.values(), key=lambda query: (-len(query.tracks), query.text))
    ]
    heads = ("query", "tracks", "zone entries", "crossed in", "crossed out", "best score", "first", "last")
    return _table_block(heads, rows, numbers=1) if rows else '<p class="none">No track answered to a query.</p>'


def format_seconds(seconds: float) -> str:
    """Returns a duration in its largest fitting unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def dwell_classes(dwell_s: Iterable[float]) -> list[int]:
    """Returns how many visits fall into each class of `DWELL_EDGES_S`."""
    counts = [0] * len(DWELL_EDGES_S)
    for seconds in dwell_s:
        counts[max(index for index, edge in enumerate(DWELL_EDGES_S) if seconds >= edge)] += 1
    return counts


def _dwell_chart(dwell_s: Sequence[float]) -> str:
    if not dwell_s:
        return '<p class="none">No visit has ended.</p>'
    counts = dwell_classes(dwell_s)
    shown = max(index for index, count in enumerate(counts) if count) + 1
    spread = (
        f"{len(dwell_s)} visits, median {format_seconds(statistics.median(dwell_s))}, longest "
        f"{format_seconds(max(dwell_s))}"
    )
    return _bar_chart({"visits": counts[:shown]}, DWELL_NAMES[:shown]) + f'<p class="note">{spread}</p>'


def _time_chart(bins: TimeBins, series: Mapping[str, Mapping[int, int]]) -> str:
    names = [bins.name_bin(index) for index in range(bins.count)]
    return _bar_chart({name: bins.sum_up(counts) for name, counts in series.items()}, names)


def _bar_chart(series: Mapping[str, Sequence[int]], names: Sequence[str]) -> str:
    """Returns an SVG of bars side by side, with a scale of whole numbers and as many labels as fit."""
    top, step = _axis_scale(max((max(values) for values in series.values()), default=0))
    right, base = _WIDTH - 8, _HEIGHT - _BOTTOM
    unit = (base - _TOP) / top
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    for value in range(0, top + 1, step):
        y = base - value * unit
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="y" x="{_LEFT - 7}" y="{y + 4:.1f}">{value}</text>')
    slot = (right - _LEFT) / len(names)
    bar = min(slot * 0.8 / len(series), 40)
    for number, (name, values) in enumerate(series.items()):
        for index, value in enumerate(values):
            if value:
                x = _LEFT + slot * (index + 0.5) + bar * (number - len(series) / 2)
                parts.append(
                    f'<rect x="{x:.2f}" y="{base - value * unit:.2f}" width="{max(bar - 0.6, 0.6):.2f}" '
                    f'height="{value * unit:.2f}" fill="{_COLORS[number % len(_COLORS)]}">'
                    f"<title>{_cell_text(names[index])}: {_cell_text(name)} {value}</title></rect>"
                )
    labels = [_shorten_time(name) for name in names]
    width = max(map(len, labels)) * 7
    every = max(1, math.ceil((width + 8) / slot))
    for index in range(0, len(labels), every):
        x = _LEFT + slot * (index + 0.5)
        if x + width / 2 <= _WIDTH:
            parts.append(f'<text class="x" x="{x:.1f}" y="{base + 19}">{_cell_text(labels[index])}</text>')
    parts.append("</svg>")
    if len(series) > 1:
        keys = (
            f'<span><i style="background:{_COLORS[number]}"></i>{_cell_text(name)}</span>'
            for number, name in enumerate(series)
        )
        parts.append(f'<p class="key">{"".join(keys)}</p>')
    return "".join(parts)


def _shorten_time(name: str) -> str:
    """Returns a date and time without the year."""
    return name[5:] if len(name) == len("2026-11-25 10:00") else name


def _axis_scale(highest: int) -> tuple[int, int]:
    """Returns the top of a scale of whole numbers, and the step between its lines: 1, 2 or 5 times a power of ten."""
    step = 1
    while step * 4 < highest:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return max(step, math.ceil(highest / step) * step), step


def _heat_map(stream: StreamFigures) -> str:
    columns, rows = stream.grid
    most = max(stream.presence_s.values())
    parts = [f'<svg class="heat" viewBox="0 0 {columns} {rows}" role="img" shape-rendering="crispEdges">']
    parts.append(f'<rect width="{columns}" height="{rows}" fill="#0d1321"/>')
    for (column, row), seconds in sorted(stream.presence_s.items()):
        # Time is spread over powers of ten: a parked object must not hide the paths of others.
        level = math.log1p(99 * seconds / most) / math.log1p(99)
        parts.append(
            f'<rect x="{column}" y="{row}" width="1" height="1" fill="{heat_color(level)}">'
            f"<title>{format_seconds(seconds)}</title></rect>"
        )
    parts.append("</svg>")
    stops = "".join(f'<i style="background:{heat_color(level / 9)}"></i>' for level in range(10))
    parts.append(
        f'<p class="key scale">under {format_seconds(most / 100)} {stops} {format_seconds(most)} of track time</p>'
    )
    return "".join(parts)


def heat_color(level: float) -> str:
    """Returns a colour from dark violet (0) over red and orange to light yellow (1)."""
    stops = ((33, 17, 74), (120, 28, 109), (197, 54, 63), (245, 133, 24), (252, 246, 178))
    place = min(max(level, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    red, green, blue = (
        round(dark + (light - dark) * (place - low)) for dark, light in zip(stops[low], stops[low + 1], strict=True)
    )
    return f"#{red:02x}{green:02x}{blue:02x}"


def _figure_block(title: str, chart: str, note: str = "") -> str:
    caption = f'<span class="note">{_cell_text(note)}</span>' if note else ""
    return f"<figure><figcaption>{_cell_text(title)}{caption}</figcaption>{chart}</figure>"


def _table_block(heads: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: int) -> str:
    """Returns a table whose columns from `numbers` on are aligned to the right."""

    def cells(values: Sequence[object], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if column >= numbers else ''}>{_cell_text(str(value))}</{tag}>"
            for column, value in enumerate(values)
        )

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{cells(heads, "th")}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell_text(value: str) -> str:
    return html.escape(visible_text(value))


def hour_of(minute: int) -> int:
    """Returns the beginning of the hour of a minute since 1970, nanoseconds since 1970."""
    return minute * MINUTE_NS // HOUR_NS * HOUR_NS


_HEAT_NOTE = "middle of the lower edge of each box, joined by straight lines between events; logarithmic scale"
_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1b2330; background: #f3f5f8; margin: 0 }
header, nav, section { max-width: 1120px; margin: 0 auto; padding: 0 24px }
header { padding-top: 28px }
h1 { font-size: 27px; margin: 0; letter-spacing: -.01em }
h2 { font-size: 19px; margin: 0 0 12px; overflow-wrap: anywhere }
header p { color: #5b6675; margin: 4px 0 18px }
nav { margin-bottom: 14px; overflow-wrap: anywhere }
a { color: #2563a8 }
section { background: #fff; border: 1px solid #dde2ea; border-radius: 8px; padding: 20px 24px; margin-bottom: 20px }
.table { overflow-x: auto }
.charts { margin-top: 20px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: left; font-size: 13px; font-weight: 600; color: #5b6675; border-bottom: 2px solid #dde2ea }
th, td { padding: 6px 12px 6px 0; vertical-align: top; white-space: nowrap }
td { border-bottom: 1px solid #edf0f4 }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9em }
.n { text-align: right }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 22px 28px }
figure { margin: 0; min-width: 0 }
figcaption { font-weight: 600; margin-bottom: 4px; overflow-wrap: anywhere }
.note, .none { color: #5b6675; font-size: 13px; font-weight: 400; margin: 2px 0 0 }
figcaption .note { display: block }
svg { width: 100%; height: auto; display: block }
svg text { font-size: 12.5px; fill: #5b6675 }
svg .y { text-anchor: end }
svg .x { text-anchor: middle }
svg .grid { stroke: #e6eaf0 }
svg.heat { border-radius: 4px }
h3 { font-size: 15px; margin: 24px 0 8px }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 16px }
.card { font-size: 13px; color: #5b6675; overflow-wrap: anywhere; min-width: 0 }
.card b { color: #1b2330 }
.card svg { border-radius: 4px; margin-bottom: 4px }
.card img { display: block; width: 100%; height: 150px; margin-bottom: 4px; object-fit: contain }
.card img { background: #0d1321; border-radius: 4px }
.key { font-size: 13px; color: #5b6675; margin: 2px 0 0 }
.key span { margin-right: 16px }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px }
.key.scale { margin-top: 6px }
.key.scale i { margin: 0; border-radius: 0; width: 16px; vertical-align: -1px }
@media print { body { background: #fff } section { break-inside: avoid-page; border: 0; padding: 0 } }
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>groundstream report</title><style>{style}</style></head><body>
<header><h1>Report</h1><p>{subtitle}</p></header>
{contents}
<main>
{body}
</main></body></html>
"""
