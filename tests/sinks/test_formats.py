"""The schema that ships, and the same events in JSON, CloudEvents binary mode, Avro and Protobuf."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sinks import SinkAddressError, SinkError
from sinks.address import parse_address
from sinks.event import (
    CountInfo,
    CoverageInfo,
    Description,
    Detection,
    Event,
    EventType,
    Mask,
    Media,
    OutageInfo,
    QueryInfo,
    Span,
    ZoneInfo,
    json_schema,
)
from sinks.formats.choose import Headers, open_decoder, open_format
from tests.sinks.makes import event
from tests.sinks.peers import serving


def rich_event() -> Event:
    """Something in every field."""
    plain = event(7, kind=EventType.ENRICH)
    assert plain.data.track is not None
    mask = Mask(size=(480, 640), counts="`0\\1ü")
    data = plain.data.model_copy(
        update={
            "track": plain.data.track.model_copy(update={"mask": mask, "merged_into": "X", "end_reason": "merged"}),
            "zone": ZoneInfo(id="tür", dwell_s=0.0),
            "count": CountInfo(id="gate", from_ns=1, to_ns=2, occupancy=0, occupancy_max=3, occupancy_mean=0.5),
            "coverage": CoverageInfo(
                from_ns=0, to_ns=2**60, state="blind", received=5, analysed=2, dropped={"stale": 3}, events_dropped={}
            ),
            "description": Description(
                text="a red car", spans=[Span(start=0, end=5, phrase="a red", mask=mask)], model="glamm"
            ),
            "media": [Media(kind="crop", uri="file:///a.jpg", sha256="00")],
            "query": QueryInfo(id="q", rev=2, text="red car", threshold=0.0, change="changed"),
            "outage": OutageInfo(cause="refused", since_ns=5),
            "detections": [Detection(box=plain.data.track.box, score=1.0, query="red car", track=3)],
        }
    )
    return plain.model_copy(update={"data": data})


EVENTS = [rich_event(), event(0), event(1, kind=EventType.COVERAGE), event(2, kind=EventType.TRACK_END)]


@pytest.fixture
def registry() -> Iterator[str]:
    """A schema registry with a memory: registers, and gives back by number."""
    schemas: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            schema = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if schema not in schemas:
                schemas.append(schema)
            self._answer(200, {"id": schemas.index(schema) + 1})

        def do_GET(self) -> None:
            number = int(self.path.rpartition("/")[2])
            known = number <= len(schemas)
            self._answer(200 if known else 404, schemas[number - 1] if known else {"message": "Schema not found"})

        def _answer(self, status: int, body: object) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"
    assert threading.active_count() < 50


def test_the_shipped_schema_is_what_the_models_generate() -> None:
    shipped = json.loads((resources.files("sinks") / "event.v1.schema.json").read_text())
    assert shipped == json_schema(), "write it with: groundstream schema > sinks/event.v1.schema.json"


def test_the_shipped_schema_takes_our_events_and_refuses_others() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for one in EVENTS:
        jsonschema.validate(json.loads(one.to_json()), schema)
    broken = json.loads(event(0).to_json())
    broken["data"]["track"]["score"] = 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_an_event_of_a_later_version_keeps_what_we_do_not_know() -> None:
    raw = event(0).to_json().replace(b'"frame":{', b'"weather":{"rain":true},"frame":{"exposure_ms":4,')
    read = Event.from_json(raw)
    assert read.data.frame == event(0).data.frame
    assert read.to_json() == raw
    assert b"weather" not in read.model_copy(update={"subject": "x"}).to_json()


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent / "goldens").glob("*.jsonl")), ids=lambda path: path.stem
)
def test_events_of_every_released_version_are_read(path: Path) -> None:
    schema = json_schema()
    for line in path.read_bytes().splitlines():
        read = Event.from_json(line)
        assert json.loads(read.model_dump_json(exclude_none=True)).items() >= json.loads(line).items()
        jsonschema.validate(json.loads(line), schema)


@pytest.mark.parametrize("name", ["json", "binary", "avro", "protobuf", "protobuf without a registry"])
@pytest.mark.parametrize("sent", EVENTS, ids=["rich", "begin", "coverage", "end"])
def test_every_format_gives_back_the_same_event(name: str, sent: Event, registry: str) -> None:
    with_registry = f"&registry={registry}" if name in {"avro", "protobuf"} else ""
    options = parse_address(f"kafka://host/t?format={name.split()[0]}{with_registry}").options
    value, headers = open_format(options)(sent)
    decode = open_decoder(parse_address(f"kafka://host/t?registry={registry}").options)
    assert decode(value, headers) == sent


def test_avro_and_protobuf_begin_with_the_number_of_their_schema(registry: str) -> None:
    for name, size in (("avro", 5), ("protobuf", 6)):
        options = parse_address(f"kafka://host/t?format={name}&registry={registry}").options
        value, headers = open_format(options)(event(0))
        assert value[0] == 0
        assert 1 <= int.from_bytes(value[1:5], "big") <= 2
        assert headers == [("content-type", f"application/{name}".encode())]
        assert len(value[size:]) < len(event(0).to_json()) / 2


def test_binary_mode_has_the_attributes_as_headers() -> None:
    value, headers = open_format(parse_address("kafka://host/t?format=binary").options)(event(3))
    kept = dict(headers)
    assert kept["ce_id"] == event(3).id.encode()
    assert kept["ce_type"] == b"groundstream.track.begin.v1"
    assert kept["content-type"] == b"application/json"
    assert json.loads(value)["stream"] == "gate"


def test_the_shipped_proto_is_what_the_models_generate() -> None:
    from sinks.formats.protobuf import proto_text

    shipped = (resources.files("sinks.formats") / "event.v1.proto").read_text()
    assert shipped == proto_text(), "regenerate it: python -m sinks.formats.protobuf"


def test_no_field_number_of_protobuf_ever_changes() -> None:
    known = json.loads((Path(__file__).parent / "goldens" / "event.v1.numbers.json").read_text())
    message, found = "", {}
    for line in (resources.files("sinks.formats") / "event.v1.proto").read_text().splitlines():
        if begins := re.match(r"message (\w+)", line):
            message = begins[1]
        elif field := re.search(r"(\w+) = (\d+);", line):
            found[f"{message}.{field[1]}"] = int(field[2])
    assert {name: found.get(name) for name in known} == known


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (b"not json", []),
        (b"\x01\x02", [("content-type", b"application/avro")]),
        (b"\xff\xff\xff", [("content-type", b"application/protobuf")]),
        (b"{}", [("ce_id", b"1.a.2")]),
    ],
)
def test_what_is_no_event_is_a_value_error(value: bytes, headers: Headers, registry: str) -> None:
    decode = open_decoder(parse_address(f"kafka://host/t?registry={registry}").options)
    with pytest.raises(ValueError):
        decode(value, headers)


def test_a_registry_that_is_away_or_ignorant_is_one_sentence(registry: str) -> None:
    with pytest.raises(SinkAddressError, match="is not the address of a schema registry"):
        open_format(parse_address("kafka://host/t?format=avro&registry=there").options)
    away = open_format(parse_address("kafka://host/t?format=avro&registry=http://u:pw@127.0.0.1:1").options)
    with pytest.raises(
        SinkError, match=r"schema registry http://\*\*\*@127\.0\.0\.1:1 cannot be used: 127\.0\.0\.1:1 does not answer"
    ):
        away(event(0))
    decode = open_decoder(parse_address(f"kafka://host/t?registry={registry}").options)
    with pytest.raises(SinkError, match="answers 404"):
        decode(b"\0\0\0\0\x63x", [("content-type", b"application/avro")])
