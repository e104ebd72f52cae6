"""`groundstream doctor`: what works on this machine, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    sink: Annotated[list[str] | None, typer.Option("--sink", help="Also try this sink's address; repeatable.")] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Also try to get a frame from this source; repeatable.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Also try every stream and sink of this configuration."),
    ] = None,
    lease: Annotated[
        str | None,
        typer.Option(
            "--lease",
            metavar="ADDRESS",
            envvar="GROUNDSTREAM_LEASE",
            help="Also try where nodes share cameras (`monitor`).",
        ),
    ] = None,
    send_test: Annotated[
        bool, typer.Option("--send-test", help="Send a test message to the webhooks and chats among the sinks.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the machine: Python, libraries, codecs, GPU, models, disk, and the addresses that are given.

    Ends with 1 when something that groundstream cannot do without is missing.
    """
    from streamer.tasks.doctor import run_checks, show_results

    findings = run_checks(sinks=sink or [], sources=source or [], config=config, lease=lease, send_test=send_test)
    show_results(findings, as_json=as_json)
    raise typer.Exit(1 if any(finding.state == "broken" for finding in findings) else 0)
