"""`process --clips`: the same pictures, clips and events in every run, and a contact sheet that links them."""

from __future__ import annotations

import hashlib
import html
import json
import re
from pathlib import Path

import pytest

from streamer.media.contact_sheet import write_contact_sheet
from streamer.media.folder import MediaFolder
from tests.streamer.test_jobs import make_street_clip, run

pytestmark = pytest.mark.timeout(240)


def media_of(out: Path) -> dict[str, str]:
    files = [path for path in (out / "media").rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_process_stores_pictures_and_clips_and_a_sheet_of_all_tracks(tmp_path: Path):
    make_street_clip(tmp_path / "lane.mp4", 3, 50)
    options = (tmp_path / "lane.mp4", "-q", "anything that moves", "--no-video", "--clips", "--out")
    outs = [tmp_path / "first", tmp_path / "second"]
    for out in outs:
        done = run(*options, out)
        assert done.returncode == 0, done.stderr
    assert media_of(outs[0]) == media_of(outs[1])
    ids = [[json.loads(line)["id"] for line in (out / "events.jsonl").read_text().splitlines()] for out in outs]
    assert ids[0] == ids[1]
    events = [json.loads(line) for line in (outs[0] / "events.jsonl").read_text().splitlines()]
    kinds = {medium["kind"] for event in events for medium in event["data"].get("media") or ()}
    assert kinds == {"snapshot", "crop", "clip"}
    matched = {event["subject"] for event in events if ".match.begin." in event["type"]}
    page = (outs[0] / "tracks.html").read_text()
    links = re.findall(r"(?:src|href)='([^']+)'", page)
    assert page.count("<figure>") == len(matched)
    assert all((outs[0] / link).is_file() for link in links)
    assert {Path(link).suffix for link in links} == {".jpg", ".mp4"}


def test_words_are_text_and_what_has_no_picture_is_counted(tmp_path: Path):
    stored = MediaFolder(tmp_path / "media").store(b"a picture", ".jpg")
    hostile = "<script>alert('x')</script>"
    lines = []
    for number, uid in enumerate(("A", "B"), 1):
        track = {"number": number, "first_seen_ns": 10**9, "last_seen_ns": 92 * 10**9, "score": 0.5}
        matches = [{"text": hostile, "score": 0.75}]
        lines.append({"subject": uid, "data": {"stream": "a<b", "track": track, "matches": matches}})
    crop = {"kind": "crop", "sha256": stored.sha256}
    lines.append({"subject": "A", "data": {"stream": "a<b", "media": [crop]}})
    page = write_contact_sheet(tmp_path, (json.dumps(line) for line in lines)).read_text()
    assert "<script>" not in page
    assert html.escape(hostile) in page
    assert "a&lt;b" in page
    assert "for long enough: 1." in page
    assert "0:00.0 to 1:31.0" in page
    assert page.count("<figure>") == 1
