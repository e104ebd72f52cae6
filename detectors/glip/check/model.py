"""Compare this GLIP with reference tensors, stage by stage: `python -m detectors.glip.check FOLDER`.

A folder may hold: `config.json`, `weights.safetensors`, `io.safetensors` (the stages of two or more
pictures), `grads.safetensors`, `prompt_tuning.safetensors`; or `captions.json` and `vocab.txt`; or a `config.json` and
`io.safetensors` of pictures before and after preprocessing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detectors.detector import DetectorError
from detectors.device import choose_device
from detectors.glip.check.captions import check_captions
from detectors.glip.check.report import EXACT, FEATURES, GRADIENT, LOGITS, LOSS, PIXELS, SCORES, CheckReport
from detectors.glip.config import GlipConfig
from detectors.glip.convert import build_from, fill_model, load_checkpoint
from detectors.glip.modeling.anchors import decode
from detectors.glip.modeling.dyhead import DyConv, Shapes, as_map
from detectors.glip.modeling.model import Predictions
from detectors.glip.modeling.text import TextFeatures, TextLayer
from detectors.glip.postprocess import (
    BoxCandidates,
    aggregate_tokens,
    best_first,
    find_candidates,
    root_scores,
    select_boxes,
    token_map,
    weigh_scores,
)
from detectors.glip.runtime import DTYPES, ComputePrecision, use_deform
from detectors.glip.training import tuned_prompt as tuning
from detectors.glip.training.loss import GlipLosses, TrainingTruth, losses, make_targets, token_targets
from detectors.images import collate, normalise, resize, target_size


def check(folder: Path, device: str = "cpu", dtype: str = "float32", deform: str | None = None) -> CheckReport:
    """Everything that the folder has reference values for.

    Raises `DetectorError` when there is nothing to compare with.
    """
    report = CheckReport()
    values = (folder / "io.safetensors").is_file() and (folder / "config.json").is_file()
    try:
        if (folder / "captions.json").is_file():
            check_captions(report, folder)
        elif values and (folder / "weights.safetensors").is_file():
            check_model(report, folder, choose_device(device), DTYPES[dtype], deform)
        elif values:
            check_preprocessing(report, folder, choose_device(device))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        if isinstance(error, DetectorError):
            raise
        raise DetectorError(f"{folder} cannot be read as reference tensors: {error}") from error
    if not report.rows:
        raise DetectorError(
            f"{folder} has nothing to compare with: expected captions.json, or io.safetensors with a config.json, "
            "and weights.safetensors where it is of a network"
        )
    return report


def check_preprocessing(report: CheckReport, folder: Path, device: torch.device) -> None:
    golden = {key: value.to(device) for key, value in load_file(folder / "io.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    for row in config.get("size_rule_800_1333", []):
        width, height = row["original_wh"]
        report.equal(f"size {width}x{height}", target_size(height, width, 800, 1333), tuple(row["resized_hw"]))
    normalised = []
    for number in sorted(key.split(".")[0] for key in golden if key.endswith(".rgb_uint8_hwc")):
        bgr = golden[f"{number}.rgb_uint8_hwc"].flip(-1)
        want = golden[f"{number}.resized_uint8_hwc"].flip(-1)
        if number in config:
            size = target_size(bgr.shape[0], bgr.shape[1], config[number]["min_side"], config[number]["max_side"])
            report.equal(f"{number}.size", size, tuple(want.shape[:2]))
        mine = resize(bgr, (want.shape[0], want.shape[1]))
        report.compare(f"{number}.resized", mine.permute(1, 2, 0), want, (1.0, 0.0))
        normalised.append(normalise(want.permute(2, 0, 1)))
        report.compare(f"{number}.normalised", normalised[-1], golden[f"{number}.normalized_bgr_chw"], EXACT)
    if "batch" in golden:
        report.compare("batch", collate(normalised), golden["batch"], EXACT)


class ModelCheck:
    """One network and its reference tensors."""

    def __init__(self, report: CheckReport, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.report, self.device, self.precision = report, device, ComputePrecision(dtype, device)
        self.values: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.config = GlipConfig.from_plain(self.values)
        tensors = load_checkpoint(folder / "weights.safetensors")
        model = fill_model(build_from(self.config), tensors, str(folder / "weights.safetensors")).to(device)
        self.model = self.precision.lower(model)
        self.golden = {key: value.to(device) for key, value in load_file(folder / "io.safetensors").items()}
        self.shapes: Shapes = ()

    def compare(self, key: str, mine: Tensor, tolerance: tuple[float, float]) -> None:
        """Against the tensor called `key`, if the folder has it."""
        if key in self.golden:
            self.report.compare(key, mine, self.golden[key], tolerance)

    def text(self) -> TextFeatures:
        return self.model.encode_text(self.golden["in.input_ids"], self.golden["in.attention_mask"])

    def check_stages(self) -> Predictions:
        """Every stage of the forward pass."""
        model, images = self.model, self.golden["in.images"]
        text = self.text()
        self.compare("lang.hidden", text.hidden, FEATURES)
        self.compare("lang.embedded", text.embedded, FEATURES)
        self.compare("lang.aggregate", text.aggregate(), FEATURES)
        maps = model.backbone.body(images)
        for stage, level in enumerate(maps):
            self.compare(f"swin.stage{stage + 2}", level, FEATURES)
        pyramid = model.backbone.fpn(maps[1:])
        for level, found in enumerate(pyramid):
            self.compare(f"fpn.p{level + 3}", found, FEATURES)
        self.shapes = tuple((level.shape[-2], level.shape[-1]) for level in pyramid)
        hooks = [self._hook_entry(number, entry) for number, entry in enumerate(model.rpn.head.dyhead_tower)]
        predictions: Predictions = model.rpn.head(pyramid, text)
        for hook in hooks:
            hook.remove()
        self.predictions(predictions)
        return predictions

    def _hook_entry(self, number: int, entry: torch.nn.Module) -> Any:
        if isinstance(entry, DyConv):
            return entry.register_forward_hook(
                lambda _module, _inputs, regions: self._compare_regions(f"tower.{number}.dyconv.visual", regions)
            )
        if isinstance(entry, TextLayer):
            return entry.register_forward_hook(
                lambda _module, _inputs, hidden: self.compare(f"tower.{number}.bert.hidden", hidden, FEATURES)
            )

        def fused(_module: object, _inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
            self._compare_regions(f"tower.{number}.fuse.visual", outputs[0])
            self.compare(f"tower.{number}.fuse.hidden", outputs[1], FEATURES)

        return entry.get_submodule("b_attn").register_forward_hook(fused)

    def _split_levels(self, regions: Tensor) -> Sequence[Tensor]:
        return torch.split(regions, [height * width for height, width in self.shapes], dim=1)

    def _compare_regions(self, name: str, regions: Tensor) -> None:
        for level, part in enumerate(self._split_levels(regions)):
            self.compare(f"{name}.{level}", as_map(part, self.shapes[level]), FEATURES)
        if name.endswith("dyconv.visual"):
            self._unused_branch(self._split_levels(regions), name)

    def _unused_branch(self, levels: Sequence[Tensor], name: str) -> None:
        if name == f"tower.{len(self.model.rpn.head.dyhead_tower) - 1}.dyconv.visual":
            for level, part in enumerate(levels):
                logits = self.model.rpn.head.cls_logits(as_map(part, self.shapes[level]))
                self.compare(f"head.cls_logits.{level}", logits, LOGITS)

    def predictions(self, predictions: Predictions) -> None:
        self.shapes = predictions.shapes
        per_level = zip(
            self._split_levels(predictions.logits),
            self._split_levels(predictions.deltas),
            self._split_levels(predictions.centerness[..., None]),
            self.model.rpn.anchor_generator(self.shapes),
            strict=True,
        )
        for level, (logits, deltas, centerness, anchors) in enumerate(per_level):
            self.compare(f"head.dot_product_logits.{level}", logits, LOGITS)
            self.compare(f"head.bbox_reg.{level}", as_map(deltas, self.shapes[level]), LOGITS)
            self.compare(f"head.centerness.{level}", as_map(centerness, self.shapes[level]), LOGITS)
            self.compare(f"anchors.{level}", anchors, EXACT)

    def token_maps(self, labels: int) -> Tensor:
        """(B, L, labels), label j in column j - 1."""
        length = self.golden["in.input_ids"].shape[1]
        tables = self.values["label_to_tokens"]
        maps = [token_map([table.get(str(label + 1), []) for label in range(labels)], length) for table in tables]
        return torch.stack(maps).to(self.device)

    def check_aggregation(self) -> None:
        for how in ("MEAN", "MAX", "ONEHOT", "POWER"):
            key = f"agg.{how}"
            if key not in self.golden:
                continue
            tokens = self.token_maps(self.golden[key].shape[-1])[:1]
            scores = aggregate_tokens(self.golden["agg.in.probs"], tokens, how)
            if how == "POWER":  # the reference values leave out labels of one token
                scores = scores * (tokens.sum(1, keepdim=True) > 1)
            self.compare(key, scores, SCORES)

    @property
    def labels(self) -> int:
        """The largest label of any picture."""
        return max(int(label) for table in self.values["label_to_tokens"] for label in table)

    def check_postprocessing(self, predictions: Predictions) -> None:
        rule = self.config.postprocess
        found = find_candidates(
            predictions,
            self.model.anchors(predictions.shapes),
            self.token_maps(self.labels),
            self.golden["in.image_sizes"],
            rule,
        )
        everything = found.scores.shape[1]
        survivors, _ = select_boxes(found, rule.nms_iou, rule.detections_per_image, look_at=everything)
        for picture in range(len(found.scores)):
            self._compare_found(f"post.{picture}.pre_nms", best_first(found, everything), picture)
            self._compare_found(f"post.{picture}.final", survivors, picture)

    def _compare_found(self, name: str, found: BoxCandidates, picture: int) -> None:
        if f"{name}.labels" not in self.golden:
            return
        valid = found.valid[picture]
        boxes, scores, labels = (
            found.boxes[picture][valid],
            found.scores[picture][valid],
            found.labels[picture][valid] + 1,
        )
        want = [self.golden[f"{name}.{part}"] for part in ("boxes", "scores", "labels")]
        if len(boxes) == len(want[0]):
            mine, theirs = same_order(boxes, labels, want[0], want[2])
            boxes, scores, labels = boxes[mine], scores[mine], labels[mine]
            want = [part[theirs] for part in want]
        self.report.compare(f"{name}.boxes", boxes, want[0], PIXELS)
        self.report.compare(f"{name}.scores", scores, want[1], SCORES)
        self.report.compare(f"{name}.labels", labels, want[2], EXACT)

    def training_truths(self) -> list[TrainingTruth]:
        positive, truths, start = self.golden["loss.in.positive_map"] > 0, [], 0
        for picture in range(len(self.golden["in.images"])):
            boxes = self.golden[f"loss.in.{picture}.gt_boxes"]
            truths.append(TrainingTruth(boxes, positive[start : start + len(boxes)]))
            start += len(boxes)
        return truths

    def check_targets(self, shapes: Shapes) -> None:
        anchors = self.model.rpn.anchor_generator(shapes)
        positives = 0
        for picture, truth in enumerate(self.training_truths()):
            name, target = f"loss.atss.{picture}", make_targets(anchors, truth)
            positive = target.matched > 0
            positives += int(positive.sum())
            self.compare(f"{name}.matched_gt_plus1", target.matched, EXACT)
            self.compare(f"{name}.reg_targets", target.deltas(torch.cat(anchors)), FEATURES)
            self.compare(f"{name}.token_targets_pos", token_targets(target.matched, truth.tokens)[positive], EXACT)
            self.compare(f"{name}.centerness_targets_pos", target.centerness[positive], SCORES)
        self.compare("loss.num_pos", torch.tensor(float(positives)), EXACT)

    def loss(self, predictions: Predictions, golden: dict[str, Tensor], prefix: str = "") -> GlipLosses:
        anchors = self.model.rpn.anchor_generator(predictions.shapes)
        found = losses(predictions, anchors, self.golden["in.attention_mask"], self.training_truths())
        names = {
            "dot_product_token": found.token,
            "reg": found.box,
            "centerness": found.centerness,
            "total": found.total,
        }
        for name, value in names.items():
            if f"loss.{name}" in golden:
                self.report.compare(f"{prefix}loss.{name}", value, golden[f"loss.{name}"], LOSS)
        return found

    def check_gradients(self, golden: dict[str, Tensor]) -> None:
        parameters = {name: value for name, value in self.model.named_parameters() if name in golden}
        for value in parameters.values():
            value.requires_grad_(True)
        with torch.enable_grad(), self.precision.autocast():
            predictions = self.model(self.golden["in.images"], self.text())
            self.loss(predictions, {}).total.backward()  # type: ignore[no-untyped-call]
        for name in golden:
            if name in parameters:
                self._compare_gradient(f"grad {name}", parameters[name].grad, golden[name])
        self.model.requires_grad_(False)

    def _compare_gradient(self, stage: str, mine: Tensor | None, golden: Tensor) -> None:
        largest = golden.abs().max().clamp(min=1e-12)
        mine = torch.zeros_like(golden) if mine is None else mine
        self.report.compare(stage, mine / largest, golden / largest, GRADIENT)

    def prompt_tuning(self, golden: dict[str, Tensor]) -> None:
        rows = golden["tunable_linear.weight"]
        offsets = tuning.add_offsets(self.model)
        offsets.weight.data[: len(rows)] = rows
        stages = self.golden
        self.golden = {key: value for key, value in stages.items() if key.startswith(("in.", "loss.in."))}
        with torch.enable_grad(), self.precision.autocast():
            predictions = self.model(self.golden["in.images"], self.text())
            total = self.loss(predictions, golden, "prompt tuning ").total
            total.backward()  # type: ignore[no-untyped-call]
        for key in golden:
            if key.startswith("head."):
                self.golden[key] = golden[key]
        self.predictions(predictions)
        self.golden = stages
        assert offsets.weight.grad is not None
        self._compare_gradient("prompt tuning grad", offsets.weight.grad[: len(rows)], golden["tunable_linear.grad"])
        self.model.rpn.tunable_linear = None


def check_model(
    report: CheckReport, folder: Path, device: torch.device, dtype: torch.dtype, deform: str | None = None
) -> None:
    subject = ModelCheck(report, folder, device, dtype)
    use_deform(subject.model, deform)

    def more(name: str) -> dict[str, Tensor]:
        path = folder / f"{name}.safetensors"
        return {key: value.to(device) for key, value in load_file(path).items()} if path.is_file() else {}

    with torch.no_grad(), subject.precision.autocast():
        predictions = subject.check_stages()
    subject.check_aggregation()
    if "label_to_tokens" in subject.values:
        subject.check_postprocessing(predictions)
    if "loss.in.positive_map" in subject.golden:
        subject.check_targets(predictions.shapes)
        subject.loss(predictions, subject.golden)
        use_deform(subject.model, "embedding-bag")  # the one that learns
        if gradients := more("grads"):
            subject.check_gradients(gradients)
        if offsets := more("prompt_tuning"):
            subject.prompt_tuning(offsets)


def same_order(boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of rows with equal label and nearest boxes: near-equal scores may come in either order."""
    distance = torch.cdist(boxes.double(), others.double(), p=1) + 1e6 * (labels[:, None] != other_labels[None])
    from scipy.optimize import linear_sum_assignment

    mine, theirs = linear_sum_assignment(distance.cpu().numpy())
    return torch.from_numpy(mine).to(boxes.device), torch.from_numpy(theirs).to(boxes.device)


