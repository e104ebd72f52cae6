"""`groundstream track`: identities for the boxes in MOTChallenge files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from trackers.boxes import Floats


def track(
    detections: Annotated[
        Path, typer.Argument(metavar="DET.txt|FOLDER", help="A detection file, or a folder of MOTChallenge sequences.")
    ],
    tracker: Annotated[str, typer.Option(help="default, bytetrack, botsort, ocsort or sort.")] = "default",
    fps: Annotated[
        float | None, typer.Option(help="Frames per second; seqinfo.ini's, or 30 without one, when absent.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output file, or output folder when DETECTIONS is a folder.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of the tracker; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Track the boxes of MOTChallenge detections (frame, -1, left, top, width, height, score) into tracks files.

    A folder's sequences each have det.txt and seqinfo.ini; gmc.txt, the camera's motion, is used where it stands.
    """
    from trackers import create_tracker, mot

    options = _parse_options(option or [])
    create_tracker(tracker, **options)  # reports a wrong name before anything is read
    if fps is not None and not 0 < fps < float("inf"):
        raise mot.MotFileError(f"--fps is {fps:g}: give a number above 0")
    if detections.is_dir():
        target = out if out is not None else Path("out/tracks")
        jobs = [(folder, target / f"{folder.name}.txt") for folder in mot.sequence_folders(detections, "det")]
    else:
        jobs = [(detections, out if out is not None else Path("out/tracks.txt"))]
    done = []
    with _TrackProgress(as_json) as advance:
        for source, path in jobs:
            rows, rate, cameras, length = _read_sequence(source, fps)
            lines, ids = _track_rows(rows, rate, cameras, length, create_tracker(tracker, **options), advance)
            mot.write_lines(path, lines)
            done.append({"tracks": str(path), "frames": length, "fps": rate, "ids": ids, "boxes": len(lines)})
    _print_results(done, as_json)


def _parse_options(given: list[str]) -> dict[str, Any]:
    import json

    from trackers import TrackerInputError

    options: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise TrackerInputError(f"--option {pair!r} has no value: write it as NAME=VALUE, such as lost_s=2")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = {"none": None, "None": None, "True": True, "False": False}.get(value, value)
    return options


def _read_sequence(source: Path, fps: float | None) -> tuple[Floats, float, dict[int, Floats], int]:
    """Detections, frames per second, camera motion and number of frames of one sequence or one file."""
    from trackers import mot

    folder = source if source.is_dir() else source.parent
    path = mot.find(source, "det") if source.is_dir() else source
    if path is None or not path.is_file():
        raise mot.MotFileError(f"{source} does not exist: give a detection file or a folder of sequences")
    rows = mot.read_rows(path, 7)
    length = int(rows[-1, 0]) if len(rows) else 0
    rate = mot.DEFAULT_FRAME_RATE
    if (folder / "seqinfo.ini").is_file():
        info = mot.read_info(folder)
        rate, length = info.frame_rate, max(info.length, length)
    motion = mot.find(folder, "gmc")
    return rows, fps or rate, mot.read_camera(motion) if motion is not None else {}, length


def _track_rows(
    rows: Floats,
    rate: float,
    cameras: dict[int, Floats],
    length: int,
    tracker: Any,
    advance: Callable[[int, int], None],
) -> tuple[list[str], int]:
    """Lines of the tracks file, and the number of ids in them."""
    import supervision as sv

    from trackers import mot

    lines: list[str] = []
    ids: set[int] = set()
    following = 1
    for frame, found in [*mot.frames_of(rows), (length + 1, rows[:0])]:
        while following < frame and tracker.alive_ids.size:  # without tracks, frames without boxes change nothing
            tracker.update(sv.Detections.empty(), (following - 1) / rate, cameras.get(following))
            advance(length, 1)
            following += 1
        advance(length, frame - following)
        following = frame + 1
        if frame > length:
            break
        given = sv.Detections(xyxy=mot.to_corners(found), confidence=found[:, 6])
        tracked = tracker.update(given, (frame - 1) / rate, cameras.get(frame))
        lines += mot.track_lines(frame, tracked.tracker_id, tracked.xyxy, tracked.confidence)
        ids.update(tracked.tracker_id.tolist())
        advance(length, 1)
    return lines, len(ids)


class _TrackProgress:
    """Progress bar in a terminal, nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=quiet or not console.is_terminal, transient=True)
        self._task: Any = None
        self._left = 0

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return self._advance_progress

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _advance_progress(self, length: int, frames: int) -> None:
        if self._left <= 0:
            self._task, self._left = self._bar.add_task("frames", total=length), length
        self._left -= frames
        self._bar.advance(self._task, frames)


def _print_results(done: list[dict[str, Any]], as_json: bool) -> None:
    import json

    from rich.table import Table

    from streamer.tasks.console import user_console

    if as_json:
        typer.echo(json.dumps(done))
        return
    table = Table("tracks", "frames", "fps", "ids", "boxes")
    for row in done:
        table.add_row(row["tracks"], str(row["frames"]), f"{row['fps']:g}", str(row["ids"]), str(row["boxes"]))
    user_console().print(table)
