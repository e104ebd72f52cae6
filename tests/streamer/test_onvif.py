"""ONVIF cameras: probes and their answers, calls to a device, streams written into a configuration."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from streamer.cli import app
from streamer.errors import SourceAddressError, SourceError
from streamer.onvif import CameraDescription, OnvifAddress, discover_devices, read_camera
from streamer.onvif.discovery import read_answer
from tests.support.onvif_device import OnvifDevice, ProbeResponder, probe_answer

pytest.importorskip("onvif", reason="needs the extra onvif")


def describe(device: OnvifDevice, user: str = "admin", password: str = "pass", **options: float) -> CameraDescription:
    return asyncio.run(read_camera(OnvifAddress("127.0.0.1", device.port, user, password), **options))


def call(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["cameras", *arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout


@pytest.mark.parametrize("kind", ["NetworkVideoTransmitter", ">tds:Device<"])
def test_a_camera_that_answers_only_one_kind_of_probe_is_found(kind: str) -> None:
    scopes = (
        "onvif://www.onvif.org/name/Front%20door onvif://www.onvif.org/hardware/D4 onvif://www.onvif.org/location/x"
    )
    answer = probe_answer("http://[fe80::1]/onvif http://192.0.2.7:8080/onvif/device_service", scopes)
    with ProbeResponder([answer, b"noise", answer], kind) as responder:
        found = discover_devices(0.5, ["127.0.0.1"])
    assert [(one.host, one.address, one.name, one.hardware, one.location) for one in found] == [
        ("192.0.2.7", "http://192.0.2.7:8080/onvif/device_service", "Front door", "D4", "x")
    ]
    assert responder.probes >= 2


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda noise: probe_answer("http://a/b")[:-40] + noise))
def test_no_answer_of_the_network_ends_the_search(data: bytes) -> None:
    for device in read_answer(data):
        assert device.address


def test_answers_with_entities_or_without_a_usable_address_are_ignored() -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY b "c">]>' + probe_answer("http://192.0.2.7/x")
    assert read_answer(bomb) == []
    assert read_answer(probe_answer("urn:nothing http://[broken file:///etc/passwd")) == []


@pytest.mark.parametrize("ahead", [timedelta(), timedelta(hours=-7), timedelta(days=900)])
def test_profiles_are_read_whatever_the_clock_of_the_camera_says(ahead: timedelta) -> None:
    with OnvifDevice(clock_ahead=ahead) as device:
        found = describe(device)
    assert (found.manufacturer, found.model) == ("Acme", "Dome 4")
    assert [(one.token, one.width, one.height, one.fps, one.codec) for one in found.profiles] == [
        ("main", 1920, 1080, 25.0, "H264"),
        ("sub", 640, 360, 10.0, "H264"),
    ]
    assert found.profiles[0].uri == "rtsp://127.0.0.1:8554/main?unicast=true&proto=Onvif"


def test_a_camera_behind_a_translated_address_is_asked_at_the_address_given() -> None:
    with OnvifDevice(inner_host="192.0.2.1") as device:
        assert len(describe(device).profiles) == 2


@pytest.mark.parametrize(
    ("settings", "account", "sentence"),
    [
        ({}, ("admin", "wrong"), "refuses the account admin"),
        ({}, ("", ""), "refuses the account (none)"),
        ({"profiles": ()}, ("admin", "pass"), "no media profile with video"),
        ({"has_media": False}, ("admin", "pass"), "offers no Media service"),
        ({"silent": True}, ("admin", "pass"), "did not answer within 1 s"),
    ],
)
def test_what_a_camera_does_not_give_is_named(
    settings: dict[str, object], account: tuple[str, str], sentence: str
) -> None:
    with OnvifDevice(**settings) as device, pytest.raises(SourceError) as caught:
        describe(device, *account, **({"timeout_s": 1.0} if "silent" in settings else {}))
    assert sentence in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_a_port_without_a_camera_is_one_sentence() -> None:
    with pytest.raises(SourceError, match=r"127.0.0.1:1 cannot be reached"):
        asyncio.run(read_camera(OnvifAddress("127.0.0.1", 1)))


@pytest.mark.parametrize("text", ["http://a", "onvif://", "onvif://u:secret@h:99999", "onvif://u:secret@h:0", "cam"])
def test_an_address_that_cannot_be_read_is_refused_without_its_account(text: str) -> None:
    with pytest.raises(SourceAddressError) as caught:
        OnvifAddress.parse(text)
    assert "secret" not in str(caught.value)


def test_an_address_with_odd_characters_is_read() -> None:
    address = OnvifAddress.parse("onvif://ad%40min:p%2Fa%3As@[2001:db8::1]:8080")
    assert (address.host, address.port, address.user, address.password) == ("2001:db8::1", 8080, "ad@min", "p/a:s")


def test_add_appends_a_stream_and_keeps_comments_and_password_apart(tmp_path: Path) -> None:
    file = tmp_path / "cameras.yaml"
    file.write_text("# the yard\nqueries: [dog]\nstreams:\n  - name: yard  # first\n    source: rtsp://yard/1\n")
    with OnvifDevice(password="p/ß") as device:
        address = f"onvif://admin:p%2F%C3%9F@127.0.0.1:{device.port}"
        code, output = call("add", address, "--config", str(file), "--name", "gate", "--profile", "sub")
        assert code == 0
        assert "GATE_PASSWORD" in output
        assert "%2F" not in output
        text = file.read_text()
        assert "# the yard" in text
        assert "# first" in text
        added = yaml.safe_load(text)["streams"][1]
        uri = "rtsp://admin:${GATE_PASSWORD}@127.0.0.1:8554/sub?unicast=true&proto=Onvif"
        assert added == {"name": "gate", "source": uri}
        found = CliRunner().invoke(app, ["cameras", "add", address, "-c", str(file), "--name", "gate"])
        assert "has a stream gate already" in str(found.exception)
        assert file.read_text() == text


def test_add_without_a_file_prints_the_stream(tmp_path: Path) -> None:
    with OnvifDevice() as device:
        address = f"onvif://admin:pass@127.0.0.1:{device.port}"
        code, output = call("add", address)
        assert code == 0
        assert "1920x1080" in output
        assert 'source: "rtsp://admin:${DOME_4_127_0_0_1_PASSWORD}@127.0.0.1:8554/main' in output
        code, output = call("add", address, "--json", "--with-password", "-c", str(tmp_path / "new.yaml"))
        assert json.loads(output)["stream"]["source"].startswith("rtsp://admin:pass@")
        assert yaml.safe_load((tmp_path / "new.yaml").read_text())["streams"][0]["name"] == "dome-4-127-0-0-1"
        assert (tmp_path / "new.yaml").stat().st_mode & 0o077 == 0  # the password stands in it
        found = CliRunner().invoke(app, ["cameras", "add", address, "--profile", "third"])
        assert "has no profile 'third': it has main (Main stream), sub (Sub stream)" in str(found.exception)


def test_discover_prints_what_was_found() -> None:
    with ProbeResponder([probe_answer("http://192.0.2.9/onvif/device_service")]):
        code, output = call("discover", "--timeout", "0.5", "--interface", "127.0.0.1", "--json")
    assert code == 0
    assert json.loads(output)[0]["host"] == "192.0.2.9"
    assert call("discover", "--timeout", "0.2", "--interface", "127.0.0.1")[0] == 1
