"""The `view` command: serves the results of a finished job until it is interrupted."""

from __future__ import annotations

import threading
from pathlib import Path

from streamer.tasks.closing import SignalWatch
from streamer.tasks.console import user_console
from streamer.tasks.monitor import parse_bind
from streamer.web.results import serve_results


def view_results(folder: Path, address: str) -> None:
    """Serves the results in a folder until Ctrl-C or SIGTERM. Raises `ConfigError`, `StreamerError`."""
    host, port = parse_bind(address)
    stopped = threading.Event()
    console = user_console(stderr=True)
    with SignalWatch(stopped.set), serve_results(folder, host, port) as served:
        console.print(f"page      {served.url}")
        console.print(f"log in    {served.login_url}  (works once, for 15 minutes)")
        console.print("Ctrl-C ends it.")
        stopped.wait()
