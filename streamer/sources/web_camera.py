"""Cameras behind web addresses: multipart JPEG streams, snapshots that are polled, live playlists, endless streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sinks.address import redact
from streamer.sources.camera_link import CameraLink, CameraTrouble
from streamer.sources.playlist import Playlist
from streamer.sources.web import EndOfAnswer, HttpConnection, WebError, WebStream, multipart_images
from streamer.sources.web_kind import find_kind

if TYPE_CHECKING:
    from streamer.sources.decode import PictureReader, VideoReader

_ENDED_POLL_S = 10.0  # how often a playlist that has ended is asked for again
_LEAST_POLL_S = 0.2
_MOST_POLL_S = 1.0
_FAILURES = 5  # snapshots in a row that may fail before the camera counts as lost


def open_web_camera(
    link: CameraLink, limit_s: float, on_wait: Callable[[], None], *, seen: bool = False
) -> PictureReader:
    """Connects and finds out what the camera sends; `seen` says whether it has sent pictures before.

    Raises `CameraTrouble`, for a playlist that has been seen and is over, too: it would be shown again from its start.
    """
    from streamer.sources.decode import DecodeError, JpegReader, NoVideo, reason

    try:
        client = HttpConnection(link.address, link.tls, timeout_s=min(10.0, limit_s))
        kind = find_kind(client)
        if kind.form == "snapshot":
            return JpegReader(_poll(client, link.poll_s, on_wait))
        if kind.form == "jpegs":
            response = client.open()
            return JpegReader(_until_end(multipart_images(response, on_wait)), response.close)
        if kind.form == "playlist":
            if seen and not kind.live:
                raise CameraTrouble("its playlist has ended", pause_s=_ENDED_POLL_S)
            return Playlist(client, kind, on_wait).open_video(link.track, link.decode)
        return _open_stream(client, on_wait, link)
    except WebError as failure:
        pause_s = 10.0 if failure.unauthorised else 0.0
        raise CameraTrouble(redact(str(failure)), final=failure.final, pause_s=pause_s) from None
    except NoVideo:
        raise CameraTrouble("it sends no pictures", final=True) from None
    except DecodeError as failure:
        raise CameraTrouble(reason(failure)) from None


def _open_stream(client: HttpConnection, on_wait: Callable[[], None], link: CameraLink) -> VideoReader:
    from streamer.sources.decode import VideoReader

    stream = WebStream(client.open(), on_wait)
    try:
        return VideoReader(stream, lossy=False, track=link.track, decode=link.decode)
    except BaseException:
        stream.close()
        raise


def _until_end(images: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from images
    except EndOfAnswer:
        return


def _poll(client: HttpConnection, poll_s: float | None, on_wait: Callable[[], None]) -> Iterator[bytes]:
    """Snapshots, one after the other; one that repeats the last is given once a second and shows that the camera lives.

    Without `poll_s` the rate follows the camera: faster while each answer is new, slower while it repeats itself.
    """
    pause_s = _MOST_POLL_S / 2 if poll_s is None else poll_s
    before, failures, given_at = b"", 0, -_MOST_POLL_S
    rest = threading.Event()
    while True:
        began = time.monotonic()
        image = b""
        try:
            _, image = client.fetch()
            failures = 0
        except WebError as failure:
            failures += 1
            if failure.final or failures >= _FAILURES:
                raise
        is_new = bool(image) and image != before
        if is_new or (image and began - given_at >= max(_MOST_POLL_S, pause_s)):
            before, given_at = image, began
            yield image
        on_wait()
        if poll_s is None:
            pause_s = min(_MOST_POLL_S, max(_LEAST_POLL_S, pause_s * (0.8 if is_new else 1.25)))
        rest.wait(max(0.0, pause_s - (time.monotonic() - began)))
