"""Hostile input for everything that is read from outside: files, cameras, configurations, events, weights, requests.

    python -m benchmarks.fuzz --cases 200 --state fuzz.json
    python -m benchmarks.fuzz --target events --cases 100000 --seconds 180 --state fuzz.json
    python -m benchmarks.fuzz --target containers --case 1234      one case again, with its traceback

Each case is made from a small seed, which code makes, by a few mutations of bytes or of values; its number alone
decides them. It may be accepted, or refused by an error of the family `GroundstreamError`, the only ones that the
command line reports in a sentence. Any other exception, a crash of the interpreter, a case that takes longer than its
limit and a frame that is not accounted for are defects. Cases run in a process of their own. With `--state` a later
call goes on where this one ended, by `--seconds` at the latest. Writes benchmarks/results/fuzz.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from groundstream import GroundstreamError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "fuzz.md"
_MODULE = "from benchmarks import fuzz; fuzz.main()"  # what a process of its own runs
_LIMIT_S = 20.0  # for one case
_START_S = 120.0  # for a process to load what it needs

Outcome = str
"""`accepted`, `refused`, or a defect in a few words."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that reads from outside.

    `make_seeds(folder)` makes its small seeds, by name; `read(name, data, folder)` reads one mutated seed and raises
    what the code raises. `share` of the cases are run, because some are slow. `is_text` mutates values of JSON, too.
    """

    make_seeds: Callable[[Path], dict[str, bytes]]
    read: Callable[[str, bytes, Path], None]
    share: float = 1.0
    is_text: bool = False


class DefectError(Exception):
    """A case that was neither read nor refused as it should."""


# Containers


def _make_containers(folder: Path) -> dict[str, bytes]:
    from tests.support.clips import make_clip

    seeds = {}
    for form in ("mp4", "mkv", "avi", "ts", "flv", "mov"):
        seeds[f"h264.{form}"] = make_clip(folder / f"a.{form}", 8, size=(64, 48), gop=4).read_bytes()
    for codec, form in (("mjpeg", "avi"), ("mpeg4", "mp4"), ("libx265", "mkv"), ("mpeg2video", "ts")):
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        clip = make_clip(folder / f"{codec}.{form}", 8, size=(64, 48), gop=4, codec=codec, pix_fmt=pixels)
        seeds[f"{codec}.{form}"] = clip.read_bytes()
    return seeds


def _read_container(name: str, data: bytes, folder: Path) -> None:
    path = folder / f"case.{name.rpartition('.')[2]}"
    path.write_bytes(data)
    _read_source(str(path))


def _read_source(address: str, limit_s: float | None = None, **options: Any) -> None:
    """Reads a source to its end, an outage or the limit, and checks its account."""
    from streamer.sources import StateChange, open_sources

    async def work() -> None:
        over = asyncio.Event()

        def note(change: StateChange) -> None:
            if change.state.value in ("waiting", "stalled"):
                over.set()

        (source,) = await asyncio.to_thread(open_sources, address, on_state=note, **options)

        async def take() -> None:
            async for frame in source:
                source.account.analyse()
                assert frame.image.shape == (frame.height, frame.width, 3)

        reading = asyncio.create_task(take())
        waiting = asyncio.create_task(over.wait())
        await asyncio.wait([reading, waiting], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            await source.aclose()
            await reading
        finally:
            tally = source.account.tally()
            if tally.received != tally.analysed + sum(tally.dropped.values()):
                raise DefectError(f"frames are not accounted for: {tally}")

    asyncio.run(work())


# RTSP


def _make_conversations(folder: Path) -> dict[str, bytes]:
    """What a camera says, one answer after the other, then its RTP packets; answers are split by their blank lines."""
    from tests.support.clips import make_clip
    from tests.support.rtsp_server import Media

    seeds = {}
    for codec in ("libx264", "libx265"):
        clip = make_clip(folder / f"{codec}.mp4", 6, size=(64, 48), gop=3, codec=codec)
        media = Media.load(clip)
        description = media.sdp().encode()
        answers = [
            b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY\r\n\r\n",
            b"RTSP/1.0 200 OK\r\nCSeq: 2\r\nContent-Type: application/sdp\r\n"
            + f"Content-Length: {len(description)}\r\n\r\n".encode()
            + description,
            b"RTSP/1.0 200 OK\r\nCSeq: 3\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 12\r\n\r\n",
            b"RTSP/1.0 200 OK\r\nCSeq: 4\r\nSession: 12\r\nRange: npt=0-\r\n\r\n",
        ]
        packets, number = b"", 0
        for at, unit in enumerate(media.units):
            payloads = media.payloads((media.parameter_sets if at == 0 else []) + unit)
            for n, payload in enumerate(payloads):
                number += 1
                marker = 0x80 if n == len(payloads) - 1 else 0
                packet = struct.pack(">BBHII", 0x80, 96 | marker, number, 3600 * at, 7) + payload
                packets += struct.pack(">cBH", b"$", 0, len(packet)) + packet
        seeds[codec] = b"\0ANSWER\0".join([*answers, packets])
    return seeds


def _read_conversation(name: str, data: bytes, folder: Path) -> None:
    import socket
    import threading

    parts = data.split(b"\0ANSWER\0")

    def serve(listener: socket.socket) -> None:
        for _ in range(3):  # FFmpeg's connection, and those that ask for the reason of a refusal
            try:
                connection, _peer = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(1.0)
                try:
                    for part in parts[:4]:
                        if not connection.recv(65_536):
                            break
                        connection.sendall(part)
                    connection.sendall(b"".join(parts[4:]))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65_536):
                        pass
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        _read_source(f"rtsp://127.0.0.1:{listener.getsockname()[1]}/cam", 4.0, strict=True, stall_s=1.0)
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


# Web sources


_KEY = b"0123456789abcdef"


@cache
def _segments() -> tuple[bytes, bytes]:
    """A segment of a playlist, plain and encrypted with `_KEY` and the vector 1."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    from tests.support.clips import make_clip

    with tempfile.TemporaryDirectory() as folder:
        plain = make_clip(f"{folder}/a.ts", 8, size=(64, 48), gop=4).read_bytes()
    padding = 16 - len(plain) % 16
    encryptor = Cipher(algorithms.AES(_KEY), modes.CBC((1).to_bytes(16, "big"))).encryptor()
    return plain, encryptor.update(plain + bytes([padding]) * padding) + encryptor.finalize()


