"""Open-vocabulary detectors of transformers behind the detector contract.

Grounding DINO: arXiv:2303.05499. MM Grounding DINO: arXiv:2401.02361. LLMDet (the network of MM Grounding DINO):
arXiv:2501.18954. OWLv2: arXiv:2306.09683. The networks are transformers' implementations; words and pictures are
prepared here, as its processors do (they want torchvision), but for OWLv2's resizing, which is antialiased bilinear
instead of Gaussian blur and interpolation.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.cache import missing, model_folder
from detectors.catalogue import ZERO_SHOT, UnknownModel
from detectors.detector import (
    DetectorError,
    OptionError,
    Prompt,
    PromptError,
    Request,
    clean_queries,
    detections,
    read_words,
)
from detectors.device import choose_device
from detectors.images import resize, target_size
from detectors.phrases import Span, locate_phrases, place_phrases

if TYPE_CHECKING:
    import supervision as sv

_FAMILIES = ("grounding-dino-", "mm-grounding-dino-", "llmdet-", "owlv2-")
_MOST = 300  # detections of one picture, the surest
_OVERLAP = 0.7  # IoU above which the weaker of two boxes of one query goes
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # RGB mean, deviation
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class ZeroShotError(DetectorError):
    """The files of a model are missing, or transformers cannot read them."""


@dataclass(frozen=True, eq=False)
class TokenPrompt(Prompt):
    """Words as token ids: one row and the token positions of each query (Grounding DINO), or a row each (OWLv2)."""

    input_ids: Tensor
    attention_mask: Tensor
    spans: tuple[tuple[int, ...], ...] = ()


class _ZeroShot(ABC):
    """What the families share: grouping, clipping, results. One thread at a time."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device, threshold: float) -> None:
        self._model = _sample_in_float32(model.to(device).eval().requires_grad_(False))
        self._tokenizer = tokenizer
        self._device = device
        self.threshold = threshold

    @abstractmethod
    def prepare(self, queries: Sequence[str]) -> TokenPrompt: ...

    @abstractmethod
    def _scores(self, images: list[npt.NDArray[np.uint8]], prompt: TokenPrompt) -> tuple[Tensor, Tensor]:
        """Pictures of one size -> scores (B, boxes, queries) 0..1, and boxes (B, boxes, 4) in pixels."""

    @torch.inference_mode()
    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        # Pictures of one size and one prompt go together: nothing is padded, so none depends on its batch mates.
        groups: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[id(request.prompt), request.image.shape].append(index)
        found: dict[int, sv.Detections] = {}
        for indices in groups.values():
            prompt = requests[indices[0]].prompt
            if not isinstance(prompt, TokenPrompt):
                raise PromptError("the prompt comes from another detector: use this detector's prepare()")
            scores, boxes = self._scores([requests[index].image for index in indices], prompt)
            if not (torch.isfinite(scores).all() and torch.isfinite(boxes).all()):
                raise ZeroShotError(
                    f"the model's scores are not numbers in {str(self._model.dtype).removeprefix('torch.')}: "
                    "use the option dtype=float32"
                )
            for index, score, box in zip(indices, scores, boxes, strict=True):
                found[index] = self._result(score, box, requests[index])
        return [found[index] for index in range(len(requests))]

    def _result(self, scores: Tensor, boxes: Tensor, request: Request) -> sv.Detections:
        """scores (boxes, queries), boxes (boxes, 4); every box counts for its best query of those that it answers well
        enough."""
        scores = scores.float()
        enough = scores >= scores.new_tensor(request.least_scores(self.threshold))
        best, query = scores.where(enough, -1.0).max(-1)
        kept = torch.nonzero(best >= 0)[:, 0]
        kept = kept[best[kept].argsort(descending=True, stable=True)[:_MOST]]
        height, width = request.image.shape[:2]
        limit = boxes.new_tensor([width, height, width, height])
        inside = torch.minimum(boxes[kept].clamp(min=0), limit).float()
        result = detections(
            inside.cpu().numpy(), best[kept].cpu().numpy(), query[kept].cpu().numpy(), request.prompt.queries
        )
        return result.with_nms(threshold=_OVERLAP) if len(result) > 1 else result

    def _pixels(
        self, image: npt.NDArray[np.uint8], size: tuple[int, int], mean_std: tuple[Sequence[float], ...]
    ) -> Tensor:
        """(H, W, 3) BGR bytes -> (3, h, w) normalised RGB."""
        mean, std = (torch.tensor(values, device=self._device)[:, None, None] for values in mean_std)
        pixels = resize(torch.from_numpy(np.ascontiguousarray(image)).to(self._device), size).flip(0).float() / 255
        return ((pixels - mean) / std).to(self._model.dtype)


