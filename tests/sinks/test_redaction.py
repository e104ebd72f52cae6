"""Redaction: no secret of an address in any text, whatever the secret looks like."""

from __future__ import annotations

import contextlib
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks import SinkAddressError, SinkError, open_sink
from sinks.address import parse_address, redact

SECRET = "hunter2"
SLACK = "https://hooks.slack.com/services/T0/B0/abcdefghSECRET"

TABLE = [
    ("kafka://me:hunter2@a:1,b:2/t", "kafka://***@a:1,b:2/t"),
    ("kafka://me:hunter2@a:1,me:hunter2@b:2/t", "kafka://***@b:2/t"),
    ("kafka://me:hun/hunter2@h:9092/t", "kafka://***@h:9092/t"),
    ("kafka://me:hunter2?@h:9092/t", "kafka://***@h:9092/t"),
    ("kafka://me:hu@hunter2@h:9092/t", "kafka://***@h:9092/t"),
    ("kafka://me:a hunter2@h:9092/t", "kafka://***@h:9092/t"),
    ("kafka:me:hunter2@h:9092/t", "kafka:***@h:9092/t"),
    ("me:hunter2@h:9092/t", "***@h:9092/t"),
    ("kafka://h/t?sasl_plain_password=hunter2%26q", "kafka://h/t?sasl_plain_password=***"),
    ("kafka://h/t?sasl_plain_pasword=hunter2&acks=all", "kafka://h/t?sasl_plain_pasword=***&acks=all"),
    ("kafka://h/t?password=a&hunter2", "kafka://h/t?password=***&***"),
    ("kafka://h/t?compression_type=zstd;secert=hunter2", "kafka://h/t?compression_type=zstd;secert=***"),
    ("kafka://h/t?format=avro&registry=http://r/hunter2", "kafka://h/t?format=avro&registry=http://r/***#175e4ae0"),
    ("mqtt://me:hunter2#y@h/p", "mqtt://***@h/p"),
    ("mqtts://hunter2@h", "mqtts://***@h"),
    ("mqtt://h/p?client_id=gate&tokne=hunter2", "mqtt://h/p?client_id=gate&tokne=***"),
    ("redis://:hunter2@h/k?keep=5", "redis://***@h/k?keep=5"),
    ("rediss://h/k?key_password=hunter2", "rediss://h/k?key_password=***"),
    ("postgresql://me:hunter2/x@h/db?table=events", "postgresql://***@h/db?table=events"),
    ("rtsp://admin:hunter2@10.0.0.7:554/ch1", "rtsp://***@10.0.0.7:554/ch1"),
    ("rtsp://admin:hun/hunter2@10.0.0.7/ch1?channel=1", "rtsp://***@10.0.0.7/ch1?channel=1"),
    ("rtsp://cam/ch1?channel=1&pwd=hunter2", "rtsp://cam/ch1?channel=1&pwd=***"),
    ("rtsp://cam/ch1?channel=1&pwd=a@hunter2", "rtsp://***@***"),
    ("https://h:8443/", "https://h:8443/"),
    ("http://h", "http://h"),
    ("https://h/hunter2", "https://h/***#175e4ae0"),
    ("https://me:hunter2@h/", "https://***@h/"),
    ("https://me:hun/hunter2@h/in", "https://***/***#b6c568b4"),
    ("https://h:8443/in@hunter2", "https://***/***#eed6239a"),
    ("http://h?user=hunter2", "http://h/***#5143c990"),
    ("slack+https://h/hunter2", "slack+https://h/***#175e4ae0"),
    ("htps://h/hunter2", "htps://h/***#175e4ae0"),
    ("jsonl:/tmp/a@b/events.jsonl", "jsonl:/tmp/a@b/events.jsonl"),
    ("sqlite:events.sqlite?pasword=hunter2", "sqlite:events.sqlite?pasword=***"),
    ("option secret='hunter2 x' is bad", "option secret=*** is bad"),
    ("Kafka at h:9092 has no topic t", "Kafka at h:9092 has no topic t"),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_a_redacted_text_holds_no_secret(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert SECRET not in expected
    assert redact(expected) == expected
    assert SECRET not in redact(f"cannot open {text.replace('a hunter2', 'hunter2')} now, see above")


@pytest.mark.parametrize("text", [text for text, _ in TABLE])
def test_an_address_that_is_refused_shows_no_secret(text: str) -> None:
    with contextlib.suppress(SinkAddressError):
        assert SECRET not in repr(parse_address(text))
    if text.startswith(("jsonl", "sqlite:events.sqlite?")):
        return
    refusal = ""
    try:
        open_sink(text)
    except SinkError as error:
        refusal = str(error)
    assert SECRET not in refusal


def test_a_web_address_is_shown_by_its_host_and_a_mark_that_stays() -> None:
    shown = redact(SLACK)
    assert re.fullmatch(r"https://hooks\.slack\.com/\*\*\*#[0-9a-f]{8}", shown)
    assert redact(shown) == shown
    assert redact(f"{SLACK}?token=first") == redact(f"{SLACK}?token=second"), "a new token is no new sink"
    assert redact(SLACK.lower()) != shown
    assert redact(f"one ({SLACK}), two '{SLACK}', {SLACK}: three.") == f"one ({shown}), two '{shown}', {shown}: three."


CHARACTERS = string.ascii_letters + string.digits + "/?#@:&=;%+!$'\"()<>[]{}|\\^`~,.-_*äß"
secrets = st.text(CHARACTERS, max_size=6).map(lambda text: f"{text}Zq9Zq9")
endings = st.text(CHARACTERS, max_size=4)
schemes = st.sampled_from(
    ["kafka", "kafkas", "mqtt", "mqtts", "redis", "rediss", "postgresql", "http", "https", "slack+https", "rtsp", "x"]
)
names = st.sampled_from(["secret", "secert", "tokne", "pasword", "sasl_plain_password", "ky", "apikey", "whsec", "p"])


def shown_parts(address: str) -> str:
    """What can be seen of the parsed address, or of its refusal."""
    try:
        return repr(parse_address(address))
    except SinkAddressError as error:
        return str(error)


@settings(max_examples=500, deadline=None)
@given(schemes, secrets, endings, st.booleans(), st.sampled_from(["", "?timeout=5", "/t", "/t?keep=3"]))
def test_no_password_survives(scheme: str, secret: str, ending: str, has_user: bool, path: str) -> None:
    address = f"{scheme}://{'me:' if has_user else ':'}{secret}{ending}@host{path}"
    for text in (address, f"cannot open {address} now", f"'{address}': refused"):
        assert "Zq9" not in redact(text)
        assert "Zq9" not in redact(redact(text))
    assert "Zq9" not in shown_parts(address)


@settings(max_examples=500, deadline=None)
@given(schemes, names, st.text(CHARACTERS.replace("&", ""), max_size=6), st.sampled_from(["&timeout=5", ""]))
def test_no_secret_option_survives(scheme: str, name: str, before: str, after: str) -> None:
    address = f"{scheme}://host/t?timeout=3&{name}={before}Zq9Zq9{after}"
    assert "Zq9" not in redact(address)
    assert "Zq9" not in shown_parts(address)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(["http", "https", "slack+https", "discord+https", "htps"]), secrets, endings)
def test_no_path_of_a_web_address_survives(scheme: str, secret: str, ending: str) -> None:
    for address in (f"{scheme}://host/{secret}{ending}", f"{scheme}://host:8443/a/{secret}{ending}"):
        for text in (address, f"{address}: refused", f"cannot open '{address}'"):
            assert "Zq9" not in redact(text)
            assert redact(redact(text)) == redact(text)
