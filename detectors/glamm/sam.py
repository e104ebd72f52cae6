"""The grounding image encoder and pixel decoder: SAM (Kirillov et al., arXiv:2304.02643), led by words or boxes."""

from __future__ import annotations

import math

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from detectors.glamm.config import SamConfig


def build_sam(config: SamConfig) -> transformers.SamModel:
    vision = transformers.SamVisionConfig(
        hidden_size=config.hidden_size,
        output_channels=config.out_channels,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layer_norm_eps=config.layer_norm_eps,
        mlp_ratio=float(config.mlp_ratio),
        window_size=config.window_size,
        global_attn_indexes=config.global_attn_indexes,
        num_pos_feats=config.out_channels // 2,
    )
    prompts = transformers.SamPromptEncoderConfig(
        hidden_size=config.out_channels,
        image_size=config.image_size,
        patch_size=config.patch_size,
        mask_input_channels=config.mask_in_chans,
    )
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=config.out_channels,
        mlp_dim=config.decoder_mlp_dim,
        num_hidden_layers=config.decoder_depth,
        num_attention_heads=config.decoder_heads,
        attention_downsample_rate=config.decoder_attention_downsample_rate,
        num_multimask_outputs=config.num_multimask_outputs,
        iou_head_depth=config.iou_head_depth,
        iou_head_hidden_dim=config.iou_head_hidden_dim,
        layer_norm_eps=1e-5,  # the released code leaves torch's default in these blocks; transformers' is 1e-6
    )
    return transformers.SamModel(
        transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )


def decode_words(sam: transformers.SamModel, embedding: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """One mask for each projected word vector.

    Shapes: embedding (1, C, g, g), words (K, C) -> mask logits (K, 4g, 4g) and predicted IoU (K,), float32.
    """
    return _decode_prompts(sam, embedding, words[None, :, None])


def decode_boxes(sam: transformers.SamModel, embedding: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """One mask for each box (K, 4), xyxy in pixels of the model's own input; shapes as in `decode_words`."""
    return _decode_prompts(sam, embedding, _embed_boxes(sam, boxes)[None].to(embedding.dtype))


def _embed_boxes(sam: transformers.SamModel, boxes: Tensor) -> Tensor:
    """Both corners of each box (K, 4) as SAM's prompt encoder has them, (K, 2, C), but in float32 throughout.

    In bfloat16 places in a picture of 1024 pixels would be rounded to four of them.
    """
    encoder = sam.prompt_encoder
    corners = (boxes.float().reshape(-1, 2, 2) + 0.5) / encoder.input_image_size
    phases = 2 * math.pi * ((2 * corners - 1) @ encoder.shared_embedding.positional_embedding.float())
    kinds = torch.cat([encoder.point_embed[2].weight, encoder.point_embed[3].weight]).float()
    return torch.cat([phases.sin(), phases.cos()], dim=-1) + kinds


def _decode_prompts(sam: transformers.SamModel, embedding: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """`sparse` is (1, K, tokens, C). Of the four masks it takes token 0, the one for an unambiguous prompt."""
    if sparse.shape[1] == 0:
        side = 4 * embedding.shape[-1]
        return embedding.new_zeros(0, side, side, dtype=torch.float32), embedding.new_zeros(0, dtype=torch.float32)
    masks, iou = sam.mask_decoder(
        image_embeddings=embedding,
        image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight[..., None, None],
        multimask_output=False,
    )
    return masks[0, :, 0].float(), iou[0, :, 0].float()


def resize_masks(logits: Tensor, side: int, inner: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Mask logits at the image's own size: up to the padded square, padding cut, then to `original` (height, width).

    Shapes: logits (K, h, w) -> (K, H, W), float32; `inner` is the size of the resized image inside the square.
    """
    if not len(logits):
        return logits.new_zeros(0, *original)
    square = F.interpolate(logits[:, None].float(), (side, side), mode="bilinear", align_corners=False)
    return F.interpolate(square[..., : inner[0], : inner[1]], original, mode="bilinear", align_corners=False)[:, 0]
