"""Training: the schedule, the groups, the average, and that a stopped run goes on as if it had not been."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from detectors.glip.modeling.model import GlipModel
from detectors.glip.training.loss import TrainingTruth
from detectors.glip.training.trainer import (
    GlipTrainer,
    TrainingBatch,
    TrainingError,
    TrainingProgress,
    TrainingRecipe,
    frequencies,
    numbered,
    parameter_groups,
    start,
)
from tests.detectors.glip.conftest import CONFIG

SMALL = CONFIG


def batch(number: int) -> TrainingBatch:
    """Two noisy pictures with a bright square each; the first word names it."""
    dice = torch.Generator().manual_seed(number)
    images = torch.randn(2, 3, 64, 64, generator=dice) * 0.1
    truths = []
    for image in images:
        x, y = (int(place) for place in torch.randint(0, 24, (2,), generator=dice))
        image[:, y : y + 32, x : x + 32] += 2
        tokens = torch.zeros(1, 6, dtype=torch.bool)
        tokens[0, 1] = True
        truths.append(TrainingTruth(torch.tensor([[x, y, x + 31, y + 31]], dtype=torch.float32), tokens))
    ids = torch.tensor([[2, 5, 6, 7, 8, 3]]).expand(2, -1)
    return TrainingBatch(images, ids, torch.ones_like(ids), truths)


def trainer(steps: int = 12, **recipe: object) -> GlipTrainer:
    torch.manual_seed(3)
    values = {"rate": 4e-3, "text_rate": 2e-3, "warm_up": 0.05, "drop_block": False, "mixed_precision": False, **recipe}
    return GlipTrainer(start(GlipModel(SMALL)), TrainingRecipe(steps=steps, **values), seed=3)  # type: ignore[arg-type]


def test_the_rate_rises_then_falls_in_steps_at_67_and_89_percent() -> None:
    recipe = TrainingRecipe(steps=1000, warm_up=0.1)
    assert [recipe.factor(done) for done in (0.0, 0.05, 0.1, 0.66, 0.67, 0.89)] == pytest.approx(
        [0.001, 0.5, 1.0, 1.0, 0.1, 0.01]
    )


def test_the_cosine_ends_at_a_hundredth() -> None:
    recipe = TrainingRecipe(steps=10, decay="cosine", warm_up=0.0)
    assert recipe.factor(0.5) == pytest.approx(0.505)
    assert recipe.factor(1.0) == pytest.approx(0.01)


def test_a_run_has_exactly_one_length() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        TrainingRecipe()
    with pytest.raises(ValueError, match="give one of them"):
        TrainingRecipe(steps=3, minutes=1.0)


def test_biases_learn_twice_as_fast_without_decay_and_the_text_encoder_slower() -> None:
    model = GlipModel(SMALL)
    groups = parameter_groups(model.named_parameters(), 1e-4, 1e-5, 0.01)
    of = {id(p): group for group in groups for p in group["params"]}
    head = model.rpn.head
    encoder = dict(model.language_backbone.named_parameters())
    word = of[id(encoder["body.model.embeddings.word_embeddings.weight"])]
    assert (of[id(head.bias0)]["rate"], of[id(head.bias0)]["weight_decay"]) == (2e-4, 0.0)
    assert (of[id(head.bbox_pred.weight)]["rate"], of[id(head.bbox_pred.weight)]["weight_decay"]) == (1e-4, 0.01)
    assert (word["rate"], word["weight_decay"]) == (1e-5, 0.01)
    assert id(head.cls_logits.weight) not in of, "what nothing reads is not trained"


def test_muon_takes_every_hidden_matrix_and_nothing_else() -> None:
    one = trainer(matrix_rate=1e-3)
    adam, muon = one.optimizers
    names = {p.data_ptr(): name for name, p in one.model.named_parameters()}
    by_muon = {names[p.data_ptr()] for group in muon.param_groups for p in group["params"]}
    by_adam = {names[p.data_ptr()] for group in adam.param_groups for p in group["params"]}
    learning = {name for name, p in one.model.named_parameters() if p.requires_grad}
    assert by_muon | by_adam == learning
    assert not by_muon & by_adam
    for part in ("embeddings", "patch_embed", "bias", "norm", "offset", "bbox_pred", "centerness", "scale"):
        assert not [name for name in by_muon if part in name]
    assert any(".qkv." in name for name in by_muon)
    assert any("fpn_layer" in name for name in by_muon), "convolutions too"


def test_muon_and_adamw_change_the_model_itself() -> None:
    one = trainer(matrix_rate=1e-2)
    before = {name: p.detach().clone() for name, p in one.model.named_parameters() if p.requires_grad}
    for number in range(3):
        one.learn(batch(number))
    still = {name for name, p in one.model.named_parameters() if name in before and torch.equal(p, before[name])}
    assert not {name for name in still if name.endswith(("fpn_layer2.weight", "qkv.weight", "norm.weight"))}


@pytest.mark.parametrize("matrix_rate", [None, 2e-2])
def test_the_loss_falls_on_what_is_seen_again_and_again(matrix_rate: float | None) -> None:
    seen: list[TrainingProgress] = []
    trainer(60, decay="cosine", matrix_rate=matrix_rate).run((batch(number % 2) for number in range(60)), seen.append)
    assert len(seen) == 60
    assert seen[-1].total < 0.5 * seen[0].total


@pytest.mark.parametrize("matrix_rate", [None, 2e-2])
def test_a_stopped_run_goes_on_exactly(tmp_path: Path, matrix_rate: float | None) -> None:
    whole = trainer(matrix_rate=matrix_rate)
    whole.run(numbered(batch, 0, workers=0))

    first = trainer(matrix_rate=matrix_rate)
    first.run(batch(number) for number in range(5))
    first.save(tmp_path / "checkpoint.pt")
    second = trainer(matrix_rate=matrix_rate)
    second.resume(tmp_path / "checkpoint.pt")
    assert second.step == 5
    second.run(numbered(batch, second.step, workers=0))

    assert second.step == whole.step == 12
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    for key, value in whole.average.tensors.items():
        assert torch.equal(value, second.average.tensors[key]), key


def test_workers_make_the_same_batches_in_order() -> None:
    made = numbered(batch, 3, workers=1)
    for number in (3, 4, 5):
        assert torch.equal(next(made).images, batch(number).images)


def test_several_processes_share_the_numbers_among_them() -> None:
    made = numbered(batch, 1, workers=0, stride=2)
    assert torch.equal(next(made).images, batch(1).images)
    assert torch.equal(next(made).images, batch(3).images)


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    broken = batch(0)._replace(images=torch.full((2, 3, 64, 64), float("nan")))
    with pytest.raises(TrainingError, match="lower the rate"):
        trainer().learn(broken)


def test_a_checkpoint_of_something_else_is_reported(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(TrainingError, match="holds no training state"):
        trainer().resume(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(TrainingError, match="cannot read"):
        trainer().resume(tmp_path / "text.pt")
    trainer().save(tmp_path / "small.pt")
    larger = dataclasses.replace(SMALL, head=dataclasses.replace(SMALL.head, num_convs=SMALL.head.num_convs + 1))
    with pytest.raises(TrainingError, match="not a checkpoint of this model"):
        GlipTrainer(GlipModel(larger), TrainingRecipe(steps=3)).resume(tmp_path / "small.pt")


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    one = trainer()
    one.model.backbone.requires_grad_(False)
    one.training()
    assert not any(module.training for module in one.model.backbone.modules())
    assert one.model.rpn.head.dot_product_projection_text.training


@pytest.mark.parametrize("seed", range(4))
def test_what_a_picture_shows_at_a_place_is_on_the_features_there_before_anything_is_learned(seed: int) -> None:
    """A spot that is red here and blue there changes its own place on the finest map, and little else."""
    torch.manual_seed(seed)
    model = start(GlipModel(SMALL)).eval()
    red, blue = torch.zeros(2, 1, 3, 64, 64)
    red[0, 0, 24:32, 40:48], blue[0, 2, 24:32, 40:48] = 1.0, 1.0
    with torch.inference_mode():
        change = (model.backbone(red)[0] - model.backbone(blue)[0]).norm(dim=1)[0]
    assert change[3, 5] > 0.8 * change.max()
    assert change[3, 5] > 3 * change.median()


def test_a_patch_embedding_begins_with_frequencies_of_brightness_and_colours() -> None:
    conv = torch.nn.Conv2d(3, 32, 4, stride=4)
    frequencies(conv)
    filters = conv.weight.detach().flatten(1)
    product = filters @ filters.T
    torch.testing.assert_close(product, torch.diag(torch.tensor([1.0] * 16 + [4.0] * 16)))
    assert conv.weight[0].std() < 1e-6, "the first is the mean brightness"
    grey = torch.ones(1, 3, 4, 4)
    assert conv.weight[16:].flatten(1).matmul(grey.flatten()).abs().max() < 1e-5, "grey has no colour"
