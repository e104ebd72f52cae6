"""A GLaMM small enough for a test, saved the way the hub has it, that answers what the test sets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

from detectors.glamm.config import (
    ADDED_TOKENS,
    ClipConfig,
    GlammConfig,
    LlmConfig,
    RegionConfig,
    SamConfig,
    SpecialTokens,
)
from detectors.glamm.model import GlammModel
from detectors.glamm.tokenizer import LlamaTokenizer

PIECES = 440
SENTENCES = (
    "A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "USER: Can you segment the red car in this image? ASSISTANT: Sure, it is here.",
    "The image provides an overview of the picture. A man and a red umbrella near a tree.",
    "Could you please give me a detailed description of the image? cat dog street person",
)
CONFIG = GlammConfig(
    LlmConfig(PIECES + len(ADDED_TOKENS), 64, 96, 2, 4, 4, 1e-6, 1024),
    ClipConfig(32, 64, 11, 4, 84),
    RegionConfig(
        4, 32, 2, 8, roi_strides=(1.75, 3.5, 7.0, 14.0), roi_base_size=56, pos_hidden=16, mid_dim=48, out_dim=64
    ),
    SamConfig(128, 16, 32, 2, 4, 2, 6, (1,), 32, decoder_mlp_dim=64, decoder_heads=4, iou_head_hidden_dim=24),
    SpecialTokens.behind(PIECES),
)


def save_tokenizer(path: Path) -> LlamaTokenizer:
    """A sentencepiece model in LLaMA's manner: BPE, bytes for what it does not know."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(path.with_suffix("")),
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path.with_suffix(".vocab").unlink()
    return LlamaTokenizer(path)


def random_glamm(seed: int = 0) -> GlammModel:
    torch.manual_seed(seed)
    model = GlammModel(CONFIG).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        elif not name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def teach_sentence(model: GlammModel, sentence: Sequence[int]) -> None:
    """Make the model say `sentence` whatever it sees: each id, all different, leads to the next."""
    embeddings, head = model.llm.model.embed_tokens.weight, model.llm.lm_head.weight
    with torch.no_grad():
        for layer in model.llm.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.01)
            layer.mlp.down_proj.weight.mul_(0.01)
        head.mul_(0.01)
        for now, then in pairwise(sentence):
            head[then] = embeddings[now] / embeddings[now].norm()


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`GlammModel`'s tensors under the names of the released checkpoints, CLIP apart."""
    renames = (
        (r"^llm\.(model\.)?", lambda m: "model." if m[1] else ""),
        (r"^projector", lambda m: "model.mm_projector"),
        (r"^mask_projector", lambda m: "model.text_hidden_fcs.0"),
        (r"^region_encoder\.fuse", lambda m: "model.region_encoder.mlvl_fuse"),
        (r"^region_encoder\.roi", lambda m: "model.region_encoder.roi_align"),
        (r"^clip\.", lambda m: "vision_model."),
        (r"^sam\.shared_image_embedding\.positional_embedding", lambda m: "drop"),
        (r"shared_embedding\.positional_embedding", lambda m: "pe_layer.positional_encoding_gaussian_matrix"),
        (r"^sam\.vision_encoder\.layers\.", lambda m: "sam.image_encoder.blocks."),
        (r"^sam\.vision_encoder", lambda m: "sam.image_encoder"),
        (r"(blocks\.\d+|transformer\.layers\.\d+)\.layer_norm", lambda m: f"{m[1]}.norm"),
        (r"patch_embed\.projection", lambda m: "patch_embed.proj"),
        (r"encoder\.point_embed\.", lambda m: "encoder.point_embeddings."),
        (r"layer_norm_final_attn", lambda m: "norm_final_attn"),
        (r"(mlps\.\d|head)\.layers\.0", lambda m: f"{m[1]}.layers.1"),
        (r"(mlps\.\d|head)\.proj_in", lambda m: f"{m[1]}.layers.0"),
        (r"proj_out", lambda m: "layers.2"),
        (r"neck\.(conv1|layer_norm1|conv2|layer_norm2)", lambda m: "neck." + "0123"[_place(m[1])]),
        (r"mask_embed\.(conv\d|layer_norm\d)", lambda m: "mask_downscaling." + "01346"[_place(m[1])]),
        (r"mask_decoder\.upscale_(conv1|layer_norm|conv2)", lambda m: "mask_decoder.output_upscaling." + _UP[m[1]]),
        (r"^sam\.", lambda m: "model.grounding_encoder."),
    )
    named = {}
    for name, tensor in state.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor.contiguous().clone()
    named.pop("drop", None)
    return named


_UP = {"conv1": "0", "layer_norm": "1", "conv2": "3"}


def _place(part: str) -> int:
    return ["conv1", "layer_norm1", "conv2", "layer_norm2", "conv3"].index(part)


def save_hub(model: GlammModel, folder: Path, answer: str | None = None, shards: bool = True) -> Path:
    """`folder/glamm` and `folder/clip` as the hub would hold them; returns `folder`.

    `answer` is what the model is made to say; no token may come twice in it.
    """
    glamm, clip = folder / "glamm", folder / "clip"
    glamm.mkdir(parents=True)
    clip.mkdir()
    tokenizer = save_tokenizer(glamm / "tokenizer.model")
    if answer:
        teach_sentence(model, [tokenizer.encode("ASSISTANT:")[-1], *tokenizer.encode(answer), 2])
    state = official_names(model.state_dict())
    vision = {name: state.pop(name) for name in list(state) if name.startswith("vision_model.")}
    vision["vision_model.embeddings.position_ids"] = torch.arange(CONFIG.clip_vision.num_patches + 1)[None]
    vision["text_model.embeddings.token_embedding.weight"] = torch.zeros(3, 2)
    vision["logit_scale"] = torch.zeros(())
    save_file(vision, clip / "model.safetensors")
    (clip / "config.json").write_text(json.dumps({"vision_config": asdict(CONFIG.clip_vision)}))
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    names = sorted(state)
    if shards:
        half = len(names) // 2
        torch.save({name: state[name] for name in names[:half]}, glamm / "pytorch_model-00001-of-00002.bin")
        torch.save({name: state[name] for name in names[half:]}, glamm / "pytorch_model-00002-of-00002.bin")
    else:
        save_file(state, glamm / "model.safetensors")
    table: dict[str, Any] = {
        **asdict(CONFIG.llm),
        "mm_hidden_size": 32,
        "mm_vision_select_layer": -2,
        "model_type": "llava",
    }
    table |= {"region_encoder": asdict(CONFIG.region_encoder), "sam": asdict(CONFIG.sam)}
    (glamm / "config.json").write_text(json.dumps(table))
    return folder
