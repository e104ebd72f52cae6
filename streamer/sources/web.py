"""HTTP for sources: verified TLS, basic and digest authentication, bounded waits, no redirect to a weaker address.

FFmpeg's own HTTP client accepts every certificate and repeats a password to the host of a redirect, so web addresses
are read here, and FFmpeg gets file objects.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import select
import socket
import ssl
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from sinks.address import redact
from sinks.tls import TlsOptions, TlsOptionsError, find_tls_trouble, tls_cause

_CHUNK = 2**16
_POLL_S = 0.25
_STUCK_S = 15.0  # for the rest of something that has begun
_NEXT_PICTURE_S = 5.0
_AGENT = "groundstream"


class WebError(Exception):
    """A web address that cannot be read; the message says why. `final`: asking again as before cannot help, `missing`:
    the server has nothing there."""

    def __init__(self, cause: str, *, final: bool = False, unauthorised: bool = False, missing: bool = False) -> None:
        super().__init__(cause)
        self.final = final
        self.missing = missing
        self.unauthorised = unauthorised


class WebResponse:
    """An open answer: its headers, and its body piece by piece."""

    def __init__(self, response: http.client.HTTPResponse, url: str) -> None:
        self._response = response
        self.url = url
        headers = response.headers
        self.content_type = headers.get_content_type().lower() if "Content-Type" in headers else ""
        self.boundary = headers.get_param("boundary", "", "Content-Type") if "Content-Type" in headers else ""
        length = headers.get("Content-Length", "")
        self.length: int | None = int(length) if length.isdecimal() and len(length) < 20 else None
        if self.content_type.startswith("multipart/"):  # it has no end, whatever a camera says
            self.length = response.length = None
        self.version = headers.get("ETag") or headers.get("Last-Modified") or ""
        self.takes_ranges = "bytes" in headers.get("Accept-Ranges", "").lower()
        self.is_whole = self.length is not None or self.takes_ranges
        self._unpacker: Any = None  # of a body that is compressed although that was not asked for
        if headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
            self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
            self.length, self.takes_ranges = None, False
        self.is_part = response.status == 206
        total = headers.get("Content-Range", "").rpartition("/")[2]
        is_known = self.is_part and total.isdecimal() and len(total) < 20
        self.total: int | None = int(total) if is_known else self.length

    def read(self, count: int, on_wait: Callable[[], None] | None = None, limit_s: float = 15.0) -> bytes:
        """At most `count` bytes, as soon as there are some; b"" at the end.

        While nothing comes, `on_wait` is called every quarter of a second and may raise; without it `WebError` is
        raised after `limit_s`.
        """
        began = time.monotonic()
        while not (self._unpacker is not None and self._unpacker.unconsumed_tail) and not self._is_ready():
            if on_wait is not None:
                on_wait()
            elif time.monotonic() - began > limit_s:
                raise WebError(f"no data came for {limit_s:g} s")
        try:
            return self._response.read1(count) if self._unpacker is None else self._unpack(count)
        except zlib.error:
            raise WebError("its compressed answer is damaged") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise WebError(f"the connection broke: {_words(error)}") from None

    def _unpack(self, count: int) -> bytes:
        """At most `count` bytes: FFmpeg's buffer holds no more."""
        while not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or self._response.read1(count)
            unpacked: bytes = self._unpacker.decompress(packed, count)
            if unpacked or not packed:
                return unpacked
        return b""

    def _is_ready(self) -> bool:
        """Whether reading would return at once; waits a moment for it."""
        response = self._response
        if response.closed or response.fp is None:
            return True
        buffered = getattr(response.fp, "peek", None)
        raw = getattr(response.fp, "raw", None)
        connection: socket.socket | None = getattr(raw, "_sock", None)
        if connection is None or buffered is None:
            return True
        connection.setblocking(False)
        try:
            if buffered(1) or isinstance(connection, ssl.SSLSocket):
                return True  # data, or the end of a TLS stream
        except ssl.SSLWantReadError:  # what makes the socket readable may be a message of TLS itself
            select.select([connection], [], [], _POLL_S)
            return False
        except OSError:
            return True
        finally:
            connection.settimeout(_STUCK_S)
        # The end of the stream makes the socket readable, too.
        return bool(select.select([connection], [], [], _POLL_S)[0])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._response.close()


