"""Weights under MMDetection's names are the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from detectors.glip.config import CONFIGS
from detectors.glip.convert import build_from, build_released, fill_model, load_checkpoint
from detectors.glip.mmdetection import rename_tensors
from tests.detectors.glip.conftest import CONFIG, tiny_model

PYRAMID = {
    **{f"fpn_inner{level}": f"neck.lateral_convs.{level - 2}.conv" for level in (2, 3, 4)},
    **{f"fpn_layer{level}": f"neck.fpn_convs.{level - 2}.conv" for level in (2, 3, 4)},
    "top_blocks.p6": "neck.fpn_convs.3.conv",
    "top_blocks.p7": "neck.fpn_convs.4.conv",
}


def their_name(name: str) -> str:
    """The name in MMDetection's files of a parameter of the release."""
    if name.startswith("backbone.fpn."):
        part, _, kind = name.removeprefix("backbone.fpn.").rpartition(".")
        return f"{PYRAMID[part]}.{kind}"
    if name.startswith("language_backbone."):
        return f"language_model.{name}"
    if name.startswith("rpn."):
        return "bbox_head." + name.removeprefix("rpn.")
    name = "backbone." + name.removeprefix("backbone.body.").replace("patch_embed.proj", "patch_embed.projection")
    name = name.replace("layers.", "stages.", 1) if name.startswith("backbone.layers.") else name
    for ours, theirs in (("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"), (".attn.", ".attn.w_msa.")):
        name = name.replace(ours, theirs)
    return name


def their_order(value: Tensor) -> Tensor:
    """Swin's downsampling in MMDetection unfolds: its columns are channel by channel, each the four pixels row by row;
    the release joins whole pixels, down the first column, then down the second."""
    quarter = value.shape[-1] // 4
    upper_left, lower_left, upper_right, lower_right = value.split(quarter, dim=-1)
    return torch.stack([upper_left, upper_right, lower_left, lower_right], dim=-1).flatten(-2)


def as_theirs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        their_name(name): their_order(value) if ".downsample." in name else value for name, value in tensors.items()
    }


def test_a_file_under_their_names_gives_the_same_model(tmp_path: Path) -> None:
    ours = tiny_model().state_dict()
    theirs = as_theirs(ours)
    assert "backbone.stages.0.blocks.0.ffn.layers.0.0.weight" in theirs
    assert "backbone.stages.0.blocks.0.attn.w_msa.qkv.weight" in theirs
    torch.save({"meta": {"epoch": 12}, "state_dict": theirs}, tmp_path / "glip_mmdet.pth")
    model = fill_model(build_from(CONFIG), load_checkpoint(tmp_path / "glip_mmdet.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, ours[name]), name


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_name_of_a_released_model_comes_back(name: str) -> None:
    ours = build_released(name).state_dict()
    back = rename_tensors(as_theirs(ours))
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in ours.items()}


def test_pixels_are_joined_in_the_order_of_the_release() -> None:
    numbers = torch.arange(8.0)[None]  # two channels of four pixels
    theirs = their_order(numbers)
    assert theirs.tolist() == [[0, 4, 2, 6, 1, 5, 3, 7]]
    renamed = rename_tensors({"backbone.stages.0.downsample.reduction.weight": theirs})
    assert renamed["backbone.body.layers.0.downsample.reduction.weight"].tolist() == numbers.tolist()
