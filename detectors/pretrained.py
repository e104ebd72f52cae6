"""Networks of transformers behind the detector contract: what their families share."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.cache import missing, model_folder
from detectors.catalogue import UnknownModel
from detectors.data_files import read_json
from detectors.detector import DetectorError, OptionError, Prompt, PromptError, Request, detections, read_words
from detectors.images import resize

if TYPE_CHECKING:
    import supervision as sv

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # RGB mean, deviation
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # values of 0..1 as they are
_DTYPES = ("float32", "bfloat16", "float16")
_MASKS_AT_ONCE = 16


class PretrainedError(DetectorError):
    """The files of a model are missing, or transformers cannot read them."""


class PicturePreparation(NamedTuple):
    """Size (height, width) to which pictures are stretched, and RGB mean and deviation of values in 0..1."""

    size: tuple[int, int]
    mean_std: tuple[tuple[float, ...], tuple[float, ...]]


class FoundBoxes(NamedTuple):
    """scores (B, boxes, queries) 0..1, boxes (B, boxes, 4) in pixels, and where the model makes them the logits of
    masks (B, boxes, h, w) over the whole picture."""

    scores: Tensor
    boxes: Tensor
    masks: Tensor | None = None


class PretrainedDetector(ABC):
    """A network of transformers behind the detector contract: grouping, clipping, results. One thread at a time.

    Families differ in how they prepare queries and in what their network gives for pictures of one size.
    """

    overlap = 0.7  # IoU above which the weaker of two boxes of one query goes
    most = 300  # detections of one picture, the surest
    prompt_type: type[Prompt] = Prompt

    def __init__(self, model: Any, tokenizer: Any, device: torch.device, threshold: float) -> None:
        if not 0 <= threshold <= 1:
            raise OptionError(f"threshold is {threshold}: it must lie in 0..1")
        self._model = _sample_in_float32(model.to(device).eval().requires_grad_(False))
        self._tokenizer = tokenizer
        self._device = device
        self.threshold = threshold

    @abstractmethod
    def prepare(self, queries: Sequence[str]) -> Prompt: ...

    @abstractmethod
    def _find_boxes(self, images: list[npt.NDArray[np.uint8]], prompt: Any) -> FoundBoxes:
        """What the network finds in pictures of one size, in their pixels."""

    @torch.inference_mode()
    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        # Pictures of one size and one prompt go together: nothing is padded, so none depends on its batch mates.
        groups: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[id(request.prompt), request.image.shape].append(index)
        found: dict[int, sv.Detections] = {}
        for indices in groups.values():
            prompt = requests[indices[0]].prompt
            if not isinstance(prompt, self.prompt_type):
                raise PromptError("the prompt comes from another detector: use this detector's prepare()")
            raw = self._find_boxes([requests[index].image for index in indices], prompt)
            if not (torch.isfinite(raw.scores).all() and torch.isfinite(raw.boxes).all()):
                raise PretrainedError(
                    f"the model's scores are not numbers in {str(self._model.dtype).removeprefix('torch.')}: "
                    "use the option dtype=float32"
                )
            for place, index in enumerate(indices):
                masks = None if raw.masks is None else raw.masks[place]
                found[index] = self._make_result(raw.scores[place], raw.boxes[place], masks, requests[index])
        return [found[index] for index in range(len(requests))]

    def _make_result(self, scores: Tensor, boxes: Tensor, masks: Tensor | None, request: Request) -> sv.Detections:
        """scores (boxes, queries), boxes (boxes, 4), masks (boxes, h, w); every box counts for its best query of those
        that it answers well enough."""
        scores = scores.float()
        enough = scores >= scores.new_tensor(request.least_scores(self.threshold))
        best, query = scores.where(enough, -1.0).max(-1)
        kept = torch.nonzero(best >= 0)[:, 0]
        kept = kept[best[kept].argsort(descending=True, stable=True)[: self.most]]
        height, width = request.image.shape[:2]
        limit = boxes.new_tensor([width, height, width, height])
        inside = torch.minimum(boxes[kept].clamp(min=0), limit).float()
        kept_boxes, kept_scores, kept_queries = (part.cpu().numpy() for part in (inside, best[kept], query[kept]))
        rows = _suppress_overlaps(kept_boxes, kept_scores, kept_queries, self.overlap)
        outlines = None if masks is None else _full_masks(masks[kept[torch.from_numpy(rows)]], (height, width))
        return detections(
            kept_boxes[rows], kept_scores[rows], kept_queries[rows], request.prompt.queries, mask=outlines
        )

    def _stack_pictures(self, images: Iterable[npt.NDArray[np.uint8]], preparation: PicturePreparation) -> Tensor:
        """BGR images -> (B, 3, h, w) normalised RGB, stretched to the size that the network wants."""
        return torch.stack([self._load_pixels(image, *preparation) for image in images])

    def _load_pixels(
        self, image: npt.NDArray[np.uint8], size: tuple[int, int], mean_std: tuple[Sequence[float], ...]
    ) -> Tensor:
        """(H, W, 3) BGR bytes -> (3, h, w) normalised RGB."""
        mean, std = (torch.tensor(values, device=self._device)[:, None, None] for values in mean_std)
        pixels = resize(torch.from_numpy(np.ascontiguousarray(image)).to(self._device), size).flip(0).float() / 255
        return ((pixels - mean) / std).to(self._model.dtype)


def read_short_queries(tokenizer: Any, queries: Sequence[str], limit: int, model: str) -> list[str]:
    """The words of queries that a model reads one by one, up to `limit` tokens each. Raises `PromptError`."""
    words = [read_words(query) for query in queries]
    for query, ids in zip(queries, tokenizer(words)["input_ids"], strict=True):
        if len(ids) > limit:
            raise PromptError(
                f"query {query!r} has {len(ids)} tokens, {model} reads at most {limit}: write it in fewer words"
            )
    return words


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


def box_corners(boxes: Tensor) -> Tensor:
    """(..., 4): centre x, centre y, width, height -> x1, y1, x2, y2."""
    centre, size = boxes[..., :2].float(), boxes[..., 2:].float()
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _suppress_overlaps(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], queries: npt.NDArray[np.int64], overlap: float
) -> npt.NDArray[np.int64]:
    """Rows (n,) that remain when the weaker of two boxes of one query that overlap goes."""
    import supervision as sv

    if len(boxes) < 2:
        return np.arange(len(boxes))
    predictions = np.column_stack([boxes, scores, queries]).astype(np.float32)
    return np.flatnonzero(sv.box_non_max_suppression(predictions, overlap))


def _full_masks(logits: Tensor, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(N, h, w) logits over a picture -> (N, height, width) bool."""
    masks = np.zeros((len(logits), *size), np.bool_)
    for start in range(0, len(logits), _MASKS_AT_ONCE):
        some = logits[start : start + _MASKS_AT_ONCE, None].float()
        large = F.interpolate(some, size=size, mode="bilinear", align_corners=False)
        masks[start : start + _MASKS_AT_ONCE] = (large[:, 0] > 0).cpu().numpy()
    return masks