class HttpConnection:
    """Requests to one address, whose user and password are never sent to another host or before TLS is verified."""

    def __init__(self, address: str, tls: TlsOptions, *, timeout_s: float = 10.0) -> None:
        """Raises `WebError` for TLS options that cannot be used."""
        url = urlsplit(address)
        self.address = urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2]))
        self._timeout_s = timeout_s
        self._has_certificate = tls.certfile is not None
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if url.username is not None:
            origin = f"{url.scheme}://{url.netloc.rpartition('@')[2]}/"
            passwords.add_password(None, origin, unquote(url.username), unquote(url.password or ""))
        try:
            self._context = context = tls.context()
        except TlsOptionsError as error:
            raise WebError(str(error), final=True) from None
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context),
            _SafeRedirects(),
            _BasicHandler(passwords),
            _DigestHandler(passwords),
        )
        self._opener.addheaders = [("User-Agent", _AGENT), ("Accept", "*/*")]

    def open(self, url: str | None = None, *, first: int | None = None, end: int | None = None) -> WebResponse:
        """Asks for `url`, where given from byte `first` on and to before byte `end`. Raises `WebError`."""
        url = self.address if url is None else url
        request = urllib.request.Request(url)
        if first is not None:
            request.add_header("Range", f"bytes={first}-{'' if end is None else end - 1}")
        try:
            response = self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.reason) from None
        except urllib.error.URLError as error:
            raise self._failure(url, error.reason) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failure(url, error) from None
        return WebResponse(response, response.geturl())

    def fetch(self, url: str | None = None, *, most: int = 2**24) -> tuple[WebResponse, bytes]:
        """A whole answer of at most `most` bytes. Raises `WebError`."""
        response = self.open(url)
        try:
            data = b"".join(iter(lambda: response.read(_CHUNK), b"")) if response.length is None else b""
            while response.length is not None and len(data) < response.length:
                piece = response.read(_CHUNK)
                if not piece:
                    raise WebError("the connection ended in the middle of an answer")
                data += piece
                if len(data) > most:
                    raise WebError(f"an answer is larger than {most} bytes", final=True)
        finally:
            response.close()
        return response, data

    def _failure(self, url: str, error: object) -> WebError:
        place = urlsplit(url)
        host = f"{place.hostname}:{place.port}" if place.port else str(place.hostname)
        if isinstance(error, WebError):
            return error
        if isinstance(error, BaseException) and (cause := tls_cause(error, has_certificate=self._has_certificate)):
            return WebError(f"{host} {cause}", final=True)
        if place.scheme == "https" and isinstance(error, OSError) and not isinstance(error, socket.gaierror):
            # What a server thinks of our certificate often comes after the handshake, as a connection that ends.
            cause = find_tls_trouble(
                str(place.hostname), place.port or 443, self._context, has_certificate=self._has_certificate
            )
            if cause:
                return WebError(f"{host} {cause}", final=True)
        if isinstance(error, socket.gaierror):
            return WebError(f"the host {place.hostname} is not known", final=True)
        if isinstance(error, ConnectionRefusedError):
            return WebError(f"nothing listens at {host}", final=True)
        if isinstance(error, TimeoutError):
            return WebError(f"{host} does not answer")
        if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.RemoteDisconnected):
            return WebError(f"{host} does not answer as a web server: is it another port of the camera?")
        return WebError(f"{host} cannot be read: {_words(error)}")


