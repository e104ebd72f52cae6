"""Text encoder, BERT (arXiv:1810.04805), and its layer as used on the fused text in the tower."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.glip.modeling.linear import Linear

CLAMP = 50000.0  # GLIP's bound of scores and activations against overflow in float16


def bound_values(x: Tensor) -> Tensor:
    """`x` clamped to +-`CLAMP`."""
    return x.clamp(-CLAMP, CLAMP)


class TextFeatures(NamedTuple):
    """An encoded caption, the tower's input."""

    hidden: Tensor  # (B, L, D): BERT's last layer at every position, padding too; what the fusion reads
    embedded: Tensor  # (B, L, D): the same with padding zeroed; what the scores read where there is no fusion
    mask: Tensor  # (B, L) int64: 1 for the caption's own tokens, [CLS] and [SEP] included

    def aggregate(self) -> Tensor:
        """Mean over the caption's own tokens, (B, D)."""
        return self.embedded.sum(1) / self.mask.sum(1, keepdim=True).to(self.embedded.dtype)


class TextEncoder(nn.Module):
    """BERT without its pooler, kept where the checkpoints have it (`body.model`), with the names of transformers' BERT.

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
        layers = nn.ModuleList(
            TextLayer(hidden_size, num_heads, intermediate_size, dropout, clamp=False) for _ in range(num_layers)
        )
        bert = nn.ModuleDict(
            {
                "embeddings": TextEmbeddings(vocab_size, hidden_size, max_position, type_vocab, dropout),
                "encoder": nn.ModuleDict({"layer": layers}),
            }
        )
        bert.apply(_init_weights)
        self.body = nn.ModuleDict({"model": bert})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        bert = self.body.get_submodule("model")
        hidden: Tensor = bert.get_submodule("embeddings")(input_ids)
        for layer in bert.get_submodule("encoder.layer").children():
            hidden = layer(hidden, attention_mask)
        return TextFeatures(hidden, hidden * attention_mask[..., None].to(hidden.dtype), attention_mask)


class TextEmbeddings(nn.Module):
    """Sum of a token's, its position's and its segment's embedding, normed: (B, L) int64 -> (B, L, D)."""

    def __init__(self, vocab_size: int, width: int, max_position: int, type_vocab: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(max_position, width)
        self.token_type_embeddings = nn.Embedding(type_vocab, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings.weight[: ids.shape[1]]
        summed = self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + places
        return F.dropout(self.LayerNorm(summed), self.dropout, self.training)


def _init_weights(module: nn.Module) -> None:
    """BERT's initial weights: a normal distribution of deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        elif module.padding_idx is not None and not module.weight.is_meta:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()


class TextSelfAttention(nn.Module):
    """Multi-head attention among the tokens of a caption; with `clamp` scores are bounded before they are masked."""

    def __init__(self, width: int, heads: int, dropout: float, clamp: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.clamp = heads, dropout, clamp
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            torch.unflatten(layer(hidden), -1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, d)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        scores = bound_values(scores) if self.clamp else scores
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
        x = F.dropout(bound_values(x) if self.clamp else x, self.dropout, self.training)
        x = self.LayerNorm(x + residual)
        return bound_values(x) if self.clamp else x


class TextLayer(nn.Module):
    """One BERT layer: of the text encoder, or with GLIP's bounds (`clamp`) over text fused with the picture.

    Shapes: hidden (B, L, D), mask (B, L) -> (B, L, D). The names are those of a layer of transformers' BERT.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float, *, clamp: bool = True) -> None:
        super().__init__()
        self.clamp = clamp
        self.attention = nn.ModuleDict(
            {
                "self": TextSelfAttention(width, heads, dropout, clamp),
                "output": AddAndNorm(width, width, dropout, clamp=False),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": Linear(width, inner)})
        self.output = AddAndNorm(inner, width, dropout, clamp=clamp)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        attended = self.attention["output"](self.attention["self"](hidden, mask), hidden)
        inner = self.intermediate["dense"](attended)
        inner = bound_values(F.gelu(bound_values(inner))) if self.clamp else F.gelu(inner)
        out: Tensor = self.output(inner, attended)
        return out
