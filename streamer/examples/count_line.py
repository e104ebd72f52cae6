"""Counting over a line: how many objects crossed the middle of the picture, by direction."""

from __future__ import annotations

import sys
from collections import Counter

import groundstream

MIDDLE = {"lines": [{"id": "middle", "points": [[0.5, 0.0], [0.5, 1.0]]}]}


def count_crossings(video: str, query: str = "anything that moves", detector: str = "motion") -> Counter[str]:
    """Returns the crossings `in` and `out`; `in` is from the left to the right when walking along the line."""
    crossings: Counter[str] = Counter()
    for event in groundstream.watch_sync(video, query, detector=detector, stream=MIDDLE):
        if event.kind == "line.cross" and event.data.line is not None:
            crossings[event.data.line.direction] += 1
    return crossings


if __name__ == "__main__":
    found = count_crossings(*sys.argv[1:])
    print(f"in {found['in']}, out {found['out']}")
