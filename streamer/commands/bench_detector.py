"""`groundstream bench detector`: how fast a model is on this machine."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from streamer.commands import options

if TYPE_CHECKING:
    from detectors.glip.bench import DetectorSpeed


def detector(
    name: Annotated[str, typer.Argument(help="A detector, such as glip-tiny.")] = "glip-tiny",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the pictures.")] = "960x544",
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Things to look for.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Batches to measure, after two for warming up.")] = 10,
    device: options.Device = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the device's usual when absent.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="eager or compile (GLIP only).")] = None,
    weights: options.Weights = None,
    detector_options: options.DetectorOptions = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="No weights: as fast, but blind (released GLIP sizes only).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Frames per second, latency, time by stage, arithmetic against the device's peak, and memory."""
    from streamer.errors import ConfigError

    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    if not match:
        raise ConfigError(f"--size {size!r} is no size: give WIDTHxHEIGHT, such as 960x544")
    width, height = int(match[1]), int(match[2])

    if random_weights and weights is not None:
        raise ConfigError("--random-weights and --weights exclude each other: give one of them")

    from detectors.glip.bench import measure_speed, random_glip
    from streamer.config import parse_detector
    from streamer.detector_choice import DetectorChoice, load_detector

    section = DetectorChoice(name, weights=weights, device=device, options=detector_options or ()).section()
    section |= {key: value for key, value in (("dtype", dtype), ("backend", backend)) if value is not None}
    if name.startswith("glip-"):  # the network sees the pictures as large as they are
        section = {"short_side": min(width, height), "long_side": max(width, height), **section}
    subject = random_glip(**section) if random_weights else load_detector(parse_detector(section, ()))
    found = measure_speed(subject, width=width, height=height, batch=batch, asked=queries, rounds=rounds)
    if as_json:
        print(json.dumps({**asdict(found), "share_of_peak": found.share_of_peak}, indent=2))  # noqa: T201
        return
    _show_result(found, f"{name}, {size}, batch {batch}, {queries} queries, {found.dtype}, {found.device}")


def _show_result(found: DetectorSpeed, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", title=title, show_header=False)
    table.add_row("frames/s", f"{found.frames_per_s:.2f}")
    table.add_row("latency of a batch, p50", f"{1000 * found.latency_p50_s:.0f} ms")
    table.add_row("latency of a batch, p99", f"{1000 * found.latency_p99_s:.0f} ms")
    table.add_row("peak memory", f"{found.peak_memory / 2**20:.0f} MiB")
    if found.flops_per_frame is not None and found.matrix_peak is not None and found.share_of_peak is not None:
        table.add_row("arithmetic", f"{found.flops_per_frame * found.frames_per_s / 1e12:.3f} TFLOP/s")
        table.add_row("one large matrix product", f"{found.matrix_peak / 1e12:.3f} TFLOP/s")
        table.add_row("share of that", f"{found.share_of_peak:.0%}")
    for stage, share in found.shares.items():
        table.add_row(f"time in {stage}", f"{share:.0%}")
    Console().print(table)
