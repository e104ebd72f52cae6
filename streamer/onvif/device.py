"""Calls to an ONVIF camera: what it is, its media profiles and their RTSP addresses. Needs the extra `onvif`."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from streamer.errors import SourceAddressError, SourceError, StreamerError

_DEFAULT_PORT = 80
_CALL_TIMEOUT_S = 15.0  # all calls to one camera together: many cameras answer slowly, none takes longer
_STREAM_SETUP: Mapping[str, Any] = {"Stream": "RTP-Unicast", "Transport": {"Protocol": "RTSP"}}


@dataclass(frozen=True, slots=True)
class OnvifAddress:
    """Where a camera's device service is, and the account to use there."""

    host: str
    port: int = _DEFAULT_PORT
    user: str = ""
    password: str = ""

    @classmethod
    def parse(cls, text: str) -> OnvifAddress:
        """Reads `onvif://USER:PASSWORD@HOST[:PORT]`; characters of the account may be percent-encoded.

        Raises `SourceAddressError`; the sentence never holds the account.
        """
        expected = "an address reads onvif://USER:PASSWORD@HOST[:PORT], with @ : / of the account percent-encoded"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise SourceAddressError(
                f"the port of the camera's address is no number from 1 to 65535: {expected}"
            ) from None
        if parts.scheme != "onvif":
            raise SourceAddressError(f"{parts.scheme or 'this'} is no ONVIF address: {expected}")
        if not parts.hostname:
            raise SourceAddressError(f"the camera's address has no host: {expected}")
        if port == 0:
            raise SourceAddressError(f"the port of {parts.hostname} is 0: give a port from 1 to 65535")
        return cls(parts.hostname, port or _DEFAULT_PORT, unquote(parts.username or ""), unquote(parts.password or ""))

    @property
    def name(self) -> str:
        """`HOST:PORT`, an IPv6 host in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class CameraProfile:
    """A media profile: its token and name, its video (width, height in pixels, frames a second; 0 where the camera does
    not say), and its RTSP address without an account."""

    token: str
    name: str
    codec: str
    width: int
    height: int
    fps: float
    uri: str

    def signed_uri(self, user: str, password: str) -> str:
        """Returns the RTSP address with an account; both parts are inserted as they are and must be encoded."""
        parts = urlsplit(self.uri)
        account = f"{user}:{password}@" if user else ""
        return urlunsplit(parts._replace(netloc=account + parts.netloc.rpartition("@")[2]))


@dataclass(frozen=True, slots=True)
class CameraDescription:
    """What a camera says of itself; `profiles` begin with the largest picture."""

    manufacturer: str
    model: str
    firmware: str
    serial: str
    profiles: tuple[CameraProfile, ...]


async def read_camera(address: OnvifAddress, timeout_s: float = _CALL_TIMEOUT_S) -> CameraDescription:
    """Asks a camera for its description and profiles.

    Raises `SourceError` when it does not answer within `timeout_s` seconds, refuses the account, or has no video
    profile, and `StreamerError` when the extra `onvif` is not installed.
    """
    library = _import_library()
    try:
        async with asyncio.timeout(timeout_s):
            return await _describe(library, address)
    except TimeoutError:
        raise SourceError(
            f"the camera {address.name} did not answer within {timeout_s:g} s: check its address, and that ONVIF is "
            "switched on in its settings"
        ) from None
    except SourceError:
        raise
    except Exception as error:  # the library raises errors of zeep, aiohttp, lxml and its own
        raise SourceError(_explain_failure(address, error)) from error


def _import_library() -> Any:
    try:
        return importlib.import_module("onvif")
    except ImportError as error:
        raise StreamerError(
            f"ONVIF needs a library that cannot be imported ({error}): pip install 'groundstream[onvif]'"
        ) from error


async def _describe(library: Any, address: OnvifAddress) -> CameraDescription:
    # Cameras behind a translated address name their inner one, so the host of `address` replaces it.
    camera = library.ONVIFCamera(
        address.host, address.port, address.user, address.password, adjust_time=True, nat_override=True
    )
    try:
        await camera.update_xaddrs()
        device = await camera.create_devicemgmt_service()
        about = await device.GetDeviceInformation()
        media = await camera.create_media_service()
        found = []
        for profile in await media.GetProfiles():
            encoder = getattr(profile, "VideoEncoderConfiguration", None)
            if encoder is None:
                continue  # sound or metadata alone
            answer = await media.GetStreamUri({"StreamSetup": dict(_STREAM_SETUP), "ProfileToken": profile.token})
            found.append(_read_profile(profile, encoder, str(answer.Uri)))
    finally:
        await camera.close()
    if not found:
        raise SourceError(
            f"the camera {address.name} has no media profile with video: create one in the camera's settings"
        )
    found.sort(key=lambda profile: -profile.width * profile.height)
    return CameraDescription(
        manufacturer=str(about.Manufacturer or ""),
        model=str(about.Model or ""),
        firmware=str(about.FirmwareVersion or ""),
        serial=str(about.SerialNumber or ""),
        profiles=tuple(found),
    )


def _read_profile(profile: Any, encoder: Any, uri: str) -> CameraProfile:
    size, rate = getattr(encoder, "Resolution", None), getattr(encoder, "RateControl", None)
    return CameraProfile(
        str(profile.token),
        str(profile.Name or ""),
        str(encoder.Encoding or ""),
        int(getattr(size, "Width", 0) or 0),
        int(getattr(size, "Height", 0) or 0),
        float(getattr(rate, "FrameRateLimit", 0) or 0),
        uri,
    )


def _explain_failure(address: OnvifAddress, error: Exception) -> str:
    text = str(error)
    causes = [error, *_causes_of(error)]
    if any(mark in text.lower() for mark in ("not authorized", "notauthorized", "unauthorized", "authority failure")):
        return (
            f"the camera {address.name} refuses the account {address.user or '(none)'}: many cameras keep ONVIF users "
            "of their own, apart from those of their web page; create one there"
        )
    if "Service not supported" in text or "Device doesn`t support service: media" in text:
        return (
            f"the camera {address.name} offers no Media service (version 10), which is what this program speaks: "
            "give its rtsp:// address from its manual instead"
        )
    if any(isinstance(cause, OSError) for cause in causes):
        return (
            f"the camera {address.name} cannot be reached ({text or type(error).__name__}): check its address and port "
            "(80, 8000, 8080 and 8899 are common for ONVIF)"
        )
    return f"the camera {address.name} gave no usable answer ({text or type(error).__name__}): switch ONVIF on in it"


def _causes_of(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    while (cause := error.__cause__ or error.__context__) is not None and len(found) < 8:
        found.append(cause)
        error = cause
    return found


def encode_account(text: str) -> str:
    """Returns a user name or password as it stands in an address."""
    return quote(text, safe="")
