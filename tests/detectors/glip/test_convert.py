"""Checkpoints of every kind: wrapped, prefixed, extended, foreign, broken."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from detectors.glip.config import GLIP_T, GLIP_T_A
from detectors.glip.convert import KNOWN, CheckpointError, build_from, build_released, fill_model, load_checkpoint
from detectors.glip.modeling.model import GlipModel
from tests.detectors.glip.conftest import CONFIG, tiny_model


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return tiny_model().state_dict()


def load(path: Path) -> GlipModel:
    return fill_model(build_from(CONFIG), load_checkpoint(path), str(path))


def test_a_training_checkpoint_is_read_through_its_wrapper_and_prefix(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    wrapped: dict[str, Any] = {"model": {f"module.{key}": value for key, value in weights.items()}}
    wrapped |= {"model_ema": {"x": torch.ones(1)}, "optimizer": {"state": {0: {"step": 7}}}, "iteration": 90}
    wrapped["model"]["module.language_backbone.body.model.embeddings.position_ids"] = torch.arange(512)[None]
    wrapped["model"]["module.language_backbone.body.model.pooler.dense.weight"] = torch.zeros(16, 16)
    wrapped["model"]["module.rpn.head.mlm_head.bias"] = torch.zeros(3)
    wrapped["model"]["module.rpn.head.cls_logits.weight"] = torch.zeros(3, 16, 1, 1)
    wrapped["model"]["module.rpn.head.cls_logits.bias"] = torch.zeros(3)
    torch.save(wrapped, tmp_path / "glip.pth")
    model = load(tmp_path / "glip.pth")
    for key, value in model.state_dict().items():
        if "cls_logits" not in key:
            assert torch.equal(value, weights[key]), key


def test_constants_may_be_absent(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    constants = ("relative_position_index", "cell_anchors", "cls_logits")
    kept = {key: value.clone() for key, value in weights.items() if not any(part in key for part in constants)}
    save_file(kept, tmp_path / "glip.safetensors")
    assert set(load(tmp_path / "glip.safetensors").state_dict()) == set(weights)


def test_learned_text_offsets_are_taken_on(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    offsets = torch.randn(1000, 16)
    torch.save({**weights, "rpn.tunable_linear.weight": offsets}, tmp_path / "glip.pth")
    model = load(tmp_path / "glip.pth")
    ids = torch.tensor([[2, 5, 3]])
    plain = fill_model(build_from(CONFIG), weights).encode_text(ids, torch.ones_like(ids))
    torch.testing.assert_close(model.encode_text(ids, torch.ones_like(ids)).hidden, plain.hidden + offsets[:3])


def test_what_does_not_fit_is_named(weights: dict[str, torch.Tensor]) -> None:
    wrong = {key: value for key, value in weights.items() if not key.endswith("bias_lang")}
    wrong["rpn.head.extra"] = torch.zeros(1)
    wrong["rpn.head.bias0"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as error:
        fill_model(build_from(CONFIG), wrong, "my.pth")
    for part in ("my.pth", "1 missing (rpn.head.bias_lang)", "1 unexpected (rpn.head.extra)", "rpn.head.bias0 is (2,)"):
        assert part in str(error.value)


def test_a_checkpoint_of_another_variant_is_named() -> None:
    with torch.device("meta"):
        other = GlipModel(GLIP_T_A).state_dict()
    with pytest.raises(CheckpointError, match="these are weights of glip-tiny-a:"):
        fill_model(build_from(GLIP_T), other)


def test_a_constant_that_contradicts_the_window_is_refused(weights: dict[str, torch.Tensor]) -> None:
    key = next(key for key in weights if key.endswith("relative_position_index"))
    with pytest.raises(CheckpointError, match="is not the constant"):
        fill_model(build_from(CONFIG), {**weights, key: torch.zeros_like(weights[key])})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_short_is_called_so(weights: dict[str, torch.Tensor], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"glip{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(CheckpointError, match="cut short"):
        load_checkpoint(path)


def test_a_file_that_runs_code_when_loaded_is_not_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_damaged_instructions_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"w": torch.ones(2)}}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    start = whole.index(b"ctorch._utils") if not zipped else whole.index(b"\x80\x02")
    for at in range(start, start + 150):  # the interpreter then calls anything with anything
        path.unlink()  # an earlier one may be mapped into memory
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        with contextlib.suppress(CheckpointError):
            load_checkpoint(path)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"iteration": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_checkpoint(tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="there is no file"):
        load_checkpoint(tmp_path / "none.pth")


def test_every_released_model_has_a_place_on_the_hub() -> None:
    for name, checkpoint in KNOWN.items():
        assert checkpoint.filename.endswith(".pth")
        assert checkpoint.repository == "GLIPModel/GLIP"
        assert build_released(name).rpn.head.bias0.is_meta
