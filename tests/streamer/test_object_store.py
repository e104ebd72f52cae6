"""Recordings in S3 buckets: the same results as from files, one sentence for every refusal, and no secret in any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from sinks.address import redact
from streamer.errors import SourceAddressError, SourceError
from streamer.frame import Frame
from streamer.object_store import ObjectFile, ObjectStoreError, describe_object, list_objects, parse_s3
from streamer.sources import open_sources
from streamer.sources.identity import identify_recording
from tests.streamer.test_jobs import MOVING, ROOT, make_street_clip, results, run
from tests.support.s3_server import ACCESS, SECRET, S3Server, environment
from tests.support.web_server import Answer, WebServer

needs_obstore = pytest.mark.skipif(find_spec("obstore") is None, reason="needs obstore: pip install 'groundstream[s3]'")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server() -> Iterator[S3Server]:
    objects = {
        "rec/b.mp4": b"b" * 10,
        "rec/a 100%20ü.mp4": b"a" * 9_000_000,
        "rec/notes.txt": b"n",
        "rec/in/c.mkv": b"c",
    }
    with S3Server({"street": objects}) as server:
        yield server


def at(server: S3Server, key: str) -> str:
    return f"s3://street/{key}?endpoint={server.endpoint}"


@needs_obstore
def test_an_object_is_read_from_any_place(server: S3Server) -> None:
    file = ObjectFile(parse_s3(at(server, "rec/a 100%20ü.mp4")))
    assert file.size == 9_000_000
    file.seek(-3, 2)
    assert (file.read(10), file.tell(), file.read(1)) == (b"aaa", 9_000_000, b"")
    file.seek(5)
    assert file.read(2) == b"aa"
    file.seek(4 * 2**20 - 1)
    assert sum(len(piece) for piece in iter(lambda: file.read(100_000), b"")) == 9_000_000 - 4 * 2**20 + 1
    assert file.broken is None


@needs_obstore
def test_an_object_that_is_replaced_while_it_is_read_is_broken(server: S3Server) -> None:
    file = ObjectFile(parse_s3(at(server, "rec/a 100%20ü.mp4")))
    assert file.read(3) == b"aaa"
    server.buckets["street"]["rec/a 100%20ü.mp4"] = b"z" * 9_000_000
    file.seek(8_500_000)
    assert file.read(3) == b""
    assert "replaced while it was read" in str(file.broken)


@needs_obstore
def test_folders_and_patterns_are_listed(server: S3Server) -> None:
    server.page = 1
    server.buckets["street"].update({f"many/{number}.mp4": b"" for number in range(5)})
    assert [source.name for source in open_sources(at(server, "rec/"))] == [
        "street-rec-a-100-20ü.mp4",
        "street-rec-b.mp4",
    ]
    assert [parse_s3(place).key for place in list_objects(parse_s3(at(server, "**.mkv")))] == ["rec/in/c.mkv"]
    assert [parse_s3(place).key for place in list_objects(parse_s3(at(server, "*/b.*")))] == ["rec/b.mp4"]
    assert len(open_sources(at(server, "many/*.mp4"))) == 5
    with pytest.raises(SourceError, match="holds no videos"):
        open_sources(at(server, "empty/"))


@needs_obstore
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://street/rec/none.mp4", "nothing at this key"),
        ("s3://nowhere/", "there is no bucket nowhere"),
        ("s3://street/rec//../b.mp4", "the key is not valid"),
    ],
)
def test_what_is_not_there_is_one_sentence(server: S3Server, address: str, words: str) -> None:
    place = parse_s3(f"{address}?endpoint={server.endpoint}")
    with pytest.raises(ObjectStoreError, match=words):
        list_objects(place) if address.endswith("/") else describe_object(place)


@needs_obstore
def test_refusals_name_no_secret(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = parse_s3(at(server, "rec/b.mp4"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(ObjectStoreError, match="access is forbidden") as refused:
        describe_object(place)
    assert "wrong-secret" not in str(refused.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ObjectStoreError, match="no credentials were found"):
        describe_object(place)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ObjectStoreError, match="cannot be reached"):
        describe_object(parse_s3("s3://street/b.mp4?endpoint=http://127.0.0.1:9&anonymous=true"))


@needs_obstore
def test_a_profile_and_no_signature_at_all_are_enough(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "keys").write_text(f"[street]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "street")
    assert describe_object(parse_s3(at(server, "rec/b.mp4"))).size == 10
    monkeypatch.delenv("AWS_PROFILE")
    server.secret = None
    assert describe_object(parse_s3(at(server, "rec/b.mp4") + "&anonymous=true")).size == 10


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3:///a.mp4", "names no bucket"),
        ("s3://UP_/a.mp4", "names no bucket"),
        ("s3://KEY:hush@street/a.mp4", "credentials do not belong"),
        ("s3://street/a.mp4?endpoint=host:9000", "no web address"),
        ("s3://street/a.mp4?anonymous=maybe", "must be true or false"),
    ],
)
def test_wrong_addresses_are_refused(address: str, words: str) -> None:
    with pytest.raises(SourceAddressError, match=words) as refused:
        parse_s3(address)
    assert "hush" not in str(refused.value)


def test_a_question_mark_may_stand_in_a_key() -> None:
    assert parse_s3("s3://street/what?.mp4").key == "what?.mp4"
    assert parse_s3("s3://street/a?b=c").key == "a?b=c"
    assert redact("s3://street/2026/a.mp4?region=eu") == "s3://street/2026/a.mp4?region=eu"


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "groundstream", "process", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)


@needs_obstore
@pytest.mark.timeout(300)
def test_recordings_in_a_bucket_give_the_results_of_files(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        make_street_clip(tmp_path / f"{name}.mp4", seed, 30)
    objects = {f"day/{name}.mp4": (tmp_path / f"{name}.mp4").read_bytes() for name in "ab"}
    with S3Server({"street": objects}) as server:
        os.environ["AWS_ENDPOINT_URL"] = server.endpoint
        try:
            first = process("s3://street/day/", *MOVING, "--out", tmp_path / "s3", "--json")
            assert first.returncode == 0, first.stderr
            again = process("s3://street/day/", *MOVING, "--out", tmp_path / "s3", "--json")
            assert json.loads(again.stdout)["skipped"] == ["street-day-a.mp4", "street-day-b.mp4"]
            objects["day/a.mp4"] = objects["day/b.mp4"]
            other = process("s3://street/day/", *MOVING, "--out", tmp_path / "s3")
        finally:
            del os.environ["AWS_ENDPOINT_URL"]
        assert other.returncode == 1
        assert "another recording" in other.stdout
        assert SECRET not in first.stdout + first.stderr + other.stdout + other.stderr
    plain = run(tmp_path / "a.mp4", tmp_path / "b.mp4", *MOVING, "--out", tmp_path / "files")
    assert plain.returncode == 0, plain.stderr
    for name in "ab":
        found = (tmp_path / "s3" / f"street-day-{name}.mp4" / "tracks.txt").read_bytes()
        assert found == (tmp_path / "files" / name / "tracks.txt").read_bytes()
        assert found
    assert len(results(tmp_path / "s3")) == 8


def test_a_web_recording_has_the_identity_of_its_version() -> None:
    first = Answer(b"x" * 100, {"ETag": '"one"', "Content-Type": "video/mp4"}, ranges=True)
    second = Answer(b"x" * 100, {"ETag": '"two"', "Content-Type": "video/mp4"}, ranges=True)
    with WebServer({"/a.mp4": first, "/b.mp4": second}) as server:
        place = server.url("/a.mp4")
        before = identify_recording(place)
        assert before == identify_recording(place)
        server.answers["/a.mp4"] = second
        assert identify_recording(place) != before


@needs_obstore
@pytest.mark.anyio
async def test_a_broken_store_ends_a_recording_with_a_sentence(tmp_path: Path) -> None:
    import av
    import numpy as np

    path = tmp_path / "noise.mp4"
    dice = np.random.default_rng(0)
    with av.open(path, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for _ in range(40):
            picture = dice.integers(0, 255, (480, 640, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert len(content) > 6_000_000
    objects = {"a.mp4": content}
    with S3Server({"street": objects}) as server:
        gets: list[str] = []

        def replace(key: str) -> None:
            gets.append(key)
            if len(gets) > 1:
                objects[key] = content + b"0"

        server.before_get = replace
        [source] = open_sources(f"s3://street/a.mp4?endpoint={server.endpoint}")
        frames: list[Frame] = []

        async def read_each() -> None:
            async for frame in source:
                frames.append(frame)  # noqa: PERF401  (those before the error count)

        with pytest.raises(SourceError, match="replaced while it was read"):
            await read_each()
        assert 0 < len(frames) < 40
        await source.aclose()
