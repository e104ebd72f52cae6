"""The configuration: what it says, and one sentence for each mistake."""

from __future__ import annotations

import asyncio
from pathlib import Path

import jsonschema
import pytest
import yaml

from streamer.assembly import video_path
from streamer.build import open_pipeline
from streamer.config import config_schema, load_config, parse_config
from streamer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

CAMERAS = """
streams:
  - name: gate
    source: rtsp://viewer:${CAMERA_PASSWORD}@camera/stream
    queries: [person, {text: a red car, threshold: 0.4, id: red-car}]
    zones:
      - {id: yard, polygon: [[0, 0], [1, 0], [1, 1]], dwell_s: [5, 60]}
    lines:
      - {id: door, points: [[0.5, 0], [0.5, 1]]}
    counts:
      - {of: yard, window_s: 60, query: red-car}
    sample: {fps: 5}
  - source: webcam:0
queries: a dog
detector: motion
sinks: ["sqlite:events.sqlite"]
"""


def parse(text: str):
    return parse_config(yaml.safe_load(text), "cameras.yaml")


def test_a_configuration_says_what_to_watch(tmp_path, monkeypatch):
    monkeypatch.setenv("CAMERA_PASSWORD", "s3cret")
    file = tmp_path / "cameras.yaml"
    file.write_text(CAMERAS)
    config = load_config(file)
    gate, webcam = config.streams
    assert gate.source == "rtsp://viewer:s3cret@camera/stream"
    assert [query.text for query in gate.queries] == ["person", "a red car"]
    assert webcam.queries is None
    assert config.queries[0].text == "a dog"
    assert config.detector.name == "motion"


def test_the_schema_accepts_the_file_and_refuses_a_wrong_key():
    raw = yaml.safe_load(CAMERAS)
    raw["queries"] = [{"text": "a dog"}]
    raw["streams"][0]["queries"][0] = {"text": "person"}
    raw["detector"] = {"name": "motion"}
    validator = jsonschema.Draft202012Validator(config_schema())
    assert list(validator.iter_errors(raw)) == []
    raw["streams"][0]["zoness"] = []
    assert [error.validator for error in validator.iter_errors(raw)] == ["additionalProperties"]


def test_the_configuration_of_the_compose_file_is_one():
    assert load_config(ROOT / "docker" / "groundstream.yaml").streams[0].name == "street"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{streams: [{source: a.mp4, zoness: []}], queries: [person]}",
            "streams[0].zoness is not a key: did you mean 'zones'? allowed here are source, name, queries, zones",
        ),
        ("{streams: [{source: a.mp4, sample: {evry: 2}}], queries: [p]}", "did you mean 'every'? allowed here are"),
        ("{streams: [{source: a.mp4}]}", "streams[0] has nothing to look for"),
        ("{streams: [{source: a.mp4}], queries: ['']}", "queries[0].text is ''"),
        ("{queries: [person]}", "streams is missing"),
        ("{streams: [{source: a.mp4}], queries: [{text: p, threshold: 3}]}", "queries[0].threshold is 3"),
        (
            "{streams: [{source: a.mp4, counts: [{of: yard}]}], queries: [p]}",
            "counts 'yard', which is no zone or line: the stream has none",
        ),
        (
            "{streams: [{source: a.mp4, counts: [{query: car}]}], queries: [a person, {text: red car, id: red}]}",
            "streams[0] counts the query 'car', but its queries' ids are a-person, red",
        ),
        (
            "{streams: [{source: a.mp4, queries: [dog], counts: [{query: person}]}], queries: [person]}",
            "streams[0] counts the query 'person', but its queries' ids are dog",
        ),
        (
            "{streams: [{source: a.mp4, zones: [{id: z, polygon: [[2, 0]]}]}], queries: [p]}",
            "streams[0].zones[0].polygon[0][0] is 2",
        ),
        ("{streams: [{source: a.mp4}], queries: [p], sinks: 'kafka://u:pw@host/t'}", "sinks is 'kafka://***@host/t'"),
        (
            "{streams: [{source: a.mp4}], queries: [p], sinks: 'https://host/hook/secret'}",
            "sinks is 'https://host/***#",
        ),
    ],
)
def test_a_mistake_names_itself_its_place_and_what_is_allowed(text, sentence):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "cameras.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("streams: [", "line 1, column 11 is not YAML"),
        ("", "holds nothing, not a configuration"),
        ("- a", "holds a list, not a configuration"),
        ("streams: [{source: '${NO_SUCH_VARIABLE}'}]", "there is no environment variable NO_SUCH_VARIABLE: set it"),
        (b"\xff\xfe\x00", "is not a text file"),
    ],
)
def test_a_file_that_is_no_configuration_is_reported(tmp_path, content, sentence):
    file = tmp_path / "cameras.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=sentence):
        load_config(file)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_a_count_may_name_a_query_by_the_id_made_from_its_text():
    assert parse("{streams: [{source: a.mp4, counts: [{query: a-red-car}]}], queries: [A red car]}").streams[0].counts


