"""Preprocessing: queries to captions that fit, pictures to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectors.detector import PromptError
from detectors.glip.caption import BertTokenizer, Caption, CaptionTokens, category_caption, clean_name
from detectors.images import collate, normalise, padded_size, resize, target_size
from detectors.phrases import Phrase


@dataclass(frozen=True)
class CaptionedBatch:
    """One caption's tokens; label i of them is the query `queries[i]` of the prompt."""

    tokens: CaptionTokens
    queries: tuple[int, ...]


def caption_queries(
    queries: Sequence[str],
    tokenizer: BertTokenizer,
    limit: int,
    *,
    chunking: bool = True,
    per_caption: int | None = None,
) -> list[CaptionedBatch]:
    """The queries as captions of at most `limit` tokens: one, or where they do not fit several.

    `per_caption` bounds the queries of one caption (LVIS was measured with 40).
    Raises `PromptError` naming the query that nothing can be read from, that alone is too long, or without chunking
    the first that is lost.
    """
    lengths = []
    for query in queries:
        length = tokenizer.count(clean_name(query))
        if not length:
            raise PromptError(
                f"nothing of the query {query!r} can be read: parentheses are left out, write it in words"
            )
        if length + 2 > limit:
            raise PromptError(
                f"query {query!r} has {length} tokens, GLIP reads at most {limit - 2}: write it in fewer words"
            )
        lengths.append(length)
    captions, start = [], 0
    while start < len(queries):
        end = _last_fitting(lengths, start, limit, per_caption)
        if end < len(queries) and not chunking:
            total = sum(lengths) + len(lengths) + 1  # a dot between two names, [CLS] and [SEP]
            raise PromptError(
                f"the queries have {total} tokens, GLIP reads at most {limit}: drop the queries from "
                f"{queries[end]!r} on, or allow several captions (slower by their number)"
            )
        captions.append(CaptionedBatch(tokenizer(category_caption(queries[start:end])), tuple(range(start, end))))
        start = end
    return captions


def _last_fitting(lengths: Sequence[int], start: int, limit: int, per_caption: int | None) -> int:
    """One past the last query that fits a caption beginning with query `start`."""
    used, end = 2 + lengths[start], start + 1
    while (
        end < len(lengths) and used + 1 + lengths[end] <= limit and (per_caption is None or end - start < per_caption)
    ):
        used += 1 + lengths[end]
        end += 1
    return end


def caption_text(text: str, phrases: Sequence[Phrase], tokenizer: BertTokenizer, limit: int) -> CaptionedBatch:
    """Free text with phrases in it; each place where phrase i stands is a label of query i.

    Raises `PromptError` when a phrase lies beyond the `limit` tokens.
    """
    spans = tuple((span,) for phrase in phrases for span in phrase.spans)
    owners = [index for index, phrase in enumerate(phrases) for _ in phrase.spans]
    tokens = tokenizer(Caption(text, spans))
    if len(tokens.ids) > limit:
        lost = next(
            (o for o, label in zip(owners, tokens.labels, strict=True) if max(label, default=0) >= limit - 1), -1
        )
        name = f" the phrase {phrases[lost].text!r} and" if lost >= 0 else ""
        raise PromptError(
            f"the text has {len(tokens.ids)} tokens, GLIP reads at most {limit}:{name} what follows is lost; shorten it"
        )
    return CaptionedBatch(tokens, tuple(owners))


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """Index and sizes of a request's picture: in the camera and in the network."""

    index: int
    original: tuple[int, int]  # height, width
    resized: tuple[int, int]

    @property
    def padded(self) -> tuple[int, int]:
        return padded_size(*self.resized)


def measure_image(
    index: int, image: np.ndarray[Any, np.dtype[np.uint8]], min_side: int, max_side: int
) -> PreparedImage:
    """Sizes of a picture. Raises `ValueError` unless it is (H, W, 3) uint8, or one channel."""
    shape = image.shape
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or 0 in shape
        or (image.ndim == 3 and shape[2] not in (1, 3))
    ):
        raise ValueError(
            f"request {index}: the image is {image.dtype} {shape}; expected uint8 of shape (height, width, 3), BGR, "
            "or of one channel"
        )
    original = (shape[0], shape[1])
    return PreparedImage(index, original, target_size(*original, min_side, max_side))


def load_images(
    images: Sequence[np.ndarray[Any, np.dtype[np.uint8]]], pictures: Sequence[PreparedImage], device: torch.device
) -> Tensor:
    """Pictures of one padded size as the network's input (B, 3, H, W), zeros where a picture ends.

    One upload of bytes for each picture; resizing, normalising and padding happen on the device.
    """
    return collate([normalise(resize(_upload_image(images[p.index], device), p.resized)) for p in pictures])


def _upload_image(image: np.ndarray[Any, np.dtype[np.uint8]], device: torch.device) -> Tensor:
    """(H, W, 3) uint8 on the device; one channel becomes three equal ones."""
    pixels = image[:, :, None] if image.ndim == 2 else image
    usable = pixels.flags.writeable and pixels.flags.c_contiguous  # what torch shares memory with
    tensor = torch.from_numpy(pixels if usable else pixels.copy())
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.expand(-1, -1, 3)
