"""Output formats of grounded texts: JSON with COCO run lengths, a painted picture, an HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from detectors.detector import GroundedSpan, GroundedText
from detectors.overlap import mask_boxes
from sinks.event import Description, Span
from streamer.errors import ConfigError
from streamer.rules.mask_rle import mask_model

Image = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]

_OPACITY = 0.5
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)


def parse_box(text: str) -> tuple[float, float, float, float]:
    """`x1,y1,x2,y2` in pixels. Raises `ConfigError`."""
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"cannot parse box {text!r}: expected x1,y1,x2,y2 in pixels, such as 40,60,200,220") from None
    return x1, y1, x2, y2


def masks_of(found: sv.Detections) -> BoolMask:
    """The masks (K, H, W) of detections that have them."""
    assert found.mask is not None
    return np.asarray(found.mask, dtype=np.bool_)


def union_mask(grounded: GroundedText, span: GroundedSpan) -> BoolMask | None:
    """The mask of a span, (H, W), all of its masks together; None when it has none."""
    return np.asarray(grounded.masks[list(span.masks)].any(axis=0)) if span.masks else None


def event_description(grounded: GroundedText, model: str) -> Description:
    """The description for an event: each span with all of its masks in one."""
    spans = []
    for span in grounded.spans:
        mask = union_mask(grounded, span)
        encoded = None if mask is None else mask_model(mask)
        spans.append(Span(start=span.start, end=span.end, phrase=span.phrase, mask=encoded))
    return Description(text=grounded.text, spans=spans, model=model)


def as_json(grounded: GroundedText) -> dict[str, Any]:
    """A mapping with `text`, the model's `answer`, and `spans` [start, end) with numbers into `masks`."""
    return {
        "text": grounded.text,
        "answer": grounded.answer,
        "spans": [
            {"start": span.start, "end": span.end, "phrase": span.phrase, "masks": list(span.masks)}
            for span in grounded.spans
        ],
        "masks": [mask_model(mask).model_dump() for mask in grounded.masks],
    }


def segments_as_json(found: sv.Detections) -> list[dict[str, Any]]:
    """One entry for each mask: phrase, score, box in pixels, run lengths."""
    assert found.confidence is not None
    phrases, own = found.data["class_name"], found.data["as_generated"]
    rows = zip(phrases, found.confidence, found.xyxy, masks_of(found), own, strict=True)
    return [
        {
            "phrase": str(phrase),
            "score": round(float(score), 4),
            "box": [round(float(value), 1) for value in box],
            "as_generated": bool(as_generated),
            "mask": mask_model(mask).model_dump(),
        }
        for phrase, score, box, mask, as_generated in rows
    ]


def color_of(number: int) -> sv.Color:
    """The colour of mask `number`; colours repeat after the palette's last."""
    return sv.ColorPalette.DEFAULT.by_idx(number)


def paint_masks(image: Image, masks: BoolMask, labels: Sequence[str]) -> Image:
    """A copy of a BGR picture with coloured masks (K, H, W) and a label at each."""
    if not len(masks):
        return image.copy()
    shown = sv.Detections(xyxy=mask_boxes(masks), mask=masks, class_id=np.arange(len(masks)))
    by_row = sv.ColorLookup.INDEX
    painted = sv.MaskAnnotator(opacity=_OPACITY, color_lookup=by_row).annotate(image.copy(), shown)
    scale = max(0.4, image.shape[0] / 1080)
    labelled = sv.LabelAnnotator(color_lookup=by_row, text_scale=scale, smart_position=True).annotate(
        painted, shown, labels=list(labels)
    )
    return np.asarray(labelled, dtype=np.uint8)


def paint_grounded(image: Image, grounded: GroundedText) -> Image:
    """The picture with its masks, and the text below it in the same colours."""
    labels = [""] * len(grounded.masks)
    for span in grounded.spans:
        for number in span.masks:
            labels[number] = span.phrase
    top = paint_masks(image, grounded.masks, labels)
    return np.concatenate([top, _text_strip(grounded, image.shape[1])])


