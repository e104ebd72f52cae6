"""Constants of the released models and the assembly that users run: guarded without any reference material.

The figures are those of GLIP's released configuration files (arXiv:2112.03857, github.com/microsoft/GLIP).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detectors.glip.config import CONFIGS, GLIP_L, GLIP_T, GLIP_T_A, GlipConfig, GlipConfigError
from detectors.glip.modeling.anchors import AnchorGenerator, cell_anchor, decode, encode
from detectors.glip.processor import load_images, measure_image
from detectors.images import MEAN_BGR, STD_BGR


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_released_model_has_the_released_rule_size_and_anchors(name: str) -> None:
    config = CONFIGS[name]
    assert (config.image.min_side, config.image.max_side) == (800, 1333)
    rule = config.postprocess
    assert (rule.aggregate, rule.score_threshold, rule.nms_iou) == ("MEAN", 0.05, 0.6)
    assert (rule.pre_nms_top_n_per_level, rule.detections_per_image, rule.centerness_weight) == (1000, 100, 1.0)
    assert config.anchors.sizes == (64, 128, 256, 512, 1024)
    assert config.anchors.strides == (8, 16, 32, 64, 128)
    assert (config.text.max_length, config.text.num_layers, config.text.hidden_size) == (256, 12, 768)
    assert (config.head.channels, config.head.gn_groups) == (256, 16)


def test_the_released_models_differ_where_they_should() -> None:
    assert (GLIP_T.swin.window_size, GLIP_L.swin.window_size) == (7, 12)
    assert (GLIP_T.swin.embed_dim, GLIP_L.swin.embed_dim) == (96, 192)
    assert (GLIP_T.swin.depths, GLIP_L.swin.depths) == ((2, 2, 6, 2), (2, 2, 18, 2))
    assert (GLIP_T.head.num_convs, GLIP_L.head.num_convs) == (6, 8)
    assert (GLIP_T.head.early_fusion, GLIP_T_A.head.early_fusion) == (True, False)


def test_anchors_are_centred_on_their_cells_without_any_file() -> None:
    assert cell_anchor(64, 8).tolist() == [[-28.0, -28.0, 35.0, 35.0]]
    anchors = AnchorGenerator((64, 128), (8, 16))([(2, 3), (1, 1)])
    assert anchors[0][4].tolist() == [-20.0, -20.0, 43.0, 43.0]
    assert anchors[1].tolist() == [[-56.0, -56.0, 71.0, 71.0]]


def test_a_box_grows_to_at_most_the_released_bound() -> None:
    anchor = torch.tensor([[0.0, 0.0, 63.0, 63.0]])
    (box,) = decode(torch.tensor([[0.0, 0.0, 50.0, 5.0 * math.log(1000 / 16)]]), anchor)
    assert (box[2:] - box[:2] + 1).tolist() == pytest.approx([4000.0, 4000.0], rel=1e-5)
    inside = torch.tensor([[10.0, 20.0, 49.0, 69.0]])
    assert torch.allclose(decode(encode(inside, anchor), anchor), inside, atol=1e-4)


def test_the_network_gets_blue_green_red_normalised_and_padded() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:] = (200, 100, 50)
    picture = measure_image(0, image, 40, 80)
    batch = load_images([image], [picture], torch.device("cpu"))
    assert batch.shape == (1, 3, 64, 96)
    wanted = [(value - mean) / std for value, mean, std in zip((200, 100, 50), MEAN_BGR, STD_BGR, strict=True)]
    assert batch[0, :, 20, 40].tolist() == pytest.approx(wanted, abs=1e-5)
    assert batch[0, :, 50, 40].tolist() == [0.0, 0.0, 0.0]
    assert MEAN_BGR == (103.53, 116.28, 123.675)
    assert STD_BGR == (57.375, 57.12, 58.395)


@pytest.mark.parametrize(
    ("camera", "short", "seen"),
    [((1080, 1920), None, (750, 1333)), ((1080, 1920), 544, (540, 960)), ((576, 768), 544, (544, 725))],
)
def test_cameras_are_seen_at_the_size_asked_for(
    camera: tuple[int, int], short: int | None, seen: tuple[int, int]
) -> None:
    size = GLIP_T.image.resized(short)
    picture = measure_image(0, np.zeros((*camera, 3), np.uint8), size.min_side, size.max_side)
    assert picture.resized == seen


@pytest.mark.parametrize(
    "values",
    [
        {"text": {"num_layers": 10**9}},
        {"text": {"vocab_size": -1}},
        {"text": {"hidden_size": True}},
        {"head": {"channels": 10**12}},
        {"head": {"num_convs": 0}},
        {"swin": {"depths": [10**5, 2, 2, 2]}},
        {"swin": {"depths": [2] * 100}},
        {"swin": {"depths": ["2", 2, 6, 2]}},
        {"swin": {"drop_path": float("nan")}},
        {"postprocess": {"nms_iou": float("inf")}},
        {"image": {"min_side": 10**9}},
    ],
    ids=str,
)
def test_a_description_of_absurd_sizes_is_refused_before_anything_is_built(
    values: dict[str, dict[str, object]],
) -> None:
    with pytest.raises(GlipConfigError):
        GlipConfig.from_plain(values)


def test_the_released_descriptions_survive_being_written_and_read() -> None:
    for config in CONFIGS.values():
        assert GlipConfig.from_plain(config.to_plain()) == config
