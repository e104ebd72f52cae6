"""Contact sheet of a finished job: one HTML page with the best picture of each track, its words, times and clip."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamer.media.folder import MediaFolder

PAGE = "tracks.html"


@dataclass(slots=True)
class _TrackEntry:
    """What the sheet shows of one track. Times are UTC nanoseconds; media are content hashes."""

    stream: str
    number: int
    first_ns: int = 0
    last_ns: int = 0
    score: float = 0.0
    words: dict[str, float] = field(default_factory=dict)
    picture: str = ""
    clip: str = ""


def write_contact_sheet(out: Path, lines: Iterable[str]) -> Path:
    """Writes `tracks.html` into the folder of a job and returns its path.

    `lines` are the job's events as JSON, in their order; pictures and clips lie in `OUT/media`. Raises `OSError`.
    """
    entries = _collect_entries(lines)
    folder = MediaFolder(out / "media")
    shown = [entry for entry in entries.values() if entry.picture and folder.find(entry.picture) is not None]
    streams: dict[str, list[_TrackEntry]] = {}
    for entry in shown:
        streams.setdefault(entry.stream, []).append(entry)
    sections = "".join(_section(name, streams[name], folder, out) for name in sorted(streams))
    without = len(entries) - len(shown)
    note = (
        f"<p>Tracks without a picture, since they matched no query for long enough: {without}.</p>" if without else ""
    )
    target = out / PAGE
    partial = target.with_suffix(".html.part")
    partial.write_text(_PAGE.format(count=len(shown), sections=sections, note=note), encoding="utf-8")
    partial.replace(target)
    return target


def _collect_entries(lines: Iterable[str]) -> dict[str, _TrackEntry]:
    """The tracks by ULID, in the order of their first events; a later picture is the better view."""
    entries: dict[str, _TrackEntry] = {}
    for line in lines:
        event: dict[str, Any] = json.loads(line)
        data, uid = event["data"], event["subject"]
        if (track := data.get("track")) is not None:
            entry = entries.setdefault(uid, _TrackEntry(data["stream"], track["number"]))
            entry.first_ns, entry.last_ns = track["first_seen_ns"], max(entry.last_ns, track["last_seen_ns"])
            entry.score = max(entry.score, track.get("score") or 0.0)
        if uid not in entries:
            continue
        for found in data.get("matches") or ():
            entries[uid].words[found["text"]] = max(entries[uid].words.get(found["text"], 0.0), found["score"])
        for medium in data.get("media") or ():
            if medium["kind"] == "crop":
                entries[uid].picture = medium["sha256"]
            elif medium["kind"] == "clip":
                entries[uid].clip = medium["sha256"]
    return entries


def _section(name: str, entries: list[_TrackEntry], folder: MediaFolder, out: Path) -> str:
    begin_ns = min(entry.first_ns for entry in entries)
    figures = "".join(_figure(entry, begin_ns, folder, out) for entry in entries)
    return f"<section><h2>{html.escape(name)}</h2><div class='sheet'>{figures}</div></section>\n"


def _figure(entry: _TrackEntry, begin_ns: int, folder: MediaFolder, out: Path) -> str:
    words = ", ".join(f"{text} {score:.2f}" for text, score in entry.words.items()) or "no query"
    picture = f"<img loading='lazy' src='{_link(entry.picture, folder, out)}' alt='{html.escape(words, quote=True)}'>"
    clip = _link(entry.clip, folder, out) if entry.clip else ""
    if clip:
        picture = f"<a href='{clip}' title='Play the clip'>{picture}</a>"
    times = f"{_clock(entry.first_ns - begin_ns)} to {_clock(entry.last_ns - begin_ns)}"
    return (
        f"<figure>{picture}<figcaption><b>{html.escape(words)}</b><br>track {entry.number}, {times}"
        f"{', clip' if clip else ''}</figcaption></figure>"
    )


def _link(sha256: str, folder: MediaFolder, out: Path) -> str:
    found = folder.find(sha256)
    return "" if found is None else found.path.relative_to(out).as_posix()


def _clock(duration_ns: int) -> str:
    """90_500_000_000 -> '1:30.5'."""
    tenths = round(duration_ns / 1e8)
    return f"{tenths // 600}:{tenths // 10 % 60:02}.{tenths % 10}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{count} tracks</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; }}
.sheet {{ display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); }}
figure {{ margin: 0; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: 6px; }}
img {{ width: 100%; aspect-ratio: 5 / 3; object-fit: contain; background: #8883; border-radius: 5px 5px 0 0; }}
figcaption {{ padding: .4rem .6rem .6rem; overflow-wrap: anywhere; }}
</style></head><body><main><h1>{count} tracks</h1>
<p>The best picture of each track; those with a clip play it. Times count from the first track.</p>
{sections}{note}</main></body></html>
"""