class GroundingDino(_ZeroShot):
    """Grounding DINO and MM Grounding DINO. All queries stand in one caption, "person. red car."

    A query's score for a box is that of its best token. `min_side` and `max_side` are those of the resized picture.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: torch.device,
        threshold: float,
        min_side: int = 800,
        max_side: int = 1333,
    ) -> None:
        super().__init__(model, tokenizer, device, threshold)
        self._sides = (min_side, max_side)

    def prepare(self, queries: Sequence[str]) -> TokenPrompt:
        cleaned = clean_queries(queries)
        caption, spans = "", []
        for query in cleaned:
            # Dots and question marks part phrases in a caption.
            words = " ".join(read_words(query).lower().replace(".", " ").replace("?", " ").split())
            spans.append(((len(caption), len(caption) + len(words)),))
            caption += f"{words}. "
        return self._encode_caption(caption.rstrip(), cleaned, spans)

    def prepare_text(
        self, text: str, phrases: Sequence[str], spans: Sequence[Sequence[Span]] | None = None
    ) -> TokenPrompt:
        """A sentence and phrases of it as queries; `spans` are their places, all where they stand when absent."""
        if spans is None:
            named = locate_phrases(text, clean_queries(phrases, free_words=False))
        else:
            named = place_phrases(phrases, spans)
        queries = tuple(phrase.text for phrase in named)
        caption = text.rstrip()
        if not caption.endswith("."):
            caption += "."  # as the model was trained
        return self._encode_caption(caption, queries, [phrase.spans for phrase in named])

    def _encode_caption(self, caption: str, queries: tuple[str, ...], spans: Sequence[Sequence[Span]]) -> TokenPrompt:
        """Raises `PromptError` for a query without tokens, or beyond the most that the model reads."""
        encoded = self._tokenizer(caption, return_offsets_mapping=True)
        limit = self._model.config.max_text_len
        tokens = tuple(
            tuple(
                position
                for position, (first, last) in enumerate(encoded["offset_mapping"])
                if any(start <= first < last <= end for start, end in places)
            )
            for places in spans
        )
        for query, own in zip(queries, tokens, strict=True):
            if not own:
                raise PromptError(f"query {query!r} holds no word that the model can read: write it in letters")
            if own[-1] >= limit - 2:  # a dot and the end mark must follow
                raise PromptError(
                    f"the prompt has {len(encoded['input_ids'])} tokens, Grounding DINO reads at most {limit}: "
                    f"drop the queries from {query!r} on, or give them to a second detector"
                )
        ids = torch.tensor([encoded["input_ids"][:limit]], device=self._device)
        return TokenPrompt(queries, ids, torch.ones_like(ids), tokens)

    def _scores(self, images: list[npt.NDArray[np.uint8]], prompt: TokenPrompt) -> tuple[Tensor, Tensor]:
        height, width = images[0].shape[:2]
        size = target_size(height, width, *self._sides)
        # A strip thinner than the coarsest stride would vanish on the way: it is widened with emptiness, masked out.
        margin = (0, max(32 - size[1], 0), 0, max(32 - size[0], 0))
        pixels = torch.stack([F.pad(self._pixels(image, size, _IMAGENET), margin) for image in images])
        mask = F.pad(torch.ones(len(images), *size, dtype=torch.long, device=self._device), margin)
        out = self._model(
            pixel_values=pixels,
            pixel_mask=mask,
            input_ids=prompt.input_ids.expand(len(images), -1),
            attention_mask=prompt.attention_mask.expand(len(images), -1),
        )
        tokens = out.logits.float().sigmoid()
        scores = torch.stack([tokens[..., list(span)].amax(-1) for span in prompt.spans], dim=-1)
        scale = out.pred_boxes.new_tensor([width, height, width, height])
        stretch = scale.new_tensor([pixels.shape[3] / size[1], pixels.shape[2] / size[0]]).repeat(2)
        return scores, _corners(out.pred_boxes) * scale * stretch


class Owlv2Detector(_ZeroShot):
    """OWLv2: every query is read alone, pictures are padded to squares."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device, threshold: float) -> None:
        super().__init__(model, tokenizer, device, threshold)
        self._side = int(model.config.vision_config.image_size)
        self._limit = int(model.config.text_config.max_position_embeddings)

    def prepare(self, queries: Sequence[str]) -> TokenPrompt:
        cleaned = clean_queries(queries)
        words = [read_words(query) for query in cleaned]
        for query, ids in zip(cleaned, self._tokenizer(words)["input_ids"], strict=True):
            if len(ids) > self._limit:
                raise PromptError(
                    f"query {query!r} has {len(ids)} tokens, OWLv2 reads at most {self._limit}: say it in fewer words"
                )
        encoded = self._tokenizer(words, padding="max_length", max_length=self._limit, return_tensors="pt")
        return TokenPrompt(cleaned, encoded["input_ids"].to(self._device), encoded["attention_mask"].to(self._device))

    def _scores(self, images: list[npt.NDArray[np.uint8]], prompt: TokenPrompt) -> tuple[Tensor, Tensor]:
        height, width = images[0].shape[:2]
        longest = max(height, width)
        square = (self._side, self._side)
        padding = ((0, longest - height), (0, longest - width), (0, 0))
        pixels = torch.stack([self._pixels(np.pad(image, padding), square, _CLIP) for image in images])
        out = self._model(
            pixel_values=pixels,
            input_ids=prompt.input_ids.repeat(len(images), 1),
            attention_mask=prompt.attention_mask.repeat(len(images), 1),
        )
        return out.logits.float().sigmoid(), _corners(out.pred_boxes) * longest


