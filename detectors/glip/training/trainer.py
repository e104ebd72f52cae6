"""Training a GLIP: one plain loop over batches, after GLIP, arXiv:2112.03857, as its released code runs it.

A batch is known by its number alone, and everything that changes (weights, their average, moments, random numbers) is
in the checkpoint: a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed
import torch.utils.data
from torch import Tensor, nn

from detectors.detector import DetectorError
from detectors.glip.modeling.dyhead import ConvAndNorm
from detectors.glip.modeling.model import GlipModel
from detectors.glip.modeling.swin import PatchMerging
from detectors.glip.training.loss import GlipLosses, TrainingTruth, losses


class TrainingError(DetectorError):
    """Training cannot go on: the checkpoint is unreadable or of another model, or the loss is no number any more."""


class TrainingBatch(NamedTuple):
    """Normalised pictures (B, 3, H, W), their captions' ids and mask (B, L) int64, and their ground truth."""

    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    truths: Sequence[TrainingTruth]

    def to(self, device: torch.device) -> TrainingBatch:
        truths = [TrainingTruth(truth.boxes.to(device), truth.tokens.to(device)) for truth in self.truths]
        return TrainingBatch(self.images.to(device), self.input_ids.to(device), self.attention_mask.to(device), truths)


@dataclass(frozen=True)
class TrainingRecipe:
    """How fast and how long. The defaults are GLIP's for pre-training, but for the length.

    A run ends after `steps` batches or `minutes` of training, whichever is given; the rate follows the share of it that
    is done: up linearly over the first `warm_up` of it, then down, by half a cosine ("cosine") or to a tenth at 67 %
    and at 89 % ("steps"). AdamW, and for matrices that learn from nothing, Muon (arXiv:2502.16982), whose steps are a
    fifth of AdamW's at the same rate.
    """

    rate: float = 1e-4
    text_rate: float = 1e-5
    matrix_rate: float | None = None  # of hidden weight matrices, which then learn by Muon; None: as all others
    weight_decay: float = 1e-4
    warm_up: float = 0.03
    decay: str = "steps"
    clip: float = 1.0
    average: float = 0.999  # of the weights (EMA)
    steps: int | None = None
    minutes: float | None = None
    drop_block: bool = True  # in the feature pyramid; costs small models more than it gives
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("a training run lasts either a number of steps or of minutes: give one of them")
        if self.decay not in ("cosine", "steps"):
            raise ValueError(f"the rate decays by 'cosine' or in 'steps', not by {self.decay!r}")

    def done(self, step: int, seconds: float) -> float:
        """The share of the run that lies behind, from 0 on."""
        if self.steps is not None:
            return step / self.steps if self.steps else 1.0
        return seconds / 60 / self.minutes if self.minutes else 1.0

    def factor(self, done: float) -> float:
        """What the rate is multiplied by when the share `done` of the run lies behind."""
        if done < self.warm_up:
            return max(done / self.warm_up, 0.001)
        if self.decay == "steps":
            return 0.1 ** ((done >= 0.67) + (done >= 0.89))
        left = (min(done, 1.0) - self.warm_up) / (1 - self.warm_up)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * left)) / 2


class TrainingProgress(NamedTuple):
    """After a step: the last batch's losses as numbers, and how far the run has come."""

    step: int
    seconds: float
    done: float
    rate: float
    token: float
    box: float
    centerness: float
    gradient: float

    @property
    def total(self) -> float:
        return self.token + self.box + self.centerness


