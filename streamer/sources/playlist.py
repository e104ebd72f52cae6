"""HLS playlists (RFC 8216): FFmpeg reads the playlist and asks here for its segments, byte ranges and keys.

Every part comes over the connection of the stream, with its TLS options, credentials and redirect rules. AES-128 is
decrypted here, with the key and the initialisation vector that FFmpeg takes from the playlist.
"""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from streamer.sources.web import HttpConnection, WebError, WebResponse
from streamer.sources.web_kind import WebKind, plain_playlist

if TYPE_CHECKING:
    from streamer.sources.decode import VideoReader
    from streamer.sources.hardware import Decode

_CHUNK = 2**16
_BLOCK = 16  # bytes of an AES block
_ENCRYPTED = "crypto+"  # what FFmpeg puts before the address of an encrypted segment


class Playlist:
    """The parts of one playlist. `broken` is the first part that ended early, `on_wait` is called before each part."""

    def __init__(self, client: HttpConnection, kind: WebKind, on_wait: Callable[[], None] | None = None) -> None:
        self.broken: WebError | None = None
        self._client = client
        self._kind = kind
        self._on_wait = on_wait
        self._opened: weakref.WeakSet[PlaylistPart] = weakref.WeakSet()
        self._is_secure = urlsplit(client.address).scheme == "https"

    def open_video(self, track: int | None = None, decode: Decode = "cpu") -> VideoReader:
        """Opens the playlist in FFmpeg. Raises `WebError`, `DecodeError`, `NoVideo`."""
        from streamer.sources.decode import DecodeError, NoVideo, VideoReader

        if self._kind.refusal:
            raise WebError(self._kind.refusal, final=True)
        # FFmpeg keeps connections of its own client only.
        options = {"http_persistent": "0", "http_multiple": "0", "allowed_extensions": "ALL", "extension_picky": "0"}
        try:
            return VideoReader(
                self._kind.url, form="hls", options=options, io_open=self._open_part, track=track, decode=decode
            )
        except BaseException as failure:
            for part in self._opened:  # FFmpeg leaves them open
                part.close()
            if not isinstance(failure, DecodeError | NoVideo):
                raise
            if self.broken is not None and (self.broken.final or not self._kind.is_encrypted):
                raise self.broken from None
            if self._kind.is_encrypted:
                raise WebError("its segments hold no video once decrypted: is the key of its playlist right?") from None
            raise

    def _open_part(self, url: str, flags: int, options: Mapping[str, str]) -> io.RawIOBase | io.BytesIO:
        """The playlist again, a segment or a key. Raises `WebError`."""
        if self._on_wait is not None:
            self._on_wait()
        is_encrypted = url.startswith(_ENCRYPTED)
        url = url.removeprefix(_ENCRYPTED)
        scheme = urlsplit(url).scheme
        if self._is_secure and scheme == "http":
            raise WebError("its playlist leads to an address without TLS", final=True)
        if scheme not in ("http", "https"):
            raise WebError(f"its playlist names a {scheme}: address: only http and https can be read", final=True)
        end = int(options["end_offset"]) if "end_offset" in options else None
        first = int(options.get("offset", 0))
        if url == self._kind.url:
            return self._open_playlist(url)
        try:
            response = self._client.open(url, first=first if first or end is not None else None, end=end)
        except WebError as error:
            if self._kind.live and not error.missing:
                raise
            self._note_broken(error)
            return io.BytesIO()  # FFmpeg goes on with the next segment
        decryptor = None
        if is_encrypted:
            decryptor = _open_decryptor(bytes.fromhex(options["key"]), bytes.fromhex(options["iv"]))
        part = PlaylistPart(response, self._note_broken, first=first, end=end, decryptor=decryptor)
        self._opened.add(part)
        return part

    def _open_playlist(self, url: str) -> io.BytesIO:
        _, data = self._client.fetch(url)
        if b"#EXTM3U" not in data[:64]:
            raise WebError("it sends no playlist any more")
        return io.BytesIO(plain_playlist(data))

    def _note_broken(self, error: WebError) -> None:
        self.broken = self.broken or error


class Decryptor(Protocol):
    """A cipher that is fed piece by piece."""

    def update(self, data: bytes) -> bytes: ...

    def finalize(self) -> bytes: ...


class PlaylistPart(io.RawIOBase):
    """A file object over one part, from byte `first` to before `end`, decrypted where there is a `decryptor`.

    A part that breaks off ends for FFmpeg, so that all before is decoded, and is reported to `on_broken`.
    """

    def __init__(
        self,
        response: WebResponse,
        on_broken: Callable[[WebError], None],
        *,
        first: int = 0,
        end: int | None = None,
        decryptor: Decryptor | None = None,
    ) -> None:
        self._response = response
        self._on_broken = on_broken
        self._skipped = 0 if response.is_part else first  # what a server without byte ranges sends before
        self._left = None if end is None else end - first
        if self._left is None and response.length is not None:
            self._left = response.length - self._skipped
        self._decryptor = decryptor
        self._waiting = b""  # decrypted; the last block may be padding
        self._is_over = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes; b"" at the end."""
        count = _CHUNK if count < 0 else count
        try:
            return self._receive(count) if self._decryptor is None else self._decrypt(count)
        except WebError as error:
            self._response.close()
            self._on_broken(error.with_traceback(None))
            self._is_over = True
            self._waiting = b""
            return b""

    def _receive(self, count: int) -> bytes:
        while self._skipped:
            self._skipped -= len(self._receive_some(min(self._skipped, _CHUNK)))
        if self._is_over or self._left == 0:
            return b""
        data = self._receive_some(count if self._left is None else min(count, self._left))
        if self._left is not None:
            self._left -= len(data)
        if self._left == 0 or not data:
            self._response.close()  # FFmpeg does not close the playlist itself
        return data

    def _receive_some(self, count: int) -> bytes:
        data = self._response.read(count)
        if not data and (self._left or self._skipped):
            raise WebError("the connection ended in the middle of a segment")
        return data

    def _decrypt(self, count: int) -> bytes:
        assert self._decryptor is not None
        while len(self._waiting) <= _BLOCK and not self._is_over:
            data = self._receive(_CHUNK)
            if data:
                self._waiting += self._decryptor.update(data)
                continue
            self._is_over = True
            padding = self._waiting[-1] if self._waiting else 0
            if not 1 <= padding <= _BLOCK or self._waiting[-padding:] != bytes([padding]) * padding:
                raise WebError("a segment does not end as one that was encrypted with the key of its playlist")
            self._waiting = self._waiting[:-padding]
        most = len(self._waiting) if self._is_over else len(self._waiting) - _BLOCK
        given, self._waiting = self._waiting[: min(count, most)], self._waiting[min(count, most) :]
        return given

    def close(self) -> None:
        self._response.close()
        super().close()


def _open_decryptor(key: bytes, vector: bytes) -> Decryptor:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(key), modes.CBC(vector)).decryptor()