class WebFile(io.RawIOBase):
    """A file behind a web address for FFmpeg: reads on from any place, over one connection after the other.

    What a server without byte ranges has sent is kept in a temporary file, so that any place before is there again.
    `broken` is what ended reading early; FFmpeg then gets the end of the file, so that all before is decoded.
    """

    def __init__(self, client: HttpConnection, response: WebResponse, url: str | None = None) -> None:
        self._client = client
        self._response: WebResponse | None = response
        self._url = url
        self._place = 0
        self._size = response.total
        self._takes_ranges = response.takes_ranges or response.is_part
        self._copy = None if self._takes_ranges or self._size is None else tempfile.TemporaryFile()  # noqa: SIM115  (closed with this object)
        self._copied = 0
        self.broken: WebError | None = None
        self._broken_at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._size is not None

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size or 0}[whence]
        place = max(0, base + offset)
        if place != self._place and self._copy is None:
            self._drop()
        self._place = place
        return place

    def read(self, count: int = -1) -> bytes:
        size = _CHUNK if count < 0 else count
        end = self._size if self.broken is None else self._broken_at
        if end is not None and self._place >= end:
            return b""
        try:
            data = self._read_on(size) if self._copy is None else self._read_copied(size)
        except WebError as error:
            self.broken, self._broken_at = error, self._place
            return b""
        self._place += len(data)
        return data

    def _read_on(self, count: int) -> bytes:
        if self._response is None:
            self._response = self._client.open(self._url, first=self._place)
            if not self._response.is_part and self._place:
                raise WebError("the server does not continue where it was asked to (no byte ranges)", final=True)
        data = self._response.read(count)
        if not data and self._size is not None:
            raise WebError(f"the connection ended after {self._place} of {self._size} bytes")
        return data

    def _read_copied(self, count: int) -> bytes:
        assert self._copy is not None
        while self._copied < self._place + count and self._response is not None:
            try:
                data = self._response.read(_CHUNK)
            except WebError:
                data = b""
            if not data:
                self._drop()
                break
            self._copy.seek(self._copied)
            self._copy.write(data)
            self._copied += len(data)
        self._copy.seek(self._place)
        data = self._copy.read(count)
        if not data:
            raise WebError(f"the connection ended after {self._copied} of {self._size} bytes")
        return data

    def close(self) -> None:
        self._drop()
        if self._copy is not None:
            self._copy.close()
        super().close()

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class WebStream(io.RawIOBase):
    """An endless answer for FFmpeg; `on_wait` is called while nothing comes and may raise."""

    def __init__(self, response: WebResponse, on_wait: Callable[[], None]) -> None:
        self._response = response
        self._on_wait = on_wait

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, count: int = -1) -> bytes:
        return self._response.read(_CHUNK if count < 0 else count, self._on_wait)

    def close(self) -> None:
        self._response.close()
        super().close()


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from TLS to an address without it."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise WebError(
                f"it redirects to an address without TLS, {redact(newurl)}: give that one if you trust the way to it",
                final=True,
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _closing_refused(handle: Callable[..., Any], req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
    """Calls urllib's handler, which asks again, and closes the answer that was refused; urllib leaves it open."""
    try:
        answer = handle(req, fp, code, msg, headers)
    except BaseException:
        fp.close()
        raise
    if answer is not None:
        fp.close()
    return answer


class _BasicHandler(urllib.request.HTTPBasicAuthHandler):
    """Basic authentication that closes the answer which asked for it."""

    def http_error_401(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        return _closing_refused(super().http_error_401, req, fp, code, msg, headers)


class _DigestHandler(urllib.request.HTTPDigestAuthHandler):
    """Digest authentication (RFC 7616) with SHA-256 too, which urllib lacks."""

    def http_error_401(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        return _closing_refused(super().http_error_401, req, fp, code, msg, headers)

    def get_algorithm_impls(self, algorithm: str) -> tuple[Callable[[str], str], Callable[[str, str], str]]:
        if algorithm.upper() in ("SHA-256", "SHA256"):

            def digest(text: str) -> str:
                return hashlib.sha256(text.encode()).hexdigest()

            return digest, lambda secret, data: digest(f"{secret}:{data}")
        found: tuple[Callable[[str], str], Callable[[str, str], str]] = super().get_algorithm_impls(algorithm)
        return found


_REFUSALS = {
    401: "user name or password is missing or wrong (401)",
    403: "access is forbidden (403)",
    404: "there is nothing at this path (404)",
    407: "the proxy wants a user name and password (407)",
    429: "the server allows no more requests at present (429)",
}


def _refusal(code: int, reason: str) -> WebError:
    if code >= 500:
        return WebError(f"the server reports a failure of its own ({code})")
    if code in (301, 302, 303, 307, 308):  # urllib has given up
        return WebError(f"it redirects in a circle or without an address ({code})", final=True)
    words = _REFUSALS.get(code, f"the server refuses the request: {str(reason)[:80]} ({code})")
    return WebError(words, final=code != 429, unauthorised=code in (401, 403), missing=code in (404, 410))


def _words(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redact(str(text)).lower()


def multipart_images(response: WebResponse, on_wait: Callable[[], None], *, most: int = 2**25) -> Iterator[bytes]:
    """The JPEG pictures of a multipart answer, in any dialect: boundaries before or after the parts, any part type.

    A picture ends with its end marker; a part's Content-Length counts where a damaged picture has none, and a boundary
    follows at that place.
    """
    waiting = b""
    boundary = b"--" + str(response.boundary).lstrip("-").encode(errors="replace")
    while True:
        start = waiting.find(b"\xff\xd8\xff")
        if start < 0:
            waiting = _more(waiting[-4096:], response, on_wait)
            continue
        length = _part_length(waiting[:start])
        end, scanned = None, start + 2
        while end is None:
            if length is not None and waiting[start + length :].lstrip(b"\r\n").startswith(boundary):
                end = start + length
                break
            end, scanned = _find_jpeg_end(waiting, scanned)
            if end is None:
                if len(waiting) - start > most:
                    raise WebError(f"a picture has no end within {most} bytes")
                waiting = _more(waiting, response, on_wait)
        yield waiting[start:end]
        waiting = waiting[end:]


def ends_after_picture(response: WebResponse, head: bytes, *, most: int = 2**25) -> bool:
    """Whether an answer without a length is one JPEG picture, of which `head` has been read. Waits for what follows."""
    data, scanned = head, 2
    try:
        while len(data) < most:
            end, scanned = _find_jpeg_end(data, scanned)
            if end is not None and data[end:].strip(b"\r\n\0"):
                return False
            piece = response.read(_CHUNK, limit_s=_NEXT_PICTURE_S)
            if not piece:
                return True
            data += piece
    except WebError:
        return False  # still open: more is to come
    return False


class EndOfAnswer(Exception):
    """A multipart answer ended."""


def _more(waiting: bytes, response: WebResponse, on_wait: Callable[[], None]) -> bytes:
    piece = response.read(_CHUNK, on_wait)
    if not piece:
        raise EndOfAnswer
    return waiting + piece


def _part_length(head: bytes) -> int | None:
    place = head.lower().rfind(b"content-length:")
    if place < 0:
        return None
    digits = head[place + 15 :].split(b"\n", 1)[0].strip()
    return int(digits) if digits.isdigit() and 0 < len(digits) < 10 else None


def _find_jpeg_end(data: bytes, at: int) -> tuple[int | None, int]:
    """The place behind a JPEG's end marker (ITU-T T.81, annex B), None where it has not come yet, and where to go on.

    Segments are skipped by their lengths, because a preview within one has an end marker, too.
    """
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # within a scan, or damaged: the next marker that is neither stuffed nor a restart
            following = data.find(b"\xff", at)
            if following < 0 or following + 2 > len(data):
                return None, len(data) - 1 if following < 0 else following
            at = following
        kind = data[at + 1]
        if kind == 0xD9:
            return at + 2, at
        if kind in (0x00, 0xFF) or 0xD0 <= kind <= 0xD8 or kind == 0x01:
            at += 1 if kind == 0xFF else 2
            continue
        if at + 4 > len(data):
            return None, at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    end = data.find(b"\xff\xd9", at, at + 4)
    return (end + 2 if end >= 0 and at <= len(data) else None), at