def parameter_groups(
    named: Iterable[tuple[str, Tensor]], rate: float, text_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups by rate and decay: the text encoder slower, biases at double rate without decay."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            groups.setdefault(("language_backbone" in name, "bias" in name), []).append(parameter)
    return [
        {
            "params": parameters,
            "rate": (text_rate if is_text else rate) * (2 if is_bias else 1),
            "weight_decay": 0.0 if is_bias else weight_decay,
        }
        for (is_text, is_bias), parameters in groups.items()
    ]


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a weight maps many features to many: no table, no filter of pixels, nothing that moves or makes boxes."""
    other = any(part in name for part in ("embed", "relative_position", "offset"))
    return parameter.ndim >= 2 and not other and min(parameter.shape[0], parameter[0].numel()) >= 16


class WeightAverage:
    """Moving average of the weights, as in arXiv:1503.01780, for evaluation and saving; faster in its first steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.tensors[key].lerp_(value, 1 - keep)
            else:
                self.tensors[key].copy_(value)


class GlipTrainer:
    """A model on its way. `run` steps through batches; `save` and `resume` carry the whole state."""

    def __init__(
        self, model: GlipModel, recipe: TrainingRecipe, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.recipe = recipe
        self.average = WeightAverage(model, recipe.average)
        named = dict(model.named_parameters())
        rate, text_rate, decay = recipe.matrix_rate, recipe.text_rate, recipe.weight_decay
        hidden = [name for name, p in named.items() if rate and p.requires_grad and is_matrix(name, p)]
        # Muon takes two-dimensional parameters: the same memory, with convolution kernels laid out in rows.
        rows = {name: nn.Parameter(named[name].detach().view(len(named[name]), -1)) for name in hidden}
        self._matrices = [(named.pop(name), matrix) for name, matrix in rows.items()]
        adam = torch.optim.AdamW(parameter_groups(named.items(), recipe.rate, text_rate, decay), lr=0.0)
        self.optimizers: list[torch.optim.Optimizer] = [adam]
        if rate and rows:
            groups = parameter_groups(rows.items(), rate, rate * (text_rate / recipe.rate), decay)
            self.optimizers.append(torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.mixed_precision and self._half)
        self.step, self.seconds = 0, 0.0

    @property
    def _half(self) -> bool:
        """Whether mixed precision means fp16, which needs its losses scaled up."""
        return self.device.type == "cuda" and not torch.cuda.is_bf16_supported()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers; `rate` is what the recipe's factor multiplies."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def run(
        self, batches: Iterable[TrainingBatch], after: Callable[[TrainingProgress], None] = lambda progress: None
    ) -> None:
        """Step through `batches`, the first being number `self.step`, until they or the recipe's length end."""
        self.training()
        source = iter(batches)
        while self.recipe.done(self.step, self.seconds) < 1:
            start = time.monotonic()
            batch = next(source, None)
            if batch is None:
                return
            progress = self.learn(batch.to(self.device))
            self.seconds += longest(time.monotonic() - start)
            after(progress._replace(seconds=self.seconds))

    def training(self) -> None:
        """Dropout and its like on in what learns; frozen parts stay as they are in use."""
        self.model.eval()
        for module in self.model.modules():
            own = list(module.parameters())
            if own and all(parameter.requires_grad for parameter in own):
                module.train()
        if not self.recipe.drop_block:
            self.model.backbone.fpn.eval()

    def learn(self, batch: TrainingBatch) -> TrainingProgress:
        """One step. Raises `TrainingError` when the loss is no number."""
        done = self.recipe.done(self.step, self.seconds)
        factor = self.recipe.factor(done)
        for group in self.groups:
            group["lr"] = group["rate"] * factor
        found = self.losses(batch)
        if not torch.isfinite(found.total):
            raise TrainingError(f"the loss of step {self.step} is {float(found.total.detach())}: lower the rate")
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(found.total))
        for parameter, matrix in self._matrices:
            matrix.grad = None if parameter.grad is None else parameter.grad.reshape(matrix.shape)
        learning = [parameter for group in self.groups for parameter in group["params"]]
        share_gradients(learning)  # before unscaling: an overflow anywhere is then seen, and skipped, by all
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(learning, self.recipe.clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.step += 1
        self.average.update(self.model, self.step)
        token, box, centerness = (float(part.detach()) for part in found)
        rate = self.recipe.rate * factor
        return TrainingProgress(self.step, self.seconds, done, rate, token, box, centerness, float(norm))

    def losses(self, batch: TrainingBatch) -> GlipLosses:
        """The three losses of a batch that is on the device."""
        kind = torch.float16 if self._half else torch.bfloat16
        with torch.autocast(self.device.type, kind, enabled=self.recipe.mixed_precision):
            text = self.model.encode_text(batch.input_ids, batch.attention_mask)
            predictions = self.model(batch.images, text)
        anchors = self.model.rpn.anchor_generator(predictions.shapes)
        return losses(predictions, anchors, batch.attention_mask, batch.truths)

    def save(self, path: Path) -> None:
        """Everything that `resume` needs, in one file that is whole or not there."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.tensors,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(path)

    def resume(self, path: Path) -> None:
        """Go on where `save` left off. Raises `TrainingError` when the file is none of this model's."""
        state = read_checkpoint(path)
        settings = [(group["rate"], group["weight_decay"]) for group in self.groups]
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.scaler.load_state_dict(state["scaler"])
            for key, value in self.average.tensors.items():
                value.copy_(state["average"][key])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            torch.set_rng_state(state["random"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(f"{path} is not a checkpoint of this model's training: {error}") from error
        # The recipe decides, not the checkpoint: a run may be taken up again with another rate.
        for group, (rate, weight_decay) in zip(self.groups, settings, strict=True):
            group["rate"], group["weight_decay"] = rate, weight_decay


def share_gradients(parameters: Sequence[Tensor]) -> None:
    """The mean of what all processes found, where several train together (started by `torchrun`)."""
    if torch.distributed.is_initialized():
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)


def longest(seconds: float) -> float:
    """The slowest process's time, so that all follow one schedule."""
    if not torch.distributed.is_initialized():
        return seconds
    slowest = torch.tensor(seconds, dtype=torch.float64)
    torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
    return float(slowest)


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What `GlipTrainer.save` wrote. Raises `TrainingError` when it cannot be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"cannot read the checkpoint {path}: {reason}") from error
    if not isinstance(state, Mapping) or "average" not in state:
        raise TrainingError(f"{path} holds no training state: give a file that training wrote")
    return state


def numbered(
    batch: Callable[[int], TrainingBatch], start: int, workers: int, stride: int = 1
) -> Iterator[TrainingBatch]:
    """`batch(start)`, `batch(start + stride)`, ... without end, made ahead in worker processes (0: when asked for)."""
    if not workers:
        for number in itertools.count(start, stride):
            yield batch(number)
    loader = torch.utils.data.DataLoader(
        _Numbered(batch),
        batch_size=None,
        sampler=_From(start, stride),
        num_workers=workers,
        prefetch_factor=4,
        worker_init_fn=_one_thread,
    )
    yield from loader


class _Numbered(torch.utils.data.Dataset[TrainingBatch]):
    def __init__(self, batch: Callable[[int], TrainingBatch]) -> None:
        self._batch = batch

    def __getitem__(self, number: int) -> TrainingBatch:
        return self._batch(number)


class _From(torch.utils.data.Sampler[int]):
    def __init__(self, start: int, stride: int) -> None:
        self._start, self._stride = start, stride

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start, self._stride)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def start(model: GlipModel) -> GlipModel:
    """Initial weights for training from scratch, which pass a picture's local content on to the scores.

    The papers start from encoders that were trained before. From random ones the colour of a small thing can be read
    off the first maps (by a linear probe, for 0.68 of the street's persons), but hardly from the tower's last
    (0.19; chance is 0.16), and what is lost there cannot be learned. Here it is 0.44: patches begin as their lowest
    frequencies, convolutions as near-identities (DiracNets, arXiv:1706.00388), and coarse levels add little to finer
    ones. Words are of length one and scores begin near zero, as do boxes: a tenfold scale lets them move as fast as the
    rest.

    Linear layers start with the papers' deviation of 0.02. 1/√inputs was tried for the narrow layers of glip-mini: a
    token loss of 2.06 instead of 1.93 after 300 steps.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d) and name.endswith(".offset"):
            nn.init.zeros_(module.weight)  # deformable convolutions begin undeformed
        elif isinstance(module, nn.Conv2d) and ("bbox_pred" in name or "centerness" in name):
            nn.init.normal_(module.weight, std=0.01)
        bias = getattr(module, "bias", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
    body, fpn = model.backbone.body, model.backbone.fpn
    frequencies(body.patch_embed.proj)
    for module in model.modules():
        if isinstance(module, PatchMerging):
            halves(module.reduction)
        elif isinstance(module, ConvAndNorm):
            pass_on(module.conv)
    for level in (2, 3, 4):
        nn.init.orthogonal_(fpn.get_parameter(f"fpn_inner{level}.weight"), gain=1.0 if level == 2 else 0.15)
        pass_on(cast(nn.Conv2d, fpn.get_submodule(f"fpn_layer{level}")))
    nn.init.constant_(model.rpn.head.log_scale, -math.log(10))
    for scale in model.rpn.head.scales:
        nn.init.constant_(cast(Tensor, scale.scale), 10.0)
    return model


@torch.no_grad()
def pass_on(conv: nn.Conv2d, noise: float = 0.15) -> None:
    """Each channel to itself in the middle of a 3 x 3 kernel, and a share of what PyTorch would begin with."""
    nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5))
    middle = torch.zeros_like(conv.weight)
    nn.init.dirac_(middle)
    conv.weight.mul_(noise).add_(middle)


@torch.no_grad()
def frequencies(conv: nn.Conv2d, colour: float = 2.0) -> None:
    """Filters of a patch embedding: the lowest frequencies (DCT-II) of brightness, and of two opposed pairs of colours.

    Half of the filters see brightness, the others colours, `colour` times as strong. Those that are more than a patch
    has frequencies begin at random.
    """
    side = conv.kernel_size[0]
    at = torch.arange(side)
    waves = torch.cos(math.pi * (2 * at + 1) * at[:, None] / (2 * side)) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    order = sorted(((row, column) for row in range(side) for column in range(side)), key=sum)
    sides = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    mixes = sides / sides.norm(dim=1, keepdim=True) * torch.tensor([[1.0], [colour], [colour]])
    half, rest = conv.out_channels // 2, conv.out_channels - conv.out_channels // 2
    found = []
    for mix, count in zip(mixes, (half, rest // 2, rest - rest // 2), strict=True):
        found += [mix[:, None, None] * torch.outer(waves[row], waves[column]) for row, column in order[:count]]
    conv.weight[: len(found)] = torch.stack(found)


@torch.no_grad()
def halves(reduction: nn.Linear) -> None:
    """A patch merging: half of the channels hold the mean of the four neighbours, the others the differences."""
    width = reduction.in_features // 4
    mean = torch.eye(width).repeat(1, 4) / 2
    others = torch.randn(reduction.out_features - width, reduction.in_features)
    others -= others @ mean.T @ mean
    reduction.weight.copy_(torch.cat([mean, torch.linalg.qr(others.T).Q.T]))