def _make_web_answers(folder: Path) -> dict[str, bytes]:
    from tests.support.web_server import jpeg

    part = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n"
    pictures = [jpeg(number) for number in range(3)]
    master = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=90000,RESOLUTION=64x48\nmedia\n"
    key = b'#EXT-X-KEY:METHOD=AES-128,URI="key",IV=0x1\n'
    media = (
        b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:3\n%s#EXT-X-BYTERANGE:%d@0\n#EXTINF:0.3,\n"
        b"segment\n#EXT-X-ENDLIST\n"
    )
    _, encrypted = _segments()
    head = b"Content-Type: %s\r\n\r\n"
    return {
        "multipart": head % b"multipart/x-mixed-replace; boundary=next"
        + b"".join(part % (len(picture), picture) for picture in pictures),
        "snapshot": head % b"image/jpeg" + pictures[0],
        "master": head % b"application/vnd.apple.mpegurl" + master,
        "playlist": head % b"application/vnd.apple.mpegurl" + media % (key, len(encrypted)),
    }


def _read_web_answer(name: str, data: bytes, folder: Path) -> None:
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            plain, encrypted = _segments()
            key = b"#EXT-X-KEY:METHOD=AES-128"
            others = {
                "/key": _KEY,
                "/segment": encrypted if key in data else plain,
                "/media": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:0.3,\nsegment\n#EXT-X-ENDLIST\n",
            }
            body = others.get(self.path)
            head = b"HTTP/1.0 200 OK\r\n" if body is None else b"HTTP/1.0 200 OK\r\n\r\n"
            with suppress(OSError):
                self.wfile.write(head + (data if body is None else body))

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            _read_source(f"http://127.0.0.1:{server.server_address[1]}/x", 0.7, strict=True)
        finally:
            server.shutdown()
            thread.join()


# Texts


