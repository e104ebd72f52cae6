"""Painter: tracks, words, traces, zones, lines and counts drawn on the frames of one stream.

Boxes and traces are supervision's annotators. Labels are drawn here: they stay inside the frame, do not hide each other
while there is room, and are legible on every colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv

from streamer.rules.places import Line, Zone

Image = npt.NDArray[np.uint8]

_REFERENCE_HEIGHT = 540.0
_ZONE_COLOR = (96, 200, 255)
_LINE_COLOR = (255, 160, 64)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_LEAST_TEXT = 0.4  # scale of the smallest letters that can be read

Rect = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""
LineCounts = Sequence[Mapping[str, int]]
"""Crossings of each line by direction."""


class BoxPainter:
    """Draws on the frames of one stream in their order (traces remember). `name_of` gives a query's words from its
    number."""

    def __init__(
        self, size: tuple[int, int], name_of: Callable[[int], str], zones: Sequence[Zone], lines: Sequence[Line]
    ) -> None:
        """`size` is (width, height) of the frames; strokes and letters scale with it."""
        scale = max(0.5, size[1] / _REFERENCE_HEIGHT)
        palette, by_track = sv.ColorPalette.DEFAULT, sv.ColorLookup.TRACK
        thickness = max(1, round(2 * scale))
        self._name_of = name_of
        self._boxes = sv.BoxAnnotator(color=palette, color_lookup=by_track, thickness=thickness)
        self._traces = sv.TraceAnnotator(
            color=palette,
            color_lookup=by_track,
            thickness=thickness,
            trace_length=60,
            position=sv.Position.BOTTOM_CENTER,
        )
        self._palette = palette
        self._text_scale, self._padding = max(_LEAST_TEXT, 0.42 * scale), max(2, round(4 * scale))
        self._size, self._lines = size, tuple(lines)
        self._masks = sv.MaskAnnotator(color=palette, color_lookup=by_track, opacity=0.4)
        self._scenery = self._draw_scenery(size, zones, lines, thickness, scale)

    def paint(self, image: Image, tracked: sv.Detections, counts: LineCounts = ()) -> Image:
        """A copy of `image` with the tracks drawn on it; `class_id` holds numbers of queries. `counts` are those of the
        lines, in their order."""
        canvas = self._place_scenery(image)
        taken = [self._write_counts(canvas, line, count) for line, count in zip(self._lines, counts, strict=False)]
        if not len(tracked):
            return canvas
        canvas = self._traces.annotate(canvas, tracked)
        if tracked.mask is not None:
            canvas = self._masks.annotate(canvas, tracked)
        canvas = self._boxes.annotate(canvas, tracked)
        assert tracked.tracker_id is not None
        for text, box, track in zip(self._track_texts(tracked), tracked.xyxy, tracked.tracker_id, strict=True):
            taken.append(self._write_label(canvas, text, box, self._palette.by_idx(int(track)), taken))
        return canvas

    def _write_label(
        self, canvas: Image, text: str, box: npt.NDArray[np.floating], color: sv.Color, taken: Sequence[Rect]
    ) -> Rect:
        """Writes a label at the box, where it hides the least of the labels before it; returns its place."""
        wide, high = self._text_size(text)
        x1, y1, x2, y2 = (int(value) for value in box)
        tops = [y1 - high, y1, y2, y2 - high, y1 - 2 * high, y2 + high]
        choices = [_move_inside(left, top, wide, high, canvas.shape) for top in tops for left in (x1, x2 - wide)]
        place = min(choices, key=lambda rect: sum(_shared_pixels(rect, other) for other in taken))
        self._write_text(canvas, text, place, color.as_bgr(), ink_on(color))
        return place

    def _write_counts(self, canvas: Image, line: Line, count: Mapping[str, int]) -> Rect:
        """Writes the crossings of a line on the other side of the arrow that points to `in`."""
        text = f"{line.name}  in {count.get('in', 0)}  out {count.get('out', 0)}"
        (x, y), tip = self._line_arrow(line)
        wide, high = self._text_size(text)
        left = x - wide // 2 if abs(tip[0] - x) < abs(tip[1] - y) else x + 4 if tip[0] < x else x - wide - 4
        top = y + 4 if tip[1] < y else y - high - 4
        place = _move_inside(left, top, wide, high, canvas.shape)
        self._write_text(canvas, text, place, _LINE_COLOR, _BLACK)
        return place

    def _line_arrow(self, line: Line) -> tuple[tuple[int, int], tuple[int, int]]:
        """From the middle of a line to its right, in pixels."""
        start, end = line.ends * self._size
        along = (end - start) / max(float(np.hypot(*(end - start))), 1e-9)
        middle, length = (start + end) / 2, 0.06 * min(self._size)
        tip = middle + length * np.array([-along[1], along[0]])
        return (round(middle[0]), round(middle[1])), (round(tip[0]), round(tip[1]))

    def _text_size(self, text: str) -> tuple[int, int]:
        (width, height), _ = cv2.getTextSize(text, _FONT, self._text_scale, 1)
        return width + 2 * self._padding, height + 2 * self._padding

    def _write_text(
        self, canvas: Image, text: str, place: Rect, ground: tuple[int, int, int], ink: tuple[int, int, int]
    ) -> None:
        left, top, right, bottom = place
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), ground, cv2.FILLED)
        start = (left + self._padding, bottom - self._padding)
        cv2.putText(canvas, text, start, _FONT, self._text_scale, ink, 1, cv2.LINE_AA)

    def _track_texts(self, tracked: sv.Detections) -> list[str]:
        assert tracked.tracker_id is not None
        scores = np.ones(len(tracked)) if tracked.confidence is None else tracked.confidence
        labels = np.zeros(len(tracked), int) if tracked.class_id is None else tracked.class_id
        return [
            f"#{track} {self._name_of(int(label))} {score:.2f}"
            for track, label, score in zip(tracked.tracker_id, labels, scores, strict=True)
        ]

    def _draw_scenery(
        self, size: tuple[int, int], zones: Sequence[Zone], lines: Sequence[Line], thickness: int, scale: float
    ) -> tuple[Image, Image] | None:
        """Zones and lines, drawn once: a layer, and its opacity (H, W, 1) in 0..255."""
        if not zones and not lines:
            return None
        layer = np.zeros((size[1], size[0], 3), np.uint8)
        cover = np.zeros((size[1], size[0]), np.uint8)

        def write(text: str, at: npt.NDArray[np.int32], color: tuple[int, int, int]) -> None:
            (width, height), below = cv2.getTextSize(text, _FONT, 0.5 * scale, 1)
            x, y = at.tolist()
            for target, ink in ((layer, color), (cover, 255)):
                cv2.rectangle(target, (x - 3, y - height - 3), (x + width + 3, y + below), ink, cv2.FILLED)
            cv2.putText(layer, text, (x, y), _FONT, 0.5 * scale, _BLACK, 1, cv2.LINE_AA)

        for zone in zones:
            rings = [np.round(ring * size).astype(np.int32) for ring in (zone.region.corners, *zone.region.holes)]
            corners = rings[0]
            cv2.fillPoly(layer, rings, _ZONE_COLOR)
            cv2.fillPoly(cover, rings, 40)
            cv2.polylines(cover, rings, True, 255, thickness, cv2.LINE_AA)
            write(zone.name, corners.min(axis=0) + np.array([6, round(18 * scale)], np.int32), _ZONE_COLOR)
        for line in lines:
            start, end = np.round(line.ends * size).astype(np.int32)
            for target, ink in ((layer, _LINE_COLOR), (cover, 255)):
                cv2.line(target, start.tolist(), end.tolist(), ink, thickness + 1, cv2.LINE_AA)
                cv2.arrowedLine(target, *self._line_arrow(line), ink, thickness + 1, cv2.LINE_AA, tipLength=0.4)
        return layer, cover[:, :, None]

    def _place_scenery(self, image: Image) -> Image:
        if self._scenery is None or image.shape != self._scenery[0].shape:
            return image.copy()
        layer, cover = self._scenery
        share = cover.astype(np.uint16)
        mixed = (image * (255 - share) + layer * share) // 255
        return mixed.astype(np.uint8)


def ink_on(color: sv.Color) -> tuple[int, int, int]:
    """Black or white, whichever contrasts more with `color`, by relative luminance (WCAG 2.1)."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (channel / 255 for channel in color.as_rgb())
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _BLACK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else _WHITE


def _move_inside(left: int, top: int, wide: int, high: int, shape: tuple[int, ...]) -> Rect:
    """The rectangle, moved into the image."""
    left, top = max(0, min(left, shape[1] - wide)), max(0, min(top, shape[0] - high))
    return left, top, left + wide, top + high


def _shared_pixels(first: Rect, second: Rect) -> int:
    """Pixels that two rectangles have in common."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)
