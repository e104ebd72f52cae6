"""The caption's encoder, BERT (arXiv:1810.04805), and the BERT layer that works on the fused text in the tower."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.glip.modeling.linear import Linear

CLAMP = 50000.0  # bounds that GLIP puts on scores and activations, so that fp16 training does not overflow


def bounded(x: Tensor) -> Tensor:
    """Clamped to what GLIP allows."""
    return x.clamp(-CLAMP, CLAMP)


class TextFeatures(NamedTuple):
    """A caption as the tower sees it."""

    hidden: Tensor  # (B, L, D): BERT's last layer at every position, padding too; what the fusion reads
    embedded: Tensor  # (B, L, D): the same with padding zeroed; what the scores read where there is no fusion
    mask: Tensor  # (B, L) int64: 1 for the caption's own tokens, [CLS] and [SEP] included

    def aggregate(self) -> Tensor:
        """Mean over the caption's own tokens, (B, D)."""
        return self.embedded.sum(1) / self.mask.sum(1, keepdim=True).to(self.embedded.dtype)


class TextEncoder(nn.Module):
    """transformers' BERT without its pooler, kept where the checkpoints have it (`body.model`).

    Ids and mask (B, L) int64 -> `TextFeatures`. Padding never reaches a caption's own tokens, so L may be as short as
    the longest caption of the batch.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        intermediate_size: int,
        max_position: int,
        type_vocab: int,
        dropout: float,
    ) -> None:
        super().__init__()
        from transformers.models.bert.configuration_bert import BertConfig
        from transformers.models.bert.modeling_bert import BertModel

        sizes: Any = BertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=intermediate_size,
            max_position_embeddings=max_position,
            type_vocab_size=type_vocab,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        bert = BertModel(sizes, add_pooling_layer=False)
        # Constants outside the state dict: real also when the network is built on the meta device and filled later.
        bert.embeddings.position_ids = torch.arange(max_position, device="cpu")[None]
        bert.embeddings.token_type_ids = torch.zeros(1, max_position, dtype=torch.int64, device="cpu")
        self.body = nn.ModuleDict({"model": bert})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        hidden = self.body["model"](input_ids, attention_mask=attention_mask).last_hidden_state
        return TextFeatures(hidden, hidden * attention_mask[..., None].to(hidden.dtype), attention_mask)


class TextSelfAttention(nn.Module):
    """Multi-head attention among the tokens of a caption; scores are bounded before the mask is laid over them."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            torch.unflatten(layer(hidden), -1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, d)
            for layer in (self.query, self.key, self.value)
        )
        scores = bounded(q @ k.mT / math.sqrt(q.shape[-1]))
        scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        attended: Tensor = weights @ v  # (B, heads, L, d)
        return attended.transpose(1, 2).flatten(2)


class AddAndNorm(nn.Module):
    """Project, add the residual, norm: how both halves of a BERT layer end."""

    def __init__(self, inner: int, width: int, dropout: float, clamp: bool) -> None:
        super().__init__()
        self.dropout, self.clamp = dropout, clamp
        self.dense = Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.dense(x)
        x = F.dropout(bounded(x) if self.clamp else x, self.dropout, self.training)
        x = self.LayerNorm(x + residual)
        return bounded(x) if self.clamp else x


class TextLayer(nn.Module):
    """One BERT layer with GLIP's bounds, over the text that has just been fused with the picture.

    Shapes: hidden (B, L, D), mask (B, L) -> (B, L, D). The names are those of a layer of transformers' BERT.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                "self": TextSelfAttention(width, heads, dropout),
                "output": AddAndNorm(width, width, dropout, clamp=False),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": Linear(width, inner)})
        self.output = AddAndNorm(inner, width, dropout, clamp=True)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        attended = self.attention["output"](self.attention["self"](hidden, mask), hidden)
        inner = bounded(F.gelu(bounded(self.intermediate["dense"](attended))))
        out: Tensor = self.output(inner, attended)
        return out
