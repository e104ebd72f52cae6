"""Cost of the page: CPU for each viewer, age of pictures, time from event to client, first byte, frames analysed.

    python -m benchmarks.web [--seconds 8] [--cameras 4] [--memory-s 120]

Coded frames of 640x384 are played into the live pictures of one process, viewers are WebSocket clients of another that
acknowledge each picture at once. CPU is that of the serving process above idle, in percent of one core. Throughput is
that of a whole pipeline on a synthetic camera that is faster than it, in frames analysed a second, interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import supervision as sv
import websockets

from sinks.event import EventType
from streamer.build import open_pipeline
from streamer.config import WebConfig, parse_config
from streamer.pipeline.pipeline import Pipeline
from streamer.web.config_document import ConfigDocument
from streamer.web.event_store import EventStore
from streamer.web.live_frames import LiveFrames
from streamer.web.server import WebRoom, WebServerThread
from tests.support.fakes import FakeDetector
from tests.web.coded_camera import CodedCameras
from tests.web.rooms import OPERATOR, VIEWER, event, room

FPS = 10.0
HEADERS = {"Authorization": f"Bearer {VIEWER}"}


async def view_all(url: str, names: list[str], viewers: int, seconds: float, fps: float) -> None:
    """Watches all cameras with some viewers; prints a line when they are connected, then ages in ms and bytes."""
    connected = 0

    async def view() -> tuple[list[float], int]:
        nonlocal connected
        ages: list[float] = []
        received = 0
        async with websockets.connect(url.replace("http", "ws") + "api/v1/live", additional_headers=HEADERS) as socket:
            wishes = {name: {"width": 640, "fps": fps} for name in names}
            await socket.send(json.dumps({"op": "watch", "streams": wishes}))
            connected += 1
            if connected == viewers:
                print("connected", flush=True)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                message = await asyncio.wait_for(socket.recv(), 10)
                if isinstance(message, bytes):
                    (length,) = struct.unpack_from("<I", message)
                    header = json.loads(message[4 : 4 + length])
                    ages.append(time.time() * 1000 - header["time"])
                    received += len(message)
                    await socket.send('{"op":"ack","count":1}')
        return ages, received

    print(json.dumps(await asyncio.gather(*(view() for _ in range(viewers)))), flush=True)


def measure_viewers(url: str, names: list[str], viewers: int, seconds: float, fps: float = 60) -> dict[str, float]:
    """CPU of this process, pictures, ages and bytes with some viewers in a process of their own."""
    process = None
    if viewers:
        command = [
            sys.executable,
            __file__,
            "--view",
            url,
            *names,
            "--viewers",
            str(viewers),
            "--seconds",
            str(seconds),
            "--fps",
            str(fps),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
    mine = psutil.Process()
    before, began = sum(mine.cpu_times()[:2]), time.monotonic()
    time.sleep(seconds - 1.0)
    cpu = (sum(mine.cpu_times()[:2]) - before) / (time.monotonic() - began) * 100
    figures = {"viewers": viewers, "cpu_percent": round(cpu, 1)}
    if process is not None:
        found = json.loads(process.communicate(timeout=60)[0])
        ages = sorted(age for each, _ in found for age in each)
        figures |= {
            "pictures_s": round(len(ages) / viewers / seconds, 1),
            "age_ms_median": round(median(ages), 1),
            "age_ms_p95": round(ages[int(len(ages) * 0.95)], 1),
            "mbit_s_viewer": round(sum(size for _, size in found) * 8 / seconds / viewers / 1e6, 2),
        }
    return figures


def measure_event(url: str, store: EventStore, count: int = 20) -> float:
    """Median milliseconds from storing an event to its arrival at a client of the feed."""
    request = urllib.request.Request(f"{url}api/v1/events/stream", headers=HEADERS)
    delays = []
    with urllib.request.urlopen(request, timeout=20) as feed:
        feed.readline()
        for number in range(1, count + 1):
            began = time.monotonic()
            store.add_events([event(number, EventType.TRACK_BEGIN)])
            while not feed.readline().startswith(b"data:"):
                pass
            delays.append((time.monotonic() - began) * 1000)
    return round(median(delays), 1)


def measure_first_byte(url: str, count: int = 20) -> float:
    """Median milliseconds until the first byte of the page."""
    delays = []
    for _ in range(count):
        began = time.monotonic()
        with urllib.request.urlopen(url, timeout=20) as page:
            page.read(1)
        delays.append((time.monotonic() - began) * 1000)
    return round(median(delays), 1)


def measure_memory(url: str, frames: LiveFrames, seconds: float) -> dict[str, float]:
    """Megabytes of this process with nine cameras and four viewers, after a quarter of the time and at the end."""
    names = [f"lot{number}" for number in range(9)]
    with CodedCameras(frames, names, FPS):
        sizes = []
        for share in (0.25, 0.75):
            measure_viewers(url, names, 4, seconds * share)
            sizes.append(round(psutil.Process().memory_info().rss / 1e6))
    return {"cameras": 9, "viewers": 4, "seconds": seconds, "memory_mb_quarter": sizes[0], "memory_mb_end": sizes[1]}


@contextlib.asynccontextmanager
async def running_monitor(
    fps: float, find: Callable[[Any], sv.Detections] | None = None
) -> AsyncIterator[tuple[str, Pipeline]]:
    """The address of a monitor of one synthetic camera with a detector that costs nothing, and its pipeline."""
    source = f"synthetic:street?seed=5&fps={fps:g}&size=640x384&live=1"
    config = parse_config(
        {
            "streams": [{"source": source, "name": "gate"}],
            "queries": ["a person"],
            "sinks": [],
            "web": {"port": 0, "tokens": {"viewer": VIEWER, "operator": OPERATOR}},
        }
    )
    assert config.web is not None
    with tempfile.TemporaryDirectory() as folder:
        room = WebRoom(config.web, Path(folder), ConfigDocument(None, Path(folder) / "overrides.yaml", config))
        async with open_pipeline(
            config, detector=FakeDetector(find), more_sinks=room.sinks(), recorders=room.recorders
        ) as pipeline:
            task = asyncio.create_task(pipeline.run())
            async with room.serve(pipeline) as address:
                yield address.url, pipeline
            await pipeline.stop()
            await task
        room.close()


def find_passer(_: object) -> sv.Detections:
    """A box that is there for a second and away for a second, at another place each time."""
    now = time.monotonic()
    if int(now) % 2:
        return sv.Detections.empty()
    left = int(now / 2) % 5 * 110.0
    boxes = np.array([[left, 100.0, left + 60, 250.0]], np.float32)
    return sv.Detections(boxes, confidence=np.array([0.9]), class_id=np.array([0]))


async def measure_frame_to_event(seconds: float) -> dict[str, float]:
    """Milliseconds from the capture of the frame that decided an event to its arrival at a page's socket."""
    delays: list[float] = []
    async with (
        running_monitor(10, find_passer) as (url, _),
        websockets.connect(url.replace("http", "ws") + "api/v1/live", additional_headers=HEADERS) as socket,
    ):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    message = json.loads(await socket.recv())
                    if message["type"] == "event" and "track" in message["event"]["data"]:
                        captured_ns = message["event"]["data"]["clock"]["captured_ns"]
                        delays.append((time.time_ns() - captured_ns) / 1e6)
    delays.sort()
    return {
        "events": len(delays),
        "frame_to_page_ms_median": round(median(delays), 1),
        "frame_to_page_ms_p95": round(delays[int(len(delays) * 0.95)], 1),
    }


