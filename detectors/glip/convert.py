"""Checkpoints: addresses of the released ones, conversion of their keys, strict loading."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detectors.checkpoints import load_checkpoint_file
from detectors.detector import DetectorError
from detectors.glip.config import CONFIGS, GlipConfig
from detectors.glip.mmdetection import is_from_mmdetection, rename_tensors
from detectors.glip.modeling.model import GlipModel
from detectors.glip.training.tuned_prompt import add_offsets


class CheckpointError(DetectorError):
    """A file of weights that cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A released file on the Hugging Face hub; size in bytes and sha256 where they are known."""

    repository: str
    filename: str
    size: int | None = None
    sha256: str | None = None


_REPOSITORY = "GLIPModel/GLIP"
KNOWN = {
    "glip-tiny-a": ReleasedCheckpoint(_REPOSITORY, "glip_a_tiny_o365.pth"),
    "glip-tiny-b": ReleasedCheckpoint(_REPOSITORY, "glip_tiny_model_o365.pth"),
    "glip-tiny-c": ReleasedCheckpoint(_REPOSITORY, "glip_tiny_model_o365_goldg.pth"),
    "glip-tiny": ReleasedCheckpoint(
        _REPOSITORY,
        "glip_tiny_model_o365_goldg_cc_sbu.pth",
        size=3_710_104_213,
        sha256="3bec0a3dea804fcb278d7106c5438de5116ee888e49dfae46270e7ad7bc4ccbf",
    ),
    "glip-large": ReleasedCheckpoint(_REPOSITORY, "glip_large_model.pth"),
}

# Keys of older transformers, of other experiments, and of training: none of them affects a detection.
_IGNORED = re.compile(
    r"""language_backbone\.body\.model\.(embeddings\.(position_ids|token_type_ids)|pooler\..*)
    | rpn\.head\.mlm_head\..* | rpn\.resizer\..* | rpn\.loss_evaluator\..*shallow.* | rpn\.head\..*contrastive.*""",
    re.VERBOSE,
)
# Constants and an unused branch: taken from the model where a file lacks them.
_OPTIONAL = re.compile(
    r".*\.relative_position_index | rpn\.anchor_generator\.cell_anchors\.\d+ | rpn\.head\.cls_logits\..*", re.VERBOSE
)
_OFFSETS = "rpn.tunable_linear.weight"
_SHOWN = 3  # keys that an error names


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a released `.pth` file, in MMDetection's copy of one, or in safetensors, under our names, without
    unused tensors.

    Raises `CheckpointError` when the file is missing or corrupt, or holds no weights.
    """
    tensors = _strip_prefixes(_read_file(Path(path)))
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: a checkpoint of GLIP is expected (.pth or .safetensors)")
    if is_from_mmdetection(tensors):
        tensors = rename_tensors(tensors)
    return {key: tensor for key, tensor in tensors.items() if not _IGNORED.fullmatch(key)}


def build_released(name: str) -> GlipModel:
    """The network of a released model on the meta device, without weights; `fill_model` gives it some."""
    return build_from(CONFIGS[name])


def build_from(config: GlipConfig) -> GlipModel:
    """The network of any size on the meta device, in evaluation mode."""
    with torch.device("meta"):
        return GlipModel(config).eval()


def fill_model(model: GlipModel, tensors: Mapping[str, Tensor], source: str = "the checkpoint") -> GlipModel:
    """Load weights into the model; every name and shape must match.

    Learned text offsets (`rpn.tunable_linear.weight`) are taken on where there are some.
    Raises `CheckpointError` that says what differs, and which of the known models would fit.
    """
    tensors = dict(tensors)
    if _OFFSETS in tensors:
        add_offsets(model, rows=len(tensors[_OFFSETS]))
    wanted = model.state_dict()
    for key, value in wanted.items():
        if _OPTIONAL.fullmatch(key) and (key not in tensors or tensors[key].shape != value.shape):
            tensors[key] = torch.zeros(value.shape) if value.is_meta else value
    _compare_keys(wanted, tensors, source)
    for key, value in wanted.items():
        if not value.is_meta and not tensors[key].is_floating_point() and not torch.equal(tensors[key], value):
            raise CheckpointError(f"{source}: {key} is not the constant that this network's window size gives")
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(False).eval()


def _read_file(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = load_checkpoint_file(path)
    except Exception as error:  # a damaged pickle calls anything with anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"cannot read the checkpoint {path} ({reason}): it may be cut short or not a checkpoint; compare its size "
            "with that of the source"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not the weights of a model")
    for wrapper in ("model", "state_dict"):
        if isinstance(inner := content.get(wrapper), Mapping) and inner:
            return inner
    return content


def _strip_prefixes(entries: Mapping[str, object]) -> dict[str, Tensor]:
    """Tensors only, without the prefix that distributed training puts before every key."""
    tensors = {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
    while tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _compare_keys(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    missing = [key for key in wanted if key not in given]
    extra = [key for key in given if key not in wanted]
    other = [
        f"{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:_SHOWN])}{', ...' if len(found) > _SHOWN else ''})"
        for found, what in ((missing, "missing"), (extra, "unexpected"), (other, "of another shape"))
        if found
    ]
    if problems:
        fitting = [name for name in CONFIGS if _fits_model(given, name)]
        hint = f": these are weights of {' or '.join(fitting)}" if fitting else ""
        raise CheckpointError(f"{source} does not fit this model{hint}: {'; '.join(problems)}")


def _fits_model(given: Mapping[str, Tensor], name: str) -> bool:
    ours = {
        key: value.shape for key, value in build_released(name).state_dict().items() if not _OPTIONAL.fullmatch(key)
    }
    theirs = {key: value.shape for key, value in given.items() if not _OPTIONAL.fullmatch(key) and key != _OFFSETS}
    return ours == theirs
