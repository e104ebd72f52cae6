"""A page to look through labelled frames: click on what is wrong, save what is left."""

from __future__ import annotations

import html
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")


def by_image(annotations: Iterable[Mapping[str, Any]]) -> defaultdict[int, list[Mapping[str, Any]]]:
    """A data set's annotations by the picture's id; none where there are none."""
    found: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        found[annotation["image_id"]].append(annotation)
    return found


def review_page(coco: Mapping[str, Any], images: str, records: Mapping[str, Any] | None = None) -> str:
    """One HTML file beside the folder `images`. `records` are GranD records by file name."""
    own = by_image(coco["annotations"])
    figures = "".join(
        _figure_block(image, own[image["id"]], images, (records or {}).get(image["file_name"]))
        for image in coco["images"]
    )
    # "</" would end the script that carries the data
    data = json.dumps(coco).replace("</", "<\\/")
    return _PAGE.format(figures=figures, data=data)


def _figure_block(
    image: Mapping[str, Any], annotations: list[Mapping[str, Any]], images: str, record: Mapping[str, Any] | None
) -> str:
    boxes = "".join(_box_outline(annotation) for annotation in annotations)
    name = html.escape(image["file_name"])
    text = "" if record is None else _record_summary(record)
    return (
        f'<figure><svg viewBox="0 0 {image["width"]} {image["height"]}">'
        f'<image href="{html.escape(images)}/{name}" width="{image["width"]}" height="{image["height"]}"/>{boxes}</svg>'
        f"<figcaption>{name}, {image['time_s']:.2f} s{text}</figcaption></figure>\n"
    )


def _box_outline(annotation: Mapping[str, Any]) -> str:
    x, y, width, height = annotation["bbox"]
    color = _COLORS[annotation["category_id"] % len(_COLORS)]
    track = f" #{annotation['track_id']}" if "track_id" in annotation else ""
    label = html.escape(f"{annotation['phrase']}{track} {annotation['score']:.2f}")
    return (
        f'<g data-id="{annotation["id"]}" stroke="{color}" fill="{color}">'
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill-opacity="0.1"/>'
        f'<text x="{x}" y="{y - 4}">{label}</text></g>'
    )


def _record_summary(record: Mapping[str, Any]) -> str:
    """Of a GranD record what a reviewer reads: the caption, what two voters saw, what only one did."""
    caption = html.escape((record["dense_caption"] or {"caption": "no caption: the answer broke off"})["caption"])
    lists = "".join(
        f"<li>{title}: " + html.escape(", ".join(thing["label"] for thing in record[key]) or "nothing") + "</li>"
        for title, key in (("agreed", "objects"), ("seen by one", "floating_objects"))
    )
    return f"<p>{caption}</p><ul>{lists}</ul>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Review</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 1rem }}
header {{ position: sticky; top: 0; background: #fff; padding: .5rem 0; z-index: 1 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1rem }}
figure {{ margin: 0 }}
svg {{ width: 100%; display: block; background: #eee }}
g {{ cursor: pointer; stroke-width: 2; vector-effect: non-scaling-stroke }}
g text {{ font-size: 13px; font-weight: 600; stroke: #fff; stroke-width: 3px; paint-order: stroke }}
g.wrong {{ opacity: .25; stroke-dasharray: 6 }}
</style></head><body>
<header><button id="save">Save what is left</button> <span id="count"></span></header>
<main>{figures}</main>
<script type="application/json" id="data">{data}</script>
<script>
const wrong = new Set(), count = document.getElementById('count');
const show = () => count.textContent = wrong.size + ' boxes marked as wrong';
document.querySelectorAll('g').forEach(g => g.onclick = () => {{
  const id = Number(g.dataset.id);
  wrong.has(id) ? wrong.delete(id) : wrong.add(id);
  g.classList.toggle('wrong');
  show();
}});
document.getElementById('save').onclick = () => {{
  const coco = JSON.parse(document.getElementById('data').textContent);
  coco.annotations = coco.annotations.filter(a => !wrong.has(a.id));
  coco.info.description = 'made by groundstream annotate, looked through by a person';
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify(coco)], {{type: 'application/json'}}));
  link.download = 'annotations.json';
  link.click();
}};
show();
</script></body></html>
"""