async def measure_throughput(seconds: float, rounds: int = 4) -> dict[str, float]:
    """Frames analysed a second, and CPU of the monitor for each (ms), with 0, 1 and 10 viewers: medians of interleaved
    rounds on a camera that is faster than the pipeline."""
    rates: dict[int, list[float]] = {0: [], 1: [], 10: []}
    costs: dict[int, list[float]] = {0: [], 1: [], 10: []}
    mine = psutil.Process()
    async with running_monitor(400) as (url, pipeline):
        await asyncio.sleep(seconds / 2)
        for _ in range(rounds):
            for viewers in rates:
                watching = asyncio.create_task(
                    asyncio.to_thread(measure_viewers, url, ["gate"], viewers, seconds + 3.0, fps=15)
                )
                await asyncio.sleep(2.0)  # until they are connected
                before, began = pipeline.report()[0].tally.analysed, time.monotonic()
                cpu = sum(mine.cpu_times()[:2])
                await asyncio.sleep(seconds)
                frames = pipeline.report()[0].tally.analysed - before
                rates[viewers].append(frames / (time.monotonic() - began))
                costs[viewers].append((sum(mine.cpu_times()[:2]) - cpu) * 1000 / frames)
                await watching
    found = {f"analysed_s_{viewers}_viewers": round(median(values), 1) for viewers, values in rates.items()}
    return found | {f"cpu_ms_frame_{viewers}_viewers": round(median(values), 3) for viewers, values in costs.items()}


def main() -> None:
    """Prints one line of JSON for each measurement."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--cameras", type=int, default=4)
    options.add_argument("--memory-s", type=float, default=0.0, help="also memory with 9 cameras and 4 viewers")
    options.add_argument("--view", nargs="+", metavar="URL CAMERA", help=argparse.SUPPRESS)
    options.add_argument("--viewers", type=int, default=1, help=argparse.SUPPRESS)
    options.add_argument("--fps", type=float, default=60.0, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.view is not None:
        asyncio.run(view_all(given.view[0], given.view[1:], given.viewers, given.seconds, given.fps))
        return
    names = [f"cam{number}" for number in range(given.cameras)]
    frames, store = LiveFrames(), EventStore(None)
    server = WebServerThread(room(store, WebConfig(port=0), frames=frames))
    server.start()
    try:
        url = server.address.url
        print(json.dumps({"first_byte_ms": measure_first_byte(url), "event_to_client_ms": measure_event(url, store)}))
        with CodedCameras(frames, names, FPS):
            for viewers in (0, 1, 4):
                print(json.dumps({"cameras": given.cameras, **measure_viewers(url, names, viewers, given.seconds)}))
            megabytes = psutil.Process().memory_info().rss / 1e6
            print(json.dumps({"cameras": given.cameras, "memory_mb": round(megabytes)}))
        if given.memory_s:
            print(json.dumps(measure_memory(url, frames, given.memory_s)))
    finally:
        server.stop()
        frames.close()
    print(json.dumps(asyncio.run(measure_frame_to_event(given.seconds))))
    print(json.dumps(asyncio.run(measure_throughput(given.seconds))))


if __name__ == "__main__":
    main()
