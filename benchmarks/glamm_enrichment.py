"""What enrichment costs the frame path: the same frames with and without an enricher beside them.

    python benchmarks/glamm_enrichment.py

The describer waits as one on a GPU would; frames come as fast as they are worked on, each costs some milliseconds of
blurring in place of a detector, and one in ten begins a track. Runs alternate, so that what else the machine does hits
both.
Writes benchmarks/results/glamm-enrichment.md.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import cv2
import numpy as np

from sinks.event import Box, Clock, Description, Event, EventData, EventType, Producer, TrackInfo
from streamer.enrichment.enricher import CallBudget, Enricher, EnrichPlan, EnrichTally
from streamer.frame import Frame, FrameClock

FRAMES, ROUNDS, CALL_S = 150, 20, 0.2
RESULTS = Path(__file__).parent / "results" / "glamm-enrichment.md"


def describe(image: object, box: object, phrase: str) -> Description:
    time.sleep(CALL_S)
    return Description(text="a person in a red coat", model="waits")


def begun(number: int) -> Event:
    track = TrackInfo(
        uid=str(number),
        number=number + 1,
        state="confirmed",
        revision=1,
        first_seen_ns=0,
        last_seen_ns=0,
        box=Box(x1=0.1, y1=0.1, x2=0.4, y2=0.6),
        score=0.9,
    )
    producer = Producer(version="0", detector="d", tracker="t", config_hash="c")
    clock = Clock(basis="file_pts", captured_ns=0)
    data = EventData(stream="door", run=1, clock=clock, track=track, producer=producer)
    return Event.model_construct(id=str(number), type=EventType.TRACK_BEGIN, data=data)


def run(pixels: np.ndarray, events: list[Event], enricher: Enricher | None) -> tuple[np.ndarray, float]:
    """Seconds of each frame, and processor seconds of the whole process a frame."""
    seconds = np.empty(FRAMES)
    busy = time.process_time()
    for index in range(FRAMES):
        start = time.perf_counter()
        cv2.GaussianBlur(pixels, (0, 0), 2)
        if enricher is not None:
            frame = Frame("door", index, index * 40_000_000, FrameClock("file_pts"), pixels, (1280, 720))
            enricher.offer(frame, [events[index // 10]] if index % 10 == 0 else [])
        seconds[index] = time.perf_counter() - start
    return seconds, (time.process_time() - busy) / FRAMES


def offer_seconds(pixels: np.ndarray, events: list[Event], count: int = 5000) -> float:
    """What offering one frame takes, one in ten with a track that begins."""
    enricher = Enricher(describe, lambda reported: None, EnrichPlan())
    frame = Frame("door", 0, 0, FrameClock("file_pts"), pixels, (1280, 720))
    start = time.perf_counter()
    for index in range(count):
        enricher.offer(frame, events[:1] if index % 10 == 0 else [])
    seconds = (time.perf_counter() - start) / count
    enricher.close()
    return seconds


def main() -> None:
    cv2.setNumThreads(1)
    pixels = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), dtype=np.uint8)
    events = [begun(number) for number in range(FRAMES // 10)]
    frames: dict[str, list[np.ndarray]] = {"off": [], "on": []}
    busy: dict[str, list[float]] = {"off": [], "on": []}
    tally = EnrichTally(0, 0, 0, {})
    for number in range(ROUNDS):
        for name in ("off", "on") if number % 2 else ("on", "off"):
            enricher = None
            if name == "on":
                enricher = Enricher(describe, lambda reported: None, EnrichPlan(every_s=1), CallBudget(10_000, 10_000))
            seconds, processor = run(pixels, events, enricher)
            frames[name].append(seconds)
            busy[name].append(processor)
            if enricher is not None:
                tally = enricher.tally()
                enricher.close()
    rows = {}
    for name in frames:
        rate = statistics.median(FRAMES / float(seconds.sum()) for seconds in frames[name])
        middle, slow = (statistics.median(float(np.percentile(s, p)) for s in frames[name]) * 1000 for p in (50, 99))
        rows[name] = (rate, middle, slow, statistics.median(busy[name]) * 1000)
    lines = "\n".join(f"| {name} | {r:.1f} | {m:.2f} | {s:.2f} | {b:.2f} |" for name, (r, m, s, b) in rows.items())
    change = [100 * (on / off - 1) for on, off in zip(rows["on"], rows["off"], strict=True)]
    text = (
        f"# Enrichment beside the frame path\n\n{ROUNDS} alternating rounds of {FRAMES} frames, medians; the "
        f"describer takes {CALL_S} s a call. By `python benchmarks/glamm_enrichment.py`.\n\n"
        "| enrichment | frames/s | latency p50, ms | p99, ms | processor, ms a frame |\n"
        f"| --- | ---: | ---: | ---: | ---: |\n{lines}\n\n"
        f"Throughput {change[0]:+.1f} %, median latency {change[1]:+.1f} %, processor time {change[3]:+.1f} %. "
        f"Offering a frame takes {offer_seconds(pixels, events) * 1e6:.1f} µs. "
        f"Requests of the last round: {tally.asked} asked, {tally.answered} answered, dropped {tally.dropped}, "
        f"{tally.pending} still waiting.\n"
    )
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)


if __name__ == "__main__":
    main()
