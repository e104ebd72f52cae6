"""A tiny GLIP with random weights that finds something everywhere."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch

from detectors.glip.config import GlipConfig
from detectors.glip.model_files import write_folder
from detectors.glip.modeling.model import GlipModel

WORDS = ["person", "red", "car", "dog", "traffic", "light", "bus", "tree", "a", "the", ".", ",", "-"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
PIECES += [piece for letter in string.ascii_lowercase for piece in (letter, f"##{letter}") if piece not in WORDS]

CONFIG = GlipConfig.from_plain(
    {
        "swin": {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4},
        "text": {
            "vocab_size": len(PIECES),
            "hidden_size": 16,
            "num_layers": 1,
            "num_heads": 2,
            "intermediate_size": 16,
            "max_length": 24,
        },
        "head": {"channels": 16, "num_convs": 2, "fusion_dim": 16, "fusion_heads": 2, "gn_groups": 4},
        "image": {"min_side": 64, "max_side": 128},
        "postprocess": {"threshold": 0.45, "detections_per_image": 20},
    }
)


def tiny_model(config: GlipConfig = CONFIG, seed: int = 5) -> GlipModel:
    torch.manual_seed(seed)
    model = GlipModel(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith(("rpn.head.bbox_pred", "rpn.head.centerness", "rpn.head.dot_product", "rpn.head.bias_lang")):
            parameter.normal_(0, 0.4)
    model.rpn.head.bias0.fill_(-0.5)
    return model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as `glip-mini` is packaged."""
    path = tmp_path_factory.mktemp("glip")
    vocabulary = path / "pieces.txt"
    vocabulary.write_text("\n".join(PIECES) + "\n")
    write_folder(path / "model", CONFIG, tiny_model().state_dict(), vocabulary)
    return path / "model"