def _make_configurations(folder: Path) -> dict[str, bytes]:
    configuration = {
        "streams": [
            {
                "source": "rtsp://camera.example/main",
                "name": "gate",
                "zones": [{"id": "door", "polygon": [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]}],
                "lines": [{"id": "kerb", "points": [[0, 0.5], [1, 0.5]]}],
                "counts": [{"window_s": 10, "of": "door"}],
                "sample": {"fps": 5},
                "clock": {"latency_s": 2},
            }
        ],
        "queries": ["person", {"text": "red car", "threshold": 0.4}],
        "sinks": ["jsonl:events.jsonl?types=track.*", "kafka://127.0.0.1:9092/events"],
        "detector": {"name": "motion", "threshold": 0.3},
        "batch": {"size": 2, "wait_ms": 10},
    }
    yaml = b"streams:\n  - source: a.mp4\n    name: &n gate\n    tls: {}\nqueries: [person, 'dog']\nsinks: []\n# end\n"
    return {"json": json.dumps(configuration).encode(), "yaml": yaml}


def _read_configuration(name: str, data: bytes, folder: Path) -> None:
    from streamer.assembly import check_parts
    from streamer.config import load_config

    path = folder / "watch.yaml"
    path.write_bytes(data)
    check_parts(load_config(path))


def _make_scripts(folder: Path) -> dict[str, bytes]:
    frame = [{"query": "person", "box": [1, 2, 30, 40], "confidence": 0.9}]
    return {
        "list": json.dumps([frame, [], frame]).encode(),
        "streams": json.dumps({"streams": {"*": [frame]}}).encode(),
    }


def _read_script(name: str, data: bytes, folder: Path) -> None:
    import numpy as np

    from detectors import create_detector
    from detectors.detector import Request

    path = folder / "script.json"
    path.write_bytes(data)
    detector = create_detector(f"scripted:{path}")
    prompt = detector.prepare(["person"])
    for _ in range(3):
        detector.detect([Request(np.zeros((48, 64, 3), np.uint8), prompt, "gate")])


def _make_data_sets(folder: Path) -> dict[str, bytes]:
    truth = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48, "caption": "a dog", "neg_category_ids": []}
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [5, 5, 9, 9], "area": 81, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "dog", "frequency": "c"}],
    }
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 21], "score": 0.9}]
    return {"truth": json.dumps(truth).encode(), "results": json.dumps(results).encode()}


def _read_data_set(name: str, data: bytes, folder: Path) -> None:
    from detectors import coco_data, evaluation

    seeds = _make_data_sets(folder)
    seeds[name] = data
    truth, results = folder / "truth.json", folder / "results.json"
    truth.write_bytes(seeds["truth"])
    results.write_bytes(seeds["results"])
    data_set = coco_data.read_data_set(truth)
    found = coco_data.read_results(results, data_set)
    evaluation.coco_score(data_set, found)
    evaluation.lvis_score(data_set, found)


def _make_sequences(folder: Path) -> dict[str, bytes]:
    return {
        "gt.txt": b"1,1,10,10,20,30,1,1,1\n2,1,11,10,20,30,1,1,0.5\n2,2,50,10,20,30,0,7,1\n",
        "tracks.txt": b"1,1,10,10,20,30,1,-1,-1,-1\n2,1,11,10,20,30,0.9,-1,-1,-1\n",
        "seqinfo.ini": b"[Sequence]\nname=S\nframeRate=25\nseqLength=2\nimWidth=640\nimHeight=480\n",
    }


def _read_sequence(name: str, data: bytes, folder: Path) -> None:
    from trackers import evaluation, mot

    seeds = _make_sequences(folder)
    seeds[name] = data
    sequence = folder / "S"
    (sequence / "gt").mkdir(parents=True, exist_ok=True)
    (sequence / "gt" / "gt.txt").write_bytes(seeds["gt.txt"])
    (sequence / "seqinfo.ini").write_bytes(seeds["seqinfo.ini"])
    (folder / "S.txt").write_bytes(seeds["tracks.txt"])
    info = mot.read_info(sequence)
    evaluation.evaluate(
        {"S": evaluation.read_truth(sequence)}, {"S": evaluation.read_tracks(folder / "S.txt")}, {"S": info}
    )


