"""`groundstream segment`, `describe`, `region`, `caption`, `chat`: GLaMM on images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.enrichment.loading import GlammLoading

Model = Annotated[
    str, typer.Option("--model", help="glamm-fullscope, another released checkpoint, or a folder that holds one.")
]
Clip = Annotated[Path | None, typer.Option("--clip", help="CLIP's folder, for a GLaMM folder as the hub has it.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; chosen when absent.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="bfloat16 (on a GPU) or float32.")]
Bits = Annotated[int | None, typer.Option("--bits", help="8 or 4: pack the language model into less memory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, masks as COCO run lengths.")]
Out = Annotated[Path | None, typer.Option("--out", help="A folder for pictures of the result.")]
Picture = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")]


def segment(
    image: Annotated[str, typer.Argument(metavar="IMAGE|VIDEO", help="A picture or a video.")],
    query: Annotated[list[str], typer.Option("--query", "-q", help="What to segment, in plain words; repeatable.")],
    generate: Annotated[
        bool, typer.Option("--generate", help="Let the model write its answer instead of giving it the usual one.")
    ] = False,
    fps: Annotated[float, typer.Option(help="Of a video, at most so many frames per second.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Questions that are read at once.")] = 8,
    model: Model = "glamm-fullscope",
    clip: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
    bits: Bits = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Cut out what the words name: a mask for each phrase, in a picture or in sampled frames of a video."""
    from streamer.tasks import glamm

    options = GlammLoading(model, clip, device, dtype, bits, batch)
    raise typer.Exit(glamm.run_segment(image, query, options, generate=generate, fps=fps, out=out, as_json=as_json))


def describe(
    image: Picture,
    model: Model = "glamm-fullscope",
    clip: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
    bits: Bits = None,
    out: Annotated[Path, typer.Option("--out", help="A folder for NAME.html and NAME.png.")] = Path("out"),
    as_json: AsJson = False,
) -> None:
    """Describe a picture, each phrase tied to a mask, as coloured text over coloured masks."""
    from streamer.tasks import glamm

    glamm.run_describe(image, GlammLoading(model, clip, device, dtype, bits), out=out, as_json=as_json)


def region(
    image: Picture,
    box: Annotated[list[str], typer.Option("--box", help="x1,y1,x2,y2 in pixels; repeatable.")],
    model: Model = "glamm-fullscope",
    clip: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
    bits: Bits = None,
    as_json: AsJson = False,
) -> None:
    """Describe what stands in a box of a picture."""
    from streamer.tasks import glamm

    glamm.run_region(image, box, GlammLoading(model, clip, device, dtype, bits), as_json=as_json)


def caption(
    image: Picture,
    model: Model = "glamm-fullscope",
    clip: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
    bits: Bits = None,
    as_json: AsJson = False,
) -> None:
    """Describe a picture in plain words, without masks."""
    from streamer.tasks import glamm

    glamm.run_caption(image, GlammLoading(model, clip, device, dtype, bits), as_json=as_json)


def chat(
    image: Picture,
    message: Annotated[
        list[str], typer.Option("--message", "-m", help="Ask this and end; repeatable, each after the last answer.")
    ] = [],  # noqa: B006 - typer copies defaults
    box: Annotated[
        list[str], typer.Option("--box", help="x1,y1,x2,y2 that the next <bbox> in a message means; repeatable.")
    ] = [],  # noqa: B006
    model: Model = "glamm-fullscope",
    clip: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
    bits: Bits = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Talk about a picture; answers may show what they speak of. An empty line or Ctrl-D ends the talk."""
    from streamer.tasks import glamm

    options = GlammLoading(model, clip, device, dtype, bits)
    glamm.run_chat(image, message, box, options, out=out, as_json=as_json)
