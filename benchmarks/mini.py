"""glip-mini on streets that it has not seen: what it finds, what it makes up, how fast. Writes results/mini.md.

python benchmarks/mini.py [--pictures 200] [--weights FOLDER]
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

HERE = Path(__file__).parent
SPEEDS = (
    ((320, 192), 5),
    ((640, 384), 1),
    ((640, 384), 5),
    ((640, 384), 10),
    ((640, 384), 20),
    ((960, 576), 5),
    ((1280, 768), 5),
)


def main() -> None:
    from benchmarks.glip_mini.card import THRESHOLDS, tables
    from benchmarks.glip_mini.examination import answer_of, examine_at
    from detectors import create_detector

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "mini.md")
    options = parser.parse_args()
    given = {} if options.weights is None else {"weights": options.weights}
    detector = create_detector("glip-mini", **given)
    thresholds = sorted({*THRESHOLDS[2::3], detector.threshold})
    reports = examine_at(answer_of(detector), options.pictures, thresholds)
    lines = [
        "# glip-mini on the synthetic street",
        "",
        f"`benchmarks/mini.py --pictures {options.pictures}`, {platform.machine()}, {os.cpu_count()} cores, CPU. "
        f"Held-out streets, 640x384. Shipped threshold: {detector.threshold}.",
        "",
        *tables(reports),
        "",
        *speed(options.weights),
    ]
    options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def speed(weights: Path | None, rounds: int = 20) -> list[str]:
    """The detector alone, by size of the picture and number of queries."""
    import torch

    from detectors import create_detector
    from detectors.glip.bench import measure_speed

    rows = [
        f"{torch.get_num_threads()} threads, {rounds} pictures one by one, the detector alone.",
        "",
        "| picture | queries | ms (median) | ms (p99) | frames/s |",
        "| --- | --- | --- | --- | --- |",
    ]
    given = {} if weights is None else {"weights": weights}
    for (width, height), count in SPEEDS:
        detector = create_detector("glip-mini", short_side=height, long_side=width, **given)
        found = measure_speed(detector, width=width, height=height, batch=1, asked=count, rounds=rounds)
        p50, p99 = found.latency_p50_s * 1e3, found.latency_p99_s * 1e3
        rows.append(f"| {width}x{height} | {count} | {p50:.0f} | {p99:.0f} | {found.frames_per_s:.1f} |")
    return rows


if __name__ == "__main__":
    main()
