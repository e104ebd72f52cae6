"""Kind of a web address: a camera or a recording, and in which form it sends, by what the server says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urljoin, urlsplit

from streamer.sources.web import HttpConnection, WebError, WebResponse, ends_after_picture

Form = Literal["jpegs", "snapshot", "playlist", "media"]

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".dav", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
_HEAD = 2**16
_VARIANT = re.compile(r"^#EXT-X-STREAM-INF:(.*)$")
_AUDIO_CODECS = ("mp4a", "ac-3", "ec-3", "opus", "Opus", "fLaC", "mp3", "vorbis")
_ATTRIBUTE = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^,]*)')


@dataclass(frozen=True, slots=True)
class WebKind:
    """What an address turned out to be. `url` is what to read: the address, or the best variant of its playlist.

    `refusal` says why its segments cannot be decrypted; "" where they can, or are not encrypted.
    """

    form: Form
    live: bool
    url: str
    is_encrypted: bool = False
    refusal: str = ""


def likely_live(address: str) -> bool:
    """A first guess by the path's suffix, for a server that cannot be asked."""
    return PurePosixPath(urlsplit(address).path).suffix.lower() not in VIDEO_SUFFIXES


def find_kind(client: HttpConnection, timeout_s: float = 5.0) -> WebKind:
    """Asks the server. Raises `WebError`."""
    response = client.open()
    try:
        if response.content_type.startswith("multipart/"):
            return WebKind("jpegs", True, client.address)
        head = _head(response, timeout_s)
        if b"#EXTM3U" in head[:64]:
            return _playlist_kind(client, response.url, head)
        if response.content_type.startswith("image/") or head[:3] == b"\xff\xd8\xff" or head[:4] == b"\x89PNG":
            is_alone = response.is_whole or (b"\xff\xd8\xff" not in head[3:] and ends_after_picture(response, head))
            return WebKind("snapshot" if is_alone else "jpegs", True, client.address)
        if head.lstrip()[:2] == b"--" and b"content-type: image/" in head.lower():
            return WebKind("jpegs", True, client.address)
        is_recording = response.is_whole or _has_duration(head)
        return WebKind("media", not is_recording, client.address)
    finally:
        response.close()


def _head(response: WebResponse, timeout_s: float) -> bytes:
    head = b""
    while len(head) < _HEAD:
        try:
            piece = response.read(_HEAD - len(head), limit_s=timeout_s)
        except WebError:
            break
        if not piece:
            break
        head += piece
        if response.length is not None and len(head) >= 4096 and b"#EXTM3U" not in head[:64]:
            break  # a length settles it
        if response.length is None and b"#EXTM3U" not in head[:64] and len(head) >= 1024:
            break  # a live stream sends slowly: its first bytes have to do
    return head


def _has_duration(head: bytes) -> bool:
    """Whether the head of a file states how long it lasts, as only a finished recording can."""
    if head[4:8] == b"ftyp":
        return b"moov" in head and b"mvex" not in head
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return b"\x44\x89\x88" in head or b"\x44\x89\x84" in head  # Duration, 8 or 4 bytes
    if head[:4] == b"RIFF":
        place = head.find(b"avih")
        return place >= 0 and any(head[place + 24 : place + 28])  # dwTotalFrames
    if head[:3] == b"FLV":
        place = head.find(b"duration\x00")
        return place >= 0 and any(head[place + 9 : place + 17])
    return False


def _playlist_kind(client: HttpConnection, url: str, head: bytes) -> WebKind:
    """HLS (RFC 8216): of several variants the one with the most pixels, then the most bits."""
    text = head.decode(errors="replace")
    for _ in range(3):
        variants = _variants(text)
        if not variants:
            break
        url = urljoin(url, max(variants)[-1])
        if urlsplit(client.address).scheme == "https" and urlsplit(url).scheme != "https":
            raise WebError("its playlist leads to an address without TLS", final=True)
        response, data = client.fetch(url)
        url, text = response.url, data.decode(errors="replace")
    over = _is_over(text)
    keys = [dict(_ATTRIBUTE.findall(line)) for line in text.splitlines() if line.startswith("#EXT-X-KEY:")]
    is_encrypted = any(key.get("METHOD") != "NONE" for key in keys)
    return WebKind("playlist", not over, url, is_encrypted, next(filter(None, map(_refusal, keys)), ""))


def _is_over(text: str) -> bool:
    return "#EXT-X-ENDLIST" in text or "#EXT-X-PLAYLIST-TYPE:VOD" in text


def plain_playlist(data: bytes) -> bytes:
    """A playlist as FFmpeg reads it: nothing before its first line, and an end where it is over."""
    text = data[data.index(b"#EXTM3U") :].decode(errors="replace")
    if _is_over(text) and "#EXT-X-ENDLIST" not in text:
        text += "\n#EXT-X-ENDLIST\n"
    return text.encode()


def _refusal(key: Mapping[str, str]) -> str:
    """Why an encryption cannot be undone: DRM, or samples encrypted one by one; "" where it can."""
    method = key.get("METHOD", "")
    form = key.get("KEYFORMAT", "identity").strip('"')
    if method == "NONE" or (method == "AES-128" and form == "identity"):
        return ""
    return (
        f"its segments are encrypted ({method if form == 'identity' else f'{method}, {form}'}): only AES-128 with a "
        "plain key can be read; give another address of the camera"
    )


def _variants(text: str) -> list[tuple[bool, int, int, str]]:
    """Whether it has pictures, pixels, bits a second and address of each variant in a master playlist."""
    found = []
    attributes: dict[str, str] | None = None
    for line in map(str.strip, text.splitlines()):
        if match := _VARIANT.match(line):
            attributes = dict(_ATTRIBUTE.findall(match[1]))
        elif line and not line.startswith("#") and attributes is not None:
            width, _, height = attributes.get("RESOLUTION", "").partition("x")
            pixels = int(width) * int(height) if width.isdecimal() and height.isdecimal() else 0
            bits = attributes.get("BANDWIDTH", "")
            codecs = [codec.strip() for codec in attributes.get("CODECS", "").strip('"').split(",") if codec.strip()]
            has_pictures = pixels > 0 or not codecs or not all(codec.startswith(_AUDIO_CODECS) for codec in codecs)
            found.append((has_pictures, pixels, int(bits) if bits.isdecimal() else 0, line))
            attributes = None
    return found
