"""Encoded pictures as packets that a test can damage, retime and pack into any container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av

from tests.support.clips import draw

_TICKS = 90_000


@dataclass(frozen=True)
class Encoded:
    """One encoded picture; times in seconds, None where the container is to have none."""

    data: bytes
    pts_s: float | None
    dts_s: float | None
    is_key: bool
    length_s: float

    def moved(self, by_s: float) -> Encoded:
        assert self.pts_s is not None
        assert self.dts_s is not None
        return replace(self, pts_s=self.pts_s + by_s, dts_s=self.dts_s + by_s)


def encode_pictures(
    count: int,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (320, 240),
    fps: float = 25.0,
    first: int = 0,
    gop: int = 10,
    options: Mapping[str, str] | None = None,
) -> list[Encoded]:
    """Pictures numbered from `first` by `draw`, without B-pictures unless `options` ask for them."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height = size
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    context.time_base, context.framerate = Fraction(1, _TICKS), Fraction(fps).limit_denominator(1000)
    if codec == "mjpeg":
        context.time_base, context.color_range = Fraction(1, 25), 2
    context.gop_size = gop
    defaults = {
        "libx264": {"preset": "veryfast", "crf": "18", "bf": "0", "sc_threshold": "0"},
        "libx265": {"preset": "ultrafast", "x265-params": f"log-level=none:bframes=0:keyint={gop}:scenecut=0"},
    }
    context.options = {**defaults.get(codec, {}), **(options or {})}
    packets: list[Encoded] = []
    for n in range(count + 1):
        frame = None
        if n < count:
            frame = av.VideoFrame.from_ndarray(draw(first + n, size), format="bgr24").reformat(format=context.pix_fmt)
            frame.time_base = context.time_base
            frame.pts = round(n / fps / context.time_base) if codec != "mjpeg" else n
        for packet in context.encode(frame):
            assert packet.pts is not None
            pts_s = float(packet.pts * context.time_base) * (25 / fps if codec == "mjpeg" else 1)
            dts_s = pts_s if packet.dts is None or codec == "mjpeg" else float(packet.dts * context.time_base)
            packets.append(Encoded(bytes(packet), pts_s, dts_s, packet.is_keyframe, 1 / fps))
    return packets


def write_packets(
    path: Path,
    packets: Sequence[Encoded],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (320, 240),
    fps: float = 25.0,
    form: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Path:
    """Packs packets as they are into one video track. Returns `path`."""
    with av.open(str(path), "w", format=form, options=dict(options or {})) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for encoded in packets:
            packet = av.Packet(encoded.data)
            packet.stream, packet.time_base = stream, Fraction(1, _TICKS)
            packet.pts = None if encoded.pts_s is None else round(encoded.pts_s * _TICKS)
            packet.dts = None if encoded.dts_s is None else round(encoded.dts_s * _TICKS)
            packet.duration, packet.is_keyframe = round(encoded.length_s * _TICKS), encoded.is_key
            container.mux(packet)
    return path


def split_units(data: bytes) -> list[bytes]:
    """The NAL units of a packet with start codes."""
    return [unit.rstrip(b"\0") for unit in data.split(b"\0\0\1") if unit.rstrip(b"\0")]


def join_units(units: Sequence[bytes]) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units)
