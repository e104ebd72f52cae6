"""Look at the synthetic street: a sheet of pictures with their truth drawn in, and how fast frames are made.

    python benchmarks/street_sheet.py --out sheet.png --seeds 1 5 7 12

Writes the picture sheet and, with `--table`, a Markdown table of CPU time on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from streamer.sources.street import SCENARIOS
from streamer.street import Scenario, Street, StreetPicture, sample_picture, words

_INK = (255, 255, 255)


def annotated(picture: StreetPicture) -> np.ndarray:
    """Boxes, visible masks and one phrase for each thing that is mostly visible."""
    image = picture.image.copy()
    for one in picture.truth.seen:
        if one.visibility < 0.4 or one.area < 60:
            continue
        colour = tuple(int(part) for part in np.random.default_rng(one.thing.identity).integers(90, 255, 3))
        image[one.mask] = image[one.mask] * 0.6 + np.array(colour) * 0.4
        x1, y1, x2, y2 = one.box
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), colour, 1)
        text = max(words.true_phrases(one, picture.truth.seen), key=len)
        place = max(x1, 0), max(y1 - 3, 8)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.33, _INK, 1, cv2.LINE_AA)
    return image


def sheet(pictures: list[StreetPicture], columns: int = 2) -> np.ndarray:
    """Each picture beside itself with its truth."""
    pairs = [np.hstack([picture.image, annotated(picture)]) for picture in pictures]
    pairs += [np.zeros_like(pairs[0])] * (-len(pairs) % (columns // 2))
    step = columns // 2
    return np.vstack([np.hstack(pairs[k : k + step]) for k in range(0, len(pairs), step)])


def milliseconds(make: Callable[[int], object], count: int) -> float:
    """CPU time of one call."""
    make(0)
    start = time.process_time()
    for index in range(count):
        make(index)
    return (time.process_time() - start) / count * 1e3


def table() -> str:
    """CPU milliseconds and frames a second on one core."""
    lines = ["| what | size | CPU ms | per second and core |", "| --- | --- | ---: | ---: |"]

    def add(name: str, size: tuple[int, int], spent_ms: float) -> None:
        lines.append(f"| {name} | {size[0]}x{size[1]} | {spent_ms:.1f} | {1000 / spent_ms:.0f} |")

    for size in ((640, 384), (1280, 768)):
        streets = [Street(seed, size) for seed in range(6)]
        scenes = {name: [milliseconds(getattr(s, name), 25) for s in streets] for name in ("image", "truth", "picture")}
        for name, spent in scenes.items():
            add(f"`Street.{name}`, mean of 6 streets", size, float(np.mean(spent)))
        add(
            "`sample`, a new street each",
            size,
            milliseconds(lambda index, size=size: sample_picture(1, index, size), 40),
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("street.png"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5, 7, 12])
    parser.add_argument("--time", type=float, default=3.0, help="seconds into each street")
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="everyday")
    parser.add_argument("--table", type=Path, help="measure, and write the table here")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    scenario: Scenario = SCENARIOS[arguments.scenario]
    index = round(arguments.time * 25)
    pictures = [Street(seed, scenario=scenario).picture(index) for seed in arguments.seeds]
    cv2.imwrite(str(arguments.out), sheet(pictures))
    print(f"wrote {arguments.out}")
    if arguments.table:
        arguments.table.write_text("# The synthetic street: how fast\n\n" + table())
        print(arguments.table.read_text())


if __name__ == "__main__":
    main()
