"""Where a GLIP's weights, sizes and vocabulary come from.

A model folder holds `config.json`, `weights.safetensors` and `vocab.txt`: so is `glip-mini` packaged, so are downloaded
models cached, and so may anyone keep a model that was trained or tuned.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from detectors.cache import missing, model_folder
from detectors.detector import DetectorError
from detectors.glip.caption import BertTokenizer
from detectors.glip.config import CONFIGS, GlipConfig
from detectors.glip.convert import build_from, fill_model, load_checkpoint
from detectors.glip.modeling.model import GlipModel

MINI = "glip-mini"
PACKAGED = Path(__file__).parent / "mini"
MISSING_HERE = (
    f"this version carries no weights for {MINI}: train them with `python -m benchmarks.glip_mini.train`, or give "
    "--weights FOLDER"
)
CONFIG, WEIGHTS, VOCABULARY = "config.json", "weights.safetensors", "vocab.txt"


class WeightsMissing(DetectorError):
    """The weights of a model are not on this machine."""


@dataclass(frozen=True)
class ModelFiles:
    """All files of one model."""

    name: str
    config: GlipConfig
    weights: Path
    vocabulary: Path

    def load(self) -> tuple[GlipModel, BertTokenizer]:
        """Raises `DetectorError` when a file is unreadable or the weights are those of another model."""
        tokenizer = BertTokenizer(self.vocabulary)
        return fill_model(
            build_from(self.config), load_checkpoint(self.weights), f"{self.name}: {self.weights}"
        ), tokenizer


def write_folder(folder: Path, config: GlipConfig, tensors: Mapping[str, Tensor], vocabulary: Path) -> None:
    """Make a model folder. The weights come last, and whole: without them the folder counts for nothing."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config.to_plain(), indent=2) + "\n")
    if vocabulary != folder / VOCABULARY:
        shutil.copyfile(vocabulary, folder / VOCABULARY)
    unfinished = folder / (WEIGHTS + ".part")
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, unfinished)
    unfinished.chmod(0o644)  # safetensors writes files that only their owner can read
    unfinished.replace(folder / WEIGHTS)


def find_files(name: str, weights: str | Path | None = None, vocabulary: str | Path | None = None) -> ModelFiles:
    """The files of the model `name`: those given, or those cached or packaged.

    `weights` is a checkpoint of that model, or a model folder of any size.
    Raises `DetectorError` for an unknown name, with the nearest, and for missing files, with the ways out.
    """
    if name not in (*CONFIGS, MINI):
        from detectors.registry import UnknownDetector

        near = difflib.get_close_matches(name, [*CONFIGS, MINI], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UnknownDetector(f"no GLIP is called {name!r}: {hint}known are {', '.join([*CONFIGS, MINI])}")
    if weights is None:
        folder = PACKAGED if name == MINI else model_folder(name)
        if not (folder / WEIGHTS).is_file():
            raise WeightsMissing(MISSING_HERE if name == MINI else missing(name))
    else:
        folder = Path(weights)
        if not folder.exists():
            raise WeightsMissing(f"there are no weights at {folder}")
    file = folder / WEIGHTS if folder.is_dir() else folder
    described = file.parent / CONFIG
    sized = folder.is_dir() or name == MINI
    if sized and not described.is_file():
        raise WeightsMissing(
            f"{folder} is no model folder: {CONFIG}, which gives the network's sizes, is not beside the weights"
        )
    config = GlipConfig.read(described) if sized else CONFIGS[name]
    words = Path(vocabulary) if vocabulary is not None else file.parent / VOCABULARY
    if not words.is_file():
        raise WeightsMissing(
            f"there is no vocabulary {words}: put bert-base-uncased's {VOCABULARY} beside the weights, or name it"
        )
    return ModelFiles(name, config, file, words)
