"""GLaMM as one network: an image and words in, words and mask vectors out (arXiv:2311.03356, section 3).

The image stands in the text as N patch vectors in place of one placeholder token. The vector that makes a mask is the
final hidden state of the token *before* `[SEG]`, the state that chose it: the released training counted so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from detectors.glamm.config import IMAGE_PLACEHOLDER, ClipConfig, GlammConfig, LlmConfig
from detectors.glamm.region import RegionEncoder, layer_indices
from detectors.glamm.sam import build_sam, decode_words

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values of one row for each layer: two tensors (1, heads, length, width)."""


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """CLIP features of a batch of images: `patches` (B, N, D) for the words, `levels` (B, C, g, g) for the regions."""

    patches: Tensor
    levels: list[Tensor]


@dataclass(frozen=True, eq=False)
class ModelAnswer:
    """New tokens (T,) and, for each, the final hidden state (T, D) that chose it."""

    ids: Tensor
    states: Tensor


@dataclass(frozen=True, eq=False)
class ChatTurn:
    """One row for the language model: its keys and values so far, and the next (L, D) embeddings."""

    memory: KeysValues
    embeddings: Tensor

    @property
    def length(self) -> int:
        """Positions up to the end of the embeddings."""
        return int(self.memory[0][0].shape[2]) + len(self.embeddings)


