"""`groundstream evaluate tracking`: tracks files against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trackers.evaluation import TrackingScore


def tracking(
    truth: Annotated[Path, typer.Argument(help="A folder of MOTChallenge sequences with gt.txt and seqinfo.ini.")],
    tracks: Annotated[Path, typer.Argument(help="A folder with a SEQUENCE.txt each, as `groundstream track` writes.")],
    sequence: Annotated[
        list[str] | None, typer.Option("--sequence", help="Only this sequence; repeatable. All when absent.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score tracks: HOTA, IDF1 and MOTA of every sequence, and of all together (counts added, by trackeval)."""
    from trackers import evaluation, mot

    folders = {folder.name: folder for folder in mot.sequence_folders(truth, "gt")}
    names = sequence or list(folders)
    for name in names:
        if name not in folders:
            raise mot.MotFileError(f"{truth} has no sequence {name!r}: it has {', '.join(folders)}")
        if not (tracks / f"{name}.txt").is_file():
            raise mot.MotFileError(f"{tracks / f'{name}.txt'} does not exist: track it first, or choose others")
    infos = {name: mot.read_info(folders[name]) for name in names}
    truths = {name: evaluation.read_truth(folders[name]) for name in names}
    alone, together = evaluation.evaluate(
        truths, {name: evaluation.read_tracks(tracks / f"{name}.txt") for name in names}, infos
    )
    _print_scores(alone, together, as_json)


def _print_scores(alone: dict[str, TrackingScore], together: TrackingScore, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from rich.table import Column, Table

    from streamer.tasks.console import user_console

    if as_json:
        sequences = {name: asdict(score) for name, score in alone.items()}
        typer.echo(json.dumps({"sequences": sequences, "combined": asdict(together)}))
        return
    figures = ("HOTA", "IDF1", "MOTA", "DetA", "AssA", "switches", "false", "missed")
    table = Table(Column("sequence", overflow="fold"), *figures)
    for name, score in [*alone.items(), ("combined", together)]:
        shares = (score.hota, score.idf1, score.mota, score.det_a, score.ass_a)
        counts = (score.id_switches, score.false_positives, score.misses)
        table.add_row(name, *(f"{share:.2f}" for share in shares), *(str(count) for count in counts))
    user_console().print(table)
