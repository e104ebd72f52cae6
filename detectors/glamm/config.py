"""Sizes of a GLaMM, as plain values. The defaults are those of the released checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

CLIP_NAME = "openai/clip-vit-large-patch14-336"
RELEASED = {
    "glamm-fullscope": "MBZUAI/GLaMM-FullScope",
    "glamm-grand-pretrained": "MBZUAI/GLaMM-GranD-Pretrained",
    "glamm-gcg": "MBZUAI/GLaMM-GCG",
    "glamm-refseg": "MBZUAI/GLaMM-RefSeg",
    "glamm-regcap-refcocog": "MBZUAI/GLaMM-RegCap-RefCOCOg",
    "glamm-regcap-vg": "MBZUAI/GLaMM-RegCap-VG",
}
"""The released checkpoints by our names, and where the hub has them; CLIP is not in them."""

ADDED_TOKENS = ("<im_start>", "<im_end>", "<bbox>", "<point>", "[SEG]", "<p>", "</p>")
IMAGE_PLACEHOLDER = -200
IGNORED_LABEL = -100


class _PlainValues:
    """Reads itself from a table, taking the keys that it knows; what the table lacks keeps the released value."""

    @classmethod
    def from_plain(cls, table: Mapping[str, Any]) -> Self:
        known = {name: table[name] for name in (f.name for f in fields(cls)) if name in table}  # type: ignore[arg-type]
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})


@dataclass(frozen=True)
class LlmConfig(_PlainValues):
    """LLaMA-7B in the shape of Vicuna-1.5, with seven more tokens."""

    vocab_size: int = 32007
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class ClipConfig(_PlainValues):
    """The global image encoder, CLIP ViT-L/14 at 336 pixels."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    select_layer: int = -2

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2


@dataclass(frozen=True)
class RegionConfig(_PlainValues):
    """The region encoder, a pyramid over four CLIP layers in the manner of GPT4RoI (arXiv:2307.03601)."""

    num_levels: int = 4
    embed_dims: int = 1024
    num_fuse: int = 5
    group_norm_groups: int = 64
    roi_output_size: int = 14
    roi_sampling_ratio: int = 2
    roi_strides: tuple[float, ...] = (14 / 8, 14 / 4, 14 / 2, 14.0)
    roi_base_size: int = 224
    pos_hidden: int = 256
    mid_dim: int = 1024
    out_dim: int = 4096
    feature_layer_step: int = 3


@dataclass(frozen=True)
class SamConfig(_PlainValues):
    """The grounding image encoder and pixel decoder, SAM ViT-H (arXiv:2304.02643)."""

    image_size: int = 1024
    patch_size: int = 16
    hidden_size: int = 1280
    num_layers: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (7, 15, 23, 31)
    out_channels: int = 256
    layer_norm_eps: float = 1e-6
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_mlp_dim: int = 2048
    decoder_heads: int = 8
    decoder_attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256


@dataclass(frozen=True)
class SpecialTokens(_PlainValues):
    """Ids of the tokens that GLaMM adds to LLaMA's 32000; <s> is 1, </s> 2, padding 0."""

    im_start: int = 32000
    im_end: int = 32001
    bbox: int = 32002
    point: int = 32003
    seg: int = 32004
    bop: int = 32005
    eop: int = 32006
    bos: int = 1
    eos: int = 2
    pad: int = 0

    @classmethod
    def behind(cls, vocabulary: int) -> SpecialTokens:
        """The ids when the sentencepiece vocabulary has `vocabulary` pieces."""
        return cls(*range(vocabulary, vocabulary + len(ADDED_TOKENS)))


@dataclass(frozen=True)
class GlammConfig:
    llm: LlmConfig = field(default_factory=LlmConfig)
    clip_vision: ClipConfig = field(default_factory=ClipConfig)
    region_encoder: RegionConfig = field(default_factory=RegionConfig)
    sam: SamConfig = field(default_factory=SamConfig)
    tokens: SpecialTokens = field(default_factory=SpecialTokens)

    @classmethod
    def from_plain(cls, table: Mapping[str, Any]) -> GlammConfig:
        """From tables `llm`, `clip_vision`, `region_encoder`, `sam`, `tokens` with the names of the fields here."""
        return cls(
            LlmConfig.from_plain(table.get("llm", {})),
            ClipConfig.from_plain(table.get("clip_vision", {})),
            RegionConfig.from_plain(table.get("region_encoder", {})),
            SamConfig.from_plain(table.get("sam", {})),
            SpecialTokens.from_plain(table.get("tokens", {})),
        )

    @classmethod
    def from_hub(cls, glamm: Mapping[str, Any], clip: Mapping[str, Any]) -> GlammConfig:
        """From the hub's `config.json` of GLaMM and of CLIP.

        The released file says nothing of the region encoder and SAM, whose sizes its code fixes; a file that differs
        from them carries the tables of `from_plain`.
        """
        heads = glamm.get("num_key_value_heads") or glamm.get("num_attention_heads", LlmConfig.num_key_value_heads)
        llm = LlmConfig.from_plain({**glamm, "num_key_value_heads": heads})  # older files name no such heads
        vision = {**clip.get("vision_config", clip), "select_layer": glamm.get("mm_vision_select_layer", -2)}
        return cls(
            llm,
            ClipConfig.from_plain(vision),
            RegionConfig.from_plain({"out_dim": llm.hidden_size, **glamm.get("region_encoder", {})}),
            SamConfig.from_plain(glamm.get("sam", {})),
            SpecialTokens.behind(llm.vocab_size - len(ADDED_TOKENS)),
        )
