"""CloudEvents' own SDK reads what the sinks send; the AsyncAPI document describes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from sinks import open_sink
from sinks.address import parse_address
from sinks.asyncapi import asyncapi_document
from sinks.event import Event, EventType
from sinks.formats.choose import open_format
from tests.sinks.makes import event, events
from tests.sinks.peers import Peer, mqtt_broker, web_server

sdk_kafka = pytest.importorskip("cloudevents.core.bindings.kafka", reason="needs cloudevents: pip install cloudevents")
sdk_http = pytest.importorskip("cloudevents.core.bindings.http")
sdk_json = pytest.importorskip("cloudevents.core.formats.json")

ATTRIBUTES = ("id", "source", "type", "subject", "partitionkey", "sequence", "dataschema")
ODD = event(3, stream='yard "north" 100% \u00e4', query="a red car")


def check_same(found: Any, sent: Event) -> None:
    attributes = found.get_attributes()
    for name in ATTRIBUTES:
        assert attributes[name] == getattr(sent, name)
    assert attributes["time"].isoformat(timespec="microseconds").replace("+00:00", "Z") == sent.time
    data = found.get_data()
    assert (json.loads(data) if isinstance(data, str | bytes) else data) == json.loads(sent.to_json())["data"]


@pytest.fixture
def web() -> Iterator[Peer]:
    with web_server() as peer:
        yield peer


@pytest.mark.parametrize("mode", ["json", "binary"])
@pytest.mark.parametrize("sent", [event(1), ODD, event(2, kind=EventType.STREAM_OFFLINE)])
def test_the_sdk_reads_kafka_messages(mode: str, sent: Event) -> None:
    value, headers = open_format(parse_address(f"kafka://h/t?format={mode}").options)(sent)
    message = sdk_kafka.KafkaMessage(dict(headers), sent.partitionkey.encode(), value)
    check_same(sdk_kafka.from_kafka_event(message, sdk_json.JSONFormat()), sent)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["", "?format=binary"])
@pytest.mark.parametrize("sent", [event(1), ODD])
async def test_the_sdk_reads_webhooks(web: Peer, mode: str, sent: Event) -> None:
    sink = open_sink(f"http://127.0.0.1:{web.port}/in{mode}")
    await sink.send_batch([sent])
    await sink.aclose()
    ((_, headers, body),) = web.requests
    check_same(sdk_http.from_http_event(sdk_http.HTTPMessage(headers, body), sdk_json.JSONFormat()), sent)


@pytest.mark.anyio
async def test_the_sdk_reads_each_event_of_a_batch(web: Peer) -> None:
    sink = open_sink(f"http://127.0.0.1:{web.port}/in?batch=10")
    await sink.send_batch(events(3))
    await sink.aclose()
    ((_, headers, body),) = web.requests
    assert headers["Content-Type"].startswith("application/cloudevents-batch+json")
    for one, sent in zip(json.loads(body), events(3), strict=True):
        message = sdk_http.HTTPMessage({"content-type": "application/cloudevents+json"}, json.dumps(one).encode())
        check_same(sdk_http.from_http_event(message, sdk_json.JSONFormat()), sent)


@pytest.mark.anyio
async def test_the_sdk_reads_mqtt_messages() -> None:
    with mqtt_broker() as broker:
        sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/gs")
        await sink.send_batch([ODD])
        await sink.aclose()
    (payload,) = [request[1] for request in broker.requests[1:] if request[0].endswith("/track/begin")]
    message = sdk_http.HTTPMessage({"content-type": "application/cloudevents+json"}, payload)
    check_same(sdk_http.from_http_event(message, sdk_json.JSONFormat()), ODD)


def test_the_asyncapi_document_describes_every_event() -> None:
    document = asyncapi_document("1.2.3")
    assert document["asyncapi"] == "3.0.0"
    assert document["info"]["version"] == "1.2.3"
    assert {message["name"] for message in document["components"]["messages"].values()} == {
        kind.value for kind in EventType
    }
    for reference in references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found
    for sent in (event(1), ODD, event(2, kind=EventType.COVERAGE)):
        (message,) = [one for one in document["components"]["messages"].values() if one["name"] == sent.type.value]
        schema = {**message["payload"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(json.loads(sent.to_json()))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(schema).validate(json.loads(event(4, kind=EventType.TRACK_END).to_json()))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)
