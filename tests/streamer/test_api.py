"""The Python API: events and tracked frames, in and without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv

import groundstream
from detectors.detector import Prompt
from tests.support.clips import make_clip

MOVING = "anything that moves"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class CentreDetector:
    """A detector of the user's own: one box in the middle of every image."""

    threshold = 0.5

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return Prompt(tuple(queries))

    def detect(self, requests: Sequence[groundstream.Request]) -> list[sv.Detections]:
        return [
            sv.Detections(
                xyxy=np.array([[60, 60, 100, 120]], np.float32),
                confidence=np.array([0.9], np.float32),
                class_id=np.array([0]),
                data={"class_name": np.array([request.prompt.queries[0]])},
            )
            for request in requests
        ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "walk.mp4", frames=40, fps=10)


async def collect(iterator: Any) -> list[Any]:
    return [item async for item in iterator]


def kinds(events: Sequence[groundstream.Event]) -> list[str]:
    return [event.type for event in events]


@pytest.mark.anyio
async def test_one_query_and_one_path_need_no_list(clip: Path) -> None:
    events = await collect(groundstream.watch(clip, "person", detector=CentreDetector()))
    begun = next(event for event in events if event.type == "groundstream.match.begin.v1")
    assert begun.data.matches[0].text == "person"


def test_the_plain_iterator_gives_the_same_events(clip: Path) -> None:
    plain = list(groundstream.watch_sync(clip, ["person"], detector=CentreDetector()))
    looped = asyncio.run(collect(groundstream.watch(clip, ["person"], detector=CentreDetector())))
    assert kinds(plain) == kinds(looped) != []


@pytest.mark.anyio
async def test_the_plain_iterator_works_beside_a_running_loop(clip: Path) -> None:
    """As in a notebook, whose cells run in a loop."""
    assert len(list(groundstream.watch_sync(clip, ["person"], detector=CentreDetector()))) > 0


def test_leaving_the_plain_iterator_ends_its_thread(clip: Path) -> None:
    for _event in groundstream.watch_sync(clip, ["person"], detector=CentreDetector()):
        break
    assert "groundstream" not in [thread.name for thread in threading.enumerate()]


def test_leaving_ends_a_source_that_gives_nothing_more() -> None:
    """As with a quiet camera: there is no next event at which the thread could notice."""
    quiet = "synthetic:street?seed=1&live=1&size=160x96&fps=1"
    for event in groundstream.watch_sync(quiet, ["person"], detector=CentreDetector()):
        assert event.kind == "stream.online"
        break
    assert "groundstream" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.anyio
async def test_leaving_while_the_pipeline_is_being_opened_does_not_wait_for_it(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a model is loaded: what would be opened for nothing, a camera, would then run for ever."""
    is_closed = False

    @asynccontextmanager
    async def open_slowly(*_: Any, **__: Any) -> AsyncIterator[None]:
        nonlocal is_closed
        try:
            await asyncio.Event().wait()
            yield
        finally:
            is_closed = True

    monkeypatch.setattr("streamer.api.open_pipeline", open_slowly)
    first = asyncio.ensure_future(anext(groundstream.watch(clip, "person", detector=CentreDetector())))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first], timeout=20)
    assert first.cancelled()
    assert is_closed


@pytest.mark.anyio
async def test_frames_come_in_order_with_their_tracks(clip: Path) -> None:
    items = await collect(groundstream.watch_frames(clip, "person", detector=CentreDetector()))
    assert [item.frame.index for item in items] == list(range(40))
    assert all(item.analysed for item in items)
    last = items[-1].detections
    assert list(last.tracker_id) == [1]
    assert list(last.data["class_name"]) == ["person"]


def test_frames_without_a_loop_of_ones_own(clip: Path) -> None:
    indexes = [item.frame.index for item in groundstream.watch_frames_sync(clip, "person", detector=CentreDetector())]
    assert indexes == list(range(40))


def test_errors_reach_the_caller_of_the_plain_iterator() -> None:
    with pytest.raises(groundstream.SourceError, match="nowhere"):
        list(groundstream.watch_sync("nowhere.mp4", ["person"], detector=CentreDetector()))


@pytest.mark.anyio
async def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(groundstream.ConfigError, match="watch"):
        await collect(groundstream.watch("x.mp4", [], detector="motion"))


def test_process_returns_summaries(clip: Path, tmp_path: Path) -> None:
    (summary,) = groundstream.process(clip, MOVING, tmp_path / "out", video=False)
    assert (summary.frames, summary.error) == (40, "")
    assert (Path(summary.folder) / "tracks.txt").is_file()
