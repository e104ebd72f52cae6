"""GLIP on a GPU: speed, launches, waits and exactness, in one table.

    python benchmarks/gpu.py [--model glip-tiny] [--size 960x544] [--batches 1 8 16] [--device cuda] [--out FILE]
    python benchmarks/gpu.py --dry

Weights are random: they do not change the speed. Every implementation of the deformable convolution that works on the
device is measured with every batch size. The result is written to benchmarks/results/gpu.md. `--dry` runs the same on
the CPU with the packaged glip-mini and small pictures, prints the table and writes it only with `--out`: it proves that
the command works, not a speed.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detectors.detector import Request
from detectors.device import choose_device
from detectors.glip.bench import DetectorSpeed, measure_speed, random_glip, sample_queries
from detectors.glip.config import GlipConfig
from detectors.glip.detector import Glip, create
from detectors.glip.device_work import ForwardWork, WaitFinder, count_forward
from detectors.glip.modeling.model import Predictions
from detectors.glip.modeling.text import TextFeatures
from detectors.glip.runtime import find_deform_fault

QUERIES = 10
GOALS = {1: 150, 8: 300}  # pictures/s of GLIP-T at 960x544 on an H100, by batch size
RESULTS = Path(__file__).parent / "results" / "gpu.md"

BuildGlip = Callable[..., Glip]


@dataclass(frozen=True)
class Case:
    """One measured combination."""

    deform: str
    batch: int
    speed: DetectorSpeed
    kernels: int | None  # launched for one batch, by the profiler; None without a GPU
    waits: int  # of the host inside a batch, the download of the result among them


def find_working(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Implementations of the deformable convolution, each with what is wrong with it here, "" for nothing."""
    return {name: find_deform_fault(name, device, dtype) for name in ("embedding-bag", "triton", "torchvision")}


def make_requests(glip: Glip, width: int, height: int, batch: int) -> list[Request]:
    pictures = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    prompt = glip.prepare(sample_queries(QUERIES))
    return [Request(picture, prompt, f"camera {number}") for number, picture in enumerate(pictures)]


def count_waits(glip: Glip, requests: Sequence[Request]) -> int:
    """How often the host waits inside a batch: by CUDA's own debugging mode on a GPU, else by operators."""
    glip.detect(requests)
    if glip.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                glip.detect(requests)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)
    with WaitFinder() as finder:
        glip.detect(requests)
    return len(finder.waits)


def count_kernels(glip: Glip, requests: Sequence[Request]) -> int | None:
    """Kernels that one batch launches on a GPU."""
    if glip.device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        glip.detect(requests)
        torch.cuda.synchronize(glip.device)
    return sum(event.name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for event in profile.events() or [])


def measure_case(build: BuildGlip, deform: str, batch: int, width: int, height: int, rounds: int) -> Case:
    glip = build(deform=deform)
    speed = measure_speed(glip, width=width, height=height, batch=batch, asked=QUERIES, rounds=rounds)
    requests = make_requests(glip, width, height, batch)
    return Case(deform, batch, speed, count_kernels(glip, requests), count_waits(glip, requests))


def measure_drift(build: BuildGlip, deform: str, width: int, height: int) -> tuple[float, float]:
    """Worst differences of logits and of deltas between the device and the CPU in single precision."""

    def predict(glip: Glip) -> Predictions:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(1, 3, height + -height % 32, width + -width % 32, generator=generator).to(glip.device)
        text = TextFeatures(*(part.to(glip.device) for part in glip.prepare(sample_queries(3)).chunks[0].text))
        with torch.inference_mode(), glip.precision.autocast():
            predictions: Predictions = glip.model(images, text)
        return predictions

    mine = predict(build(deform=deform))
    want = predict(build(deform="embedding-bag", device="cpu", dtype="float32"))
    logits, deltas = (
        float((getattr(mine, part).float().cpu() - getattr(want, part)).abs().max()) for part in ("logits", "deltas")
    )
    return logits, deltas