def _make_event_files(folder: Path) -> dict[str, bytes]:
    from sinks.event import EventType
    from tests.sinks.makes import event

    kinds = [EventType.TRACK_BEGIN, EventType.TRACK_END, EventType.STREAM_ONLINE]
    lines = [event(number + 1, kind=kind).to_json() for number, kind in enumerate(kinds)]
    labels = b'{"time_s": 1.5, "type": "line.cross", "place": "kerb", "direction": "in"}\n'
    return {
        "event": lines[0],
        "events": b"\n".join(lines) + b"\n",
        "labels": labels,
    }


def _read_event_file(name: str, data: bytes, folder: Path) -> None:
    from sinks.subscribe import subscribe
    from streamer.tasks.evaluate_events import read_labelled_events, score_events

    path = folder / "events.jsonl"
    path.write_bytes(data)

    async def read_all() -> None:
        async for _ in subscribe(f"jsonl:{path}", since="earliest"):
            pass

    with suppress(GroundstreamError):
        asyncio.run(read_all())
    labels = read_labelled_events(path)
    score_events(labels, labels, 1.0)


# Stored state


def _make_spools(folder: Path) -> dict[str, bytes]:
    from sinks.files import JsonlSink
    from sinks.spool.spool import Spool
    from tests.sinks.makes import event

    path = folder / "spool.db"

    async def fill() -> None:
        async with await Spool.open(path, {"file": JsonlSink(str(folder / "e.jsonl"))}) as spool:
            await spool.send_batch([event(number) for number in range(1, 6)])

    asyncio.run(fill())
    return {"spool": path.read_bytes()}


def _read_spool(name: str, data: bytes, folder: Path) -> None:
    from sinks.files import JsonlSink
    from sinks.spool.spool import Spool
    from tests.sinks.makes import event

    for old in folder.glob("spool.db*"):
        old.unlink()
    path = folder / "spool.db"
    path.write_bytes(data)

    async def use() -> None:
        sinks = {"file": JsonlSink(str(folder / "out.jsonl"))}
        async with await Spool.open(path, sinks, close_timeout_s=2) as spool:
            spool.open_items()
            await spool.begin_run(time.time_ns())
            await spool.send_batch([event(9, stream="other")])
            await spool.drain(1)

    asyncio.run(use())


def _make_checkpoints(folder: Path) -> dict[str, bytes]:
    import torch
    from safetensors.torch import save

    from detectors.glip.config import GLIP_T
    from detectors.glip.modeling.text import TextFeatures
    from detectors.glip.training.tuned_prompt import TunedPrompt

    state = {"backbone.weight": torch.ones(2, 3), "head.bias": torch.zeros(2)}
    torch.save({"model": state}, folder / "a.pth")
    torch.save({"model": state}, folder / "b.pth", _use_new_zipfile_serialization=False)
    text = TextFeatures(torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.int64))
    TunedPrompt(("dog",), ((1,),), text).save(folder / "p.safetensors")
    return {
        "a.safetensors": save(state),
        "a.pth": (folder / "a.pth").read_bytes(),
        "b.pth": (folder / "b.pth").read_bytes(),
        "prompt.safetensors": (folder / "p.safetensors").read_bytes(),
        "config.json": json.dumps(GLIP_T.to_plain()).encode(),
    }


def _read_checkpoint(name: str, data: bytes, folder: Path) -> None:
    from detectors.glip.config import GlipConfig
    from detectors.glip.convert import load_checkpoint
    from detectors.glip.training.tuned_prompt import TunedPrompt

    path = folder / name
    path.unlink(missing_ok=True)  # an earlier one may still be mapped into memory
    path.write_bytes(data)
    if name == "config.json":
        GlipConfig.read(path)
    elif name == "prompt.safetensors":
        TunedPrompt.load(path)
    else:
        load_checkpoint(path)


# The HTTP API


