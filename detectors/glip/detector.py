"""GLIP detector: words and pictures in, `sv.Detections` out."""

from __future__ import annotations

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.detector import (
    DetectorError,
    Prompt,
    PromptError,
    Request,
    clean_queries,
    detections,
    read_words,
)
from detectors.device import choose_device
from detectors.glip.caption import BertTokenizer, clean_name
from detectors.glip.config import PostprocessConfig
from detectors.glip.embedding import embed_boxes
from detectors.glip.model_files import find_files
from detectors.glip.modeling.model import GlipModel
from detectors.glip.modeling.text import TextFeatures
from detectors.glip.postprocess import FIRST_LOOK, BoxCandidates, find_candidates, select_boxes, token_map
from detectors.glip.processor import (
    CaptionedBatch,
    PreparedImage,
    caption_queries,
    caption_text,
    load_images,
    measure_image,
)
from detectors.glip.runtime import choose_precision, compile_model, fast_precision, use_deform, use_huge_pages
from detectors.glip.training.tuned_prompt import TunedPrompt
from detectors.phrases import Phrase, Span, locate_phrases, place_phrases

if TYPE_CHECKING:
    import numpy.typing as npt
    import supervision as sv

T = TypeVar("T")
log = logging.getLogger(__name__)

CACHED_PROMPTS = 256
CACHED_SHAPES = 64  # of maps
CACHED_TEXTS = 16  # combinations of captions in a batch
CACHED_NUMBERS = 512  # combinations of sizes, rows or thresholds in a batch
SECOND_LOOK = 2000  # best candidates given to suppression where the first look was not enough
ROUNDS = 12  # of suppression on a GPU before the result is inspected


@dataclass(frozen=True, eq=False)
class PromptChunk:
    """An encoded caption on the device."""

    text: TextFeatures  # B = 1
    tokens: Tensor  # (L, K): which tokens belong to which label
    queries: tuple[int, ...]  # the query of each label


@dataclass(frozen=True, eq=False)
class GlipPrompt(Prompt):
    """Queries and their encoded captions: several where one caption cannot hold them."""

    chunks: tuple[PromptChunk, ...]
    owner: Glip


def _refuse_alike(queries: Sequence[str], words: Sequence[str]) -> None:
    """Raises `PromptError` for queries that differ only in what captions leave out: parentheses, underscores, case."""
    seen: dict[str, str] = {}
    for query, own in zip(queries, words, strict=True):
        text = clean_name(own)
        if "(" in own and "(" not in text:
            log.warning("parentheses in the query %r are left out: the model reads %r", query, text.strip())
        if (same := seen.setdefault(" ".join(text.lower().split()), query)) != query:
            raise PromptError(
                f"queries {same!r} and {query!r} read alike for this model, which leaves out parentheses: keep one of "
                "them, or reword"
            )


class ImageView(NamedTuple):
    """One picture paired with one caption."""

    picture: PreparedImage
    row: int  # of the batch of pictures
    chunk: PromptChunk
    least: tuple[float, ...]  # the lowest score to return for each query of the prompt


