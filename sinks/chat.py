"""Events as messages for people: sentences, and the bodies that Slack, Discord, Teams and plain text receivers take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sinks.event import EventType
from sinks.sink import SinkAddressError

if TYPE_CHECKING:
    from sinks.event import Event

CHAT_TYPES = ("match.begin", "zone.enter", "zone.dwell", "line.cross", "stream.online", "stream.offline")
"""The events that a chat gets unless the address chooses others."""
MESSAGE_LINES = 20
"""Events that one message writes out; it counts the rest."""

_FIELDS = ("sentence", "time", "stream", "type", "queries", "track", "score", "zone", "line", "direction", "id")
_FIELD = re.compile(r"\{([^{}]*)\}")
_DEFAULT_TEMPLATE = "{sentence}, {time}"
_DISCORD_LIMIT, _SLACK_LIMIT, _TEAMS_LIMIT = 2000, 30_000, 20_000
_LONGEST_LINE = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")


def event_sentence(event: Event) -> str:
    """Returns what happened in a few words: `gate: a red car entered yard`."""
    data = event.data
    subject = " and ".join(event.queries) or (f"track {data.track.number}" if data.track else "")
    zone = data.zone.id if data.zone else "a zone"
    line, direction = (data.line.id, data.line.direction) if data.line else ("a line", "in")
    since = data.zone.dwell_s if data.zone else None
    stay = "" if since is None else f" for {since:.0f} s"
    cause = f": {data.outage.cause}" if data.outage else ""
    phrases = {
        EventType.TRACK_BEGIN: f"{subject} appeared",
        EventType.TRACK_UPDATE: f"{subject} is still there",
        EventType.TRACK_END: f"{subject} is gone",
        EventType.TRACK_MERGE: f"{subject} is one with an earlier track",
        EventType.MATCH_BEGIN: f"{subject} seen",
        EventType.MATCH_END: f"{subject} no longer seen",
        EventType.ZONE_ENTER: f"{subject} entered {zone}",
        EventType.ZONE_EXIT: f"{subject} left {zone}{stay and f' after {since:.0f} s'}",
        EventType.ZONE_DWELL: f"{subject} in {zone}{stay}",
        EventType.LINE_CROSS: f"{subject} crossed {line} ({direction})",
        EventType.COUNT: f"{data.count.occupancy} in {data.count.id}" if data.count else "a count",
        EventType.ENRICH: f"{subject}: {data.description.text}" if data.description else f"{subject} described",
        EventType.MEDIA: f"a picture of {subject}",
        EventType.STREAM_ONLINE: "the stream is seen",
        EventType.STREAM_OFFLINE: f"the stream is not seen{cause}",
        EventType.COVERAGE: f"the stream is {data.coverage.state}" if data.coverage else "coverage",
        EventType.QUERY: f"the query {subject} was {data.query.change}" if data.query else "a query changed",
    }
    return f"{data.stream}: {phrases.get(event.type, event.kind)}"


class MessageFormat:
    """Turns events into the body of one message for a kind of receiver: slack, discord, teams or text.

    `template` is a line for each event with names in braces. Raises `SinkAddressError` for a name that there is not.
    """

    def __init__(self, kind: str, template: str | None = None) -> None:
        self._template = template or _DEFAULT_TEMPLATE
        for name in _FIELD.findall(self._template):
            if name not in _FIELDS:
                raise SinkAddressError(f"template has no field {{{name}}}: there are {', '.join(_FIELDS)}")
        self._body, self._escape = _KINDS[kind]
        self.content_type = "text/plain; charset=utf-8" if kind == "text" else "application/json; charset=utf-8"

    def body_of(self, events: Sequence[Event]) -> bytes:
        """The body of a message about all these events; more than `MESSAGE_LINES` are counted, not written out."""
        lines = [self._escape(self._line_of(event)) for event in events[:MESSAGE_LINES]]
        if len(events) > MESSAGE_LINES:
            lines.append(f"... and {len(events) - MESSAGE_LINES} more events")
        return self._body(lines)

    def body_of_text(self, text: str) -> bytes:
        """The body of a message that is about no event."""
        return self._body([self._escape(_CONTROL.sub(" ", text))])

    def _line_of(self, event: Event) -> str:
        fields = _fields_of(event)
        line = _FIELD.sub(lambda found: fields[found[1]], self._template)
        line = _CONTROL.sub(" ", line)
        return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..."


def _fields_of(event: Event) -> Mapping[str, str]:
    data = event.data
    return {
        "sentence": event_sentence(event),
        "time": event.time[:19].replace("T", " ") + " UTC",
        "stream": data.stream,
        "type": event.kind,
        "queries": ", ".join(event.queries),
        "track": str(data.track.number) if data.track else "",
        "score": f"{data.track.score:.2f}" if data.track else "",
        "zone": data.zone.id if data.zone else "",
        "line": data.line.id if data.line else "",
        "direction": data.line.direction if data.line else "",
        "id": event.id,
    }


def _joined(lines: Sequence[str], limit: int) -> str:
    """As many whole lines as fit; the last one says how many do not."""
    text = "\n".join(lines)
    kept = list(lines)
    while len(text) > limit and len(kept) > 1:
        kept.pop()
        text = "\n".join([*kept, f"... and {len(lines) - len(kept)} more lines"])
    return text[:limit]


def _slack_body(lines: Sequence[str]) -> bytes:
    """https://api.slack.com/messaging/webhooks"""
    return json.dumps({"text": _joined(lines, _SLACK_LIMIT)}).encode()


def _discord_body(lines: Sequence[str]) -> bytes:
    """https://discord.com/developers/docs/resources/webhook#execute-webhook; words of queries mention no one."""
    return json.dumps({"content": _joined(lines, _DISCORD_LIMIT), "allowed_mentions": {"parse": []}}).encode()


def _teams_body(lines: Sequence[str]) -> bytes:
    """An adaptive card, as the workflow "when a webhook request is received" of Teams takes it."""
    block = {"type": "TextBlock", "text": _joined(lines, _TEAMS_LIMIT).replace("\n", "\n\n"), "wrap": True}
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [block],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return json.dumps({"type": "message", "attachments": [attachment]}).encode()


def _text_body(lines: Sequence[str]) -> bytes:
    return "\n".join(lines).encode()


def _escape_slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\*_~`|\[\]])", r"\\\1", text)


_KINDS: dict[str, tuple[Callable[[Sequence[str]], bytes], Callable[[str], str]]] = {
    "slack": (_slack_body, _escape_slack),
    "discord": (_discord_body, _escape_markdown),
    "teams": (_teams_body, _escape_markdown),
    "text": (_text_body, str),
}
