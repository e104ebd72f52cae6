"""YAML configuration files: what YAML does not read as text, aliases, depth and repeated keys."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from streamer.config import load_config
from streamer.errors import ConfigError

LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefg")
)
STREAM = "streams: [{source: a.mp4}]\n"


def error_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    return str(raised.value)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("no", 'queries[0] is no, which is read as true or false and not as a text: quote it, "no"'),
        ("On", 'queries[0] is On, which is read as true or false and not as a text: quote it, "On"'),
        ("12:30", 'YAML reads 12:30 as a number to the base of 60: quote it, "12:30"'),
        ("2026-05-04", 'YAML reads 2026-05-04 as a date: quote it, "2026-05-04"'),
        ("2001-99-99", 'YAML reads 2001-99-99 as a date: quote it, "2001-99-99"'),
        ("0x1F", 'queries[0] is 0x1F, which is read as a number and not as a text: quote it, "0x1F"'),
        ("=", 'YAML reads = as a default value: quote it, "="'),
        ("~", 'queries[0] is ~, which is read as nothing and not as a text: quote it, "~"'),
    ],
)
def test_a_query_that_yaml_does_not_read_as_text_says_what_to_quote(tmp_path: Path, value: str, sentence: str) -> None:
    message = error_of(tmp_path, f"{STREAM}queries: [{value}]\n")
    assert sentence in message
    assert message.count("quote it") == 1
    path = tmp_path / "quoted.yaml"
    path.write_text(f'{STREAM}queries: ["{value}"]\n')
    assert load_config(path).queries[0].text == value


def test_other_texts_are_checked_alike(tmp_path: Path) -> None:
    assert 'quote it, "yes"' in error_of(tmp_path, "streams: [{source: a.mp4, name: yes}]\nqueries: [car]\n")
    zone = "{id: 7, polygon: [[0, 0], [1, 0], [1, 1]]}"
    text = f"streams: [{{source: a.mp4, zones: [{zone}]}}]\nqueries: [car]\n"
    assert 'zones[0].id is 7, which is read as a number and not as a text: quote it, "7"' in error_of(tmp_path, text)


def test_truth_values_stay_what_they_are_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{STREAM}queries: [car]\nspool: {{fsync_each: yes}}\n")
    assert load_config(path).spool.fsync_each


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("streams: &a [*a]\nqueries: [car]\n", "an alias refers to a value that contains it"),
        ("a: &a {b: *a}\n", "an alias refers to a value that contains it"),
        ("a: " + "[" * 5000, "is nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 levels"),
        (
            LAUGHS,
            "more than 100000 values",
        ),
        (f"{STREAM}queries: [car]\nqueries: [bus]\n", "line 3: the key 'queries' is given twice"),
        ("? [a, b]\n: c\n", "a key is not a word"),
        ("streams: [\n", "line 2, column 1 is not YAML"),
        ("", "holds nothing, not a configuration"),
        ("a: !!python/object:os.system {}\n", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_a_configuration_is_refused_in_one_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    message = error_of(tmp_path, text)
    assert sentence in message
    assert "\n" not in message


CAMERA = "streams: [{{source: a.mp4, {}}}]\nqueries: [car]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("streams: [a.mp4]\nqueries: [car]\n", "streams[0] is 'a.mp4': expected the keys source, name, queries"),
        ("streams: a.mp4\nqueries: [car]\n", "streams is 'a.mp4': expected a list"),
        ("streams: []\nqueries: [car]\n", "streams is []: expected a list of at least 1"),
        (f"{STREAM}queries: [[a, b]]\n", "queries[0] is ['a', 'b']: expected a text, or the keys text, id"),
        (f"{STREAM}queries: [car]\nspool: yes\n", "spool is True: expected the keys path"),
        (f"{STREAM}queries: [car]\nmedia: {{clips: 5}}\n", "media.clips is 5: expected true, or the keys before_s"),
        (
            CAMERA.format("rules: [{id: a, kind: speed, query: car, above: 3}]"),
            "rules[0].above is not a key: did you mean",
        ),
        (CAMERA.format("rules: [{id: a, kind: fast}]"), "expected a section with `kind`, one of distance, left, speed"),
        (CAMERA.format("rules: [fast]"), "rules[0] is 'fast': expected a section with `kind`"),
        (
            CAMERA.format("rules: [{id: a, kind: speed, query: car, above_kmh: x}]"),
            "rules[0].above_kmh is 'x': expected a number",
        ),
        (CAMERA.format("zones: [{id: a, polygon: [0, 1, 1]}]"), "polygon[0] is 0: expected a point [x, y]"),
        (
            CAMERA.format("lines: [{id: a, points: [[0, 0, 0], [1, 1]]}]"),
            "points[0] is [0, 0, 0]: expected a point [x, y]",
        ),
        (
            CAMERA.format("lines: [{id: a, points: [[0, 0], [1, 1]], anchor: head}]"),
            "anchor is 'head': expected 'feet'",
        ),
        (CAMERA.format("sample: {fps: -1}"), "sample.fps is -1: expected more than 0"),
    ],
)
def test_a_wrong_value_says_what_is_expected(tmp_path: Path, text: str, sentence: str) -> None:
    message = error_of(tmp_path, text)
    assert sentence in message
    assert "input should" not in message
