"""The street's promises: the same everywhere, and exactly known."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from streamer.errors import ConfigError
from streamer.street import Scenario, Street, sample_picture
from streamer.street.truth import foot_point

SIZE = (320, 192)


def fingerprint(street: Street, index: int) -> str:
    picture = street.picture(index)
    digest = hashlib.sha256(picture.image.tobytes())
    for one in picture.truth.seen:
        digest.update(
            repr((one.thing.identity, sorted(one.thing.attributes), one.box, one.full_box, one.foot)).encode()
        )
        digest.update(one.patch.tobytes())
    return digest.hexdigest()


def test_a_seed_gives_the_same_pixels_and_truth_in_another_process():
    code = (
        "import sys; sys.path.insert(0, 'tests/streamer'); from test_street import *; "
        "print(fingerprint(Street(11, SIZE), 40), fingerprint(Street(12, SIZE, scenario=Scenario('night', 'rain')), 3))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    night = Street(12, SIZE, scenario=Scenario("night", "rain"))
    assert other.stdout.split() == [fingerprint(Street(11, SIZE), 40), fingerprint(night, 3)]


def test_a_frame_does_not_depend_on_which_frames_were_asked_for_before():
    straight, jumping = Street(5, SIZE), Street(5, SIZE)
    for index in range(12):
        straight.picture(index)
    jumping.picture(500)
    assert fingerprint(straight, 12) == fingerprint(jumping, 12)


def test_seeds_and_samples_show_different_scenes():
    pictures = [Street(seed, SIZE).image(0) for seed in range(3)] + [sample_picture(1, k, SIZE).image for k in range(3)]
    assert len({picture.tobytes() for picture in pictures}) == 6


def test_boxes_hold_exactly_the_visible_masks():
    truths = [sample_picture(3, index, SIZE).truth for index in range(12)]
    things = [one for truth in truths for one in truth.seen]
    assert len(things) > 60
    for one in things:
        rows, columns = np.nonzero(one.mask)
        assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert one.area == len(rows)
        assert 0.0 < one.visibility <= 1.0
        left, top, right, bottom = one.full_box
        assert left <= one.box[0]
        assert top <= one.box[1]
        assert right >= one.box[2]
        assert bottom >= one.box[3]


def test_no_pixel_belongs_to_two_things():
    for index in range(8):
        truth = sample_picture(4, index, SIZE).truth
        assert sum(one.mask.astype(int) for one in truth.seen).max(initial=0) <= 1


def test_a_mask_lies_where_its_thing_was_painted():
    """Take one thing out of the scene: pixels change inside its silhouette and shadow, and hardly anywhere else."""
    street = Street(21, scenario=Scenario("night", "clear", clean=True))
    painter = street._painter
    drawn = painter.figures(4.0)
    truth = street.truth(100)
    checked = 0
    for one in truth.seen:
        if one.area < 400 or one.thing.kind in ("car", "bus", "bicycle"):  # their lamps light up more than themselves
            continue
        without = [pair for pair in drawn if pair[0].thing.identity != one.thing.identity]
        changed = np.abs(painter.paint(4.0, drawn).astype(int) - painter.paint(4.0, without)).max(axis=2) > 12
        assert (changed & one.mask).sum() > 0.8 * one.area
        x1, y1, x2, y2 = one.box
        outside = changed.copy()
        outside[max(y1 - 2, 0) : y2 + 12, max(x1 - 12, 0) : x2 + 12] = False
        assert outside.sum() < 0.05 * one.area
        checked += 1
    assert checked >= 3


def test_nearer_things_hide_farther_ones():
    hidden_pixels = 0
    for seed in range(6):
        street = Street(seed, SIZE)
        drawn = street._painter.figures(2.0)
        labels, shapes = street._painter.labels(drawn)
        for position, shape in enumerate(shapes):
            assert shape is not None
            x0, y0 = max(shape.left, 0), max(shape.top, 0)
            region = labels[y0 : shape.top + shape.mask.shape[0], x0 : shape.left + shape.mask.shape[1]]
            covering = region[
                shape.mask[y0 - shape.top :, x0 - shape.left :][: region.shape[0], : region.shape[1]] != 0
            ]
            assert not (covering[covering != 0] > 0).size or covering[covering != 0].min() >= position + 1
            hidden_pixels += int((covering > position + 1).sum())
    assert hidden_pixels > 100


def test_things_keep_their_identity_and_move_smoothly():
    street = Street(9)
    paths: dict[int, list[tuple[float, float]]] = {}
    names = {}
    for index in range(75):
        for state in street.world.at(index / 25):
            assert names.setdefault(state.thing.identity, state.thing) == state.thing
            paths.setdefault(state.thing.identity, []).append((state.x, state.z))
    steps = [abs(x1 - x0) + abs(z1 - z0) for path in paths.values() for (x0, z0), (x1, z1) in pairwise(path)]
    assert max(steps) < 12.0 / 25 + 0.05  # nothing is faster than 12 m/s
    assert len(names) > 10


def test_vehicles_never_run_into_one_another_nor_over_people():
    for seed in range(4):
        street = Street(seed, scenario=Scenario(crowd=2.0, traffic=2.0))
        for tenth in range(0, 600, 3):
            states = street.world.at(tenth / 10)
            vehicles = [one for one in states if one.thing.kind in ("car", "bus")]
            for one in vehicles:
                for other in states:
                    if other.thing.identity != one.thing.identity and abs(one.z - other.z) < 1.0:
                        room = (one.thing.length + (other.thing.length if other in vehicles else 0.4)) / 2
                        assert abs(one.x - other.x) > room, (seed, tenth)


def test_line_crossings_are_exact_to_the_microsecond():
    street = Street(7)
    line = {"gate": [(0.5, 0.2), (0.5, 1.0)]}
    crossings = street.events(20.0, line)
    assert len(crossings) >= 5
    assert {one.direction for one in crossings} == {"in", "out"}
    for event in crossings:
        before, after = (
            next(
                foot_point(state, street.world.camera)
                for state in street.world.at(event.time_s + step)
                if state.thing.identity == event.identity
            )
            for step in (-2e-6, 1e-6)
        )
        assert before is not None
        assert after is not None
        # Walking the line from top to bottom, the picture's left side is to one's right.
        assert (before[0] > 0.5 >= after[0]) if event.direction == "in" else (before[0] <= 0.5 < after[0])


def test_every_entry_into_a_zone_is_followed_by_its_exit():
    street = Street(7)
    zone = {"middle": [(0.3, 0.3), (0.7, 0.3), (0.7, 0.95), (0.3, 0.95)]}
    events = street.events(20.0, zones=zone)
    assert sum(event.type == "zone.enter" for event in events) >= 4
    state: dict[int, str] = {}
    for event in events:
        assert state.get(event.identity) != event.type
        state[event.identity] = event.type
    assert events == sorted(events, key=lambda event: event.time_s)


def test_feet_are_the_bottom_centres_of_the_boxes():
    offsets = []
    for index in range(10):
        truth = sample_picture(6, index).truth
        for one in truth.seen:
            x1, _, x2, y2 = one.full_box
            if x1 >= 0 and x2 <= 640 and y2 <= 384 and one.thing.kind != "person":
                offsets.append((abs((x1 + x2) / 2 - one.foot[0] * 640), abs(y2 - one.foot[1] * 384)))
    across, down = np.array(offsets).T
    assert len(offsets) > 25
    assert np.percentile(across, 90) < 8
    assert np.percentile(down, 90) < 4


def test_places_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"yard.* has 2 different points"):
        Street(1).events(1.0, zones={"yard": [(0, 0), (1, 1)]})


def test_only_the_courier_street_has_robots():
    everyday = {one.thing.kind for index in range(30) for one in sample_picture(8, index, SIZE).truth.seen}
    night = Scenario("night", "rain", robots=True)
    courier = [one.thing.kind for index in range(8) for one in sample_picture(8, index, SIZE, night).truth.seen]
    assert everyday == {"person", "car", "bus", "bicycle", "dog"}
    assert courier.count("robot") >= 8
