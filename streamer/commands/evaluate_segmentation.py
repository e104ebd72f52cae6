"""`groundstream evaluate-segmentation`: masks and captions against the truth."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class SegmentationTask(StrEnum):
    """As `streamer.tasks.evaluate_segmentation.Benchmark`, without what it imports."""

    GCG = "gcg"
    REFSEG = "refseg"
    REGCAP = "regcap"


def evaluate_segmentation(
    truth: Annotated[Path, typer.Argument(help="JSON list of {image_id, caption, phrases, masks}, or GranD-f's form.")],
    predictions: Annotated[
        Path | None, typer.Argument(help="The same form; absent: the model answers, see --images.")
    ] = None,
    task: Annotated[
        SegmentationTask,
        typer.Option(help="gcg: AP50, mIoU, recall, METEOR, CIDEr; refseg: cIoU, gIoU; regcap: METEOR, CIDEr."),
    ] = SegmentationTask.GCG,
    images: Annotated[Path | None, typer.Option(help="The folder of the images, for the model to answer.")] = None,
    text_model: Annotated[
        str, typer.Option(help="Compares phrases for gcg's recall: a BERT's name or folder, or none.")
    ] = "bert-base-uncased",
    model: Annotated[str, typer.Option(help="A released GLaMM, or a folder that holds one.")] = "glamm-fullscope",
    clip: Annotated[Path | None, typer.Option(help="CLIP's folder, for a GLaMM folder as the hub has it.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; chosen when absent.")] = None,
    bits: Annotated[int | None, typer.Option(help="8 or 4: pack the language model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score masks and captions the way the papers do."""
    from streamer.enrichment.loading import GlammLoading
    from streamer.tasks import evaluate_segmentation as mask_scores

    loading = GlammLoading(model, clip, device, None, bits)
    benchmark = mask_scores.SegmentationBenchmark(task.value)
    mask_scores.run_evaluation(benchmark, truth, predictions, images, text_model, loading, as_json=as_json)
