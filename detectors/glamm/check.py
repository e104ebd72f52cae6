"""`python -m detectors.glamm.check FOLDER`: comparison of this GLaMM with the released one, stage by stage.

FOLDER holds reference tensors of a GLaMM of any size (`weights.safetensors`, `io.safetensors`, `config.json`), or
prompts (`prompts.json` with a sentencepiece model), or metrics (`metrics.json`). Prints a line for each stage and
ends with 0 when all are within tolerance, 1 when not, 2 when the folder cannot be used.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from detectors.detector import DetectorError
from detectors.glamm import metrics, parsing, prompts
from detectors.glamm.config import GlammConfig
from detectors.glamm.keys import model_names
from detectors.glamm.loss import expand_labels, losses, word_loss
from detectors.glamm.model import ChatTurn, GlammModel, mask_places
from detectors.glamm.processor import clip_pixels, inner_size, sam_pixels
from detectors.glamm.sam import resize_masks
from detectors.glamm.tokenizer import LlamaTokenizer

EXACT = 0.0
PIXELS = 1e-6
NETWORK = 1e-5
MASKS = 5e-5
FLIPPED = 1e-4
METRICS = 1e-6


class UnusableFolder(DetectorError, ValueError):
    """The folder holds nothing that can be checked."""


@dataclass(frozen=True)
class CheckRow:
    """Error of one quantity of one stage against the reference, and its tolerance."""

    stage: str
    what: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # false for NaN as well


def check(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[CheckRow]:
    """Every comparison that the folder allows. Raises `UnusableFolder`.

    In less than float32 the errors measure the drift, and no tolerance applies.
    """
    if (folder / "prompts.json").is_file():
        return list(_check_prompts(folder))
    if (folder / "metrics.json").is_file():
        return list(_check_metrics(json.loads((folder / "metrics.json").read_text())))
    missing = [
        name for name in ("config.json", "weights.safetensors", "io.safetensors") if not (folder / name).is_file()
    ]
    if missing:
        raise UnusableFolder(
            f"{folder} has no {missing[0]}: give a folder with reference tensors (config.json, weights.safetensors, "
            "io.safetensors), with prompts.json or with metrics.json"
        )
    with torch.inference_mode():
        rows = list(_ModelCheck(folder, device, dtype).rows())
    return rows if dtype == torch.float32 else [replace(row, tolerance=math.inf) for row in rows]


# models


class _ModelCheck:
    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        self.config = GlammConfig.from_plain(json.loads((folder / "config.json").read_text()))
        self.model = GlammModel(self.config).eval()
        try:
            self.model.load_state_dict(
                {
                    name: tensor
                    for official, tensor in load_file(folder / "weights.safetensors").items()
                    for name in model_names(official)
                }
            )
        except RuntimeError as error:
            raise UnusableFolder(f"{folder}: the weights do not fit config.json: {error}") from error
        self.model.to(device, dtype)
        self.io: dict[str, Tensor] = load_file(folder / "io.safetensors")
        self.seen: dict[str, Tensor] = {}

    def rows(self) -> Iterator[CheckRow]:
        yield from self._check_preprocessing()
        yield from self._check_generated()
        if "tf_input_ids" in self.io:
            yield from self._check_forced()

    def _compare_tensor(
        self, stage: str, reference: str, ours: Tensor, tolerance: float = NETWORK
    ) -> Iterator[CheckRow]:
        """One row, or none where the reference does not hold that tensor."""
        if reference in self.io:
            yield CheckRow(stage, reference, relative_error(ours, self.io[reference]), tolerance)

    def _check_preprocessing(self) -> Iterator[CheckRow]:
        if "raw_image" not in self.io:
            return
        image = self.io["raw_image"].numpy()
        side = self.config.sam.image_size
        ours = clip_pixels(image, self.config.clip_vision.image_size)[None]
        yield from self._compare_tensor("preprocessing", "global_enc_image", ours, PIXELS)
        yield from self._compare_tensor("preprocessing", "grounding_enc_image", sam_pixels(image, side)[None], EXACT)
        size = torch.tensor(inner_size(image.shape[0], image.shape[1], side))
        yield from self._compare_tensor("preprocessing", "resize_hw", size, EXACT)

    def _as_input(self, values: Tensor) -> Tensor:
        """An input as the model takes it."""
        return values.to(self.model.device, self.model.dtype)

    def _read_boxes(self, prefix: str) -> list[Tensor]:
        found: list[Tensor] = []
        while (name := f"{prefix}_bboxes_{len(found)}") in self.io:
            found.append(self.io[name])
        return found

    def _encode_batch(self, prefix: str, pixels: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Patches and regions of a batch of images; what lies between is kept in `seen`."""
        model, boxes = self.model, self._read_boxes(prefix)
        with _WatchedModules(model, self.seen):
            features = model.encode_images(self._as_input(pixels))
            if not boxes:
                return features.patches, [None] * len(pixels)
            return features.patches, list(model.regions(model.region_encoder.pyramid(features.levels), boxes))

    def _check_vision(
        self, prefix: str, pixels: Tensor, patches: Tensor, regions: Iterable[Tensor | None]
    ) -> Iterator[CheckRow]:
        states = self.model.clip(self._as_input(pixels), output_hidden_states=True).hidden_states
        for index, state in enumerate(states):
            yield from self._compare_tensor("clip", f"{prefix}_clip_hidden_state_{index}", state)
            if index == self.config.clip_vision.select_layer % (self.config.clip_vision.num_hidden_layers + 1):
                yield from self._compare_tensor("clip", f"{prefix}_clip_selected", state[:, 1:])
        yield from self._compare_tensor("projector", f"{prefix}_projector_output", patches)
        for index, rows in enumerate(regions):
            if rows is not None:
                yield from self._compare_tensor("regions", f"{prefix}_region_features_{index}", rows)
        for name, tensor in self.seen.items():
            if name.startswith("region_"):
                yield from self._compare_tensor("regions", f"{prefix}_{name}", tensor)
        if boxes := self._read_boxes(prefix):
            base = self.config.region_encoder.roi_base_size
            rois = [torch.cat([torch.full((len(rows), 1), i), rows * base], 1) for i, rows in enumerate(boxes)]
            yield from self._compare_tensor("regions", f"{prefix}_region_rois", torch.cat(rois))

    def _check_words(self, prefix: str, hidden: Tensor, kept: Tensor) -> Iterator[CheckRow]:
        """Hidden states and what follows from them; `kept` (B, L) is false where a row is padding."""
        for name, tensor in (
            ("llm_last_hidden", hidden),
            ("logits", self.model.llm.lm_head(hidden)),
            ("text_hidden_fcs_output", self.model.mask_projector(hidden)),
        ):
            if (reference := f"{prefix}_{name}") in self.io:
                error = relative_error(tensor[kept], self.io[reference][kept])
                yield CheckRow("language model", reference, error, NETWORK)

    def _check_generated(self) -> Iterator[CheckRow]:
        io, model = self.io, self.model
        prompt, output = io["gen_input_ids"][0], io["gen_output_ids"][0]
        patches, regions = self._encode_batch("gen", io["global_enc_image"])
        yield from self._check_vision("gen", io["global_enc_image"], patches, regions)
        row = model.embed(output[:-1], patches[0], regions[0])
        yield from self._compare_tensor("language model", "gen_inputs_embeds", row[None])
        hidden = model(row[None])
        yield from self._check_words("gen", hidden, torch.ones(hidden.shape[:2], dtype=torch.bool))

        places = mask_places(output, self.config.tokens.seg, patches.shape[1])
        yield from self._compare_tensor("mask vectors", "gen_seg_positions", places, EXACT)
        states = hidden[0, places]
        yield from self._mask_vectors("gen", states)
        yield from self._image_embedding("gen")
        yield from self._check_masks("gen", 0, states)
        yield from self._check_answers(prompt, output[len(prompt) :], patches[0], regions[0])

    def _check_answers(
        self, prompt: Tensor, expected: Tensor, patches: Tensor, regions: Tensor | None
    ) -> Iterator[CheckRow]:
        """The same answer without memory, with memory, and in a batch with a row of another length."""
        model, count = self.model, len(expected)
        yield CheckRow(
            "generation",
            "ids, no cache",
            count_mismatches(self._plain_answer(prompt, patches, regions, count), expected),
            EXACT,
        )
        row = model.embed(prompt, patches, regions)
        shared = len(row) - len(prompt) // 2
        (memory,) = model.read_opening(row[None, :shared])
        (alone,) = model.generate([ChatTurn(memory, row[shared:])], count)
        yield CheckRow("generation", "ids, cache, batch 1", count_mismatches(alone.ids, expected), EXACT)
        yield from self._compare_tensor("generation", "gen_step_logits", model.llm.lm_head(alone.states))
        longer = torch.cat([row[shared:], row[shared:]])
        rows = model.generate([ChatTurn(memory, row[shared:]), ChatTurn(memory, longer)], count)
        yield CheckRow("generation", "ids, cache, batch 2", count_mismatches(rows[0].ids, expected), EXACT)
        seen = alone.states[alone.ids == self.config.tokens.seg]
        # the reference begins with those of the prompt, which a conversation's earlier answers may hold
        reference = self.io["gen_seg_hidden"][len(self.io["gen_seg_hidden"]) - len(seen) :]
        yield CheckRow("generation", "states that chose [SEG]", relative_error(seen, reference), NETWORK)

    def _plain_answer(self, ids: Tensor, patches: Tensor, regions: Tensor | None, count: int) -> Tensor:
        new: list[Tensor] = []
        while len(new) < count and not (new and int(new[-1]) == self.config.tokens.eos):
            row = self.model.embed(torch.cat([ids, *new]), patches, regions)
            new.append(self.model.llm.lm_head(self.model(row[None])[:, -1]).argmax(-1).cpu())
        return torch.cat(new)

    def _check_forced(self) -> Iterator[CheckRow]:
        io, model = self.io, self.model
        ids, attention = io["tf_input_ids"], io["tf_attention_mask"]
        pixels = io.get("tf_global_enc_images", io["global_enc_image"].expand(len(ids), -1, -1, -1))
        patches, regions = self._encode_batch("tf", pixels)
        yield from self._check_vision("tf", pixels, patches, regions)
        rows = torch.stack([model.embed(*row) for row in zip(ids, patches, regions, strict=True)])
        front = attention.new_ones(len(ids), patches.shape[1] - 1)
        extended = torch.cat([front, attention], dim=1)
        yield from self._compare_tensor("language model", "tf_inputs_embeds", rows)
        yield from self._compare_tensor("language model", "tf_llm_attention_mask", extended, EXACT)
        hidden = model(rows, extended.to(model.device))
        yield from self._check_words("tf", hidden, extended.bool())

        places = [mask_places(row, self.config.tokens.seg, patches.shape[1]) for row in ids]
        marked = torch.zeros_like(extended, dtype=torch.bool)
        for row, where in zip(marked, places, strict=True):
            row[where] = True
        yield from self._compare_tensor("mask vectors", "tf_seg_mask", marked, EXACT)
        states = [row[where] for row, where in zip(hidden, places, strict=True)]
        yield from self._mask_vectors("tf", torch.cat(states))
        yield from self._image_embedding("tf")
        groups = states if "tf_low_res_masks_1" in io else [torch.cat(states)]
        masks = []
        for image, group in enumerate(groups):
            yield from self._check_masks("tf", image, group)
            masks.append(self._final_masks(self._sam_embedding(), group))
        yield from self._check_losses(hidden, ids, masks)

    def _mask_vectors(self, prefix: str, states: Tensor) -> Iterator[CheckRow]:
        yield from self._compare_tensor("mask vectors", f"{prefix}_seg_hidden", states)
        yield from self._compare_tensor("mask vectors", f"{prefix}_seg_projected", self.model.mask_projector(states))

    def _sam_embedding(self) -> Tensor:
        embedding: Tensor = self.model.sam.get_image_embeddings(self._as_input(self.io["grounding_enc_image"]))
        return embedding

    def _image_embedding(self, prefix: str) -> Iterator[CheckRow]:
        with _WatchedModules(self.model, self.seen):
            embedding = self._sam_embedding()
        for name, tensor in self.seen.items():
            if name.startswith("sam_"):
                yield from self._compare_tensor("sam image", f"{prefix}_{name}", tensor)
        yield from self._compare_tensor("sam image", f"{prefix}_sam_image_embedding", embedding)
        positions = self.model.sam.get_image_wide_positional_embeddings()
        yield from self._compare_tensor("sam image", f"{prefix}_sam_dense_pe", positions)

    def _final_masks(self, embedding: Tensor, states: Tensor) -> Tensor:
        low, _ = self.model.mask_logits(embedding, states)
        inner, original = (tuple(self.io[name].tolist()) for name in ("resize_hw", "original_hw"))
        return resize_masks(low, self.config.sam.image_size, inner, original)

    def _check_masks(self, prefix: str, image: int, states: Tensor) -> Iterator[CheckRow]:
        sam, embedding = self.model.sam, self._sam_embedding()
        words = self.model.mask_projector(states)
        dense = sam.prompt_encoder.no_mask_embed.weight[..., None, None]
        yield from self._compare_tensor("decoder", f"{prefix}_sparse_embeddings_{image}", words[:, None])
        yield from self._compare_tensor("decoder", f"{prefix}_dense_embeddings_{image}", dense.expand_as(embedding))
        with _WatchedModules(self.model, self.seen):
            first, iou = self.model.mask_logits(embedding, states)
        tokens = self.seen["decoder_tokens"][0]
        yield from self._compare_tensor("decoder", f"{prefix}_decoder_tokens_{image}", tokens, MASKS)
        yield from self._compare_tensor("decoder", f"{prefix}_low_res_masks_{image}", first[:, None], MASKS)
        yield from self._compare_tensor("decoder", f"{prefix}_iou_pred_{image}", iou[:, None], MASKS)
        others, other_ious = sam.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=words[None, :, None],
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        four, ious = torch.cat([first[:, None], others[0]], 1), torch.cat([iou[:, None], other_ious[0]], 1)
        yield from self._compare_tensor("decoder", f"{prefix}_low_res_masks_all4_{image}", four, MASKS)
        yield from self._compare_tensor("decoder", f"{prefix}_iou_pred_all4_{image}", ious, MASKS)
        masks = self._final_masks(embedding, states)
        yield from self._compare_tensor("masks", f"{prefix}_pred_masks_{image}", masks, MASKS)
        if (reference := f"{prefix}_pred_masks_bool_{image}") in self.io:
            wrong = ((masks > 0).cpu() != self.io[reference]).float().mean()
            yield CheckRow("masks", f"{reference}, share of pixels", float(wrong), FLIPPED)

    def _check_losses(self, hidden: Tensor, ids: Tensor, masks: list[Tensor]) -> Iterator[CheckRow]:
        if "tf_labels" not in self.io:
            return
        patches = self.config.clip_vision.num_patches
        labels = torch.stack([expand_labels(*row, patches) for row in zip(self.io["tf_labels"], ids, strict=True)])
        logits, masks = self.model.llm.lm_head(hidden).cpu(), [rows.cpu() for rows in masks]
        yield from self._compare_tensor("losses", "tf_loss", word_loss(logits, labels))
        targets = [self.io[f"train_gt_masks_{i}"] for i in range(len(masks)) if f"train_gt_masks_{i}" in self.io]
        if len(targets) == len(masks):
            ours = losses(logits, labels, masks, targets)
            yield from self._compare_tensor("losses", "train_ce_loss", ours.words)
            yield from self._compare_tensor("losses", "train_mask_bce_loss", ours.bce)
            yield from self._compare_tensor("losses", "train_mask_dice_loss", ours.dice)
            yield from self._compare_tensor("losses", "train_mask_loss", ours.masks)
            yield from self._compare_tensor("losses", "train_loss", ours.total)


