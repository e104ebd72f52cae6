"""Hardware decoding: the device that the pictures of a stream are decoded on, and the way back to the CPU.

Pictures that a device decodes come back into the memory of this process. Damage within a picture is reported by the
decoders of the CPU; whether a device reports it depends on its driver.
"""

from __future__ import annotations

import functools
import logging
from typing import Literal

import av
import av.error
from av.codec.hwaccel import HWAccel

Decode = Literal["auto", "cpu", "cuda", "vaapi", "videotoolbox"]
"""Where pictures are decoded; `auto` takes the first device that works here."""

log = logging.getLogger("groundstream")

DEVICES = ("cuda", "vaapi", "videotoolbox")
_CPU_FORMATS = frozenset({"yuv420p", "yuvj420p", "yuv420p10le", "yuv422p", "yuvj422p"})
"""Formats that decoders of the CPU give; a device gives those with two planes (nv12, p010)."""


def choose_device(decode: Decode) -> str | None:
    """The device to decode on, None for the CPU. Logs once where the choice is not possible here."""
    if decode == "cpu":
        return None
    for device in DEVICES if decode == "auto" else (decode,):
        if not find_obstacle(device):
            return device
    if decode == "auto":
        causes = ", ".join(f"{device}: {find_obstacle(device)}" for device in DEVICES)
        _log_once(logging.INFO, f"decode: auto found no device ({causes}): pictures are decoded on the CPU")
    else:
        _log_once(
            logging.WARNING,
            f"decode: {decode} is not possible here ({find_obstacle(decode)}): pictures are decoded on the CPU instead",
        )
    return None


def make_accelerator(device: str | None) -> HWAccel | None:
    """What PyAV opens a video with that `device` decodes."""
    return None if device is None else HWAccel(device, allow_software_fallback=True)


def note_use(decode: Decode, codec: str, *, is_used: bool) -> None:
    """Log, once for each codec, that a device was chosen which cannot decode it."""
    if not is_used:
        level = logging.INFO if decode == "auto" else logging.WARNING
        _log_once(level, f"decode: {decode} cannot decode {codec}: such pictures are decoded on the CPU instead")


def note_format(decode: Decode, codec: str, pixel_format: str) -> None:
    """Log, once for each codec, that its pictures come from the CPU although a device was opened: their profile, size
    or depth is none that the device decodes."""
    if pixel_format in _CPU_FORMATS:
        level = logging.INFO if decode == "auto" else logging.WARNING
        _log_once(
            level,
            f"decode: {decode} does not decode this kind of {codec} ({pixel_format}): "
            "such pictures are decoded on the CPU instead",
        )


def has_failed(device: str) -> bool:
    """Whether a device that worked when it was chosen works no longer, as when its memory is full. It is not chosen
    again in this process."""
    find_obstacle.cache_clear()
    return bool(find_obstacle(device))


@functools.cache
def find_obstacle(device: str) -> str:
    """Why `device` cannot be used on this machine, in a few words; empty where it can."""
    try:
        HWAccel(device).create(av.Codec("h264", "r"))
    except NotImplementedError:
        return "this FFmpeg is built without it"
    except (av.error.FFmpegError, RuntimeError, ValueError) as error:
        return f"no such device, or no driver for it ({getattr(error, 'strerror', None) or error})".lower()
    return ""


def describe_decoding() -> tuple[bool, str]:
    """Whether a device decodes here, and one sentence on each of them for people."""
    causes = {device: find_obstacle(device) for device in DEVICES}
    working = [device for device, cause in causes.items() if not cause]
    if working:
        return True, f"decode: {working[0]} works" + "".join(f", {device} too" for device in working[1:])
    return False, "decode: cpu only; " + "; ".join(f"{device}: {cause}" for device, cause in causes.items())


@functools.cache
def _log_once(level: int, text: str) -> None:
    log.log(level, "%s", text, extra={"is_said_once": True})
