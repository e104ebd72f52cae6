"""Identity of a recording: the same for the same content, under any path on any machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sinks.address import redact
from sinks.tls import TlsOptions
from streamer.object_store import ObjectStoreError, describe_object, parse_s3
from streamer.rules.track_ids import fingerprint
from streamer.sources.address import natural
from streamer.sources.images import image_names
from streamer.sources.web import HttpConnection, WebError

_ASK_S = 5.0


def identify_recording(address: str, tls: TlsOptions | None = None) -> str:
    """Returns the identity of a recording, which changes when its content does.

    Of a file it comes from size, beginning and end; of a folder of images from their names and sizes; of an object or
    a web address from the size and the version that the server states. Where nothing can be learned, which reading
    reports, and for a camera it is the address.
    """
    scheme = "" if Path(address).exists() else address.partition("://")[0]
    try:
        if scheme == "s3":
            found = describe_object(parse_s3(address), tls)
            return _digest(address.partition("?")[0], str(found.size), found.version)
        if scheme in ("http", "https"):
            return _identify_web(address, tls or TlsOptions())
        path = Path(address)
        if path.is_dir():
            return _digest(*(f"{name} {(path / name).stat().st_size}" for name in natural(image_names(path))))
        if path.is_file():
            return fingerprint(path)
    except (OSError, WebError, ObjectStoreError):
        pass  # reading it reports the reason
    return redact(address)


def _identify_web(address: str, tls: TlsOptions) -> str:
    response = HttpConnection(address, tls, timeout_s=_ASK_S).open()
    response.close()
    if response.length is None or not response.version:
        return redact(address)
    return _digest(redact(address), str(response.length), response.version)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