class Glip:
    """The GLIP detector. Encoded words are cached.

    Pictures of equal padded size share a batch, whatever their prompts; others get batches of their own, so that a
    result never depends on the rest of the batch.
    """

    def __init__(
        self,
        model: GlipModel,
        tokenizer: BertTokenizer,
        *,
        device: str = "auto",
        dtype: str | None = None,
        threshold: float = 0.5,
        tuned: TunedPrompt | None = None,
        embed: bool = False,
        chunking: bool = True,
        per_caption: int | None = None,
        short_side: int | None = None,
        long_side: int | None = None,
        backend: str | None = None,
        deform: str | None = None,
        largest_batch: int = 16,
    ) -> None:
        """`threshold`: score (0..1) from which on a detection counts where a request gives none.

        `short_side`, `long_side`: the size in pixels at which the network sees pictures (see `ImageConfig`); the
        model's own when absent, the long one in proportion when only the short one is given.
        `tuned` replaces the text encoder for the words that it was tuned for. With `embed` detections carry
        `data["embedding"]`, (N, D) float32, by which trackers recognise objects again.
        """
        if not 0 <= threshold <= 1:
            raise PromptError(f"threshold is {threshold}: it must lie between 0 and 1")
        self.device = choose_device(device)
        self.precision = choose_precision(dtype, self.device)
        self.threshold = threshold
        lowered = self.precision.lower(model.to(self.device))
        self.model = compile_model(use_deform(lowered, deform, self.device, self.precision.dtype), backend)
        self._tokenizer = tokenizer
        self._tuned = tuned
        self._embed = embed
        self._chunking, self._per_caption = chunking, per_caption
        self._size = model.config.image.resized(short_side, long_side)
        self._largest_batch = largest_batch
        self._prompts: OrderedDict[Any, GlipPrompt] = OrderedDict()  # by caption with phrases, and queries
        # Kept on the device: an upload for every batch would make the host wait for the device.
        self._anchors = lru_cache(CACHED_SHAPES)(self.model.anchors)
        self._stack_text = lru_cache(CACHED_TEXTS)(_stack_text)
        self._upload_numbers = lru_cache(CACHED_NUMBERS)(self._make_numbers)
        if tokenizer.size > model.config.text.vocab_size:
            raise DetectorError(
                f"the vocabulary has {tokenizer.size} pieces, this GLIP knows {model.config.text.vocab_size}: "
                "give the vocab.txt that belongs to the weights"
            )

    def prepare(self, queries: Sequence[str]) -> GlipPrompt:
        """The queries as a caption of GLIP's detection benchmarks, or several where they exceed its 256 tokens."""
        return self._cached_prompt(None, clean_queries(queries, free_words=self._tuned is None))

    def prepare_text(
        self, text: str, phrases: Sequence[str], spans: Sequence[Sequence[Span]] | None = None
    ) -> GlipPrompt:
        """Free text as the caption, and phrases of it as queries; `class_id` is an index into the phrases.

        `spans` are the places of each phrase, [start, end) in characters; all where it stands when absent.
        Raises `PromptError` for a phrase that is not there, or with tuned words.
        """
        if self._tuned is not None:
            raise PromptError("tuned words replace the text encoder, which sentences need: use the model without them")
        if spans is None:
            named = locate_phrases(text, clean_queries(phrases, free_words=False))
        else:
            named = place_phrases(phrases, spans)
        queries = tuple(phrase.text for phrase in named)
        return self._cached_prompt((text, named), queries)

    def _cached_prompt(self, caption: tuple[str, tuple[Phrase, ...]] | None, queries: tuple[str, ...]) -> GlipPrompt:
        key = (caption, queries)
        if key not in self._prompts:
            self._prompts[key] = GlipPrompt(queries, tuple(self._encode_chunks(caption, queries)), self)
            if len(self._prompts) > CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(key)
        return self._prompts[key]

    def _encode_chunks(
        self, caption: tuple[str, tuple[Phrase, ...]] | None, queries: tuple[str, ...]
    ) -> Iterable[PromptChunk]:
        if self._tuned is not None:
            features, labels = self._tuned.select(queries)
            yield self._make_chunk(features, labels, tuple(range(len(queries))))
            return
        self._report_words(queries)
        limit = self.model.config.text.max_length
        if caption is None:
            words = [read_words(query) for query in queries]
            _refuse_alike(queries, words)
            captions = caption_queries(
                words, self._tokenizer, limit, chunking=self._chunking, per_caption=self._per_caption
            )
        else:
            captions = [caption_text(*caption, self._tokenizer, limit)]
        for each in captions:
            yield self._make_chunk(self._encode_caption(each), each.tokens.labels, each.queries)

    def _report_words(self, queries: Sequence[str]) -> None:
        """Warns of words outside the vocabulary. Raises `PromptError` for a query that has no other."""
        for query in queries:
            unknown = self._tokenizer.unknown(query)
            if unknown and not self._tokenizer.count(query) > len(unknown):
                raise PromptError(
                    f"nothing of the query {query!r} is in the model's vocabulary: write it in other words"
                )
            for word in unknown:
                log.warning("%r is not in the model's vocabulary: it is left out of the query %r", word, query)
        for word in dict.fromkeys(word for query in queries for word in self._tokenizer.spelled(query)):
            log.warning("%r is not in the model's vocabulary: results for it are unreliable", word)

    @torch.inference_mode()
    def _encode_caption(self, caption: CaptionedBatch) -> TextFeatures:
        ids = torch.tensor([caption.tokens.ids], device=self.device)
        return self.model.encode_text(ids, torch.ones_like(ids))

    def _make_chunk(self, text: TextFeatures, labels: Sequence[Sequence[int]], owners: tuple[int, ...]) -> PromptChunk:
        text = TextFeatures(*(part.to(self.device) for part in text))
        tokens = token_map(labels, text.hidden.shape[1]).to(self.device)
        return PromptChunk(text, tokens, owners)

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        """One result per request, in order. Raises `DetectorError` when the device's memory does not hold one picture.

        A batch that does not fit is halved once, for good.
        """
        try:
            return self._detect_batch(requests)
        except torch.cuda.OutOfMemoryError:
            if self._largest_batch == 1:
                raise DetectorError(
                    f"{self.device} has too little memory for one picture: use a smaller model, or another device"
                ) from None
        torch.cuda.empty_cache()
        before = min(self._largest_batch, max(len(requests), 2))
        self._largest_batch = before // 2
        log.warning(
            "%s ran out of memory with %d pictures at once: going on with %d", self.device, before, self._largest_batch
        )
        try:
            return self._detect_batch(requests)
        except torch.cuda.OutOfMemoryError:
            raise DetectorError(
                f"{self.device} ran out of memory with {before} and with {self._largest_batch} pictures at once: "
                "ask for smaller batches, or use a smaller model"
            ) from None

    @torch.inference_mode()
    def _detect_batch(self, requests: Sequence[Request]) -> list[sv.Detections]:
        images, prompts = (
            [request.image for request in requests],
            [self._check_prompt(request.prompt) for request in requests],
        )
        groups: dict[tuple[int, int], list[PreparedImage]] = defaultdict(list)
        for index, image in enumerate(images):
            picture = measure_image(index, image, self._size.min_side, self._size.max_side)
            groups[picture.padded].append(picture)
        found: list[FoundBoxes] = []
        finest: dict[int, Tensor] = {}  # the finest map of each picture, where its boxes get embeddings
        for pictures in groups.values():
            for some in _split_batches(pictures, self._largest_batch):
                maps = self._encode_images(load_images(images, some, self.device))
                views = [
                    ImageView(p, row, c, requests[p.index].least_scores(self.threshold))
                    for row, p in enumerate(some)
                    for c in prompts[p.index].chunks
                ]
                found += [self._find_boxes(maps, together) for together in _split_batches(views, self._largest_batch)]
                if self._embed:
                    finest.update({picture.index: maps[0][row] for row, picture in enumerate(some)})
        results = _download_results(prompts, found)
        if self._embed:
            for pictures in groups.values():
                for picture in pictures:
                    self._add_embeddings(results[picture.index], picture, finest[picture.index])
        return results

    def _add_embeddings(self, found: sv.Detections, picture: PreparedImage, features: Tensor) -> None:
        """Fills `data["embedding"]` from the features (C, h, w) of the picture."""
        (height, width), (tall, wide) = picture.original, picture.resized
        boxes = torch.from_numpy(found.xyxy).to(features.device) * features.new_tensor(
            [wide / width, tall / height] * 2, dtype=torch.float32
        )
        stride = self.model.config.anchors.strides[0]
        found.data["embedding"] = embed_boxes(features, boxes, stride).cpu().numpy()

    def _check_prompt(self, prompt: Prompt) -> GlipPrompt:
        if not isinstance(prompt, GlipPrompt) or prompt.owner is not self:
            raise PromptError("the prompt comes from another detector: prepare the queries with this one")
        return prompt

    def _encode_images(self, images: Tensor) -> list[Tensor]:
        with self.precision.autocast():
            maps: list[Tensor] = self.model.backbone(images)
        return maps

    def _find_boxes(self, maps: list[Tensor], views: Sequence[ImageView]) -> FoundBoxes:
        rows = tuple(view.row for view in views)
        if rows != tuple(range(len(maps[0]))):
            chosen = self._upload_numbers(rows)
            maps = [level.index_select(0, chosen) for level in maps]
        text, tokens = self._stack_text(tuple(view.chunk for view in views))
        with self.precision.autocast():
            predictions = self.model.rpn.head(maps, text)
        sizes = self._upload_numbers(tuple(view.picture.resized for view in views))
        least = self._upload_numbers(_least_by_label(views, tokens.shape[2]), torch.float32)
        rule = self.model.config.postprocess
        found = find_candidates(predictions, self._anchors(predictions.shapes), tokens, sizes, rule, least)
        numbers = torch.isfinite(predictions.logits).all() & torch.isfinite(predictions.deltas).all()
        return FoundBoxes(views, found, rule, numbers)

    def _make_numbers(
        self, values: tuple[float, ...] | tuple[tuple[float, ...], ...], dtype: torch.dtype = torch.int64
    ) -> Tensor:
        return torch.tensor(values, device=self.device, dtype=dtype)


