"""Painted frames: labels, lines with their direction and counts, zones with holes."""

from __future__ import annotations

import numpy as np
import supervision as sv

from streamer.recorders.painter import BoxPainter
from streamer.rules.places import Line, Zone

SIZE = (640, 360)
BLACK = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
NOTHING = sv.Detections.empty()


class Labels(BoxPainter):
    """Remembers where labels were written."""

    def __init__(self, lines=()) -> None:
        super().__init__(SIZE, lambda _: "anything that moves", (), lines)
        self.places: list[tuple[int, int, int, int]] = []

    def _write_text(self, canvas, text, place, ground, ink) -> None:
        self.places.append(place)
        super()._write_text(canvas, text, place, ground, ink)


def tracked(*boxes):
    count = len(boxes)
    return sv.Detections(np.array(boxes, np.float32), tracker_id=np.arange(1, count + 1), class_id=np.ones(count, int))


def overlap(a, b) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def test_labels_of_neighbours_do_not_hide_each_other() -> None:
    painter = Labels()
    painter.paint(BLACK, tracked([100, 150, 140, 250], [130, 152, 170, 252], [165, 149, 200, 251]))
    first, second, third = painter.places
    assert not overlap(first, second)
    assert not overlap(second, third)
    assert not overlap(first, third)


def test_labels_stay_in_the_frame() -> None:
    painter = Labels()
    painter.paint(BLACK, tracked([0, 0, 640, 360], [600, 0, 640, 20], [600, 340, 640, 360]))
    assert all(left >= 0 and right <= 640 and top >= 0 and bottom <= 360 for left, top, right, bottom in painter.places)


def test_a_line_shows_its_direction_and_its_counts() -> None:
    line = Line("door", [(0.2, 0.5), (0.8, 0.5)])  # drawn to the right: its right side is below
    painter = Labels([line])
    plain = painter.paint(BLACK, NOTHING)
    above, below = plain[160:176].any(axis=2).sum(), plain[184:200].any(axis=2).sum()
    assert below > above + 20, "the arrow points to in"
    image = painter.paint(BLACK, NOTHING, [{"in": 2, "out": 0}])
    assert (image[184:] == plain[184:]).all(), "the counts do not hide the arrow"
    (place,) = painter.places
    other = painter.paint(BLACK, NOTHING, [{"in": 3, "out": 0}])
    changed = np.argwhere((image != other).any(axis=2))
    assert len(changed)
    assert (changed >= [place[1], place[0]]).all()
    assert (changed < [place[3], place[2]]).all()


def test_letters_can_be_read_in_a_small_video() -> None:
    painter = BoxPainter((320, 136), str, (), ())
    assert painter._text_size("#1 car 0.90")[1] >= 12


def test_the_hole_of_a_zone_is_not_coloured() -> None:
    zone = Zone("yard", [(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)], holes=[[(0.4, 0.4), (0.6, 0.4), (0.5, 0.6)]])
    image = BoxPainter(SIZE, str, [zone], ()).paint(BLACK, NOTHING)
    assert image[60, 320].any()
    assert not image[170, 320].any()
