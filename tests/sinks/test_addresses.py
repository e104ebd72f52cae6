"""Addresses: one clear sentence for what cannot be used, and nothing of their secrets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sinks import SinkAddressError, SinkError, open_sink, open_sinks
from sinks.address import parse_address, redact


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("events.jsonl", "is not the address of a sink: did you mean jsonl:events.jsonl? write stdout:"),
        ("kafak://host/t", "no sink is called 'kafak': did you mean kafka?"),
        ("video:out.mp4", "a video takes pictures, not events"),
        ("jsonl:", "needs a path: write jsonl:events.jsonl"),
        ("sqlite:", "needs a path"),
        ("stdout:file", "takes no path"),
        ("jsonl:a.jsonl?colour=red", "unknown option 'colour': allowed are types, streams, queries"),
        ("stdout:?types=track.bgin", "no event type is called 'track.bgin': there are track.begin"),
        ("kafka://host/t?linger_ms=soon", "option linger_ms='soon' must be a number"),
        ("kafka://host/t?acks=2", "must be all, 1 or 0"),
        ("kafka://host/t?colour=red", "unknown option 'colour'"),
        ("kafka://host/t?partitions=1.5", "must be a whole number"),
        ("kafka://host/t?format=xml", "must be one of json, binary, avro, protobuf, nv, nv-json"),
        ("kafka://host/t?format=avro", "needs a schema registry"),
        ("kafka:///t", "a host is missing"),
        ("kafka://host/my topic", "topic 'my topic' cannot be"),
        ("http:///hook", "a host is missing"),
        ("https://host:port/hook", "write https://HOST:PORT"),
        ("https://host/hook?batch=0", "must be a number of at least 1"),
        ("https://host/hook?cafile=/nowhere.pem", "cannot be read"),
        ("mqtt://host/x?timeout=-1", "must be a number of at least"),
        ("redis://host/x?keep=many", "must be a number"),
        ("parquet:", "needs a folder"),
    ],
)
def test_a_wrong_address_is_one_sentence(address: str, sentence: str) -> None:
    with pytest.raises(SinkAddressError) as found:
        open_sink(address)
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("address", ["jsonl:/proc/x/e.jsonl", "sqlite:/proc/x/e.sqlite", "parquet:/proc/x/e"])
def test_a_place_that_cannot_be_written_is_reported_at_once(address: str) -> None:
    with pytest.raises(SinkError, match=r"/proc/x.* cannot be written \(.+\): check the path") as found:
        open_sink(address)
    assert not isinstance(found.value, ValueError)


def test_a_file_that_is_no_database_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("milk, bread\n" * 500)
    with pytest.raises(SinkError, match="is a database of groundstream"):
        open_sink(f"sqlite:{path}")
    assert path.read_text() == "milk, bread\n" * 500


def test_the_same_sink_twice_is_a_mistake() -> None:
    with pytest.raises(SinkAddressError, match="given twice"):
        open_sinks(["stdout:", "stdout:"])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("kafka://me:pw@a:1,b:2/t", "kafka://***@a:1,b:2/t"),
        ("https://host/hook?secret=abc&batch=3", "https://host/***#6ce177ca"),
        ("https://me:pw@host/hook?batch=3&api_token=abc", "https://***@host/***#e324b001"),
        ("https://host:8443/", "https://host:8443/"),
        ("http://host", "http://host"),
        ("htps://host/abc", "htps://host/***#aaaea361"),
        ("kafka://h/t?format=avro&registry=http://r/abc", "kafka://h/t?format=avro&registry=http://r/***#aaaea361"),
        ("mqtts://me@host", "mqtts://***@host"),
        ("kafka://h/t?sasl_plain_password=p%26q", "kafka://h/t?sasl_plain_password=***"),
        ("jsonl:/tmp/a@b/events.jsonl", "jsonl:/tmp/a@b/events.jsonl"),
    ],
)
def test_what_is_reported_of_an_address_holds_no_secret(address: str, public: str) -> None:
    assert redact(address) == public
    parts = parse_address(address)
    assert parts.public == public
    for secret in ("pw", "abc", "p%26q", "p&q"):
        assert secret not in repr(parts)


def test_opening_files_loads_no_network_library() -> None:
    code = (
        "import sys, sinks, sinks.spool.spool, sinks.subscribe; sinks.open_sink('stdout:'); "
        "print([name for name in ('kafka', 'paho', 'pyarrow', 'redis', 'av', 'fastavro', 'google.protobuf', 'numpy') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert found.stdout.strip() == "[]"
