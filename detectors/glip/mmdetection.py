"""Key names of MMDetection's copies of the released GLIPs, brought back to those of the releases.

MMDetection (arXiv:1906.07155) publishes the five models converted to its own module names, without the optimiser's
state: a second source of the same weights, of a quarter of the size. Besides names, only the order of the four pixels
that Swin's downsampling joins differs there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_MARK = "neck.lateral_convs.0.conv.weight"
_NAMES = [
    (re.compile(rf"^{theirs}"), ours)
    for theirs, ours in (
        (r"neck\.lateral_convs\.0\.conv\.", "backbone.fpn.fpn_inner2."),
        (r"neck\.lateral_convs\.1\.conv\.", "backbone.fpn.fpn_inner3."),
        (r"neck\.lateral_convs\.2\.conv\.", "backbone.fpn.fpn_inner4."),
        (r"neck\.fpn_convs\.0\.conv\.", "backbone.fpn.fpn_layer2."),
        (r"neck\.fpn_convs\.1\.conv\.", "backbone.fpn.fpn_layer3."),
        (r"neck\.fpn_convs\.2\.conv\.", "backbone.fpn.fpn_layer4."),
        (r"neck\.fpn_convs\.3\.conv\.", "backbone.fpn.top_blocks.p6."),
        (r"neck\.fpn_convs\.4\.conv\.", "backbone.fpn.top_blocks.p7."),
        (r"language_model\.language_backbone\.", "language_backbone."),
        (r"bbox_head\.", "rpn."),
        (r"backbone\.patch_embed\.projection\.", "backbone.body.patch_embed.proj."),
        (r"backbone\.stages\.", "backbone.body.layers."),
        (r"backbone\.(?!fpn\.|body\.)", "backbone.body."),
    )
]
_BLOCKS = (
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
    (".attn.w_msa.", ".attn."),
)


def is_from_mmdetection(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are weights under MMDetection's names."""
    return _MARK in tensors


def rename_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names, and in the order of values, of the releases."""
    renamed = {}
    for key, value in tensors.items():
        name = next((pattern.sub(ours, key) for pattern, ours in _NAMES if pattern.match(key)), key)
        if name.startswith("backbone.body.layers."):
            for theirs, ours in _BLOCKS:
                name = name.replace(theirs, ours)
            if ".downsample." in name:
                value = _order_pixels(value)
        renamed[name] = value
    return renamed


def _order_pixels(value: Tensor) -> Tensor:
    """From channels of four pixels in reading order, pixel fastest, to pixels column by column, channel fastest.

    (..., 4 * C) -> (..., 4 * C).
    """
    pixels = value.unflatten(-1, (-1, 4)).mT[..., [0, 2, 1, 3], :]  # type: ignore[no-untyped-call]
    ordered: Tensor = pixels.flatten(-2)
    return ordered
