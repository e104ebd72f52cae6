"""`groundstream replay`: past events once more, to another sink, with the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamer.commands.options import CloseTimeout

if TYPE_CHECKING:
    from sinks.sink import Sink
    from sinks.subscribe import Subscription
    from streamer.tasks.replay_rules import RuleReplay

PATIENCE_S = 30.0
_NO_FRAMES = ": the events hold no detections of the configuration's streams; record them with `detections: true`"


def replay(
    source: Annotated[str, typer.Argument(help="Where the events are: sqlite:, jsonl:, parquet: or kafka://...")],
    to: Annotated[list[str], typer.Option(help="The sink to send them to; again for more.")],
    stream: Annotated[list[str] | None, typer.Option(help="Only this stream; again for more, * is allowed.")] = None,
    type: Annotated[list[str] | None, typer.Option(help="Only this type, such as track.begin or zone.*.")] = None,
    query: Annotated[list[str] | None, typer.Option(help="Only events about these words.")] = None,
    since: Annotated[str | None, typer.Option(help="earliest, a time, 10m ago, or the last id seen.")] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG", help="Apply the rules of a configuration to recorded detections; send what they find."
        ),
    ] = None,
    close_timeout: CloseTimeout = None,
) -> None:
    """Send past events to a sink again. Their ids stay, so a receiver recognises events that it has already."""
    from sinks.registry import open_sinks
    from sinks.subscribe import subscribe
    from streamer.tasks.closing import CLOSE_TIMEOUT_S, ClosingDeadline
    from streamer.tasks.console import report_line

    applied = None
    if rules is not None:
        from streamer.config import load_config
        from streamer.errors import ConfigError
        from streamer.tasks.replay_rules import RuleReplay

        if type or query:
            raise ConfigError("--rules needs all events of a stream: leave --type and --query out")
        applied = RuleReplay(load_config(rules))
    events = subscribe(source, types=type or (), streams=stream or (), queries=query or (), since=since)
    with ClosingDeadline(close_timeout or CLOSE_TIMEOUT_S, interrupted_code=130) as deadline:
        count = deadline.run(_replay_events(events, open_sinks(to), deadline.timeout_s, applied))
    if applied is not None:
        report_line(f"{applied.frames} frames read" + ("" if applied.frames else _NO_FRAMES))
    missing = f", {events.missing} missing in their sequences" if events.missing else ""
    report_line(f"{count} events replayed{missing}")
    for reason in events.unreadable[-3:]:
        report_line(reason)


async def _replay_events(
    events: Subscription, sinks: dict[str, Sink], close_timeout_s: float, applied: RuleReplay | None
) -> int:
    from sinks.event import Event
    from sinks.sink import SinkError
    from sinks.spool.spool import Spool

    count = 0
    batch: list[Event] = []
    async with events, await Spool.open(None, sinks, max_bytes=64 << 20, close_timeout_s=close_timeout_s) as spool:
        async for event in events:
            made = [event] if applied is None else list(applied.take(event))
            batch += made
            count += len(made)
            if len(batch) >= 500:
                await spool.send_batch(batch)
                batch = []
        if applied is not None:
            ends = list(applied.finish())
            batch += ends
            count += len(ends)
        await spool.send_batch(batch)
        while not await spool.drain(PATIENCE_S):
            stuck = next(sink for sink in spool.status() if sink.backlog)
            if stuck.error:
                raise SinkError(f"{stuck.name} did not take {stuck.backlog} of {count} events: {stuck.error}")
        if dead := spool.dropped().get("dead_letter"):
            raise SinkError(f"{dead} of {count} events were refused for good: see the warnings above")
    return count