def _make_requests(folder: Path) -> dict[str, bytes]:
    from streamer.web.app import create_app, openapi_document
    from tests.web.rooms import room

    values = {"stream": "gate", "query": "q", "event": "1.gate.1", "uid": "T", "sha256": "0" * 64, "index": "1"}
    seeds = {}
    for path, methods in openapi_document(create_app(room()))["paths"].items():
        for method in methods:
            place = path.replace(":path}", "}")
            for name, value in values.items():
                place = place.replace(f"{{{name}}}", value)
            request = {
                "method": method,
                "path": place,
                "query": {"limit": "5"},
                "body": {"text": "dog", "threshold": 0.3, "zones": [{"id": "z", "polygon": [[0, 0], [1, 0], [1, 1]]}]},
                "headers": {"If-Match": '"1"', "Last-Event-ID": "1.gate.1"},
            }
            if "stream" not in path.rpartition("/")[2] and not path.endswith(("/live", "feed")):
                seeds[f"{method} {path}"] = json.dumps(request).encode()
    return seeds


@cache
def _browser() -> Any:
    from streamer.web.event_store import EventStore
    from tests.web.rooms import OPERATOR, client, event, room

    store = EventStore(None)
    store.add_events([event(number) for number in range(1, 6)])
    return client(room(store), OPERATOR)


def _read_request(name: str, data: bytes, folder: Path) -> None:
    try:
        request = json.loads(data)
        method, path = str(request["method"]), str(request["path"])
        query, headers, body = request["query"], request["headers"], request["body"]
    except (ValueError, KeyError, TypeError, RecursionError):
        method, _, path = name.partition(" ")
        query, headers, body = {}, {}, None
    if method.lower() not in ("get", "post", "put", "patch", "delete"):
        method = "get"
    path = "/" + quote(path.lstrip("/"), safe="/:%", errors="replace")
    content = data if body is None else json.dumps(body).encode(errors="replace")
    plain = {str(k): str(v) for k, v in query.items()} if isinstance(query, dict) else {}
    try:
        sent = {str(k): str(v).encode("latin-1", "replace").decode("latin-1") for k, v in headers.items()}
    except AttributeError:
        sent = {}
    sent = {k: v for k, v in sent.items() if k in ("If-Match", "Last-Event-ID") and v.isprintable()}
    import httpx

    try:
        with _browser().stream(method, path, params=plain, content=content, headers=sent) as answer:
            status = answer.status_code
    except (httpx.InvalidURL, UnicodeError):
        return  # the client refuses to send it
    if status >= 500:
        raise DefectError(f"{method} {path[:80]} answers {status}")
    if status >= 400:
        raise GroundstreamError(f"status {status}")


TARGETS = {
    "containers": Target(_make_containers, _read_container),
    "rtsp": Target(_make_conversations, _read_conversation, share=0.2),
    "web sources": Target(_make_web_answers, _read_web_answer, share=0.2),
    "configuration": Target(_make_configurations, _read_configuration, is_text=True),
    "scripted": Target(_make_scripts, _read_script, is_text=True),
    "data sets": Target(_make_data_sets, _read_data_set, is_text=True),
    "sequences": Target(_make_sequences, _read_sequence),
    "events": Target(_make_event_files, _read_event_file, is_text=True),
    "spool": Target(_make_spools, _read_spool),
    "checkpoints": Target(_make_checkpoints, _read_checkpoint, is_text=True),
    "http": Target(_make_requests, _read_request, is_text=True),
}


# Mutations

_STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, float("inf"), float("nan"), 0.5, -0.0),
    *("", "x", "\0", "\ud800", "ä" * 300, "../../etc/passwd", "1e999", "${HOME}", "\x1b[2J", "&a [*a]"),
    *([], {}, [[]], [0], {"": 0}, [None, {}], {"a": {"b": []}}),
)


def mutate(data: bytes, dice: random.Random, *, is_text: bool) -> bytes:
    """A few changes of bytes, or, in three of four texts that are JSON, of values."""
    if is_text and dice.random() < 0.75:
        try:
            value = json.loads(data)
        except ValueError:
            pass
        else:
            with suppress(RecursionError):  # a part that was put into itself: bytes are changed instead
                for _ in range(dice.randint(1, 3)):
                    value = _mutate_value(value, dice)
                return json.dumps(value, ensure_ascii=dice.random() < 0.5).encode(errors="surrogatepass")
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        data = _mutate_bytes(data, dice)
    return data