class FoundBoxes:
    """Boxes of some views, still on the device.

    `rows` is (B, M, 7): box, score, label, whether it is a box; `sure` (B,), whether a view's rows are complete;
    `numbers`, (), whether all predictions are finite.
    """

    def __init__(
        self, views: Sequence[ImageView], everything: BoxCandidates, rule: PostprocessConfig, numbers: Tensor
    ) -> None:
        self.views, self._everything, self._rule, self.numbers = views, everything, rule, numbers
        look_at = FIRST_LOOK
        rounds: int | None = ROUNDS
        if _is_readable(everything.valid):
            look_at, rounds = min(FIRST_LOOK, max(int(everything.valid.sum(1).max()), 1)), None
        kept, self.sure = select_boxes(everything, rule.nms_iou, rule.detections_per_image, look_at, rounds)
        self.rows = _pack_rows(kept)

    def complete_rows(self, view: int) -> Tensor:
        """(M, 7): one view's rows with suppression followed to its end, from as many candidates as that needs.

        One view at a time: suppression among N candidates needs memory for N * N numbers.
        """
        rule, one = self._rule, BoxCandidates(*(part[view : view + 1] for part in self._everything))
        kept, sure = select_boxes(one, rule.nms_iou, rule.detections_per_image, SECOND_LOOK)
        if not sure.all():
            kept, _ = select_boxes(one, rule.nms_iou, rule.detections_per_image, one.scores.shape[1])
        return _pack_rows(kept)[0]


