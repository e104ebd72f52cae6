"""Decode workers that are killed, readers that leave at any moment, and memory over many frames.

    python -m benchmarks.frame_path [--kills 50] [--cancellations 1000] [--frames 20000] [--watches 100]

Writes benchmarks/results/frame-path.md and ends with status 1 where any count that must be 0 is not. Nothing is judged
by time, so that the load of the machine does not matter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from streamer.frame import Frame
from streamer.sources import SourceState, StateChange, open_sources
from streamer.sources.source import Source
from streamer.sources.workers.pool import DecodePool
from streamer.sources.workers.proxy import WorkerSource
from tests.support.clips import make_clip, read_index
from tests.support.rtsp_server import RtspServer

RESULTS = Path(__file__).parent / "results" / "frame-path.md"
CLIP_FRAMES = 400
LONGEST_RETURN_S = 60.0
"""After this time without a picture, a camera whose worker was killed counts as never back."""
LONGEST_WATCH_S = 120.0
"""After this time, a short recording that is watched counts as standing still."""


@dataclass(slots=True)
class KillReport:
    """Workers killed at random moments: the camera in them, a camera in another one, and recordings in any."""

    kills: int = 0
    back_s: list[float] = field(default_factory=list)
    never_back: int = 0
    unaccounted: int = 0  # frames received, and neither analysed nor counted as dropped
    other_frames: int = 0
    other_outages: int = 0
    other_lost: int = 0  # frames of the other camera that were dropped because a worker died or a picture was damaged
    recordings: int = 0
    wrong_recordings: int = 0  # in which a frame is missing, doubled or out of order

    @property
    def faults(self) -> int:
        return self.never_back + self.unaccounted + self.other_outages + self.other_lost + self.wrong_recordings


@dataclass(slots=True)
class CancelReport:
    """Readers that leave at random moments, some of which keep pictures for a while."""

    cancellations: int = 0
    frames: int = 0
    kept_leases: int = 0  # slots that are held once every picture is gone
    unaccounted: int = 0
    descriptors: int = 0  # that this process has more than at the beginning
    incomplete: int = 0  # recordings that no longer come whole through the same workers

    @property
    def faults(self) -> int:
        return self.kept_leases + self.unaccounted + max(0, self.descriptors) + self.incomplete


async def kill_workers(folder: Path, kills: int, seed: int) -> KillReport:
    """Kill the worker of a camera `kills` times, at random moments, beside another camera and recordings."""
    dice, report = random.Random(seed), KillReport()
    clip = make_clip(folder / "kill.mp4", CLIP_FRAMES, size=(320, 240))
    changes: list[StateChange] = []
    others: list[StateChange] = []
    is_done = False
    with RtspServer({"cam": clip}) as server:
        async with DecodePool(2) as pool:
            victim = pool.move(open_sources(server.url(), name="victim")[0], changes.append)
            other = pool.move(open_sources(server.url(), name="other")[0], others.append)
            shown = 0

            async def watch(source: Source) -> None:
                nonlocal shown
                async for frame in source:
                    source.account.analyse()
                    if source is victim:
                        shown = frame.index
                    else:
                        report.other_frames += 1
                        report.other_lost += read_index(frame.image) is None

            async def read_recordings() -> None:
                while not is_done:
                    source = pool.move(open_sources(str(clip), name="recording")[0])
                    report.recordings += 1
                    report.wrong_recordings += [read_index(f.image) for f in await read(source)] != [
                        *range(CLIP_FRAMES)
                    ]
                    report.unaccounted += source.account.tally().pending

            tasks = [asyncio.create_task(watch(source)) for source in (victim, other)]
            tasks.append(asyncio.create_task(read_recordings()))
            for _ in range(kills):
                seen = shown
                if not await until(lambda seen=seen: shown > seen and pool.process_of(victim) != 0):  # type: ignore[misc]
                    report.never_back += 1
                    break
                await asyncio.sleep(dice.random() * 0.3)
                lives = count_lives(changes)
                os.kill(pool.process_of(victim), signal.SIGKILL)
                report.kills += 1
                killed = time.monotonic()
                if not await until(lambda lives=lives: count_lives(changes) > lives):  # type: ignore[misc]
                    report.never_back += 1
                    break
                report.back_s.append(time.monotonic() - killed)
            is_done = True
            await tasks[2]
            for source in (victim, other):
                await source.aclose()
            await asyncio.gather(*tasks)
            dropped = other.account.tally().dropped
            report.other_lost += dropped.get("worker_died", 0) + dropped.get("corrupt", 0)
            report.other_outages = sum(change.state in (SourceState.WAITING, SourceState.STALLED) for change in others)
            report.unaccounted += abs(victim.account.tally().pending) + abs(other.account.tally().pending)
    return report


def count_lives(changes: list[StateChange]) -> int:
    return sum(change.state is SourceState.LIVE for change in changes)


async def cancel_readers(folder: Path, cancellations: int, seed: int) -> CancelReport:
    """Leave recordings at random moments, by cancelling the reader or by closing the source under it."""
    dice, report = random.Random(seed), CancelReport()
    clip = make_clip(folder / "cancel.mp4", CLIP_FRAMES, size=(160, 128))
    kept: list[Frame] = []
    sources: list[WorkerSource] = []
    async with DecodePool(2) as pool:
        whole = [pool.move(open_sources(str(clip))[0]) for _ in range(2)]
        pool.start_workers()
        report.incomplete += sum([len(await read(source)) != CLIP_FRAMES for source in whole])
        descriptors = psutil.Process().num_fds()
        for _ in range(cancellations):
            source = pool.move(open_sources(str(clip))[0])
            assert isinstance(source, WorkerSource)
            frames: list[Frame] = []
            task = asyncio.create_task(read(source, frames))
            await asyncio.sleep(dice.random() * 0.04)
            if dice.random() < 0.5:
                task.cancel()
                await asyncio.wait([task])
            await source.aclose()
            await asyncio.wait([task])
            report.cancellations += 1
            report.frames += len(frames)
            report.unaccounted += abs(source.account.tally().pending)
            if frames and dice.random() < 0.3:
                dice.choice(frames).image  # noqa: B018  (converted: its slot is free)
            kept += frames[-2:]
            kept = kept[-dice.randrange(1, 40) :]
            sources = [*(one for one in sources if one.leased_slots), source]
        kept.clear()
        frames.clear()
        del task  # where it was cancelled, its traceback holds the frame that was read last
        gc.collect()
        report.kept_leases = sum(one.leased_slots for one in sources)
        sources.clear()
        del source  # a source that is known still has its ring, and with it a descriptor
        for _ in range(2):
            report.incomplete += len(await read(pool.move(open_sources(str(clip))[0]))) != CLIP_FRAMES

        def are_released() -> bool:
            gc.collect()
            return psutil.Process().num_fds() <= descriptors

        await until(are_released)  # the last recording is let go when the loop is done with its reader
        report.descriptors = psutil.Process().num_fds() - descriptors
    return report


async def measure_memory(folder: Path, frames: int) -> list[tuple[float, float]]:
    """Resident memory of this process and of its worker in MiB, at each tenth of `frames` frames."""
    clip = make_clip(folder / "memory.mp4", CLIP_FRAMES, size=(320, 240))
    taken: list[tuple[float, float]] = []
    async with DecodePool(1) as pool:
        count, step = 0, frames / 10
        while count < frames:
            source = pool.move(open_sources(str(clip))[0])
            async for frame in source:
                source.account.analyse()
                count += 1
                if count % 10 == 0:
                    frame.image  # noqa: B018
                if len(taken) < 10 and count >= step * (len(taken) + 1):
                    taken.append((resident(os.getpid()), resident(pool.process_ids[0])))
    return taken


def watch_short_recordings(folder: Path, watches: int) -> int:
    """How many of `watches` short recordings stand still in `watch_sync`, beside programs that take the processor and
    with a garbage collector that comes at any moment."""
    clip = make_clip(folder / "watch.mp4", 60, size=(160, 128))
    program = (
        "import gc, sys, groundstream\n"
        "gc.set_threshold(int(sys.argv[2]), 1, 1)\n"
        "for event in groundstream.watch_sync(sys.argv[1], 'anything that moves', detector='motion'): pass\n"
    )
    still = 0
    with busy_processor(os.cpu_count() or 1):
        for number in range(watches):
            command = [sys.executable, "-c", program, str(clip), str(5 + number % 50)]
            try:
                subprocess.run(command, check=True, timeout=LONGEST_WATCH_S)
            except subprocess.TimeoutExpired:
                still += 1
    return still


@contextlib.contextmanager
def busy_processor(programs: int) -> Iterator[None]:
    """Programs that compute for as long as the context lasts."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def resident(process: int) -> float:
    return psutil.Process(process).memory_info().rss / 2**20


