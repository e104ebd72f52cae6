"""Every event is accounted for: 10,000 events through faults that a seed chooses, none lost, none counted twice."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from sinks import PoisonError, SinkError
from sinks.event import Event, EventType
from sinks.spool import delivery
from sinks.spool.spool import Spool
from tests.sinks.makes import event, ids

pytestmark = pytest.mark.anyio

EVENTS = 1000  # of each of ten seeds
STREAMS = ("gate", "yard", "hall")
_UNACKNOWLEDGED = 2


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_BACK_OFF_S", (0.0005, 0.002))


class FaultySink:
    """Fails in every way that a sink may, as its dice say; `taken` has what it acknowledged, or took and then broke."""

    batch_events = 8

    def __init__(self, dice: random.Random, poison: set[str], *, acknowledges: bool = True) -> None:
        self.taken: list[str] = []
        self._dice = dice
        self._poison = poison
        self._faults = [fault for fault in range(12) if fault != _UNACKNOWLEDGED or not acknowledges]

    async def send_batch(self, events: Sequence[Event]) -> None:
        fault = self._dice.choice(self._faults)
        part = self._dice.randint(0, len(events))
        if fault == 0:
            raise SinkError("the peer is down")
        if fault == 1:  # nothing refused may stand before what counts as delivered
            part = next((n for n, one in enumerate(events[:part]) if one.id in self._poison), part)
            self.taken += ids(events[:part])
            raise SinkError("the connection broke", delivered=part)
        if fault == _UNACKNOWLEDGED:
            self.taken += [one.id for one in events[:part] if one.id not in self._poison]
            raise ConnectionResetError("taken, and not acknowledged")
        if fault == 3:
            raise KeyError("a defect of the sink")
        if fault == 4:
            await asyncio.sleep(self._dice.random() * 0.002)
        refused = {one.id: "too large" for one in events if one.id in self._poison}
        if refused and len(events) > 1 and fault == 5:
            raise PoisonError("one of them, and it is not known which")
        self.taken += [one.id for one in events if one.id not in self._poison]
        if refused:
            raise PoisonError("never", refused if fault % 2 else None if len(events) == 1 else refused)

    async def aclose(self) -> None:
        if self._dice.random() < 0.3:
            raise SinkError("closing failed")


def dead_letters(path: Path) -> Counter[str]:
    """How often each event stands in the file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(json.loads(line)["event"]["id"] for line in lines)


def make_events(dice: random.Random) -> list[Event]:
    numbers: Counter[str] = Counter()
    made = []
    for _ in range(EVENTS):
        stream = dice.choice(STREAMS)
        numbers[stream] += 1
        made.append(event(numbers[stream], stream=stream))
    return made


async def send_all(spool: Spool, made: list[Event], dice: random.Random) -> None:
    """Sends in batches of every size, some of them at the same time; those of one stream stay in order."""
    while made:
        batches = []
        for _ in range(dice.choice((1, 1, 3))):
            size = dice.choice((1, 2, 7, 60))
            batches.append(made[:size])
            del made[:size]
        await asyncio.gather(*(spool.send_batch(batch) for batch in batches))
        if dice.random() < 0.2:
            await asyncio.sleep(dice.random() * 0.003)


@pytest.mark.parametrize("seed", range(10))
async def test_what_was_sent_is_taken_or_a_dead_letter(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    made = make_events(dice)
    sent = ids(made)
    poison = set(dice.sample(sent, 12))
    sinks = {
        "first": FaultySink(random.Random(seed + 100), poison, acknowledges=False),
        "second": FaultySink(random.Random(seed), set(), acknowledges=False),
    }
    dropped: Counter[str] = Counter()
    parts = sorted(dice.sample(range(EVENTS), 4)) + [EVENTS]
    begin = 0
    for end in parts:  # the spool is closed at any moment and opened again
        async with await Spool.open(tmp_path / "spool", sinks, sync_each=False) as spool:
            await send_all(spool, made[: end - begin], dice)
            del made[: end - begin]
            if end == EVENTS:
                assert await spool.drain(50)
                assert {one.name: one.backlog for one in spool.status()} == {"first": 0, "second": 0}
        dropped += Counter(spool.dropped())
        begin = end
    letters = dead_letters(tmp_path / "spool.dead.jsonl")
    assert set(sinks["first"].taken) == set(sent) - poison
    assert set(letters) == poison
    assert set(sinks["second"].taken) == set(sent)
    assert dropped.keys() == {"dead_letter"}
    # One that is written while the spool is closed is not counted: the next start writes and counts it.
    assert len(poison) <= dropped["dead_letter"] <= letters.total()
    for sink, wanted in (("first", [one for one in sent if one not in poison]), ("second", sent)):
        first_seen = list(dict.fromkeys(sinks[sink].taken))
        for stream in STREAMS:
            of_stream = [one for one in wanted if f".{stream}." in one]
            assert [one for one in first_seen if f".{stream}." in one] == of_stream


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
async def test_what_a_full_spool_drops_is_counted(seed: int, in_memory: bool, tmp_path: Path) -> None:
    dice = random.Random(seed)
    kinds = (EventType.TRACK_UPDATE, EventType.DETECTIONS, EventType.TRACK_UPDATE, EventType.TRACK_BEGIN)
    made = [event(number, kind=dice.choice(kinds)) for number in range(600)]
    sent = ids(made)
    kept = {one.id for one in made if one.type is EventType.TRACK_BEGIN}
    sink = FaultySink(random.Random(seed), set())
    path = None if in_memory else tmp_path / "spool"
    async with await Spool.open(path, {"sink": sink}, max_bytes=40_000, when_full="drop_oldest") as spool:
        await send_all(spool, made, dice)
        assert await spool.drain(50)
        dropped = spool.dropped()
        assert spool.used_bytes >= 0
    missing = set(sent) - set(sink.taken)
    assert missing & kept == set()
    # What is on its way when there is nothing else to drop is counted, and may arrive: a batch at most.
    assert len(missing) <= dropped.get("full", 0) <= len(missing) + FaultySink.batch_events
    assert dropped.keys() <= {"full"}
