"""Mutated real streams: whatever arrives, a source stays alive and accounts for every packet.

A few dozen mutations here; GROUNDSTREAM_FUZZ sets another number for each kind of stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from streamer.errors import SourceError
from streamer.sources import open_sources
from streamer.sources.decode import DecodeError
from streamer.sources.nal_units import UnitLayout
from tests.streamer.test_live_sources import Watch, run
from tests.support.packets import encode_pictures, write_packets
from tests.support.rtsp_server import RtspServer
from tests.support.web_server import Answer, WebServer

ROUNDS = int(os.environ.get("GROUNDSTREAM_FUZZ", "12"))
CODECS = {"h264": "libx264", "h265": "libx265", "mjpeg": "mjpeg"}
KINDS = [(form, codec) for codec in CODECS for form in ("ts", "flv", "mkv", "mp4", "avi")]
KINDS = [kind for kind in KINDS if kind not in (("ts", "mjpeg"), ("flv", "mjpeg"), ("avi", "h265"))]


def mutate(data: bytes, chance: random.Random, spare: int = 0) -> bytes:
    """Bytes cut out, zeroed, inserted or exchanged at a random place behind the first `spare`."""
    if len(data) <= spare:
        return data
    start = chance.randrange(spare, len(data))
    length = min(len(data) - start, int(chance.expovariate(1 / 40)) + 1)
    replacement = chance.choice(
        [b"", bytes(length), chance.randbytes(length), data[start : start + length] + chance.randbytes(length)]
    )
    return data[:start] + replacement + data[start + length :]


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    made = {}
    for codec, encoder in CODECS.items():
        packets = encode_pictures(30, codec=encoder, size=(160, 128))
        for form, kind in KINDS:
            if kind == codec:
                path = folder / f"{codec}.{form}"
                made[form, codec] = write_packets(path, packets, codec=encoder, size=(160, 128))
    return made


def packet_counts(path: Path) -> tuple[int, int] | None:
    """Packets with a slice and all packets that FFmpeg finds; None where it cannot open the file or fails amid it."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            (stream,) = container.streams.video
            if stream.codec_context is None:  # no decoder for what the damage has made of it
                return None
            name = stream.codec_context.name
            layout = UnitLayout(name, stream.codec_context.extradata) if name in ("h264", "hevc") else None
            packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    except (DecodeError, ValueError):
        return None
    return sum(layout is None or layout.holds_slice(packet) for packet in packets), len(packets)


@pytest.mark.parametrize("kind", KINDS, ids=["-".join(kind) for kind in KINDS])
def test_a_mutated_recording_ends_in_order_and_every_packet_is_counted(
    tmp_path: Path, streams: dict[tuple[str, str], Path], kind: tuple[str, str]
) -> None:
    data = streams[kind].read_bytes()
    for seed in range(ROUNDS):
        chance = random.Random(f"{kind} {seed}")
        changed = data
        for _ in range(chance.randint(1, 6)):
            changed = mutate(changed, chance)
        path = tmp_path / f"changed.{kind[0]}"
        path.write_bytes(changed)
        (source,) = open_sources(str(path))

        async def work() -> None:
            async for frame in source:  # noqa: B023
                assert frame.image.shape == (frame.height, frame.width, 3)
                source.account.analyse()  # noqa: B023

        with contextlib.suppress(SourceError):  # any other error is a defect
            asyncio.run(work())
        tally = source.account.tally()
        assert tally.pending == 0
        if (counts := packet_counts(path)) is not None:
            # Damage may join two pictures in one packet; FFmpeg gives both.
            assert counts[0] <= tally.received <= counts[1] + 2, (kind, seed)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_camera_that_sends_mutated_units_is_watched_on(
    streams: dict[tuple[str, str], Path], codec: str, transport: Any
) -> None:
    chance = random.Random(5)
    changed = 0

    def change(unit: bytes) -> bytes:
        nonlocal changed
        if chance.random() < 0.3:
            changed += 1
            return mutate(unit, chance)
        return unit

    async def work() -> None:
        with RtspServer({"cam": streams["mp4", codec]}) as server:
            async with Watch(server.url(), transport=transport) as watch:
                await watch.more(3)
                server.faults.mutate = change
                await watch.until(lambda: changed >= ROUNDS * 4, 60 + ROUNDS)
                server.faults.mutate = None
                connection = watch.frames[-1].clock.connection
                await watch.until(lambda: watch.source.state.value == "live", 20)  # type: ignore[attr-defined]
                await watch.more(5)
                assert watch.frames[-1].clock.connection >= connection
            assert watch.error is None
            assert watch.source.account.tally().pending == 0

    run(work)


@pytest.mark.parametrize(("form", "codec"), [("ts", "h264"), ("flv", "h264"), ("ts", "h265")])
def test_a_camera_over_http_that_sends_mutated_bytes_is_watched_on(
    streams: dict[tuple[str, str], Path], form: str, codec: str
) -> None:
    data, chance, rounds = streams[form, codec].read_bytes(), random.Random(7), [0]

    def pieces() -> Iterator[bytes]:
        rounds[0] += 1
        whole = data if rounds[0] > ROUNDS else mutate(mutate(data, chance, 2000), chance, 2000)
        for start in range(0, len(whole), 4096):
            yield whole[start : start + 4096]
            time.sleep(0.002)

    async def work() -> None:
        with WebServer({"/live": Answer(pieces, {"Content-Type": "video/x"})}) as server:
            (source,) = await asyncio.to_thread(open_sources, server.url("/live"), live=True)
            seen = 0

            async def take() -> None:
                nonlocal seen
                async for _ in source:
                    source.account.analyse()
                    seen += rounds[0] > ROUNDS + 1

            task = asyncio.create_task(take())
            began = time.monotonic()
            while seen < 3 and time.monotonic() - began < 40 + 2 * ROUNDS:
                assert not task.done()
                await asyncio.sleep(0.02)
            await source.aclose()
            await task
            assert seen >= 3
            assert source.account.tally().pending == 0

    asyncio.run(work())