class GlammModel(nn.Module):
    def __init__(self, config: GlammConfig) -> None:
        super().__init__()
        self.config = config
        self.llm = transformers.LlamaForCausalLM(_llama_config(config.llm))
        self.clip = transformers.CLIPVisionModel(_clip_config(config.clip_vision))
        width, hidden = config.clip_vision.hidden_size, config.llm.hidden_size
        self.projector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.region_encoder = RegionEncoder(config.region_encoder)
        self.sam = build_sam(config.sam)
        self.mask_projector = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, config.sam.out_channels)
        )
        self._levels = layer_indices(
            config.region_encoder, config.clip_vision.select_layer, config.clip_vision.num_hidden_layers
        )

    def fill_buffers(self, device: torch.device) -> None:
        """Make the buffers that no checkpoint holds; needed after building the model on the meta device."""
        self.llm.model.rotary_emb = LlamaRotaryEmbedding(config=self.llm.config).to(device)
        positions = self.config.clip_vision.num_patches + 1
        self.clip.embeddings.position_ids = torch.arange(positions, device=device).expand(1, -1)

    @property
    def dtype(self) -> torch.dtype:
        return self.llm.lm_head.weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.llm.lm_head.weight.device  # type: ignore[no-any-return]

    # what the image says

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        """CLIP's view of (B, 3, S, S), without its last layer and final norm, which GLaMM never used."""
        states = self.clip(pixels.to(self.dtype), output_hidden_states=True).hidden_states
        patches = self.projector(states[self.config.clip_vision.select_layer][:, 1:])
        return ImageFeatures(patches, [self._as_map(states[index]) for index in self._levels])

    def _as_map(self, states: Tensor) -> Tensor:
        side = self.config.clip_vision.grid
        return states[:, 1:].transpose(1, 2).reshape(len(states), -1, side, side)

    def regions(self, pyramid: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """A vector (n_i, D) for each box (n_i, 4), xyxy in 0..1 of image i of the pyramid."""
        if self.dtype == torch.bfloat16:
            boxes = [rows.half() for rows in boxes]  # the released run rounds boxes to half precision on the way
        return list(self.region_encoder(pyramid, [rows.to(self.device, self.dtype) for rows in boxes]))

    # what the words say

    def embed(self, ids: Tensor, patches: Tensor, regions: Tensor | None = None) -> Tensor:
        """One row of tokens (L,) with one image placeholder, patches (N, D), regions (n, D) -> (L - 1 + N, D)."""
        place = int((ids == IMAGE_PLACEHOLDER).nonzero().item())
        words = self.embed_words(torch.cat([ids[:place], ids[place + 1 :]]), regions)
        return torch.cat([words[:place], patches.to(words.dtype), words[place:]])

    def embed_words(self, ids: Tensor, regions: Tensor | None = None) -> Tensor:
        """Tokens (L,) without an image -> (L, D); the k-th `<bbox>` becomes the k-th region.

        Regions beyond the last `<bbox>` are ignored and a single one serves every `<bbox>`, as in the released code.
        """
        ids = ids.to(self.device)
        words: Tensor = self.llm.model.embed_tokens(ids)
        places = (ids == self.config.tokens.bbox).nonzero()[:, 0]
        if regions is None or not len(places):
            return words
        if len(regions) < len(places) and len(regions) != 1:
            raise ValueError(f"{len(places)} <bbox> in the text, but only {len(regions)} boxes")
        chosen = regions[: len(places)] if len(regions) > 1 else regions.expand(len(places), -1)
        return words.index_copy(0, places, chosen.to(words.dtype))

    def forward(self, embeddings: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Final hidden states (B, L, D) of whole rows, padded on the right; the plain way, without memory."""
        states: Tensor = self.llm.model(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False)[0]
        return states

    def read_opening(self, embeddings: Tensor) -> list[KeysValues]:
        """Read the opening shared by several questions: (B, L, D) -> keys and values of each row."""
        cache = self.llm.model(inputs_embeds=embeddings, use_cache=True).past_key_values
        return [
            [(keys[row : row + 1], values[row : row + 1]) for keys, values, *_ in cache]
            for row in range(len(embeddings))
        ]

    def read(self, turns: Sequence[ChatTurn]) -> list[Tensor]:
        """Final hidden states (L_i, D) of each turn, all turns in one pass. Memories have one length."""
        reader = _LayerReader(self.llm.model, turns)
        states = reader.read(reader.padded)
        return [row[pad:] for row, pad in zip(states, reader.padding, strict=True)]

    def generate(self, turns: Sequence[ChatTurn], max_new_tokens: int) -> list[ModelAnswer]:
        """Greedy answers, all turns together, each up to and with its `</s>` or `max_new_tokens`."""
        eos = self.config.tokens.eos
        reader = _LayerReader(self.llm.model, turns)
        state = reader.read(reader.padded)[:, -1]
        ids, states = [], []
        ended = torch.zeros(len(turns), dtype=torch.bool, device=self.device)
        for _ in range(max_new_tokens):
            chosen = self.llm.lm_head(state).argmax(-1)
            ids.append(chosen)
            states.append(state)
            ended |= chosen == eos
            if len(ids) == max_new_tokens or bool(ended.all()):
                break
            state = reader.read(self.llm.model.embed_tokens(chosen)[:, None])[:, -1]
        return [
            _cut_answer(eos, row, row_states)
            for row, row_states in zip(torch.stack(ids, 1), torch.stack(states, 1), strict=True)
        ]

    # masks

    def mask_logits(self, embedding: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Low-resolution mask logits (K, h, w) and predicted IoU (K,) for hidden states (K, D) on one SAM embedding."""
        return decode_words(self.sam, embedding, self.mask_projector(states))


class _LayerReader:
    """Feeds rows of unequal length to the language model: padding stands between memory and text, and is never seen."""

    def __init__(self, llama: transformers.LlamaModel, turns: Sequence[ChatTurn]) -> None:
        lengths = [len(turn.embeddings) for turn in turns]
        past = {turn.memory[0][0].shape[2] for turn in turns}
        if len(past) != 1:
            raise ValueError(f"memories of lengths {sorted(past)} cannot share a batch")
        self._llama = llama
        self._past = past.pop()
        self.padding = [max(lengths) - length for length in lengths]
        self.padded = torch.stack(
            [_pad_rows(turn.embeddings, pad) for turn, pad in zip(turns, self.padding, strict=True)]
        )
        device = self.padded.device
        pads = torch.tensor(self.padding, device=device)[:, None]
        steps = torch.arange(max(lengths), device=device)
        seen = torch.ones(len(turns), self._past, dtype=torch.long, device=device)
        self._mask = torch.cat([seen, (steps >= pads).long()], dim=1)
        self._positions = self._past + (steps - pads).clamp(min=0)
        layers = zip(*(turn.memory for turn in turns), strict=True)
        self._cache = transformers.DynamicCache(
            [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers]
        )

    def read(self, embeddings: Tensor) -> Tensor:
        """The next (B, L, D) of every row -> its final hidden states."""
        if self._cache.get_seq_length() > self._past:
            self._mask = torch.cat([self._mask, self._mask.new_ones(embeddings.shape[:2])], dim=1)
            self._positions = self._positions[:, -1:] + 1
        states: Tensor = self._llama(
            inputs_embeds=embeddings,
            attention_mask=self._mask if any(self.padding) else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )[0]
        return states


def _pad_rows(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows.new_zeros(count, rows.shape[1]), rows])


def _cut_answer(eos: int, ids: Tensor, states: Tensor) -> ModelAnswer:
    ends = (ids == eos).nonzero()
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    return ModelAnswer(ids[:length], states[:length])


def mask_places(ids: Tensor, seg: int, num_patches: int) -> Tensor:
    """Positions in the expanded row whose states make the masks of tokens (L,): those before each `[SEG]`."""
    places = (ids[1:] == seg).nonzero()[:, 0]
    return places + num_patches - 1


def _llama_config(config: LlmConfig) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
    )


def _clip_config(config: ClipConfig) -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layer_norm_eps=config.layer_norm_eps,
        hidden_act=config.hidden_act,
    )