def _is_readable(values: Tensor) -> bool:
    """Whether reading values waits for nothing: they lie in the host's memory."""
    return values.device.type == "cpu"


def _pack_rows(found: BoxCandidates) -> Tensor:
    columns = (found.scores, found.labels.float(), found.valid.float())
    return torch.cat([found.boxes, torch.stack(columns, dim=-1)], dim=-1)


def _download_results(prompts: Sequence[GlipPrompt], found: Sequence[FoundBoxes]) -> list[sv.Detections]:
    """One download for all; boxes in the cameras' pixels, in order of descending score."""
    parts = [part for some in found for part in (some.rows.flatten(), some.sure.float(), some.numbers.float()[None])]
    flat = (torch.cat(parts).cpu() if parts else torch.empty(0)).numpy()
    results: list[list[npt.NDArray[np.float32]]] = [[] for _ in prompts]
    split = iter(np.split(flat, np.cumsum([part.numel() for part in parts])))
    for some, rows, sure, numbers in zip(found, split, split, split, strict=False):
        if not numbers.all():
            raise DetectorError(
                "the model's predictions are not numbers: use the option dtype=float32, or other weights"
            )
        for number, (view, row) in enumerate(zip(some.views, rows.reshape(some.rows.shape), strict=True)):
            whole = row if sure[number] else some.complete_rows(number).cpu().numpy()
            results[view.picture.index].append(_rescale_rows(whole[whole[:, 6] > 0, :6], view))
    return [_join_detections(parts, prompt) for parts, prompt in zip(results, prompts, strict=True)]


