"""The command `python -m detectors.glip.check FOLDER`: compares this GLIP with reference tensors, stage by stage.

A folder holds any of: `config.json`, `weights.safetensors`, `io.safetensors` (the stages of two or more images),
`grads.safetensors`, `prompt_tuning.safetensors`; or `captions.json` and `vocab.txt`; or a `config.json` and
`io.safetensors` of images before and after preprocessing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from detectors.detector import DetectorError
from detectors.glip.check.model import check
from detectors.glip.check.report import render
from detectors.glip.modeling.deform import IMPLEMENTATIONS
from detectors.glip.runtime import DTYPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 when all stages are within tolerance, else 1."""
    parser = argparse.ArgumentParser(prog="python -m detectors.glip.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="+", help="folder of reference tensors")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="precision to run in (default: float32)")
    parser.add_argument("--deform", choices=IMPLEMENTATIONS, help="implementation of the deformable convolution")
    options = parser.parse_args(arguments)
    console, failed = Console(width=None if sys.stdout.isatty() else 120), 0
    for folder in options.folder:
        try:
            report = check(folder, options.device, options.dtype, options.deform)
        except DetectorError as error:
            console.print(f"[red]error[/red]: {error}", highlight=False)
            failed = 1
            continue
        beyond = sum(not row.passed for row in report.rows)
        console.print(render(report))
        console.print(f"{folder}: {len(report.rows)} comparisons, {beyond} beyond tolerance ({options.dtype})")
        failed = failed or bool(beyond)
    return int(failed)