def write_report(
    title: str, cases: Sequence[Case], faults: dict[str, str], work: ForwardWork, drift: dict[str, tuple[float, float]]
) -> str:
    """The table, as Markdown."""
    first = cases[0].speed
    lines = [
        "# GLIP on a GPU",
        "",
        "Made by `python benchmarks/gpu.py`.",
        f"{title}, {QUERIES} queries, random pictures, {first.device}, {first.dtype}, torch {torch.__version__},",
        f"{platform.processor() or platform.machine()}.",
        "",
        "| deformable convolution | batch | pictures/s | goal | ms a batch, median / worst hundredth "
        "| of the matrix peak | peak memory, MiB | kernels a batch | waits a batch |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in cases:
        speed, share = case.speed, case.speed.share_of_peak
        lines.append(
            f"| {case.deform} | {case.batch} | {speed.frames_per_s:.1f} | {GOALS.get(case.batch, '')} "
            f"| {speed.latency_p50_s * 1e3:.1f} / {speed.latency_p99_s * 1e3:.1f} "
            f"| {'' if share is None else f'{share:.0%}'} | {speed.peak_memory / 2**20:.0f} "
            f"| {'' if case.kernels is None else case.kernels} | {case.waits} |"
        )
    stages = list(first.shares)
    lines += ["", "| share of the time | " + " | ".join(stages) + " |", "| --- |" + " ---: |" * len(stages)]
    for case in cases:
        shares = " | ".join(f"{case.speed.shares[stage]:.0%}" for stage in stages)
        lines.append(f"| {case.deform}, batch {case.batch} | {shares} |")
    launches = ", ".join(f"{stage} {count}" for stage, count in work.launches.items())
    lines += [
        "",
        f"Counted without a device, batch 1, half precision: launches {launches};",
        f"{work.bytes / 1e9:.2f} GB of traffic.",
        "",
        "| deformable convolution | self-test | logits off by | deltas off by |",
        "| --- | --- | ---: | ---: |",
    ]
    for name, fault in faults.items():
        worst = f"{drift[name][0]:.3g} | {drift[name][1]:.3g}" if name in drift else " | "
        lines.append(f"| {name} | {fault or 'passed'} | {worst} |")
    lines += ["", "Differences are the worst of one picture against the CPU in single precision."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="glip-tiny", help="a released size, with random weights")
    parser.add_argument("--size", default="960x544", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=30, help="measured batches of each combination")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float16")
    parser.add_argument("--dry", action="store_true", help="run on the CPU, small")
    parser.add_argument("--out", type=Path, help=f"file of the table; {RESULTS} by default, none with --dry")
    options = parser.parse_args(arguments)
    if options.dry:
        options.model, options.size, options.batches, options.rounds = "glip-mini", "96x64", [1, 2], 2
        options.device, options.dtype = "cpu", "float32"
    elif not torch.cuda.is_available():
        parser.error("torch sees no GPU here: run it on a machine that has one, or give --dry")
    width, height = (int(side) for side in options.size.split("x"))
    device = choose_device(options.device)

    def build(**changed: Any) -> Glip:
        sides = {"short_side": min(width, height), "long_side": max(width, height)}
        given = {"device": options.device, "dtype": options.dtype, **sides, **changed}
        return create(options.model, **given) if options.dry else random_glip(options.model, **given)

    faults = find_working(device, getattr(torch, options.dtype))
    working = [name for name, fault in faults.items() if not fault]
    cases = [
        measure_case(build, name, batch, width, height, options.rounds) for name in working for batch in options.batches
    ]
    drift = {name: measure_drift(build, name, width, height) for name in working}
    config: GlipConfig = build().model.config
    work = count_forward(config, width=width + -width % 32, height=height + -height % 32)
    title = f"{options.model}, pictures of {options.size}"
    table = write_report(title, cases, faults, work, drift)
    print(table)
    out = options.out or (None if options.dry else RESULTS)
    if out is not None:
        out.write_text(table)
        print(f"written to {out}")


if __name__ == "__main__":
    main()
