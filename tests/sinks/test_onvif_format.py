"""ONVIF metadata: valid by the published schema, complete, and through the file, web and Kafka sinks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks import SinkAddressError, open_sink
from sinks.event import Box, CountInfo, Detection, Event, EventType, LineInfo, Match, ZoneInfo
from sinks.formats.choose import ONVIF_TYPES
from sinks.formats.onvif import OnvifFormat
from sinks.registry import wants_detections
from tests.sinks.makes import START_NS, event

NAMES = {"tt": "http://www.onvif.org/ver10/schema", "wsnt": "http://docs.oasis-open.org/wsn/b-2"}
DATA: dict[EventType, dict[str, Any]] = {
    EventType.ZONE_ENTER: {"zone": ZoneInfo(id="yard")},
    EventType.ZONE_EXIT: {"zone": ZoneInfo(id="yard", dwell_s=4.0)},
    EventType.ZONE_DWELL: {"zone": ZoneInfo(id="yard", dwell_s=12.5)},
    EventType.LINE_CROSS: {"line": LineInfo(id="gate", direction="in")},
    EventType.COUNT: {"count": CountInfo(id="yard", from_ns=START_NS, to_ns=START_NS + 1, occupancy=3)},
    EventType.MATCH_BEGIN: {
        "matches": [Match(query_id="a-red-car", query_rev=1, text="a red car", score=0.9, threshold=0.5)]
    },
    EventType.TRACK_END: {},
    EventType.TRACK_MERGE: {},
}


def made(kind: EventType, number: int = 1) -> Event:
    one = event(number, kind=kind)
    return one.model_copy(update={"data": one.data.model_copy(update=DATA[kind])})


def frame(*found: Detection) -> Event:
    one = event(1, kind=EventType.DETECTIONS)
    return one.model_copy(update={"data": one.data.model_copy(update={"detections": list(found), "track": None})})


def document(one: Event) -> ElementTree.Element:
    raw, headers = OnvifFormat().encode(one)
    assert headers == [("content-type", b"application/xml; charset=utf-8")]
    assert b"\n" not in raw
    return ElementTree.fromstring(raw)


LIKELY_TYPE = """
<xs:element xmlns:xs="http://www.w3.org/2001/XMLSchema" name="Type" minOccurs="0" maxOccurs="unbounded">
<xs:complexType><xs:simpleContent><xs:extension base="xs:string"><xs:attribute name="Likelihood" type="xs:float"/>
</xs:extension></xs:simpleContent></xs:complexType></xs:element>"""
"""What newer schemas add to a ClassDescriptor; the one of the library is older."""


@pytest.fixture(scope="module")
def schema() -> Any:
    """ONVIF's schema as the extra `onvif` carries it, with the element that came later."""
    etree = pytest.importorskip("lxml.etree", reason="needs the extra onvif")
    place = find_spec("onvif")
    if place is None or not place.submodule_search_locations:
        pytest.skip("needs the extra onvif")
    tree = etree.parse(str(Path(place.submodule_search_locations[0]) / "wsdl" / "onvif.xsd"))
    (descriptor,) = tree.findall(".//{*}complexType[@name='ClassDescriptor']/{*}sequence")
    if descriptor.find("{*}element[@name='Type']") is None:
        descriptor.append(etree.fromstring(LIKELY_TYPE))
    return etree.XMLSchema(tree)


def is_valid(schema: Any, one: Event) -> bool:
    from lxml import etree

    schema.assertValid(etree.fromstring(OnvifFormat().encode(one)[0]))
    return True


@pytest.mark.parametrize("kind", list(DATA))
def test_every_document_is_valid(schema: Any, kind: EventType) -> None:
    assert is_valid(schema, made(kind))


texts = st.text(max_size=12)
sides = st.tuples(*[st.floats(0, 1, allow_nan=False)] * 2).map(sorted)


