"""The `evaluate` commands: score results against the truth."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamer.commands.evaluate_segmentation import evaluate_segmentation
from streamer.commands.evaluate_tracking import tracking
from streamer.commands.groups import CommandGroup
from streamer.commands.options import DetectorOptions, Device, Tuned, Weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamer.detector_choice import DetectorChoice
    from streamer.tasks.evaluate_model import ModelRun

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None)
app.command("tracking")(tracking)
app.command("segmentation")(evaluate_segmentation)

AsJson = Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")]
Results = Annotated[
    Path | None,
    typer.Argument(help="COCO results [{image_id, category_id, bbox, score}], or annotate's; none with --model."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Detector to run over the pictures: glip-tiny, coco-nano, ..."),
]
Images = Annotated[Path | None, typer.Option("--images", metavar="DIR", help="Folder of the pictures, for --model.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="File for the results of --model (default: out/detection-TRUTH-MODEL.json)."
    ),
]
PictureBatch = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Pictures per call of the model.")]


class GroundingProtocol(StrEnum):
    ANY = "any"
    MERGED = "merged"


@app.command("detection")
def detection(
    truth: Annotated[Path, typer.Argument(help="A data set in COCO's or LVIS's format.")],
    results: Results = None,
    lvis: Annotated[bool, typer.Option("--lvis", help="LVIS's fixed AP, with rare, common and frequent.")] = False,
    model: Model = None,
    images: Images = None,
    weights: Weights = None,
    tuned: Tuned = None,
    device: Device = None,
    detector_option: DetectorOptions = None,
    batch: PictureBatch = 4,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Score boxes: COCO's average precision, or LVIS's fixed AP; of results, or of a model run over the pictures."""
    from dataclasses import asdict

    from detectors import coco_data, evaluation
    from streamer.detector_choice import DetectorChoice
    from streamer.tasks import evaluate_model

    data = coco_data.read_data_set(truth)
    choice = DetectorChoice(model, weights, tuned, device, options=detector_option or ())
    run = _choose_run("detection", truth, results, choice, images, out, batch)
    if run is None:
        assert results is not None
        found = coco_data.read_results(results, data)
    else:
        found = _complete_results(evaluate_model.run_detection(run, data))
    score = asdict((evaluation.lvis_score if lvis else evaluation.coco_score)(data, found))
    categories, frequencies = score.pop("categories"), score.pop("frequencies")
    if as_json:
        _print_json({**score, "categories": categories, "frequencies": frequencies})
    else:
        _figure_table("all categories", {**score, **frequencies})
        _figure_table("AP by category", categories)


@app.command("grounding")
def grounding(
    truth: Annotated[
        Path,
        typer.Argument(
            help="A data set with captions and phrases, as MDETR or annotate writes, or Flickr30k Entities' folder or "
            "test.txt."
        ),
    ],
    results: Results = None,
    protocol: Annotated[
        GroundingProtocol,
        typer.Option(help="A box is right when it meets one of a phrase's boxes, or the box around them."),
    ] = GroundingProtocol.ANY,
    model: Model = None,
    images: Images = None,
    weights: Weights = None,
    device: Device = None,
    detector_option: DetectorOptions = None,
    batch: PictureBatch = 4,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Score phrases: how often one of the 1, 5, 10 best boxes is right, as on Flickr30k Entities; of results, or of a
    model run over the pictures."""
    from dataclasses import asdict

    from detectors import coco_data, evaluation
    from streamer.detector_choice import DetectorChoice
    from streamer.tasks import evaluate_model

    data = evaluate_model.read_truth(truth)
    choice = DetectorChoice(model, weights, None, device, options=detector_option or ())
    run = _choose_run("grounding", truth, results, choice, images, out, batch)
    if run is None:
        assert results is not None
        found = coco_data.read_results(results, data)
    else:
        found = _complete_results(evaluate_model.run_grounding(run, data))
    pairs = evaluation.pair_phrases(data, found)
    score = asdict(evaluation.recall_of_phrases(pairs, protocol.value))
    if as_json:
        _print_json(score)
    else:
        _figure_table(f"recall of {score.pop('phrases')} phrases, {protocol.value} box", score)


@app.command("events")
def events(
    truth: Annotated[Path, typer.Argument(help='Lines of JSON: {"time_s", "type", "place"} and maybe "direction".')],
    reported: Annotated[Path, typer.Argument(help="Events as the jsonl sink writes them, or labels.")],
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest distance in seconds between a reported event and its label.")
    ] = 1.0,
    start: Annotated[float, typer.Option(help="Seconds since 1970 at the labels' time 0; 0 for files.")] = 0.0,
    stream: Annotated[str | None, typer.Option(help="The stream that labels without one are about.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score line crossings and zone entries and exits: precision, recall, and how far off in time."""
    from dataclasses import asdict

    from streamer.tasks import evaluate_events as event_scores

    labels = event_scores.shift_events(event_scores.read_labelled_events(truth), start, stream)
    score = event_scores.score_events(labels, event_scores.read_labelled_events(reported), tolerance)
    figures = {"precision": score.precision, "recall": score.recall, **asdict(score)}
    if as_json:
        _print_json(figures)
    else:
        _figure_table(f"{len(labels)} labelled events", figures)


def _choose_run(
    task: str,
    truth: Path,
    results: Path | None,
    choice: DetectorChoice,
    images: Path | None,
    out: Path | None,
    batch: int,
) -> ModelRun | None:
    """The model to run, None where results are given. Raises `ConfigError` unless either is given, and completely."""
    from streamer.errors import ConfigError
    from streamer.tasks.evaluate_model import ModelRun

    if (results is None) == (choice.name is None):
        problem = "neither results nor a model are" if choice.name is None else "both results and a model are"
        raise ConfigError(f"{problem} given: give a file of results, or --model NAME with --images DIR")
    if choice.name is None:
        given = {"--images": images, "--weights": choice.weights, "--tuned": choice.tuned, "--device": choice.device}
        if unused := [flag for flag, value in given.items() if value is not None]:
            raise ConfigError(f"{unused[0]} needs --model NAME: results are scored as they are")
        return None
    if images is None:
        raise ConfigError("--model needs --images DIR, the folder of the data set's pictures")
    usual = Path("out") / f"{task}-{truth.stem}-{choice.name.partition(':')[0]}.json"
    return ModelRun(truth, images, choice, out or usual, batch)


def _complete_results(found: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The results of a run; ends the command where it was interrupted."""
    from streamer.tasks.closing import INTERRUPTED

    if found is None:
        raise typer.Exit(INTERRUPTED)
    return found


def _print_json(figures: Mapping[str, object]) -> None:
    """NaN, which JSON has not, as null."""
    import json

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return None if value != value else value

    typer.echo(json.dumps(plain(dict(figures))))


def _figure_table(title: str, figures: Mapping[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), str(value) if isinstance(value, int) else f"{value:.3f}")
    Console().print(table)