def find_folder(name: str, weights: str | Path | None, released: Mapping[str, str]) -> Path:
    """The folder of the released model `name`, fetched before, or the folder `weights`.

    Raises `UnknownModel` for a name without weights that is not among the released ones, `PretrainedError` where there
    is no model.
    """
    if weights is None and name not in released:
        raise UnknownModel(f"no model is called {name!r}: known are {', '.join(released)}")
    folder = model_folder(name) if weights is None else Path(weights)
    if not (folder / "config.json").is_file():
        if weights is None:
            raise PretrainedError(missing(name))
        raise PretrainedError(f"{folder} holds no config.json: give a folder as the hub has it, with model.safetensors")
    return folder


def read_preparation(folder: Path, usual: PicturePreparation) -> PicturePreparation:
    """How the model wants its pictures, as `preprocessor_config.json` says; `usual` for what it leaves open.

    Raises `PretrainedError` for a size that is not one of height and width.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return usual
    said = read_json(file)
    size = said.get("size") or {"height": usual.size[0], "width": usual.size[1]}
    height, width = (size, size) if isinstance(size, int) else (size.get("height"), size.get("width"))
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise PretrainedError(f"{file}: size is {size}: expected height and width in pixels")
    if not said.get("do_normalize", usual.mean_std != PLAIN):
        return PicturePreparation((height, width), PLAIN)
    mean, std = (said.get(key) or one for key, one in zip(("image_mean", "image_std"), usual.mean_std, strict=True))
    scale = 255.0 if max(mean) > 1 else 1.0  # some releases give mean and deviation of bytes
    mean_std = tuple(tuple(float(value) / scale for value in part) for part in (mean, std))
    return PicturePreparation((height, width), (mean_std[0], mean_std[1]))


def load_pretrained(folder: Path, network: str, tokenizer: str | None, dtype: str) -> tuple[Any, Any]:
    """A network of transformers and its tokenizer, None without one. Raises `PretrainedError` that names the cause."""
    import transformers
    from safetensors import SafetensorError

    if dtype not in _DTYPES:
        raise OptionError(f"unknown precision {dtype!r}: use {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}")
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    try:
        words = None
        if tokenizer is not None:
            words = getattr(transformers, tokenizer).from_pretrained(folder, local_files_only=True)
        model, report = getattr(transformers, network).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype), output_loading_info=True
        )
    except ImportError as error:
        raise PretrainedError(
            f"{folder} needs a package that is not installed ({_first_line(error)}): install it beside groundstream"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise PretrainedError(f"{folder} cannot be read as {network} ({_first_line(error)}): fetch it again") from error
    if lacking := sorted(report["missing_keys"]):
        raise PretrainedError(f"{folder} lacks {len(lacking)} weights of {network}, the first is {lacking[0]!r}")
    return model, words


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
