"""Cameras for measurements: a process that sends a recording over HTTP in real time, again and again.

`python -m streamer.sources.loop_camera VIDEO SECONDS` prints its port and serves any number of clients at any path, as
an MPEG transport stream, until its standard input is closed. Each client gets SECONDS of video that starts at a key
picture, then the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import av

from streamer.frame import Frame

_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\nConnection: close\r\n\r\n"


@contextmanager
def serve_recording(video: str, duration_s: float) -> Iterator[str]:
    """Serves `video` in a process of its own; yields the address, to which any path may be appended."""
    command = [sys.executable, "-P", "-m", "streamer.sources.loop_camera", video, str(duration_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def encode_as_camera(path: str, frames: Iterable[Frame], size: tuple[int, int], fps: float) -> None:
    """Write `frames` as a camera would send them: H.264 without B pictures, a key picture every second."""
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(path, "w", format="mp4") as container:
        options = {"preset": "veryfast", "crf": "25", "bf": "0", "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = max(1, round(fps))
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame.image, format="bgr24")
            picture.time_base = 1 / rate
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def cut_stream(video: str, duration_s: float) -> tuple[list[bytes], float]:
    """`video` repeated to `duration_s` as a transport stream: the bytes of each picture, and pictures a second."""
    with av.open(video) as source:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.dts is not None]
        fps = float(stream.average_rate or 25)
        base = stream.time_base or Fraction(1, 90_000)
        loop_ticks = round(len(packets) / fps / base)
        times = [(packet.pts, packet.dts) for packet in packets]
        output = io.BytesIO()
        pieces = []
        with av.open(output, "w", format="mpegts", options={"flush_packets": "1"}) as target:
            copy = target.add_stream_from_template(stream)
            for number in range(max(1, round(duration_s * fps))):
                loop, place = divmod(number, len(packets))
                packet, (pts, dts) = packets[place], times[place]
                packet.pts = None if pts is None else pts + loop * loop_ticks
                packet.dts = None if dts is None else dts + loop * loop_ticks
                packet.stream = copy
                packet.time_base = base
                target.mux(packet)
                pieces.append(output.getvalue())
                output.seek(0)
                output.truncate()
    return pieces, fps


async def _send(pieces: list[bytes], fps: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_HEAD)
        start = time.monotonic()
        for number, piece in enumerate(pieces):
            await asyncio.sleep(max(0.0, start + number / fps - time.monotonic()))
            writer.write(piece)
            await writer.drain()
    writer.close()


async def _serve(pieces: list[bytes], fps: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _send(pieces, fps, reader, writer)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # cuts all connections


def main() -> None:
    """Serve until standard input is closed."""
    video, duration_s = sys.argv[1:]
    asyncio.run(_serve(*cut_stream(video, float(duration_s))))


if __name__ == "__main__":
    main()