class _WatchedModules:
    """While open, keeps what passes inside the networks under the names of the reference."""

    def __init__(self, model: GlammModel, seen: dict[str, Tensor]) -> None:
        self._seen = seen
        fuse, roi, sam = model.region_encoder.fuse, model.region_encoder.roi, model.sam
        self._handles = [
            self._watch_outputs(fuse.input_conv[level], f"region_level_{level}_input_conv")
            for level in range(len(fuse.input_conv))
        ]
        self._handles += [
            fuse.register_forward_hook(self._keep_levels),
            *(self._watch_inputs(conv, f"region_roi_feats_{level}") for level, conv in enumerate(roi.pconvs)),
            self._watch_inputs(roi.flatten_linear, "region_flat_after_relu"),
            self._watch_outputs(roi.flatten_linear, "region_flatten_linear"),
            self._watch_outputs(roi.pos_embedd, "region_pos_embed"),
            self._watch_outputs(sam.vision_encoder.patch_embed, "sam_patch_embed"),
            *(self._watch_outputs(layer, f"sam_block_{i}") for i, layer in enumerate(sam.vision_encoder.layers)),
            self._watch_outputs(sam.mask_decoder.transformer, "decoder_tokens"),
        ]

    def __enter__(self) -> None:
        self._seen.clear()

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch_outputs(self, module: nn.Module, name: str) -> Any:
        def keep(_: nn.Module, inputs: object, output: Any) -> None:
            self._seen[name] = output[0] if isinstance(output, tuple) else output

        return module.register_forward_hook(keep)

    def _watch_inputs(self, module: nn.Module, name: str) -> Any:
        def keep(_: nn.Module, inputs: Any, output: object) -> None:
            self._seen[name] = inputs[0]

        return module.register_forward_hook(keep)

    def _keep_levels(self, _: nn.Module, inputs: Any, outputs: Any) -> None:
        for level, (before, after) in enumerate(zip(inputs[0], outputs, strict=True)):
            self._seen[f"region_level_{level}_upsampled"] = before
            self._seen[f"region_level_{level}_fused"] = after


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """max|a - b| / max|b|; infinite where the shapes differ."""
    if ours.shape != reference.shape:
        return float("inf")
    if not reference.numel():
        return 0.0
    difference = (ours.double().cpu() - reference.double()).abs().max()
    return float(difference / reference.double().abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def count_mismatches(ours: Tensor, reference: Tensor) -> float:
    """How many ids differ; infinite where the lengths do."""
    return float((ours.cpu() != reference).sum()) if ours.shape == reference.shape else float("inf")


# words and metrics


def _check_prompts(folder: Path) -> Iterator[CheckRow]:
    """`ids_NAME` and `input_ids_NAME` are checked with `NAME_tokenizer.model`, or `tiny` with any other model file."""
    cases: Mapping[str, Any] = json.loads((folder / "prompts.json").read_text())
    wrong = [case["name"] for case in cases["prompts"] if prompts.prompt(case["turns"]) != case["prompt"]]
    yield CheckRow("prompts", f"{len(cases['prompts'])} texts", len(wrong), EXACT)
    files = {}
    for file in sorted(folder.glob("*.model")):
        name = file.stem.removesuffix("_tokenizer")
        files[name if f"input_ids_{name}" in cases["prompts"][0] else "tiny"] = file
    if not files:
        raise UnusableFolder(f"{folder} has no tokenizer (*.model): the ids of its prompts cannot be checked")
    for name, file in files.items():
        tokenizer = LlamaTokenizer(file)
        yield _wrong_ids(tokenizer.encode_prompt, cases["prompts"], "prompt", f"input_ids_{name}")
        yield _wrong_ids(tokenizer.encode, cases["plain"], "text", f"ids_{name}")
        answers = [case for case in cases["parsing"] if case["tokenizer"] == name]
        wrong = [case for case in answers if tokenizer.decode(case["output_ids"]) != case["decoded_raw"]]
        yield CheckRow("decoding", f"{len(answers)} answers, {name}", len(wrong), EXACT)
    answers = cases["parsing"]
    for what, found in _PARSED.items():
        wrong = [case for case in answers if found(case) != case[what]]
        yield CheckRow("parsing", f"{what}, {len(answers)} answers", len(wrong), EXACT)


def _wrong_ids(encode: Callable[[str], list[int]], cases: Any, text: str, ids: str) -> CheckRow:
    return CheckRow(
        "tokens", f"{ids}, {len(cases)} texts", sum(encode(case[text]) != case[ids] for case in cases), EXACT
    )


_PARSED: dict[str, Callable[[Any], Any]] = {
    "text_output": lambda case: parsing.tidy(case["decoded_raw"]),
    "caption": lambda case: parsing.caption(case["text_output"]),
    "phrases": lambda case: parsing.phrases(case["text_output"]),
    "num_masks": lambda case: parsing.parse(case["text_output"]).num_masks,
    "phrase_to_mask": lambda case: [
        phrase.masks[0] if phrase.masks else None
        for phrase in parsing.parse(case["text_output"], by_order=True).phrases
    ],
}


def _check_metrics(reference: Mapping[str, Any]) -> Iterator[CheckRow]:
    total = metrics.ReferringScore()
    ious, hits, wanted = [], [], []
    for number, case in enumerate(reference["cases"]):
        truth, predicted = (np.array(case[name], dtype=bool) for name in ("gt_masks", "pred_masks"))
        stage = f"case {number}"
        ious.append(metrics.mean_iou(truth, predicted))
        yield CheckRow(stage, "miou", abs(ious[-1] - case["miou"]), METRICS)
        similarity = np.array(case["text_similarity"], dtype=float).reshape(len(truth), len(predicted))
        matches = metrics.recall_matches(truth, predicted, similarity)
        hits.append(len(matches))
        wanted.append(len(truth))
        yield CheckRow(
            stage, "recall_matches", float(matches != [tuple(m) for m in case["recall_matches_gt_pred"]]), EXACT
        )
        first = case["refseg_first_k"]
        own = metrics.ReferringScore()
        for referring in (own, total):
            referring.add(truth[:first], predicted[:first])
        yield CheckRow(stage, "intersection", abs(own.intersection - case["refseg_intersection"][1]), METRICS)
        yield CheckRow(stage, "union", abs(own.union - case["refseg_union"][1]), METRICS)
        yield CheckRow(stage, "giou", abs(own.giou - case["refseg_giou_mean"][1]), METRICS)
        runs = [rle["counts"] if isinstance(rle, dict) else rle for rle in case["rle_uncompressed_pred"]]
        yield CheckRow(stage, "run lengths", float([metrics.run_lengths(mask) for mask in predicted] != runs), EXACT)
    expected = reference["totals"]
    yield CheckRow("totals", "mean_miou", abs(float(np.mean(ious)) - expected["mean_miou"]), METRICS)
    yield CheckRow("totals", "recall", abs(metrics.average_recall(hits, wanted) - expected["recall"]), METRICS)
    yield CheckRow("totals", "ciou_foreground", abs(total.ciou - expected["ciou_foreground"]), METRICS)


def report(rows: list[CheckRow]) -> Table:
    """The worst comparison of each stage, and every one that failed."""
    table = Table("stage", "compared", "worst", "error", "allowed", "")
    for stage in dict.fromkeys(row.stage for row in rows):
        of_stage = [row for row in rows if row.stage == stage]
        worst = max(
            of_stage, key=lambda row: (not row.ok, row.error / (row.tolerance if 0 < row.tolerance < math.inf else 1))
        )
        for row in [worst, *(row for row in of_stage if not row.ok and row is not worst)]:
            cells = (
                stage,
                str(len(of_stage)),
                row.what,
                f"{row.error:.1e}",
                f"{row.tolerance:.0e}".replace("inf", "any"),
            )
            table.add_row(*cells, "ok" if row.ok else "[bold red]off")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m detectors.glamm.check", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 measures the drift"
    )
    options = parser.parse_args()
    try:
        rows = check(options.folder, options.device, getattr(torch, options.dtype))
    except DetectorError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    Console().print(report(rows))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