def text_pieces(grounded: GroundedText) -> Iterator[tuple[str, GroundedSpan | None]]:
    """The text cut at its spans, in order; a span that overlaps an earlier one is left as plain text."""
    place = 0
    for span in sorted(grounded.spans, key=lambda span: span.start):
        if span.start < place or span.start == span.end:
            continue
        yield grounded.text[place : span.start], None
        yield grounded.text[span.start : span.end], span
        place = span.end
    yield grounded.text[place:], None


def _text_strip(grounded: GroundedText, width: int) -> Image:
    """The text on white, (h, width, 3) BGR, broken into lines."""
    size = max(14, width // 40)
    font = ImageFont.load_default(size)
    space, margin, line = font.getlength(" "), size // 2, round(size * 1.4)
    words, x, y = [], float(margin), margin
    for text, span in text_pieces(grounded):
        color = _pale_colour(color_of(span.masks[0]).as_rgb()) if span is not None and span.masks else _PAPER
        for word in text.split():
            length = font.getlength(word)
            if x > margin and x + length > width - margin:
                x, y = float(margin), y + line
            words.append((x, y, length + space, word, color))
            x += length + space
    strip = Pillow.new("RGB", (width, y + line + margin), _PAPER)
    draw = ImageDraw.Draw(strip)
    for x, y, length, word, color in words:
        draw.rectangle((x - space / 2, y, x - space / 2 + length, y + line - 2), fill=color)
        draw.text((x, y), word, fill=_INK, font=font)
    return np.asarray(strip, dtype=np.uint8)[..., ::-1]


def _pale_colour(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Half way to white, so that dark letters can be read on it."""
    red, green, blue = ((part + 255) // 2 for part in color)
    return red, green, blue


def grounded_page(image: Image, grounded: GroundedText, title: str) -> str:
    """A self-contained HTML page: pointing at a phrase shows its mask alone."""
    layers = "".join(
        f'<img class="mask" data-mask="{number}" alt="" src="{_data_url(_mask_layer(mask, color_of(number)))}">'
        for number, mask in enumerate(grounded.masks)
    )
    text = "".join(_html_piece(words, span) for words, span in text_pieces(grounded))
    return _PAGE.format(title=html.escape(title), picture=_data_url(image), layers=layers, text=text)


def _html_piece(words: str, span: GroundedSpan | None) -> str:
    escaped = html.escape(words)
    if span is None or not span.masks:
        return escaped
    numbers = " ".join(map(str, span.masks))
    return f'<span data-masks="{numbers}" style="background:{color_of(span.masks[0]).as_hex()}88">{escaped}</span>'


def _mask_layer(mask: BoolMask, color: sv.Color) -> Image:
    """One mask as a transparent picture (H, W, 4), BGRA."""
    layer = np.zeros((*mask.shape, 4), dtype=np.uint8)
    layer[mask] = (*color.as_bgr(), round(255 * _OPACITY))
    return layer


def _data_url(image: Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def encode_png(image: Image) -> bytes:
    written, data = cv2.imencode(".png", image)
    assert written
    return bytes(data)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 18px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
figure {{ position: relative; margin: 0 }}
figure img {{ width: 100%; display: block }}
figure .mask {{ position: absolute; inset: 0; transition: opacity .15s }}
span {{ border-radius: .25em; padding: 0 .15em; cursor: pointer }}
</style></head><body>
<figure><img alt="{title}" src="{picture}">{layers}</figure>
<p>{text}</p>
<script>
const masks = document.querySelectorAll('.mask');
document.querySelectorAll('span[data-masks]').forEach(span => {{
  const own = span.dataset.masks.split(' ');
  span.onmouseenter = () => masks.forEach(m => m.style.opacity = own.includes(m.dataset.mask) ? 1 : 0);
  span.onmouseleave = () => masks.forEach(m => m.style.opacity = 1);
}});
</script></body></html>
"""
