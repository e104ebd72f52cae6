"""The street as a stream, and its truth in files."""

from __future__ import annotations

import asyncio
import configparser
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from streamer.errors import SourceAddressError
from streamer.sources.source import SourceState
from streamer.sources.street import StreetSource
from streamer.street import Street
from streamer.street.export import coco_document, mot_lines, write_events, write_mot


async def collect(source, pause_s=0.0):
    frames = []
    async for frame in source:
        frames.append(frame)
        await asyncio.sleep(pause_s)
    return frames


def test_a_film_keeps_every_frame_for_a_slow_reader():
    states = []
    source = StreetSource.from_query(
        {"seed": "4", "size": "320x192", "fps": "10", "duration": "1.2"},
        "cam",
        lambda change: states.append(change.state),
    )
    frames = asyncio.run(collect(source, 0.01))
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.time_ns for frame in frames] == [k * 100_000_000 for k in range(12)]
    assert all(frame.clock.basis == "file_pts" and frame.clock.uncertainty_ms is None for frame in frames)
    assert source.account.tally().received == 12
    assert states == [SourceState.LIVE, SourceState.CLOSED]
    assert np.array_equal(frames[7].image, Street(4, (320, 192), fps=10).image(7))


def test_a_live_street_gives_a_slow_reader_the_newest_frame_and_counts_the_rest():
    source = StreetSource("cam", seed=4, size=(160, 96), fps=50, duration_s=1.0, live=True)
    frames = asyncio.run(collect(source, 0.1))
    tally = source.account.tally()
    assert tally.received == 50
    assert tally.dropped == {"stale": 50 - len(frames)}
    assert len(frames) < 25
    assert all(later.index > earlier.index for earlier, later in pairwise(frames))
    assert all(frame.clock.basis == "arrival" for frame in frames)


def test_an_endless_street_ends_when_it_is_closed():
    async def read_three():
        source = StreetSource(size=(160, 96), live=True, fps=50)
        seen = 0
        async for _ in source:
            seen += 1
            if seen == 3:
                await source.aclose()
                await source.aclose()
        return seen

    assert asyncio.run(read_three()) == 3


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"sede": "7"}, "synthetic:street has no option 'sede': it has seed, size"),
        ({"seed": "x"}, "seed is 'x': give a whole number"),
        ({"size": "640"}, "size is '640': give width x height in pixels, such as 640x384"),
        ({"size": "10x10"}, "size is 10x10: the street is painted from 160x96"),
        ({"fps": "0"}, "fps is 0: give a number from 0.1 to 1000"),
        ({"fps": "nan"}, "fps is nan: give a number"),
        ({"duration": "-1"}, "duration is -1: give a number"),
        ({"live": "maybe"}, "live is 'maybe': give true or false"),
        ({"weather": "hail"}, "weather is 'hail': choose clear, rain, fog or snow"),
        ({"scenario": "harbour"}, "scenario is 'harbour': choose everyday or courier"),
        ({"crowd": "9"}, "crowd is 9: give a number from 0 to 3"),
    ],
)
def test_a_wrong_option_names_itself_and_what_is_allowed(query, sentence):
    with pytest.raises(SourceAddressError) as caught:
        StreetSource.from_query(query)
    assert str(caught.value).startswith(sentence)


def test_coco_annotations_carry_masks_that_fit_their_boxes():
    mask = pytest.importorskip("pycocotools.mask")
    street = Street(5, (320, 192))
    content = json.loads(json.dumps(coco_document(street.truth(index) for index in (0, 30))))
    assert [image["file_name"] for image in content["images"]] == ["000000.jpg", "000030.jpg"]
    assert len(content["annotations"]) > 10
    for one in content["annotations"]:
        assert mask.toBbox(one["segmentation"]).tolist() == one["bbox"]
        assert mask.area(one["segmentation"]) == one["area"]
        assert one["phrases"]


def test_mot_files_number_identities_from_one(tmp_path):
    street = Street(5, (320, 192))
    write_mot(tmp_path, street, 5)
    rows = np.loadtxt(tmp_path / "gt" / "gt.txt", delimiter=",")
    assert rows[:, 0].min() == 1
    assert rows[:, 0].max() == 5
    assert set(rows[:, 1]) == set(range(1, int(rows[:, 1].max()) + 1))
    assert len(rows) == len(mot_lines(street.truth(index) for index in range(5)))
    info = configparser.ConfigParser()
    info.read(tmp_path / "seqinfo.ini")
    assert info["Sequence"]["seqLength"] == "5"


def test_events_are_written_with_their_places(tmp_path):
    street, gate = Street(7, (320, 192)), {"gate": [(0.5, 0.2), (0.5, 1.0)]}
    events = street.events(6.0, gate)
    write_events(tmp_path / "events.json", events, gate)
    content = json.loads((tmp_path / "events.json").read_text())
    assert [event["time_s"] for event in content["events"]] == [event.time_s for event in events]
    assert content["lines"]["gate"] == [[0.5, 0.2], [0.5, 1.0]]


def test_importing_the_street_loads_no_opencv():
    code = (
        "import sys, streamer.street, streamer.street.export; print('cv2' in sys.modules, 'pycocotools' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout.split() == ["False", "False"]
