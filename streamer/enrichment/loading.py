"""Loading of GLaMM with the options that commands and the configuration share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectors.glamm.segmenter import Glamm


@dataclass(frozen=True)
class GlammLoading:
    """A GLaMM model with its device, precision and batch size."""

    model: str
    clip: Path | None = None
    device: str | None = None
    dtype: str | None = None
    bits: int | None = None
    batch: int = 8

    def load(self) -> Glamm:
        from detectors.glamm.segmenter import Glamm

        glamm = Glamm.load(
            self.model,
            clip=self.clip,
            device=self.device,
            dtype=self.dtype,
            bits=self.bits,
            report=_report_progress,
        )
        glamm.batch_size = self.batch
        return glamm


def _report_progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")
