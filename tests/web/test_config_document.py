"""Edits of a configuration file that keep everything else as it was written."""

from __future__ import annotations

import pytest
import yaml

from streamer.errors import ConfigError
from streamer.web.config_document import ConfigDocument, NodeEdit

TWO = """# heading
streams:
  - source: rtsp://${CAMERA}/stream # where it stands
    name: gate
    zones:
      - id: yard
        polygon: [[0, 0], [1, 0], [1, 1]]
queries:
  - a person
"""


@pytest.fixture(autouse=True)
def camera_address(monkeypatch):
    monkeypatch.setenv("CAMERA", "camera.example")


def document(tmp_path, text: str = TWO) -> ConfigDocument:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    made = ConfigDocument(file, tmp_path / "overrides.yaml")
    made.load()
    return made


def store(made: ConfigDocument, *edits: NodeEdit) -> str:
    made.store(made.draft(edits))
    return made.path.read_text()


def test_only_the_edited_node_changes(tmp_path):
    text = store(document(tmp_path), NodeEdit(("queries",), [{"text": "a dog", "threshold": 0.4}]))
    before, after = TWO.splitlines(), text.splitlines()
    assert after[: len(before) - 1] == before[:-1]
    assert yaml.safe_load(text)["queries"] == [{"text": "a dog", "threshold": 0.4}]
    assert "${CAMERA}" in text
    assert (tmp_path / "c.yaml.bak").read_text() == TWO


def test_the_rights_of_a_configuration_are_kept_and_its_copy_has_the_same(tmp_path):
    made = document(tmp_path)
    made.path.chmod(0o600)
    store(made, NodeEdit(("queries",), ["a dog"]))
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("c.yaml*")} == {
        "c.yaml": 0o600,
        "c.yaml.bak": 0o600,
    }


@pytest.mark.parametrize(
    "words", ["no", "on", "yes", "12:30", "1e3", "null", "~", "a: b", "# x", "'", '"', "- a", "Ärger", "*x"]
)
def test_words_that_yaml_reads_as_something_else_are_quoted(tmp_path, words):
    text = store(document(tmp_path), NodeEdit(("queries",), [{"text": words}]))
    assert yaml.safe_load(text)["queries"] == [{"text": words}]


def test_points_stand_in_one_line(tmp_path):
    zones = [{"id": "a", "polygon": [[0.5, 0.5], [1, 0], [1, 1]]}]
    assert "polygon: [[0.5, 0.5], [1, 0], [1, 1]]" in store(
        document(tmp_path), NodeEdit(("streams", 0, "zones"), zones)
    )


def test_a_file_that_would_come_back_otherwise_is_not_touched(tmp_path):
    odd = TWO.replace("name: gate", "name:    gate")
    made = document(tmp_path, odd)
    assert store(made, NodeEdit(("queries",), ["a dog"])) == odd
    assert [query.text for query in made.load().queries] == ["a dog"]
    assert made.obstacle() != ""


def test_a_wrong_edit_names_the_file_and_stores_nothing(tmp_path):
    made = document(tmp_path)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        made.draft([NodeEdit(("queries",), [{"text": ""}])])
    assert made.path.read_text() == TWO


def test_an_override_is_dropped_once_its_node_changes_in_the_file(tmp_path):
    odd = TWO.replace("name: gate", "name:    gate")
    made = document(tmp_path, odd)
    store(made, NodeEdit(("queries",), ["a dog"]))
    made.path.write_text(odd.replace("a person", "a bird"))
    assert [query.text for query in made.load().queries] == ["a bird"]
    assert made.overrides == ()


def test_an_override_of_a_stream_does_not_move_to_another_one(tmp_path):
    odd = TWO.replace("name: gate", "name:    gate")
    made = document(tmp_path, odd)
    store(made, NodeEdit(("streams", 0, "lines"), [{"id": "l", "points": [[0, 0], [1, 1]]}]))
    other = "streams:\n  - source: rtsp://other/x\n    name: other\n"
    made.path.write_text(odd.replace("streams:\n", other))
    assert [len(stream.lines) for stream in made.load().streams] == [0, 0]


def test_streams_are_appended_and_removed(tmp_path):
    made = document(tmp_path)
    text = store(made, NodeEdit(("streams",), {"source": "rtsp://b/x", "name": "b"}, "append"))
    assert [stream["name"] for stream in yaml.safe_load(text)["streams"]] == ["gate", "b"]
    assert store(made, NodeEdit(("streams", 1), kind="remove")) == TWO


def test_a_monitor_without_a_file_keeps_its_changes_as_overrides(tmp_path):
    from streamer.config import parse_config

    initial = parse_config({"streams": [{"source": "rtsp://b/x"}], "queries": ["a person"]})
    made = ConfigDocument(None, tmp_path / "o.yaml", initial)
    made.load()
    made.store(made.draft([NodeEdit(("queries",), ["a dog"])]))
    again = ConfigDocument(None, tmp_path / "o.yaml", initial)
    assert [query.text for query in again.load().queries] == ["a dog"]
