from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from detectors.glamm import weights
from detectors.glamm.config import GlammConfig
from detectors.glamm.keys import model_names
from detectors.glamm.model import GlammModel
from detectors.glamm.quantise import quantised
from detectors.glamm.weights import WeightsError


def test_the_full_size_model_has_the_tensors_of_the_released_checkpoint(shared: Path) -> None:
    manifest = json.loads((shared / "specs/glamm_fullscope_state_dict.json").read_text())
    released = {**manifest["in_hub_checkpoint"], **manifest["not_in_hub_checkpoint"]["keys"]}
    wanted = {name: tuple(entry["shape"]) for key, entry in released.items() for name in model_names(key)}
    with torch.device("meta"):
        model = GlammModel(GlammConfig())
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == wanted


def test_older_files_that_name_no_key_heads_mean_as_many_as_heads() -> None:
    config = GlammConfig.from_hub({"num_attention_heads": 40, "hidden_size": 5120}, {"vision_config": {}})
    assert (config.llm.num_key_value_heads, config.region_encoder.out_dim) == (40, 5120)
    assert config.clip_vision.num_patches == 576


def test_the_released_size_needs_sixteen_gigabytes_in_bfloat16() -> None:
    assert weights.memory(GlammConfig(), torch.bfloat16).weights == pytest.approx(16.04e9, rel=0.01)
    assert weights.memory(GlammConfig(), torch.bfloat16, bits=4).weights < 7e9


@pytest.mark.parametrize("shards", [True, False])
def test_a_hub_folder_and_clips_own_load_strictly(tiny: ModuleType, tmp_path: Path, shards: bool) -> None:
    model = tiny.random_glamm()
    tiny.save_hub(model, tmp_path / "hub", shards=shards)
    loaded = weights.load(weights.open_folder(tmp_path / "hub/glamm", tmp_path / "hub/clip"))
    theirs = loaded.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])


def test_a_converted_folder_needs_no_clip_and_says_the_same(hub: Path, tmp_path: Path) -> None:
    folder = weights.open_folder(hub / "glamm", hub / "clip")
    weights.convert(folder, tmp_path / "one", torch.float32)
    before, after = weights.load(folder), weights.load(weights.open_folder(tmp_path / "one"))
    pixels, row = torch.rand(1, 3, 84, 84), torch.rand(1, 5, 64)
    assert torch.equal(before.encode_images(pixels).patches, after.encode_images(pixels).patches)
    assert torch.equal(before(row), after(row))


def test_a_broken_conversion_leaves_nothing(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub / "glamm", tmp_path / "glamm")
    (tmp_path / "glamm/pytorch_model-00002-of-00002.bin").write_bytes(b"PK damaged")
    with pytest.raises(WeightsError, match=r"pytorch_model-00002.*download it again"):
        weights.convert(weights.open_folder(tmp_path / "glamm", hub / "clip"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["glamm"]


def test_missing_parts_are_named(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no CLIP weights.*--clip"):
        weights.open_folder(hub / "glamm")
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        weights.open_folder(tmp_path)
    with pytest.raises(WeightsError, match="is not a GLaMM checkpoint"):
        weights.open_folder(hub / "clip")
    shutil.copytree(hub / "glamm", tmp_path / "half")
    (tmp_path / "half/pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(WeightsError, match=r"lacks \d+ tensors"):
        weights.load(weights.open_folder(tmp_path / "half", hub / "clip"))


def test_an_unknown_tensor_and_a_wrong_shape_are_refused(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub / "glamm", tmp_path / "glamm")
    file = tmp_path / "glamm/pytorch_model-00001-of-00002.bin"
    state = torch.load(file, weights_only=True)
    torch.save({**state, "model.surprise": torch.zeros(2)}, file)
    with pytest.raises(WeightsError, match=r"'llm\.model\.surprise'.*no part of GLaMM"):
        weights.load(weights.open_folder(tmp_path / "glamm", hub / "clip"))
    torch.save({**state, "lm_head.weight": torch.zeros(3, 64)}, file)
    with pytest.raises(WeightsError, match=r"has shape \(3, 64\), GLaMM of this configuration \(447, 64\)"):
        weights.load(weights.open_folder(tmp_path / "glamm", hub / "clip"))


def test_too_little_memory_is_reported_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "free_memory", lambda device: 8_000_000_000)
    needed = weights.memory(GlammConfig(), torch.bfloat16)
    with pytest.raises(WeightsError, match=r"needs 19\.\d GB.*8\.0 GB are free.*--bits 8 or 4"):
        weights.require_memory(needed, "cpu")


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.01), (4, 0.15)])
def test_fewer_bits_change_a_layer_a_little(bits: int, bound: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(96, 160, generator=generator), torch.randn(5, 160, generator=generator)
    exact = x @ weight.T
    assert 0 < float((quantised(weight, bits)(x) - exact).norm() / exact.norm()) < bound


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_language_model_is_smaller_and_still_answers(hub: Path, bits: int) -> None:
    folder = weights.open_folder(hub / "glamm", hub / "clip")
    model = weights.load(folder, bits=bits)
    layers = model.llm.model.layers
    packed = sum(buffer.nbytes for buffer in layers.buffers())
    assert packed < 0.4 * sum(parameter.nbytes for parameter in weights.load(folder).llm.model.layers.parameters())
    assert torch.isfinite(model(torch.randn(1, 9, 64))).all()
