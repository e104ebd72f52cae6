"""Cost of the page: CPU for each viewer, age of pictures, time from event to client, first byte, frames analysed.

    python -m benchmarks.web [--seconds 8] [--cameras 4]

Coded frames of 640x384 are played into the live pictures of one process, viewers are WebSocket clients of another that
acknowledge each picture at once. CPU is that of the serving process above idle, in percent of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import subprocess
import sys
import time
import urllib.request
from statistics import median

import psutil
import websockets

from sinks.event import EventType
from streamer.config import WebConfig
from streamer.web.event_store import EventStore
from streamer.web.live_frames import LiveFrames
from streamer.web.server import WebServerThread
from tests.web.coded_camera import CodedCameras
from tests.web.rooms import VIEWER, event, room

FPS = 10.0
HEADERS = {"Authorization": f"Bearer {VIEWER}"}


async def view_all(url: str, names: list[str], viewers: int, seconds: float) -> None:
    """Watches all cameras with some viewers; prints a line when they are connected, then ages in ms and bytes."""
    connected = 0

    async def view() -> tuple[list[float], int]:
        nonlocal connected
        ages: list[float] = []
        received = 0
        async with websockets.connect(url.replace("http", "ws") + "api/v1/live", additional_headers=HEADERS) as socket:
            wishes = {name: {"width": 640, "fps": 60} for name in names}
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


def measure_viewers(url: str, names: list[str], viewers: int, seconds: float) -> dict[str, float]:
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


def main() -> None:
    """Prints one line of JSON for each measurement."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--cameras", type=int, default=4)
    options.add_argument("--view", nargs="+", metavar="URL CAMERA", help=argparse.SUPPRESS)
    options.add_argument("--viewers", type=int, default=1, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.view is not None:
        asyncio.run(view_all(given.view[0], given.view[1:], given.viewers, given.seconds))
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
    finally:
        server.stop()
        frames.close()


if __name__ == "__main__":
    main()
