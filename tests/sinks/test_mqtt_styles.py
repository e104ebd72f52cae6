"""Frigate's topics and Home Assistant's discovery, alone and against Debian's Mosquitto with its own client."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sinks import SinkAddressError, open_sink
from sinks.event import Event, EventType, Media, QueryInfo, ZoneInfo
from sinks.frigate import FrigateStyle
from sinks.home_assistant import HomeAssistantStyle
from sinks.mqtt_styles import MqttMessage
from tests.sinks.makes import event
from tests.sinks.servers import mosquitto
from tests.sinks.test_real_servers import retained

SECOND = "01HZX3V5Q8M4T7W9Y2B6C8D0E2"


def in_zone(number: int, kind: EventType, uid: str | None = None) -> Event:
    plain = event(number, kind=kind) if uid is None else event(number, kind=kind, uid=uid)
    return plain.model_copy(update={"data": plain.data.model_copy(update={"zone": ZoneInfo(id="yard")})})


STORY = [
    event(0, kind=EventType.STREAM_ONLINE),
    event(1),
    event(2, kind=EventType.MATCH_BEGIN),
    in_zone(3, EventType.ZONE_ENTER),
    event(4, uid=SECOND),
    event(5, kind=EventType.TRACK_UPDATE),
    in_zone(6, EventType.ZONE_EXIT),
    event(7, kind=EventType.TRACK_END),
]


CROP, BOXED = b"\xff\xd8\xff crop", b"\xff\xd8\xff boxed"


def pictured(number: int, folder: Path, *media: Media) -> Event:
    """A `media` event with a crop and a boxed frame in files, or with the media given."""
    files = {"crop.jpg": CROP, "frame with box.jpg": BOXED}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    uris = {name: (folder / name).as_uri() for name in files}
    found = media or (
        Media(kind="snapshot", uri=uris["frame with box.jpg"], sha256=hashlib.sha256(BOXED).hexdigest(), boxed=True),
        Media(kind="crop", uri=uris["crop.jpg"], sha256=hashlib.sha256(CROP).hexdigest()),
    )
    plain = event(number, kind=EventType.MEDIA)
    return plain.model_copy(update={"data": plain.data.model_copy(update={"media": list(found), "track": None})})


def newest(style: Any, story: list[Event]) -> tuple[list[MqttMessage], dict[str, str]]:
    """All messages, and what is retained in the end."""
    messages = [message for one in story for message in style.messages_of(one)]
    return messages, {message.topic: message.payload.decode("latin-1") for message in messages if message.retain}


def test_frigate_events_are_new_update_and_end_with_before_and_after() -> None:
    messages, kept = newest(FrigateStyle("frigate"), STORY)
    events = [json.loads(message.payload) for message in messages if message.topic == "frigate/events"]
    mine = [body for body in events if body["after"]["id"] == STORY[1].data.track.uid]  # type: ignore[union-attr]
    assert [body["type"] for body in mine] == ["new", "update", "update", "update", "update", "end"]
    for earlier, later in itertools.pairwise(mine):
        assert later["before"] == earlier["after"]
    first, last = mine[0]["after"], mine[-1]["after"]
    assert first["box"] == [128, 144, 384, 288]
    assert (first["area"], first["ratio"], first["label"]) == (256 * 144, 1.78, "q1")
    assert isinstance(first["frame_time"], float)
    assert first["end_time"] is None
    assert last["end_time"] > last["start_time"]
    assert mine[2]["after"]["current_zones"] == ["yard"]
    assert (last["current_zones"], last["entered_zones"]) == ([], ["yard"])
    reviews = [json.loads(message.payload) for message in messages if message.topic == "frigate/reviews"]
    assert {body["after"]["severity"] for body in reviews} == {"alert", "detection"}
    assert kept["frigate/gate/q1"] == kept["frigate/gate/all"] == kept["frigate/gate/all/active"] == "1"
    assert kept["frigate/yard/all"] == "0"
    assert kept["frigate/gate/status/detect"] == "online"


def test_the_counts_are_right_when_events_are_sent_again() -> None:
    for style, topic in ((FrigateStyle("f"), "f/gate/q1"), (HomeAssistantStyle("g"), "g/gate/query/q1/count")):
        _, kept = newest(style, STORY[:5])
        assert kept[topic] == "2"
        _, kept = newest(style, STORY[2:5])
        assert kept[topic] == "2"
        _, kept = newest(style, STORY[5:])
        assert kept[topic] == "1"
        _, kept = newest(style, [event(9, kind=EventType.TRACK_END, uid=SECOND)])
        assert kept[topic] == "0"


def device(kept: dict[str, str]) -> dict[str, Any]:
    return json.loads(kept["homeassistant/device/groundstream_gate/config"])  # type: ignore[no-any-return]


def check_device(found: dict[str, Any]) -> None:
    """The rules of device-based discovery."""
    assert found["dev"]["ids"]
    assert found["dev"]["name"]
    assert found["o"]["name"]
    unique = set()
    for name, component in found["cmps"].items():
        assert re.fullmatch(r"[a-zA-Z0-9_-]+", name)
        assert component["p"] in {"binary_sensor", "sensor", "event", "image"}
        if len(component) == 1:
            continue
        assert "object_id" not in component
        assert component["default_entity_id"].startswith(component["p"] + ".")
        assert component["image_topic" if component["p"] == "image" else "stat_t"]
        unique.add(component["unique_id"])
    assert len(unique) == len([one for one in found["cmps"].values() if len(one) > 1])


def test_home_assistant_gets_a_device_with_its_entities() -> None:
    messages, kept = newest(HomeAssistantStyle("groundstream"), STORY)
    found = device(kept)
    check_device(found)
    assert set(found["cmps"]) == {"query_q1", "query_q1_count", "zone_yard", "zone_yard_count", "events"}
    assert found["avty"] == [{"t": "groundstream/status"}, {"t": "groundstream/gate/availability"}]
    assert found["cmps"]["query_q1"]["name"] == "red car"
    assert kept[found["cmps"]["query_q1"]["stat_t"]] == "ON"
    assert kept[found["cmps"]["zone_yard_count"]["stat_t"]] == "0"
    assert kept["groundstream/gate/availability"] == "online"
    happened = [json.loads(one.payload)["event_type"] for one in messages if one.topic == "groundstream/gate/ha/event"]
    assert happened == ["track_begin", "match_begin", "zone_enter", "track_begin", "zone_exit"]
    assert not any(one.retain for one in messages if one.topic.endswith("/ha/event"))


def test_frigate_gets_the_best_view_and_knows_that_there_is_one(tmp_path: Path) -> None:
    messages, kept = newest(FrigateStyle("frigate"), [*STORY[:3], pictured(3, tmp_path), *STORY[5:]])
    assert kept["frigate/gate/q1/snapshot"].encode("latin-1") == CROP
    states = [json.loads(message.payload)["after"] for message in messages if message.topic == "frigate/events"]
    assert [state["has_snapshot"] for state in states] == [False, False, True, True, True, True]
    assert not any(state["has_clip"] for state in states)


def test_frigate_files_a_picture_that_comes_after_the_end_under_its_label(tmp_path: Path) -> None:
    style = FrigateStyle("frigate")
    newest(style, STORY)
    (message,) = style.messages_of(pictured(9, tmp_path))
    assert (message.topic, message.payload, message.retain) == ("frigate/gate/q1/snapshot", CROP, True)


def test_frigate_knows_of_a_clip(tmp_path: Path) -> None:
    style = FrigateStyle("frigate")
    newest(style, STORY[:3])
    clip = Media(kind="clip", uri=(tmp_path / "a.mp4").as_uri(), sha256="0" * 64)
    events = [json.loads(one.payload) for one in style.messages_of(pictured(4, tmp_path, clip))]
    assert [(body["type"], body["after"]["has_clip"]) for body in events if "box" in body["after"]] == [
        ("update", True)
    ]


def test_home_assistant_gets_an_image_entity_with_the_first_picture(tmp_path: Path) -> None:
    style = HomeAssistantStyle("groundstream")
    _, before = newest(style, STORY)
    messages, kept = newest(style, [pictured(9, tmp_path), pictured(10, tmp_path)])
    assert "picture" not in device(before)["cmps"]
    check_device(device(kept))
    assert device(kept)["cmps"]["picture"]["image_topic"] == "groundstream/gate/image"
    assert kept["groundstream/gate/image"].encode("latin-1") == BOXED
    assert len([message for message in messages if message.topic.endswith("/config")]) == 1


@pytest.mark.parametrize("fault", ["gone", "other", "no picture", "elsewhere", "too large"])
def test_only_the_picture_that_the_event_names_is_published(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jpg"
    content = b"secret" if fault == "no picture" else CROP
    file.write_bytes(content)
    uri = "https://camera.example/a.jpg" if fault == "elsewhere" else file.as_uri()
    named = Media(kind="crop", uri=uri, sha256=hashlib.sha256(content).hexdigest())
    if fault == "gone":
        file.unlink()
    elif fault == "other":
        file.write_bytes(BOXED)
    elif fault == "too large":
        monkeypatch.setattr("sinks.event_pictures.MOST_PICTURE_BYTES", 3)
    found = pictured(3, tmp_path, named)
    for style in (FrigateStyle("f"), HomeAssistantStyle("g")):
        assert not [one for one in style.messages_of(found) if one.content_type == "image/jpeg"]


@pytest.mark.anyio
async def test_a_picture_that_the_broker_does_not_take_costs_nothing_else(tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    large.write_bytes(CROP + bytes(50_000))
    named = Media(kind="crop", uri=large.as_uri(), sha256=hashlib.sha256(large.read_bytes()).hexdigest())
    with mosquitto(tmp_path, "max_packet_size 20000") as port:
        sink = open_sink(f"mqtt://127.0.0.1:{port}?style=frigate")
        await sink.send_batch([*STORY[:3], pictured(3, tmp_path, named), *STORY[5:]])
        kept = await asyncio.to_thread(retained, port, "#")
        await sink.aclose()
    assert "frigate/gate/q1/snapshot" not in kept
    assert kept["frigate/gate/q1"] == "0"


def test_a_query_that_is_removed_takes_its_entities_along() -> None:
    style = HomeAssistantStyle("groundstream")
    newest(style, STORY)
    plain = event(20, kind=EventType.QUERY)
    info = QueryInfo(id="q1", rev=2, text="red car", threshold=0.3, change="removed")
    removed = plain.model_copy(update={"data": plain.data.model_copy(update={"query": info})})
    configs = [json.loads(one.payload) for one in style.messages_of(removed) if one.topic.endswith("/config")]
    assert configs[0]["cmps"]["query_q1"] == {"p": "binary_sensor"}
    assert "query_q1" not in configs[1]["cmps"]
    for config in configs:
        check_device(config)


def test_ids_hold_only_what_home_assistant_takes() -> None:
    odd = event(1, stream="front door/ä#+")
    _, kept = newest(HomeAssistantStyle("groundstream"), [odd])
    (topic,) = [topic for topic in kept if topic.startswith("homeassistant/")]
    assert re.fullmatch(r"homeassistant/device/[a-zA-Z0-9_-]+/config", topic)
    assert not any("#" in topic or "+" in topic for topic in kept)


@pytest.mark.anyio
async def test_a_late_subscriber_of_mosquitto_knows_everything_at_once(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as port:
        sink = open_sink(f"mqtt://127.0.0.1:{port}/gs?discovery=true")
        await sink.send_batch(STORY)
        kept = await asyncio.to_thread(retained, port, "#")
        check_device(device(kept))
        assert kept["gs/status"] == "online"
        assert kept["gs/gate/query/q1/count"] == "1"
        await sink.aclose()
        kept = await asyncio.to_thread(retained, port, "gs/status")
        assert kept == {"gs/status": "offline"}


@pytest.mark.anyio
async def test_a_crash_and_a_clean_end_are_reported_apart_in_frigates_words(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as port:
        sink = open_sink(f"mqtt://127.0.0.1:{port}?style=frigate")
        await sink.send_batch(STORY)
        assert (await asyncio.to_thread(retained, port, "frigate/available")) == {"frigate/available": "online"}
        sink._client.socket().shutdown(2)  # type: ignore[attr-defined]
        await asyncio.sleep(0.5)
        assert (await asyncio.to_thread(retained, port, "frigate/available")) == {"frigate/available": "offline"}
        await sink.aclose()
        other = open_sink(f"mqtt://127.0.0.1:{port}?style=frigate")
        await other.send_batch(STORY[:1])
        await other.aclose()
        assert (await asyncio.to_thread(retained, port, "frigate/available")) == {"frigate/available": "stopped"}


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SinkAddressError, match="discovery goes with the topics of CloudEvents"):
        open_sink("mqtt://h/p?style=frigate&discovery=true")
    with pytest.raises(SinkAddressError, match="must be one of cloudevents, frigate"):
        open_sink("mqtt://h/p?style=blue")
