"""Pictures and clips of events in a bucket: stored, shown, removed by age and size, counted when they are refused."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from streamer.build import open_media, open_pipeline
from streamer.config import Config
from streamer.errors import ConfigError
from streamer.media.bucket import MediaBucket
from streamer.media.snapshots import SnapshotWriter
from streamer.object_store import ObjectStoreError, parse_s3
from streamer.spooling import media_store
from streamer.web.event_store import EventStore, StoreSink
from tests.streamer.test_snapshots import run_painted
from tests.support.clips import make_clip
from tests.support.fakes import FakeDetector
from tests.support.s3_server import S3Server, environment
from tests.web.rooms import client, room

needs_obstore = pytest.mark.skipif(find_spec("obstore") is None, reason="needs obstore: pip install 'groundstream[s3]'")
pytestmark = [needs_obstore, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server({"media": {"gate/readme.txt": b"not ours"}}) as server:
        yield server


def bucket(server: S3Server, tmp_path: Path, folder: str = "gate", **limits) -> MediaBucket:
    address = f"s3://media/{folder}?endpoint={server.endpoint}"
    return MediaBucket(parse_s3(address), tmp_path / "cache", **limits)


def test_a_medium_is_stored_once_by_its_content_and_found_again(server, tmp_path):
    stored = [bucket(server, tmp_path).store(b"a clip", ".mp4") for _ in range(2)]
    sha256 = hashlib.sha256(b"a clip").hexdigest()
    key = f"gate/{sha256[:2]}/{sha256}.mp4"
    assert stored[0] == stored[1]
    assert server.buckets["media"][key] == b"a clip"
    parts = urlsplit(stored[0].uri)
    assert (parts.netloc, parts.path, dict(parse_qsl(parts.query))) == (
        "media",
        f"/{key}",
        {"endpoint": server.endpoint},
    )
    found = bucket(server, tmp_path).find(sha256)
    assert (found.path.read_bytes(), found.media_type) == (b"a clip", "video/mp4")
    server.buckets["media"].clear()
    assert bucket(server, tmp_path).find(sha256).path == found.path  # from the cache
    assert bucket(server, tmp_path).find("0" * 64) is None
    assert bucket(server, tmp_path).find("../" + "0" * 61) is None


def test_content_that_is_not_that_of_its_name_is_refused(server, tmp_path):
    sha256 = bucket(server, tmp_path).store(b"a picture", ".jpg").sha256
    server.buckets["media"][f"gate/{sha256[:2]}/{sha256}.jpg"] = b"another"
    with pytest.raises(ObjectStoreError, match="was changed"):
        bucket(server, tmp_path).find(sha256)


def test_what_is_too_old_or_too_much_is_removed_and_nothing_else(server, tmp_path):
    folder = bucket(server, tmp_path, max_age_s=3600, max_bytes=3000)
    names = [
        f"gate/{digest[:2]}/{digest}.jpg"
        for digest in (folder.store(bytes([n]) * 1000, ".jpg").sha256 for n in range(5))
    ]
    now = datetime.now(UTC)
    for age_minutes, name in zip((100, 30, 20, 10, 1), names, strict=True):
        server.modified[name] = now - timedelta(minutes=age_minutes)
    assert folder.remove_expired() == 3  # one by its age; two of four, so that nine tenths of 3000 bytes stay
    assert sorted(server.buckets["media"]) == sorted(["gate/readme.txt", *names[3:]])
    assert folder.remove_expired() == 0  # not listed again so soon


def test_pictures_of_a_run_are_in_the_bucket_and_those_that_it_refuses_are_counted(server, tmp_path):
    writer = SnapshotWriter(bucket(server, tmp_path))
    media = [one for event in run_painted(writer).sink.events for one in event.data.media or ()]
    assert media
    for medium in media:
        key = urlsplit(medium.uri).path.lstrip("/")
        assert hashlib.sha256(server.buckets["media"][key]).hexdigest() == medium.sha256
    del server.buckets["media"]
    writer = SnapshotWriter(bucket(server, tmp_path))
    events = run_painted(writer).sink.events
    assert [one for event in events for one in event.data.media or ()] == []
    tally = writer.tally()
    assert tally.written == 0
    assert tally.asked == sum(tally.dropped.values()) > 0
    assert tally.dropped["error"] > 0


def test_clips_and_pictures_of_a_monitor_go_to_the_bucket_and_the_page_serves_them(server, tmp_path):
    raw = {
        "streams": [
            {"source": str(make_clip(tmp_path / "gate.mp4", 150)), "name": "gate", "queries": ["a cat"]},
        ],
        "media": {"folder": f"s3://media/cams?endpoint={server.endpoint}", "clips": {"before_s": 1, "after_s": 1}},
        "sinks": [],
    }
    config = Config.model_validate(raw)
    store = EventStore(None)

    async def go() -> None:
        sinks = {"web": StoreSink(store)}
        async with open_pipeline(
            config, spool_path=tmp_path / "spool", detector=FakeDetector(), more_sinks=sinks
        ) as pipeline:
            await pipeline.run()

    asyncio.run(go())
    with client(room(store, media=[media_store(config)])) as browser:
        items = browser.get("/api/v1/events?type=match.begin").json()["items"]
        kinds = {medium["kind"] for item in items for medium in item["data"]["media"]}
        assert kinds == {"snapshot", "crop", "clip"}
        part = browser.get(f"/api/v1/events/{items[0]['id']}/clip.mp4", headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        picture = browser.get(f"/api/v1/events/{items[0]['id']}/snapshot.jpg")
        assert picture.content[:2] == b"\xff\xd8"
        del server.buckets["media"]
        gone = browser.get(f"/api/v1/media/{'ab' * 32}")
        assert gone.status_code == 503
        assert "there is no bucket media" in gone.json()["detail"]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("s3://", "names no bucket"),
        ("s3://AK:secret@media/x", "credentials do not belong"),
        ("gs://media/x", "expected a folder or s3://"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence_without_secrets(folder, words):
    with pytest.raises(ValueError, match=words) as caught:
        Config.model_validate({"streams": [{"source": "a.mp4"}], "queries": ["x"], "media": {"folder": folder}})
    assert "secret" not in str(caught.value).split("input_value")[0]


def test_without_obstore_the_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    config = Config.model_validate(
        {"streams": [{"source": "a.mp4"}], "queries": ["x"], "media": {"folder": "s3://media/x"}}
    )
    with pytest.raises(ConfigError, match=r"groundstream\[s3\]"):
        open_media(config)
