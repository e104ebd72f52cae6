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
        ("~", 'queries[0] is ~, which is read as nothing and not as a text: quote it, "~"'),
    ],
)
def test_a_query_that_yaml_does_not_read_as_text_says_what_to_quote(tmp_path: Path, value: str, sentence: str) -> None:
    assert sentence in error_of(tmp_path, f"{STREAM}queries: [{value}]\n")
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
