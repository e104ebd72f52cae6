"""Option declarations that several commands share: one name, one metavar and one help text for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_QUERY_HELP = "Words to detect, in plain language; repeatable."
Queries = Annotated[list[str], typer.Option("--query", "-q", metavar="WORDS", help=_QUERY_HELP)]
OptionalQueries = Annotated[list[str] | None, typer.Option("--query", "-q", metavar="WORDS", help=_QUERY_HELP)]
Sentence = Annotated[
    str | None,
    typer.Option(
        "--sentence",
        metavar="TEXT",
        help="English sentence in place of queries: what it names is detected, each phrase in its place.",
    ),
]
DetectorName = Annotated[
    str | None,
    typer.Option(
        "--detector",
        metavar="NAME",
        help="glip-tiny, glip-mini, coco-nano, motion, grounding-dino-tiny, scripted:FILE.json, ... "
        "(default: motion for 'anything that moves', else glip-tiny).",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="PATH", help="Checkpoint file or model folder (default: the cached weights)."),
]
Tuned = Annotated[
    Path | None, typer.Option("--tuned", metavar="FILE", help="Prompt file made by `groundstream tune --mode prompt`.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: a GPU where there is one)."),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", metavar="SCORE", min=0, max=1, help="Lowest score that counts (default: the detector's own)."
    ),
]
Masks = Annotated[
    str | None,
    typer.Option("--masks", metavar="MODEL", help="SAM model that adds masks to boxes: facebook/sam-vit-base."),
]
DetectorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--detector-option",
        metavar="NAME=VALUE",
        help="Option of the detector, such as short_side=544 or dtype=float32; repeatable "
        "(list: groundstream models options NAME).",
    ),
]
TrackerName = Annotated[
    str | None,
    typer.Option("--tracker", metavar="NAME", help="default, bytetrack, botsort, ocsort or sort (default: default)."),
]
Reid = Annotated[
    str | None,
    typer.Option(
        "--reid",
        metavar="SOURCE",
        help="Recognise objects by their appearance: detector (GLIP's own features) or MODULE:FUNCTION.",
    ),
]
Sinks = Annotated[
    list[str] | None,
    typer.Option(
        "--sink", metavar="ADDRESS", help="Destination of events: jsonl:PATH, kafka://..., https://...; repeatable."
    ),
]
Zones = Annotated[
    list[str] | None,
    typer.Option(
        "--zone", metavar="NAME:POINTS", help="Zone as NAME:x,y x,y x,y in fractions of the frame; repeatable."
    ),
]
Lines = Annotated[
    list[str] | None,
    typer.Option("--line", metavar="NAME:POINTS", help="Line as NAME:x,y x,y in fractions of the frame; repeatable."),
]
EveryNth = Annotated[
    int | None, typer.Option("--every", metavar="N", min=1, help="Detect in every N-th frame (default: each frame).")
]
SampleFps = Annotated[
    float | None,
    typer.Option("--fps", metavar="RATE", min=0.001, help="Detect in at most RATE frames per second of video."),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch", metavar="N", min=1, max=1024, help="Images per detector call (default: 8).", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CloseTimeout = Annotated[
    float | None,
    typer.Option(
        "--close-timeout",
        metavar="SECONDS",
        min=0.1,
        max=3600,
        help="Longest time for closing altogether (default: 10).",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress.")]
EventStreams = Annotated[
    list[str] | None, typer.Option("--stream", metavar="NAME", help="Only this stream; repeatable, * matches any text.")
]
EventTypes = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="TYPE", help="Only this event type, such as track.begin or 'zone.*'; repeatable."),
]
EventQueries = Annotated[
    list[str] | None, typer.Option("--query", "-q", metavar="WORDS", help="Only events of this query; repeatable.")
]
