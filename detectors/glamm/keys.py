"""From the names of the released checkpoints to those of `GlammModel`."""

from __future__ import annotations

import re

_PREFIXES = (
    ("model.vision_tower.vision_tower.vision_model.", "clip."),
    ("vision_model.", "clip."),  # CLIP's own checkpoint
    ("model.mm_projector.", "projector."),
    ("model.region_encoder.mlvl_fuse.", "region_encoder.fuse."),
    ("model.region_encoder.roi_align.", "region_encoder.roi."),
    ("model.text_hidden_fcs.0.", "mask_projector."),
    ("model.grounding_encoder.", "sam."),
    ("model.", "llm.model."),
    ("lm_head.", "llm.lm_head."),
)

_FEED_FORWARD = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
_NECK = {"0": "conv1", "1": "layer_norm1", "2": "conv2", "3": "layer_norm2"}
_MASK_EMBED = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
_UPSCALING = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}

_SAM = (
    (r"^sam\.image_encoder\.patch_embed\.proj\.", lambda m: "sam.image_encoder.patch_embed.projection."),
    (
        r"^sam\.image_encoder\.blocks\.(\d+)\.norm([12])\.",
        lambda m: f"sam.image_encoder.blocks.{m[1]}.layer_norm{m[2]}.",
    ),
    (r"^sam\.image_encoder\.blocks\.", lambda m: "sam.image_encoder.layers."),
    (r"^sam\.image_encoder\.neck\.(\d)\.", lambda m: f"sam.image_encoder.neck.{_NECK[m[1]]}."),
    (r"^sam\.image_encoder\.", lambda m: "sam.vision_encoder."),
    (r"^sam\.prompt_encoder\.point_embeddings\.", lambda m: "sam.prompt_encoder.point_embed."),
    (
        r"^sam\.prompt_encoder\.mask_downscaling\.(\d)\.",
        lambda m: f"sam.prompt_encoder.mask_embed.{_MASK_EMBED[m[1]]}.",
    ),
    (r"^(sam\.mask_decoder\.transformer\.layers\.\d+)\.norm(\d)\.", lambda m: f"{m[1]}.layer_norm{m[2]}."),
    (
        r"^sam\.mask_decoder\.transformer\.norm_final_attn\.",
        lambda m: "sam.mask_decoder.transformer.layer_norm_final_attn.",
    ),
    (r"^sam\.mask_decoder\.output_upscaling\.(\d)\.", lambda m: f"sam.mask_decoder.{_UPSCALING[m[1]]}."),
    (
        r"^(sam\.mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d)\.",
        lambda m: f"{m[1]}.{_FEED_FORWARD[m[2]]}.",
    ),
)

_DERIVED = re.compile(r"(\.self_attn\.rotary_emb\.inv_freq|^clip\.embeddings\.position_ids)$")
_GAUSSIAN = "sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_POSITIONS = (
    "sam.prompt_encoder.shared_embedding.positional_embedding",
    "sam.shared_image_embedding.positional_embedding",
)
_CLIP_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")


def model_names(official: str) -> tuple[str, ...]:
    """Names in `GlammModel` of a released tensor: usually one, none for derived or unused tensors.

    `inv_freq` and `position_ids` were written by old transformers and are computed here; the text half of CLIP is
    not part of GLaMM.
    """
    if official.startswith(_CLIP_TEXT):
        return ()
    name = official
    for old, new in _PREFIXES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    if _DERIVED.search(name):
        return ()
    if name == _GAUSSIAN:
        return _POSITIONS
    for pattern, replacement in _SAM:
        name = re.sub(pattern, replacement, name)
    return (name,)
