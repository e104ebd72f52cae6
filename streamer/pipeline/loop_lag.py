"""The lag of the event loop: how late it runs what is due, because a piece of work held it up."""

from __future__ import annotations

import asyncio
import time
from collections import deque

_PROBE_S = 0.05
_WINDOW_S = 60.0


class LoopLag:
    """Probes the event loop that `run` runs in, and remembers the lags of the last minute."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=round(_WINDOW_S / _PROBE_S))

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            due = time.monotonic() + _PROBE_S
            await asyncio.sleep(_PROBE_S)
            self._lags.append(max(0.0, time.monotonic() - due))

    def quantile(self, share: float) -> float:
        """The lag, in seconds, that `share` (0..1) of the probes of the last minute stayed below; 0 without any."""
        lags = sorted(self._lags)
        return lags[min(len(lags) - 1, int(share * len(lags)))] if lags else 0.0