async def read(source: Source, into: list[Frame] | None = None) -> list[Frame]:
    """Read a source to its end; the frames are counted as analysed."""
    frames = [] if into is None else into
    async for frame in source:
        source.account.analyse()
        frames.append(frame)
    return frames


async def until(condition, limit_s: float = LONGEST_RETURN_S) -> bool:
    """Wait for a condition; returns whether it came true within `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


def write_report(
    kills: KillReport, cancels: CancelReport, memory: list[tuple[float, float]], frames: int, watches: int, still: int
) -> str:
    """The results as a page of Markdown."""
    back = sorted(kills.back_s)
    return "\n".join(
        [
            "# Decode workers under kills and cancellations",
            "",
            "Counts that are not 0 in the columns marked * are faults.",
            "",
            "| workers killed | camera never back * | back after, s (median, longest) | other camera: frames | "
            "its outages * | its frames lost * | recordings read meanwhile | wrong ones * | frames unaccounted * |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            f"| {kills.kills} | {kills.never_back} | "
            f"{f'{back[len(back) // 2]:.2f}, {back[-1]:.2f}' if back else '-'} | {kills.other_frames} | "
            f"{kills.other_outages} | {kills.other_lost} | {kills.recordings} | {kills.wrong_recordings} | "
            f"{kills.unaccounted} |",
            "",
            "| readers that left | frames read | slots still leased * | frames unaccounted * | descriptors more * | "
            "later recordings incomplete * |",
            "| --- | --- | --- | --- | --- | --- |",
            f"| {cancels.cancellations} | {cancels.frames} | {cancels.kept_leases} | {cancels.unaccounted} | "
            f"{cancels.descriptors} | {cancels.incomplete} |",
            "",
            f"Memory over {frames} frames, at each tenth, MiB: this process "
            f"{', '.join(f'{here:.0f}' for here, _ in memory)}; the worker {', '.join(f'{w:.0f}' for _, w in memory)}.",
            "",
            f"`watch_sync` of {watches} short recordings beside a busy processor, garbage collected every few "
            f"allocations: {still} stood still *.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--cancellations", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--watches", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kills = asyncio.run(kill_workers(folder, options.kills, options.seed))
        cancels = asyncio.run(cancel_readers(folder, options.cancellations, options.seed))
        memory = asyncio.run(measure_memory(folder, options.frames))
        still = watch_short_recordings(folder, options.watches)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(write_report(kills, cancels, memory, options.frames, options.watches, still))
    print(RESULTS.read_text())
    raise SystemExit(1 if kills.faults or cancels.faults or still else 0)


if __name__ == "__main__":
    main()
