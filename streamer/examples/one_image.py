"""One image: boxes for a few words with a detector of your choice."""

from __future__ import annotations

import sys
from pathlib import Path

import groundstream
from streamer.sources.picture import read_picture


def find_objects(path: str, queries: list[str], detector: str = "glip-mini") -> list[tuple[str, float, list[int]]]:
    """Returns (query, score, box in pixels) for every object found in an image file."""
    image = read_picture(Path(path))
    model = groundstream.create_detector(detector)
    [found] = model.detect([groundstream.Request(image, model.prepare(queries))])
    assert found.confidence is not None
    rows = zip(found.data["class_name"], found.confidence, found.xyxy, strict=True)
    return [(str(name), float(score), box.round().astype(int).tolist()) for name, score, box in rows]


if __name__ == "__main__":
    for name, score, box in find_objects(sys.argv[1], sys.argv[2:] or ["a person", "a car"]):
        print(f"{score:.2f} {name} {box}")
