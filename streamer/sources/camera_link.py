"""How a camera is opened, and the failure of a connection to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sinks.tls import TlsOptions
from streamer.sources.clock import ClockLimits

if TYPE_CHECKING:
    from streamer.sources.hardware import Decode


@dataclass(frozen=True, slots=True)
class CameraLink:
    """How a camera is to be opened, with what is known of it in advance.

    After `stall_s` without a new picture it counts as stalled; None follows its own pace. `poll_s` is the time between
    two requests of a `snapshot`; None follows the pace at which its pictures change.
    """

    address: str
    kind: Literal["rtsp", "device", "web"] = "web"
    form: str | None = None
    over_udp: bool = False  # asks for RTP over UDP first
    options: Mapping[str, str] = field(default_factory=dict)
    stall_s: float | None = None
    poll_s: float | None = None
    track: int | None = None
    decode: Decode = "cpu"
    tls: TlsOptions = field(default_factory=TlsOptions)
    clock: ClockLimits = field(default_factory=ClockLimits)


class CameraTrouble(Exception):
    """A connection failed. `final` where trying again as asked cannot help."""

    def __init__(self, cause: str, *, final: bool = False, stalled: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(cause)
        self.pause_s = pause_s
        self.final = final
        self.stalled = stalled
