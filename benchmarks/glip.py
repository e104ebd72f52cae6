"""GLIP-T's speed on a CPU against where it started and against Grounding DINO, and what half precision costs.

    python benchmarks/glip.py [--references FOLDER...] [--rounds N] [--size WxH]

Each contestant runs in a process of its own, all in turns, `rounds` times; a figure is the median over the rounds of
the best of three pictures. The result is written to benchmarks/results/glip.md. Weights are random: they do not change
the speed. `--references` names folders of reference tensors (as for `python -m detectors.glip.check`) for the drift.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUERIES = 10
TOKENS = 28  # of Grounding DINO's caption, about that of ten queries
CONTESTANTS = {
    "plain": "GLIP-T as released, plain eager PyTorch (256 tokens, no folding, gathers, MKL, small pages)",
    "float32": "GLIP-T of groundstream, float32",
    "bfloat16": "GLIP-T of groundstream, bfloat16",
    "grounding-dino": "Grounding DINO tiny of transformers, float32",
}
RESULTS = Path(__file__).parent / "results" / "glip.md"


def best_of(work: Callable[[], object], times: int = 3) -> float:
    """Seconds, after one run for warming up."""
    work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def run_glip(width: int, height: int, dtype: str) -> dict[str, Any]:
    """The whole detector, from the camera's bytes to the detections."""
    import numpy as np

    from detectors.detector import Request
    from detectors.glip.bench import measure_speed, random_glip, sample_queries

    glip = random_glip(
        "glip-tiny", device="cpu", dtype=dtype, short_side=min(width, height), long_side=max(width, height)
    )
    prompt = glip.prepare(sample_queries(QUERIES))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    seconds = best_of(lambda: glip.detect([Request(image, prompt)]))
    found = measure_speed(glip, width=width, height=height, batch=1, asked=QUERIES, rounds=1)
    return {
        "seconds": seconds,
        "flops": found.flops_per_frame,
        "peak": found.matrix_peak,
        "memory": found.peak_memory,
        "shares": found.shares,
    }


def run_plain(width: int, height: int) -> dict[str, Any]:
    """The network alone, as the paper and the released code write it down."""
    import plain_glip
    import torch

    from detectors.glip.config import GLIP_T
    from detectors.glip.modeling.model import GlipModel
    from detectors.glip.modeling.text import TextFeatures

    with plain_glip.installed(), torch.inference_mode():
        torch.manual_seed(0)
        model = GlipModel(GLIP_T).eval()
        hidden = torch.randn(1, 256, 768)
        mask = (torch.arange(256) < TOKENS).long()[None]
        text = TextFeatures(hidden, hidden * mask[..., None], mask)
        images = torch.randn(1, 3, height, width)
        return {"seconds": best_of(lambda: model(images, text))}


def run_grounding_dino(width: int, height: int) -> dict[str, Any]:
    """The network alone, with a text of as many tokens."""
    import torch
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    with torch.inference_mode():
        torch.manual_seed(0)
        model = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval()
        ids = torch.randint(1999, 30000, (1, TOKENS))
        ids[0, 0], ids[0, -1], ids[0, 3:-1:3] = 101, 102, 1012
        images = torch.randn(1, 3, height, width)
        ones = torch.ones_like(ids)
        return {
            "seconds": best_of(
                lambda: model(pixel_values=images, input_ids=ids, attention_mask=ones, token_type_ids=ones - 1)
            )
        }


def contest(name: str, size: str) -> dict[str, Any]:
    width, height = (int(side) for side in size.split("x"))
    if name == "plain":
        return run_plain(width, height)
    if name == "grounding-dino":
        return run_grounding_dino(width, height)
    return run_glip(width, height, name)


def drift(folder: Path) -> list[str]:
    """What a half precision costs on reference tensors: rows of a table."""
    from detectors.glip import check

    rows = []
    for dtype in ("bfloat16", "float16"):
        found = check.measure_drift(folder, dtype)
        boxes = f"{found.box_median:.2f} / {found.box_worst:.2f}"
        rows.append(
            f"| {folder.name} | {dtype} | {found.logit:.2f} | {boxes} | {found.score_worst:.3f} | {found.kept:.1%} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--references", type=Path, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", default="960x544")
    parser.add_argument("--only", choices=CONTESTANTS, help="run one contestant and print its figures as JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(contest(options.only, options.size)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for _ in range(options.rounds):
        for name, results in found.items():
            command = [sys.executable, __file__, "--only", name, "--size", options.size]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
            print(name, f"{results[-1]['seconds']:.2f} s", flush=True)
    RESULTS.write_text(report(found, options.size, [row for folder in options.references for row in drift(folder)]))
    print(f"written to {RESULTS}")


def report(found: dict[str, list[dict[str, Any]]], size: str, drifts: list[str]) -> str:
    seconds = {name: statistics.median(result["seconds"] for result in results) for name, results in found.items()}
    import torch

    lines = [
        "# GLIP",
        "",
        f"Made by `python benchmarks/glip.py`. One picture of {size}, {QUERIES} queries, random weights,",
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}.",
        "",
        "| | seconds a picture | against plain | against Grounding DINO |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, title in CONTESTANTS.items():
        plain, dino = seconds["plain"] / seconds[name], seconds["grounding-dino"] / seconds[name]
        lines.append(f"| {title} | {seconds[name]:.2f} | {plain:.1f} x | {dino:.1f} x |")
    lines += ["", "| groundstream's GLIP-T | float32 | bfloat16 |", "| --- | ---: | ---: |"]
    ours = [found[name][-1] for name in ("float32", "bfloat16")]
    rows = {
        "arithmetic, GFLOP a picture": [f"{one['flops'] / 1e9:.0f}" for one in ours],
        "GFLOP/s": [f"{one['flops'] / one['seconds'] / 1e9:.0f}" for one in ours],
        "one large matrix product, GFLOP/s": [f"{one['peak'] / 1e9:.0f}" for one in ours],
        "share of that": [f"{one['flops'] / one['seconds'] / one['peak']:.0%}" for one in ours],
        "peak memory, MiB": [f"{one['memory'] / 2**20:.0f}" for one in ours],
        **{f"time in {stage}": [f"{one['shares'][stage]:.0%}" for one in ours] for stage in ours[0]["shares"]},
    }
    lines += [f"| {row} | {' | '.join(values)} |" for row, values in rows.items()]
    if drifts:
        lines += [
            "",
            "What half precision costs on the reference tensors, by autocast on this CPU:",
            "",
            "| reference | precision | token logit, worst | box, median / worst px | score, worst | candidates kept |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
            *drifts,
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