def _rescale_rows(rows: npt.NDArray[np.float32], view: ImageView) -> npt.NDArray[np.float32]:
    """(n, 6) box, score, label -> box in the picture's own pixels, score, query."""
    (height, width), (tall, wide) = view.picture.original, view.picture.resized
    scale = np.array([width / wide, height / tall] * 2, np.float32)
    queries = np.array(view.chunk.queries, np.float32)[rows[:, 5].astype(np.int64)]
    return np.column_stack([rows[:, :4] * scale, rows[:, 4], queries])


def _join_detections(parts: Sequence[npt.NDArray[np.float32]], prompt: GlipPrompt) -> sv.Detections:
    rows = np.concatenate(parts)
    if len(parts) > 1:  # several captions: in order of score again
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    return detections(rows[:, :4], rows[:, 4], rows[:, 5], prompt.queries)


def _split_batches(things: Sequence[T], most: int) -> Iterable[Sequence[T]]:
    return (things[start : start + most] for start in range(0, len(things), most))


def _least_by_label(views: Sequence[ImageView], labels: int) -> tuple[tuple[float, ...], ...]:
    """(B, K) the lowest score to return for each label of each caption; 1 for labels that a caption does not have."""
    least = [tuple(view.least[query] for query in view.chunk.queries) for view in views]
    return tuple(row + (1.0,) * (labels - len(row)) for row in least)


def _stack_text(chunks: Sequence[PromptChunk]) -> tuple[TextFeatures, Tensor]:
    """Captions side by side, padded to the longest: features (B, L, D) and token maps (B, L, K)."""
    if len(set(chunks)) == 1:  # no copies
        same = chunks[0]
        text = TextFeatures(*(part.expand(len(chunks), *part.shape[1:]) for part in same.text))
        return text, same.tokens.expand(len(chunks), -1, -1)
    length = max(chunk.tokens.shape[0] for chunk in chunks)
    labels = max(chunk.tokens.shape[1] for chunk in chunks)

    def stacked(part: str) -> Tensor:
        tensors = [getattr(chunk.text, part)[0] for chunk in chunks]
        return torch.stack([F.pad(t, (0, 0) * (t.ndim - 1) + (0, length - len(t))) for t in tensors])

    text = TextFeatures(stacked("hidden"), stacked("embedded"), stacked("mask"))
    tokens = [F.pad(c.tokens, (0, labels - c.tokens.shape[1], 0, length - c.tokens.shape[0])) for c in chunks]
    return text, torch.stack(tokens)


def create(
    name: str,
    *,
    weights: str | Path | None = None,
    vocabulary: str | Path | None = None,
    device: str = "auto",
    dtype: str | None = None,
    threshold: float | None = None,
    tuned: str | Path | None = None,
    embed: bool = False,
    chunking: bool = True,
    per_caption: int | None = None,
    short_side: int | None = None,
    long_side: int | None = None,
    backend: str | None = None,
    deform: str | None = None,
    largest_batch: int = 16,
) -> Glip:
    """The GLIP called `name`, with weights from `weights` (a checkpoint or a folder), the cache, or the package.

    `vocabulary`: bert-base-uncased's `vocab.txt`, looked for beside the weights when absent; `tuned`: a file of
    learned text features (`tuning.TunedPrompt`); `embed`: detections carry embeddings; `backend`: one of
    `runtime.BACKENDS`; `deform`: one of `deform.IMPLEMENTATIONS`; `dtype`: one of `runtime.DTYPES`, by default the
    device's fastest (`fast_precision`).
    Raises `DetectorError` that names the ways out when there are no weights.
    """
    use_huge_pages()
    model, tokenizer = find_files(name, weights, vocabulary).load()
    return Glip(
        model,
        tokenizer,
        device=device,
        dtype=fast_precision(choose_device(device)) if dtype is None else dtype,
        threshold=model.config.postprocess.threshold if threshold is None else threshold,
        tuned=None if tuned is None else TunedPrompt.load(Path(tuned)),
        embed=embed,
        chunking=chunking,
        per_caption=per_caption,
        short_side=short_side,
        long_side=long_side,
        backend=backend,
        deform=deform,
        largest_batch=largest_batch,
    )