@dataclass(frozen=True)
class PrecisionDrift:
    """What a precision costs, over the pairs of region and label that pass the threshold in single precision."""

    logit: float  # the worst token logit of all
    box_median: float  # pixels, the worst side of each box
    box_worst: float
    score_worst: float  # of final scores
    kept: float  # share of the pairs that pass the threshold in the other precision, too


def measure_drift(folder: Path, dtype: str, device: str = "cpu") -> PrecisionDrift:
    """Run the network of `folder` in float32 and in `dtype` on the folder's pictures."""
    exact, rough = (_run_precision(folder, precision, device) for precision in ("float32", dtype))
    threshold = exact.subject.config.postprocess.score_threshold
    passed = exact.scores > threshold
    far = (exact.boxes - rough.boxes).abs().amax(-1)[passed.any(-1)]
    return PrecisionDrift(
        logit=(exact.logits - rough.logits).abs().max().item(),
        box_median=far.median().item(),
        box_worst=far.max().item(),
        score_worst=(exact.final - rough.final).abs()[passed].max().item(),
        kept=(rough.scores > threshold)[passed].float().mean().item(),
    )


@dataclass(frozen=True)
class _MeasuredRun:
    subject: ModelCheck
    logits: Tensor  # (B, N, L)
    boxes: Tensor  # (B, N, 4)
    scores: Tensor  # (B, N, K), before the centerness
    final: Tensor  # (B, N, K)


def _run_precision(folder: Path, dtype: str, device: str) -> _MeasuredRun:
    subject = ModelCheck(CheckReport(), folder, torch.device(device), DTYPES[dtype])
    with torch.no_grad(), subject.precision.autocast():
        found = subject.check_stages()
    tokens = subject.token_maps(subject.labels)
    rule = subject.config.postprocess
    scores = aggregate_tokens(found.logits.float().sigmoid(), tokens, rule.aggregate)
    final = root_scores(weigh_scores(scores, found.centerness, rule), rule)
    boxes = decode(found.deltas.float(), subject.model.anchors(found.shapes))
    return _MeasuredRun(subject, found.logits.float(), boxes, scores, final)
