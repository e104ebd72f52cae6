"""The command line. Commands import what they work with when they run, so that `--help` answers at once."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from streamer.commands import (
    annotate,
    bench,
    demo,
    detect,
    doctor,
    evaluate,
    glamm,
    models,
    monitor,
    process,
    replay,
    schema,
    subscribe,
    track,
    tune,
)
from streamer.threads import set_environment
from streamer.version import __version__

app = typer.Typer(
    name="groundstream",
    help="Watch video for things named in plain words: cameras and files in, tracks and events out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_debug = False


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"groundstream {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
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
app.command("schema")(schema.schema)
app.command("doctor")(doctor.doctor)
app.add_typer(evaluate.app, name="evaluate", help="Score results against the truth.")
app.add_typer(bench.app, name="bench", help="Measure speed on this machine.")


def main() -> None:
    """Run the command line; ends with 0 when all went well, 1 when it failed, 2 when it was asked wrongly."""
    set_environment()
    # Decoding threads need the interpreter for microseconds, several times a frame. At Python's 5 ms they would wait
    # longer for the event loop to hand it over than decoding takes: a third more frames per second with this.
    sys.setswitchinterval(0.0001)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output left. Standard output is pointed elsewhere, or Python complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        told = _ours(error)
        if told is None or _debug:
            raise
        typer.echo(f"groundstream: {told}", err=True)
        sys.exit(2 if isinstance(told, ValueError) else 1)


def _ours(error: BaseException) -> BaseException | None:
    """The error of ours that is to be told in one sentence; None for a defect, which deserves its traceback."""
    from detectors.detector import DetectorError
    from sinks.sink import SinkError
    from streamer.errors import StreamerError
    from trackers.tracker import TrackerError

    if isinstance(error, BaseExceptionGroup):
        return next((told for part in error.exceptions if (told := _ours(part)) is not None), None)
    return error if isinstance(error, DetectorError | SinkError | StreamerError | TrackerError) else None


if __name__ == "__main__":
    main()
