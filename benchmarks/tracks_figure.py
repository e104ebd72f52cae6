"""Tracks drawn over PETS09-S2L1: a picture to look at, made at run time from ../shared/data/mot.

    python benchmarks/tracks_figure.py [--frames 120,300,500,700] [--tracker default] [--out out/tracks.jpg]

The tracker sees the detections that come with the sequence. Boxes, ids and the paths of the last 64 observations are
what it gives out at those frames, side by side; also reported is what is thought of this still camera's motion.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import supervision as sv

from trackers import create_tracker, mot
from trackers.camera_motion import CameraMotion

SEQUENCE = Path(__file__).resolve().parents[2] / "shared" / "data" / "mot" / "PETS09-S2L1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="120,300,500,700")
    parser.add_argument("--tracker", default="default")
    parser.add_argument("--out", type=Path, default=Path("out/tracks.jpg"))
    arguments = parser.parse_args()
    wanted = [int(number) for number in arguments.frames.split(",")]

    info = mot.read_info(SEQUENCE)
    rows = mot.by_frame(mot.read_rows(SEQUENCE / "det.txt", 7), info.length)
    tracker, camera = create_tracker(arguments.tracker), CameraMotion()
    video, pictures, moved = cv2.VideoCapture(str(SEQUENCE / "video.mp4")), [], 0
    for frame, found in enumerate(rows[: max(wanted)], start=1):
        _, image = video.read()
        detections = sv.Detections(xyxy=mot.to_corners(found), confidence=found[:, 6])
        motion = camera.update(image, detections.xyxy)
        moved += motion is not None
        tracked = tracker.update(detections, frame / info.frame_rate, motion)
        if frame in wanted:
            pictures.append(draw(image, tracked, tracker, frame))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    half = (len(pictures) + 1) // 2
    lines = [np.hstack(part) for part in (pictures[:half], pictures[half:]) if len(part) == half]
    cv2.imwrite(str(arguments.out), np.vstack(lines))
    print(f"{arguments.out}: frames {arguments.frames}; the still camera was taken to move in {moved} frames")


def draw(image: np.ndarray, tracked: sv.Detections, tracker: object, frame: int) -> np.ndarray:
    """The frame with boxes, ids and paths."""
    colours = sv.ColorPalette.DEFAULT
    picture = sv.BoxAnnotator(color=colours, thickness=2, color_lookup=sv.ColorLookup.TRACK).annotate(
        image.copy(), tracked
    )
    ids = tracked.tracker_id.tolist() if tracked.tracker_id is not None else []
    picture = sv.LabelAnnotator(
        color=colours, text_scale=0.5, text_padding=3, color_lookup=sv.ColorLookup.TRACK
    ).annotate(picture, tracked, labels=[str(number) for number in ids])
    for number in ids:
        past = tracker.history(number)  # type: ignore[attr-defined]
        feet = np.column_stack(((past[:, 1] + past[:, 3]) / 2, past[:, 4])).astype(np.int32)
        cv2.polylines(picture, [feet], False, colours.by_idx(number).as_bgr(), 2, cv2.LINE_AA)
    cv2.putText(picture, f"frame {frame}", (12, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2, cv2.LINE_AA)
    return picture


if __name__ == "__main__":
    main()