def _sample_in_float32(model: Any) -> Any:
    """Let deformable attention sample in single precision: `grid_sample` of torch 2.13 returns uninitialised memory for
    positions outside a map in bfloat16 on a CPU, and positions in half precision are off by pixels."""

    def raise_precision(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(map(_as_single, args)), {name: _as_single(value) for name, value in kwargs.items()}

    def restore_precision(_module: Any, _args: Any, output: Tensor) -> Tensor:
        return output.to(model.dtype)

    if model.dtype != torch.float32:
        for module in model.modules():
            if type(module).__name__.endswith("MultiScaleDeformableAttention") and not list(module.parameters()):
                module.register_forward_pre_hook(raise_precision, with_kwargs=True)
                module.register_forward_hook(restore_precision)
    return model


def _as_single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _corners(boxes: Tensor) -> Tensor:
    """(..., 4): centre x, centre y, width, height -> x1, y1, x2, y2."""
    centre, size = boxes[..., :2].float(), boxes[..., 2:].float()
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def create(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    threshold: float | None = None,
) -> GroundingDino | Owlv2Detector:
    """The released model `name`, fetched before with `groundstream models pull`, or the one in the folder `weights`.

    The folder is as the hub has it: config.json, model.safetensors and the tokenizer's files.
    """
    family = next(prefix for prefix in _FAMILIES if name.startswith(prefix))
    if name not in ZERO_SHOT and weights is None:
        ours = ", ".join(known for known in ZERO_SHOT if known.startswith(family))
        raise UnknownModel(f"no model is called {name!r}: known are {ours}")
    folder = model_folder(name) if weights is None else Path(weights)
    if not (folder / "config.json").is_file():
        if weights is None:
            raise ZeroShotError(missing(name))
        raise ZeroShotError(f"{folder} holds no config.json: give a folder as the hub has it, with model.safetensors")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise OptionError(f"unknown precision {dtype!r}: use float32, bfloat16 or float16")
    place = choose_device(device)
    model, tokenizer = _load(folder, family, getattr(torch, dtype))
    if family == "owlv2-":
        return Owlv2Detector(model, tokenizer, place, 0.2 if threshold is None else threshold)
    return GroundingDino(model, tokenizer, place, 0.35 if threshold is None else threshold)


def _load(folder: Path, family: str, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers
    from safetensors import SafetensorError

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    network, words = {
        "grounding-dino-": ("GroundingDinoForObjectDetection", "BertTokenizer"),
        "mm-grounding-dino-": ("MMGroundingDinoForObjectDetection", "BertTokenizer"),
        "llmdet-": ("MMGroundingDinoForObjectDetection", "BertTokenizer"),
        "owlv2-": ("Owlv2ForObjectDetection", "CLIPTokenizer"),
    }[family]
    try:
        tokenizer = getattr(transformers, words).from_pretrained(folder, local_files_only=True)
        model, report = getattr(transformers, network).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ZeroShotError(f"{folder} cannot be read as {network} ({reason}): fetch it again") from error
    if lacking := sorted(report["missing_keys"]):
        raise ZeroShotError(f"{folder} lacks {len(lacking)} weights of {network}, the first is {lacking[0]!r}")
    return model, tokenizer