@given(st.lists(st.tuples(sides, sides, st.floats(0, 1), texts, st.none() | st.integers(1, 2**31 - 1)), max_size=4))
def test_every_frame_is_valid_whatever_the_words(schema: Any, rows: Any) -> None:
    found = [
        Detection(box=Box(x1=x[0], y1=y[0], x2=x[1], y2=y[1]), score=score, query=text, track=track)
        for x, y, score, text, track in rows
    ]
    assert is_valid(schema, frame(*found))


def test_objects_have_identity_place_and_types() -> None:
    box = Box(x1=0.1, y1=0.2, x2=0.3, y2=0.4)
    root = document(frame(Detection(box=box, score=0.83, query="red cars", track=7)))
    shown = root.find(".//tt:Object", NAMES)
    assert shown is not None
    assert shown.get("ObjectId") == "7"
    assert [one.text for one in shown.findall(".//tt:Type", NAMES)] == ["Vehicle", "Car", "red cars"]
    place = shown.find(".//tt:BoundingBox", NAMES)
    assert place is not None
    assert place.attrib == {"left": "0.1", "top": "0.2", "right": "0.3", "bottom": "0.4"}
    (scale,) = root.findall(".//tt:Scale", NAMES)
    (move,) = root.findall(".//tt:Translate", NAMES)
    top_left = [float(scale.get(axis, "")) * value + float(move.get(axis, "")) for axis, value in (("x", 0), ("y", 0))]
    assert top_left == [-1.0, 1.0], "y points upwards in ONVIF's system"


@pytest.mark.parametrize(
    ("kind", "topic", "items"),
    [
        (EventType.LINE_CROSS, "LineDetector/Crossed", {"ObjectId": "3", "Direction": "in"}),
        (EventType.ZONE_ENTER, "FieldDetector/ObjectsInside", {"ObjectId": "3", "IsInside": "true"}),
        (EventType.COUNT, "CountAggregation/OccupancyCounter", {"Count": "3"}),
        (EventType.MATCH_BEGIN, "ObjectDetection/Object", {"ClassTypes": "Vehicle Car"}),
        (EventType.ZONE_DWELL, "LoiteringDetector/ObjectIsLoitering", {"ObjectId": "3"}),
    ],
)
def test_rules_have_their_topics(kind: EventType, topic: str, items: dict[str, str]) -> None:
    root = document(made(kind))
    assert root.findtext(".//wsnt:Topic", None, NAMES) == f"tns1:RuleEngine/{topic}"
    data = {item.get("Name"): item.get("Value") for item in root.findall(".//tt:Data/tt:SimpleItem", NAMES)}
    assert items.items() <= data.items()


def test_a_zone_is_a_property_that_is_initialised_once() -> None:
    form = OnvifFormat()
    kinds = (EventType.ZONE_ENTER, EventType.ZONE_EXIT)
    found = [ElementTree.fromstring(form.encode(made(kind))[0]).find(".//tt:Message", NAMES) for kind in kinds]
    assert [one.get("PropertyOperation") for one in found if one is not None] == ["Initialized", "Changed"]


@pytest.mark.anyio
async def test_the_file_gets_what_has_a_place_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "metadata.xml"
    assert wants_detections([f"onvif:{file}"])
    sink = open_sink(f"onvif:{file}")
    await sink.send_batch([frame(), event(2), made(EventType.LINE_CROSS), event(3, kind=EventType.COVERAGE)])
    await sink.aclose()
    assert len([ElementTree.fromstring(line) for line in file.read_text().splitlines()]) == 2


@pytest.mark.parametrize("address", ["onvif:{}/m.xml?types=coverage", "kafka://h/t?format=nv&types=coverage",
                                     "https://h/x?format=onvif&types=query",
                                     "kafka://h/t?format=onvif&types=stream.*"])  # fmt: skip
def test_types_without_a_place_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(SinkAddressError, match="has no place in this format: choose among detections"):
        open_sink(address.format(tmp_path))


def test_types_that_are_named_are_events() -> None:
    known = {kind.value.removeprefix("groundstream.").rpartition(".")[0] for kind in EventType}
    assert set(ONVIF_TYPES) <= known
