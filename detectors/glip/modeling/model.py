"""The GLIP network, arXiv:2112.03857. Its parameters carry the names of the released checkpoints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from detectors.glip.config import AnchorConfig, GlipConfig, HeadConfig, TextConfig
from detectors.glip.modeling.anchors import AnchorGenerator
from detectors.glip.modeling.dyhead import DyConv, Shapes, as_regions
from detectors.glip.modeling.fpn import Fpn
from detectors.glip.modeling.fusion import Fusion
from detectors.glip.modeling.scores import Scale, initial_bias, word_region_logits
from detectors.glip.modeling.swin import Swin
from detectors.glip.modeling.text import TextEncoder, TextFeatures, TextLayer


class Predictions(NamedTuple):
    """For each of N regions (five levels one after the other, row by row), before any threshold."""

    logits: Tensor  # (B, N, L): region against token
    deltas: Tensor  # (B, N, 4): the box relative to the region's anchor
    centerness: Tensor  # (B, N): logit
    shapes: Shapes  # (height, width) of each level


class Backbone(nn.Module):
    """Swin and feature pyramid: (B, 3, H, W) -> five maps (B, C, h, w), strides 8 to 128."""

    def __init__(self, body: Swin, fpn: Fpn) -> None:
        super().__init__()
        self.body, self.fpn = body, fpn

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.fpn(self.body(images)[1:])
        return maps


class Head(nn.Module):
    """Fusion tower and predictions. With fusion a stage is three entries: `Fusion`, `TextLayer`, `DyConv`."""

    def __init__(self, head: HeadConfig, text: TextConfig, levels: int) -> None:
        super().__init__()
        channels, width = head.channels, text.hidden_size
        self.early_fusion = head.early_fusion
        self.dyhead_tower = nn.ModuleList()
        for _ in range(head.num_convs):
            if head.early_fusion:
                assert head.fusion_dim
                assert head.fusion_heads
                fusion = Fusion(
                    channels, width, head.fusion_dim, head.fusion_heads, head.fusion_dropout, 1 / head.num_convs
                )
                self.dyhead_tower.append(nn.ModuleDict({"b_attn": fusion}))
                self.dyhead_tower.append(TextLayer(width, text.num_heads, text.intermediate_size, text.dropout))
            self.dyhead_tower.append(DyConv(channels, head.gn_groups))
        # Unused class branch of the checkpoints.
        self.cls_logits = nn.Conv2d(channels, head.num_classes_minus_bg, 1).requires_grad_(False)
        self.bbox_pred = nn.Conv2d(channels, 4, 1)
        self.centerness = nn.Conv2d(channels, 1, 1)
        self.scales = nn.ModuleList(Scale() for _ in range(levels))
        self.dot_product_projection_text = nn.Linear(width, channels)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_lang = nn.Parameter(torch.zeros(width))
        self.bias0 = nn.Parameter(torch.full((1,), initial_bias()))

    def forward(self, maps: list[Tensor], text: TextFeatures) -> Predictions:
        """Five maps (B, C, h, w) and the caption -> predictions."""
        shapes: Shapes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
        regions = torch.cat([as_regions(level) for level in maps], dim=1)
        hidden = text.hidden
        for entry in self.dyhead_tower:
            if isinstance(entry, nn.ModuleDict):
                regions, hidden = entry["b_attn"](regions, hidden, text.mask)
            elif isinstance(entry, TextLayer):
                hidden = entry(hidden, text.mask)
            else:
                regions = entry(regions, shapes)
        return self.predict(regions, hidden if self.early_fusion else text.embedded, shapes)

    def predict(self, regions: Tensor, words: Tensor, shapes: Shapes) -> Predictions:
        """Regions (B, N, C) off the tower and words (B, L, D) -> predictions, always in single precision."""
        with torch.autocast(regions.device.type, enabled=False):
            return self._predict_regions(regions.float(), words.float(), shapes)

    def _predict_regions(self, regions: Tensor, words: Tensor, shapes: Shapes) -> Predictions:
        logits = word_region_logits(
            regions, words, self.dot_product_projection_text, self.bias_lang, self.bias0, self.log_scale
        )
        weight = torch.cat([self.bbox_pred.weight, self.centerness.weight]).flatten(1)
        bias = torch.cat([self.bbox_pred.bias, self.centerness.bias])  # type: ignore[list-item]
        deltas, centerness = torch.split(nn.functional.linear(regions, weight, bias), [4, 1], dim=-1)
        per_level = torch.split(deltas, [height * width for height, width in shapes], dim=1)
        scaled = torch.cat([scale(level) for scale, level in zip(self.scales, per_level, strict=True)], dim=1)
        return Predictions(logits, scaled, centerness.squeeze(-1), shapes)


class Rpn(nn.Module):
    """Head and anchors, and where prompt tuning has left them, offsets to the text features (`tuning`)."""

    def __init__(self, head: Head, anchors: AnchorConfig) -> None:
        super().__init__()
        self.head = head
        self.anchor_generator = AnchorGenerator(anchors.sizes, anchors.strides)
        self.tunable_linear: nn.Module | None = None


class GlipModel(nn.Module):
    """Pictures and captions in, scores of regions against tokens and boxes out. Built from plain sizes."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.config = config
        swin, text = config.swin, config.text
        self.backbone = Backbone(
            Swin(swin.embed_dim, swin.depths, swin.num_heads, swin.window_size, swin.drop_path),
            Fpn(swin.widths[1:], config.head.channels),
        )
        self.language_backbone = TextEncoder(
            text.vocab_size,
            text.hidden_size,
            text.num_layers,
            text.num_heads,
            text.intermediate_size,
            text.max_position,
            text.type_vocab,
            text.dropout,
        )
        self.rpn = Rpn(Head(config.head, text, len(config.anchors.strides)), config.anchors)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        """Ids and mask (B, L) int64 -> the caption's features, with what prompt tuning has learned to add to them."""
        text: TextFeatures = self.language_backbone(input_ids, attention_mask)
        return text if self.rpn.tunable_linear is None else self.rpn.tunable_linear(text)

    def forward(self, images: Tensor, text: TextFeatures) -> Predictions:
        """Normalised pictures (B, 3, H, W), H and W multiples of 32, and one caption each."""
        predictions: Predictions = self.rpn.head(self.backbone(images), text)
        return predictions

    def anchors(self, shapes: Shapes) -> Tensor:
        """(N, 4), in the order of the regions."""
        return torch.cat(self.rpn.anchor_generator(shapes))
