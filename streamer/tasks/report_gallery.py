"""Track gallery of a report: a card for the most eventful tracks of each stream, with words, places and the path."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, field

from sinks.event import Event, EventType
from sinks.event_pictures import read_stored_jpeg
from streamer.tasks.console import visible_text
from streamer.tasks.report_figures import StreamFigures, format_time

MOST_CARDS = 24
"""Tracks of a stream that are shown."""
_MOST_TRACKS = 40 * MOST_CARDS
"""Tracks of a stream that are remembered while events are read."""
_MOST_POINTS = 120
_MOST_PICTURE_BYTES = 400_000


@dataclass(slots=True)
class TrackCard:
    """What events say about one track. Times are nanoseconds since 1970 (UTC), points and boxes fractions of the frame.

    `path` holds times and places of the feet, `box` the box with the best score, `places` what happened at zones and
    lines, `crop` the address and the SHA-256 of its picture.
    """

    number: int
    first_ns: int
    last_ns: int
    words: dict[str, float] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    path: list[tuple[int, float, float]] = field(default_factory=list)
    box: tuple[float, float, float, float] | None = None
    score: float = -1.0
    crop: tuple[str, str] | None = None
    is_ended: bool = False

    @property
    def rank(self) -> tuple[int, bool, int]:
        """Orders tracks: events at places first, then those that answered to a query, then the longest."""
        return len(self.places), bool(self.words), self.last_ns - self.first_ns

    def take_over(self, other: TrackCard) -> None:
        """Adds what was known of the same object under another id."""
        self.number = min(self.number, other.number)
        self.first_ns, self.last_ns = min(self.first_ns, other.first_ns), max(self.last_ns, other.last_ns)
        self.words = {
            text: max(self.words.get(text, 0.0), other.words.get(text, 0.0)) for text in {**other.words, **self.words}
        }
        self.places = [*other.places, *self.places]
        self.path = sorted({*self.path, *other.path})
        if other.score > self.score:
            self.box, self.score = other.box, other.score
        self.crop = self.crop or other.crop


class TrackGallery:
    """The cards of one stream; events are added in the order in which they were stored."""

    def __init__(self) -> None:
        self._cards: dict[str, TrackCard] = {}
        self._left_out = 0

    def add_event(self, event: Event) -> None:
        """Adds an event of a track; others have no effect."""
        data, track = event.data, event.data.track
        if track is None:
            return
        if event.type is EventType.TRACK_MERGE and track.merged_into is not None:
            ended = self._cards.pop(track.uid, None)
            if ended is not None and (survivor := self._cards.get(track.merged_into)) is not None:
                survivor.take_over(ended)
            return
        card = self._cards.get(track.uid)
        if card is None:
            card = self._cards[track.uid] = TrackCard(track.number, track.first_seen_ns, track.last_seen_ns)
            self._forget_least()
        card.first_ns, card.last_ns = min(card.first_ns, track.first_seen_ns), max(card.last_ns, track.last_seen_ns)
        for match in data.matches or ():
            card.words[match.text] = max(card.words.get(match.text, 0.0), match.score)
        if event.type is EventType.ZONE_ENTER and data.zone is not None:
            card.places.append(f"entered {data.zone.id}")
        elif event.type is EventType.LINE_CROSS and data.line is not None:
            card.places.append(f"crossed {data.line.id} ({data.line.direction})")
        elif event.type is EventType.MEDIA:
            crops = [medium for medium in data.media or () if medium.kind == "crop"]
            card.crop = (crops[-1].uri, crops[-1].sha256) if crops else card.crop
        card.is_ended = card.is_ended or event.type is EventType.TRACK_END
        box = track.box
        if not card.path or track.last_seen_ns > card.path[-1][0]:
            card.path.append((track.last_seen_ns, (box.x1 + box.x2) / 2, box.y2))
            if len(card.path) > _MOST_POINTS:
                del card.path[1:-1:2]
        if track.score > card.score:
            card.box, card.score = (box.x1, box.y1, box.x2, box.y2), track.score

    def _forget_least(self) -> None:
        """Bounds the memory: of many tracks those that have ended and rank lowest are given up."""
        if len(self._cards) <= _MOST_TRACKS:
            return
        ended = sorted(
            (uid for uid, card in self._cards.items() if card.is_ended), key=lambda uid: self._cards[uid].rank
        )
        for uid in ended[: _MOST_TRACKS // 2]:
            del self._cards[uid]
            self._left_out += 1

    def best_cards(self) -> tuple[list[TrackCard], int]:
        """Returns the cards to show in the order of their beginning, and how many tracks there are in all."""
        ranked = sorted(self._cards.values(), key=lambda card: card.rank, reverse=True)[:MOST_CARDS]
        return sorted(ranked, key=lambda card: (card.first_ns, card.number)), len(self._cards) + self._left_out


def gallery_block(stream: StreamFigures, gallery: TrackGallery) -> str:
    """Returns the cards of a stream as HTML, pictures included."""
    cards, total = gallery.best_cards()
    if not cards:
        return ""
    of_all = f"{len(cards)} of {total}, those with most events at zones and lines" if len(cards) < total else f"{total}"
    shown = "".join(_card_block(card, stream) for card in cards)
    return f'<h3>Tracks <span class="note">{of_all}</span></h3><div class="gallery">{shown}</div>'


def _card_block(card: TrackCard, stream: StreamFigures) -> str:
    words = ", ".join(f"{text} {score:.2f}" for text, score in sorted(card.words.items(), key=lambda one: -one[1]))
    times = " to ".join(
        dict.fromkeys(format_time(moment, is_dated=stream.is_dated) for moment in (card.first_ns, card.last_ns))
    )
    lines = [f"<b>#{card.number} {_plain_text(words or 'no query')}</b>", times]
    lines += [_plain_text(text) for text in _count_repeats(card.places)]
    picture = read_stored_jpeg(*card.crop, _MOST_PICTURE_BYTES) if card.crop is not None else None
    image = ""
    if picture is not None:
        image = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    caption = "".join(f"<div>{line}</div>" for line in lines)
    return f'<article class="card">{image}{_path_drawing(card, stream)}{caption}</article>'


def _count_repeats(texts: list[str]) -> list[str]:
    counts = {text: texts.count(text) for text in dict.fromkeys(texts)}
    return [text if count == 1 else f"{text} {count} times" for text, count in counts.items()]


def _path_drawing(card: TrackCard, stream: StreamFigures) -> str:
    """Returns an SVG of the frame with the path of the feet, from the ring to the dot, and the surest box."""
    columns, rows = stream.grid
    places = [(x * columns, y * rows) for _, x, y in card.path]
    parts = [f'<svg viewBox="0 0 {columns} {rows}" role="img"><rect width="{columns}" height="{rows}" fill="#0d1321"/>']
    if card.box is not None:
        x1, y1, x2, y2 = card.box
        parts.append(
            f'<rect x="{x1 * columns:.2f}" y="{y1 * rows:.2f}" width="{(x2 - x1) * columns:.2f}" '
            f'height="{(y2 - y1) * rows:.2f}" fill="none" stroke="#8fa3c0" stroke-width=".4"/>'
        )
    if len(places) > 1:
        corners = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
        parts.append(f'<polyline points="{corners}" fill="none" stroke="#f5a524" stroke-width=".7"/>')
    (begin_x, begin_y), (end_x, end_y) = places[0], places[-1]
    parts.append(
        f'<circle cx="{begin_x:.2f}" cy="{begin_y:.2f}" r="1.1" fill="none" stroke="#f5a524" stroke-width=".5"/>'
        f'<circle cx="{end_x:.2f}" cy="{end_y:.2f}" r="1.1" fill="#f5a524"/></svg>'
    )
    return "".join(parts)


def _plain_text(value: str) -> str:
    return html.escape(visible_text(value))