def _mutate_value(value: Any, dice: random.Random) -> Any:
    places = list(_places(value))
    if not places:
        return dice.choice(_STRANGE)
    parent, key = dice.choice(places)
    action = dice.randrange(6)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[dice.choice(["", "id", "source", "x" * 300, str(key).upper()])] = parent.pop(key)
    elif action == 2 and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif action == 3:
        parent[key] = _nested(dice.choice((3, 50, 400)))
    elif action == 4:
        other = dice.choice(places)
        parent[key] = json.loads(json.dumps(other[0][other[1]])) if other[0] is not parent else other[0][other[1]]
    else:
        parent[key] = dice.choice(_STRANGE)
    return value


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    """Each container of a JSON value with each of its keys."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    if not data:
        return dice.randbytes(dice.randint(0, 40))
    at = dice.randrange(len(data))
    length = min(len(data) - at, int(dice.expovariate(1 / 20)) + 1)
    action = dice.randrange(8)
    if action == 0:
        return data[:at]
    if action == 1:
        return data[:at] + data[at + length :]
    if action == 2:
        return data[:at] + bytes(length) + data[at + length :]
    if action == 3:
        return data[:at] + dice.randbytes(length) + data[at:]
    if action == 4:
        return data[:at] + data[at : at + length] * dice.choice((2, 3, 50)) + data[at + length :]
    if action == 5:
        return data[:at] + dice.choice((b"\xff", b"\x00", b"\x7f", b"\x80")) * length + data[at + length :]
    if action == 6:
        return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
    return data[:at] + dice.randbytes(length) + data[at + length :]


# Running


def run_case(name: str, number: int, seeds: dict[str, bytes], folder: Path) -> Outcome:
    """Runs one case. A defect's traceback goes to standard error."""
    target = TARGETS[name]
    dice = random.Random(f"{name} {number}")
    seed = dice.choice(sorted(seeds))
    data = mutate(seeds[seed], dice, is_text=target.is_text) if number else seeds[seed]
    try:
        target.read(seed, data, folder)
    except GroundstreamError as error:
        text = str(error)
        return "refused" if text and "\x1b" not in text else f"refused without a sentence: {text!r:.80}"
    except (Exception, SystemExit) as error:
        if os.environ.get("GROUNDSTREAM_FUZZ_TRACE"):
            raise
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        where = "" if last is None else f" at {Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}"
        return f"{type(error).__name__}{where}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    return "accepted"


@cache
def _seeds(name: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return TARGETS[name].make_seeds(Path(folder))


def run_cases(name: str, numbers: Iterable[int], folder: Path) -> Counter[Outcome]:
    """Runs cases in this process; what they did, by outcome. Unlike `fuzz`, a crash or a hang ends it."""
    seeds = _seeds(name)
    return Counter(run_case(name, number, seeds, folder) for number in numbers)


@dataclass
class State:
    """How far each target is, and what was found; kept in a file between calls."""

    done: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    defects: dict[str, dict[str, int]] = field(default_factory=dict)  # target, defect: number of its first case
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None) -> State:
        return cls(**json.loads(path.read_text())) if path is not None and path.exists() else cls()

    def save(self, path: Path | None) -> None:
        if path is not None:
            beside = path.with_name(path.name + ".new")
            beside.write_text(json.dumps(vars(self), indent=1))
            beside.replace(path)

    def note(self, name: str, number: int, outcome: Outcome) -> None:
        self.done[name] = number + 1
        kind = outcome if outcome in ("accepted", "refused") else "defect"
        counts = self.outcomes.setdefault(name, {})
        counts[kind] = counts.get(kind, 0) + 1
        if kind == "defect":
            self.defects.setdefault(name, {}).setdefault(outcome, number)


