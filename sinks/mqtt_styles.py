"""What a sink writes to an MQTT broker for an event: topics and payloads of one style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sinks.stream_state import StreamStates

if TYPE_CHECKING:
    from sinks.event import Event

CLOUD_EVENT = "application/cloudevents+json"
JSON = "application/json"
TEXT = "text/plain"
JPEG = "image/jpeg"


@dataclass(frozen=True, slots=True)
class MqttMessage:
    """One message: its whole topic, and a payload of the content type; retained where late subscribers need it.

    An event is delivered without a message that `may_be_left_out`, where the broker takes none of that size.
    """

    topic: str
    payload: bytes
    content_type: str = TEXT
    retain: bool = False
    may_be_left_out: bool = False


class MqttStyle(Protocol):
    """How events become messages. `status_topic` is retained and says `online`, `stopped_text` or, by will, offline."""

    status_topic: str
    stopped_text: str
    announce_topic: str
    """A topic to subscribe to, on which `online` asks for `welcome` again; empty: none."""

    def messages_of(self, event: Event) -> Sequence[MqttMessage]:
        """The messages for an event, in their order; the event is delivered when all of them are acknowledged."""
        ...

    def welcome(self) -> Sequence[MqttMessage]:
        """The messages that a new connection sends first, beside the status."""
        ...


class CloudEventStyle:
    """Topic `PREFIX/STREAM/KIND` (`groundstream/gate/track/begin`), the value is the event in JSON.

    `PREFIX/STREAM/state` is retained and holds the newest event about the stream itself.
    """

    stopped_text = "offline"
    announce_topic = ""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._states = StreamStates()
        self.status_topic = f"{prefix}/status"

    def messages_of(self, event: Event) -> Sequence[MqttMessage]:
        """The event under its kind, and as the stream's state where it is one."""
        place = f"{self._prefix}/{topic_level(event.data.stream)}"
        payload = event.to_json()
        messages = [MqttMessage(f"{place}/{event.kind.replace('.', '/')}", payload, CLOUD_EVENT)]
        if self._states.is_state(event):
            messages.append(MqttMessage(f"{place}/state", payload, CLOUD_EVENT, retain=True))
        return messages

    def welcome(self) -> Sequence[MqttMessage]:
        """Nothing beside the status."""
        return ()


def topic_level(name: str) -> str:
    """A name as one level of a topic: MQTT keeps /, + and # to itself."""
    return name.translate({ord(character): "_" for character in "/+#\0"})
