"""The command line. Commands import their work when they run, so that `--help` is fast."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Annotated, Any

import typer

from groundstream import GroundstreamError, __version__
from streamer.commands import (
    annotate,
    bench,
    cameras,
    cluster,
    demo,
    detect,
    doctor,
    evaluate,
    glamm,
    mcp,
    models,
    monitor,
    process,
    replay,
    report,
    schema,
    spool,
    subscribe,
    track,
    tune,
    view,
)
from streamer.commands.groups import CommandGroup
from streamer.tasks.console import report_line
from streamer.tasks.json_log import is_json_log
from streamer.threads import set_environment

SECTIONS = {
    "Watch": {
        "process": "Turn recordings into tracks, events and annotated video.",
        "monitor": "Watch cameras and publish events.",
        "demo": "Run the whole path on a synthetic street.",
        "view": "Show the results of a finished job in the browser.",
        "report": "Write a page of counts, dwell times and heat maps.",
    },
    "Events": {
        "subscribe": "Print events, past or live.",
        "replay": "Send past events to another sink.",
        "spool": "List events that wait for sinks; adopt or drop them.",
        "mcp": "Serve a running monitor to language models (MCP).",
        "schema": "Print or check the schemas of events and configuration.",
    },
    "Images": {
        "detect": "Detect objects in image files.",
        "segment": "Add masks to phrases in an image or video.",
        "describe": "Describe an image with phrases tied to masks.",
        "region": "Describe one box of an image.",
        "caption": "Describe an image in plain words.",
        "chat": "Ask questions about an image.",
    },
    "Data and training": {
        "annotate": "Label frames of videos as a data set.",
        "track": "Track boxes from detection files.",
        "tune": "Fit a GLIP model to labelled images.",
        "evaluate": "Score results against ground truth.",
    },
    "Machine": {
        "cameras": "Find ONVIF cameras; add them to a configuration.",
        "cluster": "Show and drain the nodes that share cameras.",
        "doctor": "Check this machine, sources and sinks.",
        "models": "List, download and convert models.",
        "bench": "Measure speed on this machine.",
    },
}
"""Sections of `groundstream --help`: heading, then each command with its summary."""


class SectionedCommands(CommandGroup):
    """The commands of groundstream by section; `help [COMMAND]` and `version` are understood too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads `help` and `version` as the options that they stand for."""
        if args[:1] == ["version"]:
            args = ["--version"]
        elif args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        return list(super().parse_args(ctx, args))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes every section with its commands and their summaries."""
        for heading, rows in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl(list(rows.items()))


app = typer.Typer(
    name="groundstream",
    cls=SectionedCommands,
    help="Watch video for things named in plain words: cameras and files in, tracks and events out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"groundstream {__version__}")
        raise typer.Exit


@app.callback()
def _set_up(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    global _debug
    _debug = debug
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # A debug log of these libraries would hold addresses with their credentials.
    for noisy in ("asyncio", "kafka", "httpcore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


app.command("process")(process.process)
app.command("monitor")(monitor.monitor)
app.command("subscribe")(subscribe.subscribe)
app.command("replay")(replay.replay)
app.command("view")(view.view)
app.command("mcp")(mcp.mcp)
app.command("report")(report.report)
app.command("demo")(demo.demo)
app.command("detect")(detect.detect)
app.command("track")(track.track)
app.command("annotate")(annotate.annotate)
app.command("tune")(tune.tune)
app.add_typer(models.app, name="models", help="Fetch, convert and look at released models.")
app.command("segment")(glamm.segment)
app.command("describe")(glamm.describe)
app.command("region")(glamm.region)
app.command("caption")(glamm.caption)
app.command("chat")(glamm.chat)
app.add_typer(spool.app, name="spool", help="List events that wait for sinks; adopt or drop them.")
app.command("schema")(schema.schema)
app.add_typer(cameras.app, name="cameras", help="Find ONVIF cameras; add them to a configuration.")
app.add_typer(cluster.app, name="cluster", help="Show and drain the nodes that share cameras.")
app.command("doctor")(doctor.doctor)
app.add_typer(evaluate.app, name="evaluate", help="Score results against the truth.")
app.add_typer(bench.app, name="bench", help="Measure speed on this machine.")


def report_thread_death(death: threading.ExceptHookArgs) -> None:
    """Logs the exception that has ended a thread, with the thread's name."""
    if death.exc_type is SystemExit or death.exc_value is None:
        return
    name = "a thread" if death.thread is None else f"the thread {death.thread.name!r}"
    logging.getLogger("groundstream").critical(
        "%s has failed (%s: %s)", name, death.exc_type.__name__, death.exc_value, exc_info=death.exc_value
    )


def main() -> None:
    """Runs the command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
    try:
        _run_app()
    except SystemExit as end:
        if (closing := sys.modules.get("streamer.tasks.closing")) is not None:
            sys.stdout.flush()
            closing.bound_exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _run_app() -> None:
    set_environment()
    threading.excepthook = report_thread_death
    # Decoding threads need the interpreter for microseconds, several times a frame. At Python's 5 ms they would wait
    # longer for the event loop to release it than decoding takes.
    sys.setswitchinterval(0.0001)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of standard output is gone. Python would report the same error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        known = _known_error(error)
        if is_json_log():
            shown = error if known is None or _debug else None
            logging.getLogger("groundstream").critical("%s", known or repr(error), exc_info=shown)
            sys.exit(2 if isinstance(known, ValueError) else 1)
        if known is None or _debug:
            raise
        report_line(f"groundstream: {known}")
        sys.exit(2 if isinstance(known, ValueError) else 1)


def _known_error(error: BaseException) -> GroundstreamError | None:
    """Returns the error that is reported in one sentence; None for a defect, which is shown with its traceback."""
    if isinstance(error, BaseExceptionGroup):
        return next((known for part in error.exceptions if (known := _known_error(part)) is not None), None)
    return error if isinstance(error, GroundstreamError) else None


if __name__ == "__main__":
    main()
