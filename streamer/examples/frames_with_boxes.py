"""Frames with boxes, as in a notebook: every tenth frame of a video with its tracks drawn by supervision."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import supervision as sv

import groundstream


def annotated_frames(video: str, query: str, detector: str = "motion", every: int = 10) -> Iterator[np.ndarray]:
    """Yields every `every`-th frame, (height, width, 3) BGR, with boxes and track numbers."""
    boxes, labels = sv.BoxAnnotator(), sv.LabelAnnotator()
    for item in groundstream.watch_frames_sync(video, query, detector=detector):
        if item.frame.index % every:
            continue
        ids = item.detections.tracker_id
        names = [] if ids is None else [f"#{number}" for number in ids]
        image = boxes.annotate(item.frame.image.copy(), item.detections)
        yield labels.annotate(image, item.detections, labels=names)


if __name__ == "__main__":
    folder = Path("frames")
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(annotated_frames(sys.argv[1], "anything that moves")):
        cv2.imwrite(str(folder / f"{number:05}.jpg"), picture)