def fuzz(names: Sequence[str], cases: int, state: State, path: Path | None, limit_s: float | None = None) -> None:
    """Runs `cases` further cases of each target, its share of them, in processes of their own; at most `limit_s`
    seconds in all."""
    until = None if limit_s is None else time.monotonic() + limit_s
    for name in names:
        first = state.done.get(name, 0)
        end = first + max(1, round(cases * TARGETS[name].share))
        began = time.monotonic()
        while first < end and not _is_past(until):
            first = _run_process(name, first, end, state, until)
            state.save(path)
        state.seconds[name] = state.seconds.get(name, 0.0) + time.monotonic() - began
        print(f"{name}: {state.outcomes.get(name, {})}, {state.seconds[name]:.0f} s", file=sys.stderr)
    state.save(path)


def _is_past(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until


def _run_process(name: str, first: int, end: int, state: State, until: float | None) -> int:
    """Runs cases in a new process until the end, the time limit, or until one of them ends it; returns the next
    number."""
    command = [sys.executable, "-c", _MODULE, "--worker", name, str(first), str(end)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, bufsize=0) as process,
        closing(selectors.DefaultSelector()) as selector,
    ):
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        number, waiting, limit_s, end_cause = first, b"", _START_S, ""
        while True:
            if not selector.select(limit_s):
                process.kill()
                end_cause = f"took longer than {limit_s:g} s"
                break
            data = os.read(process.stdout.fileno(), 65_536)
            if not data:
                break
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                if line == b"ready":
                    limit_s = _LIMIT_S
                    continue
                state.note(name, number, json.loads(line))
                number += 1
            if _is_past(until):
                process.kill()
                process.wait()
                return number
        code = process.wait()
        if number < end:
            if limit_s == _START_S:
                errors.seek(0)
                raise RuntimeError(
                    f"{name}: the process did not start: {errors.read()[-2000:].decode(errors='replace')}"
                )
            cause = end_cause or (f"crash by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}")
            state.note(name, number, cause)
            number += 1
    return number


def work(name: str, first: int, end: int) -> None:
    """Body of a process: one line of JSON for each case on standard output."""
    import resource
    import warnings

    resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))  # a case that asks for more gets MemoryError
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    seeds = _seeds(name)
    out.write(b"ready\n")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, end):
            out.write(json.dumps(run_case(name, number, seeds, Path(folder))).encode() + b"\n")
    out.close()
    os._exit(0)  # threads that a case left in the network are none of its business


def write_report(state: State, asked: str) -> str:
    """The results as Markdown."""
    rows, defects = [], []
    for name in TARGETS:
        counts = state.outcomes.get(name, {})
        figures = [counts.get(kind, 0) for kind in ("accepted", "refused", "defect")]
        rate = sum(figures) / state.seconds[name] if state.seconds.get(name) else 0
        rows.append(f"| {name} | {sum(figures):,} | {figures[0]:,} | {figures[1]:,} | {figures[2]:,} | {rate:.0f} |")
        defects += [f"| {name} | {number} | `{text}` |" for text, number in state.defects.get(name, {}).items()]
    total = sum(sum(counts.values()) for counts in state.outcomes.values())
    found = "No defect was found.\n"
    if defects:
        found = "\n".join(["| target | first case | defect |", "| --- | --: | --- |", *defects, ""])
    return (
        f"# Hostile input\n\n`python -m benchmarks.fuzz {asked}`: {total:,} cases in all, those of earlier calls with "
        "the same state included.\n\n| target | cases | accepted | refused in a sentence | defects | cases a second |\n"
        "| --- | --: | --: | --: | --: | --: |\n" + "\n".join(rows) + f"\n\n{found}"
    )


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; repeatable")
    parser.add_argument("--cases", type=int, default=200, help="further cases of each target, times its share")
    parser.add_argument("--state", type=Path, help="file that says how far earlier calls came")
    parser.add_argument("--seconds", type=float, help="stop after so long; `--state` keeps what was done")
    parser.add_argument("--case", type=int, help="run this case alone, in this process")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.case is not None:
        os.environ["GROUNDSTREAM_FUZZ_TRACE"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                print(name, options.case, run_case(name, options.case, _seeds(name), Path(folder)))
        return
    state = State.load(options.state)
    fuzz(names, options.cases, state, options.state, options.seconds)
    RESULTS.write_text(write_report(state, f"--cases {options.cases}"))
    print(RESULTS.read_text())
    sys.exit(bool(state.defects))


if __name__ == "__main__":
    main()
