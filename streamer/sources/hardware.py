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

_DEVICES = ("cuda", "vaapi", "videotoolbox")


def choose_accelerator(decode: Decode) -> HWAccel | None:
    """What to open a video with, None for the CPU. Logs once in a process where the choice is not possible here."""
    if decode == "cpu":
        return None
    causes = []
    for device in _DEVICES if decode == "auto" else (decode,):
        cause = find_obstacle(device)
        if not cause:
            return HWAccel(device, allow_software_fallback=True)
        causes.append(f"{device}: {cause}")
    if decode == "auto":
        _log_once(logging.INFO, f"decode: auto found no device ({', '.join(causes)}): pictures are decoded on the CPU")
    else:
        _log_once(
            logging.WARNING, f"decode: {decode} is not possible here ({cause}): pictures are decoded on the CPU instead"
        )
    return None


def note_use(decode: Decode, codec: str, *, is_used: bool) -> None:
    """Log, once for each codec, that a device was chosen which cannot decode it."""
    if not is_used:
        level = logging.INFO if decode == "auto" else logging.WARNING
        _log_once(level, f"decode: {decode} cannot decode {codec}: such pictures are decoded on the CPU instead")


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


@functools.cache
def _log_once(level: int, text: str) -> None:
    log.log(level, "%s", text)