def test_names_that_were_given_go_before_names_that_are_made(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "gate.mp4").touch()

    async def names(*streams: dict[str, str]) -> list[str]:
        config = parse_config({"streams": list(streams), "queries": ["x"], "detector": "motion", "sinks": []})
        async with open_pipeline(config) as pipeline:
            return [stream.name for stream in pipeline.streams]

    first, second = ({"source": str(tmp_path / folder / "gate.mp4")} for folder in "ab")
    assert asyncio.run(names(first, second)) == ["gate", "gate-2"]
    assert asyncio.run(names(first, second | {"name": "gate"})) == ["gate-2", "gate"]
    with pytest.raises(ConfigError, match="two streams are called 'gate'"):
        asyncio.run(names(first | {"name": "gate"}, second | {"name": "gate"}))


def test_videos_of_several_streams_do_not_overwrite_one_another():
    assert video_path("video:out/all.mp4", "gate", several=True) == Path("out/all-gate.mp4")
    assert video_path("video:out/all.mp4", "gate", several=False) == Path("out/all.mp4")
    assert video_path("video:out/{stream}/v.mp4", "gate", several=True) == Path("out/gate/v.mp4")
    with pytest.raises(ConfigError, match=r"video:FILE\.mp4"):
        video_path("video:", "gate", several=False)


def test_what_is_known_of_a_camera_can_be_set() -> None:
    stream = {
        "source": "rtsps://cam/1",
        "live": True,
        "track": 1,
        "stall_s": 90,
        "poll_s": 0.5,
        "clock": {"latency_s": 0.4, "synchronised": True},
        "tls": {"insecure": True},
    }
    (parsed,) = parse_config({"streams": [stream], "queries": ["car"]}).streams
    assert (parsed.live, parsed.track, parsed.stall_s, parsed.poll_s) == (True, 1, 90.0, 0.5)
    assert (parsed.clock.latency_s, parsed.clock.synchronised) == (0.4, True)
    assert parsed.tls.options().insecure


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "rtsp://cam/1", "tls": {"insecure": True}}, "write its scheme with s"),
        ({"tls": {"keyfile": "a.key"}}, "keyfile needs certfile"),
        ({"tls": {"insecure": True, "cafile": "ca.pem"}}, "give one of them"),
        ({"tls": {"ca": "ca.pem"}}, "tls.ca"),
        ({"stall_s": 0}, "stall_s"),
        ({"track": -1}, "track"),
        ({"clock": {"latency_s": -1}}, "clock.latency_s"),
    ],
)
def test_settings_of_a_camera_that_make_no_sense_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        parse_config({"streams": [{"source": "rtsps://cam/1", **changes}], "queries": ["car"]})


FEW = {"streams": [{"source": "x"}], "queries": ["person"]}


@pytest.mark.parametrize(
    "raw",
    [
        {"tracker": {"reid_s": float("inf")}},
        {"stationary_s": float("nan")},
        {"streams": [{"source": "x", "counts": [{"window_s": float("inf")}]}]},
        {"streams": [{"source": "x", "sample": {"fps": float("inf")}}]},
    ],
)
def test_numbers_without_end_are_refused(raw: dict) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        parse_config({**FEW, **raw})


def test_pixels_in_a_zone_are_answered_with_what_is_expected() -> None:
    zone = {"id": "door", "polygon": [[0, 0], [640, 0], [640, 0.5]]}
    with pytest.raises(
        ConfigError, match=r"polygon\[1\]\[0\] is 640: give coordinates as fractions of the frame, from 0 to 1"
    ):
        parse_config({**FEW, "streams": [{"source": "x", "zones": [zone]}]})
    zone["polygon"] = [[0, 0], [1, 0], [1, 0.5]]
    with pytest.raises(ConfigError, match="counts 'gate', which is no zone or line: they are 'door'"):
        parse_config({**FEW, "streams": [{"source": "x", "zones": [zone], "counts": [{"of": "gate", "window_s": 5}]}]})
