"""The part of `check` that compares captions, spans and tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectors.glip.caption import (
    BertTokenizer,
    Caption,
    category_caption,
    clean_name,
    interactive_caption,
    noun_phrases,
    phrase_caption,
    strip_punctuation,
)

if TYPE_CHECKING:
    from detectors.glip.check.report import CheckReport


def check_captions(report: CheckReport, folder: Path) -> None:
    """Every text of `captions.json`, with the vocabulary beside it."""
    golden = json.loads((folder / "captions.json").read_text())
    tokenizer = BertTokenizer(folder / golden.get("vocab_file", "vocab.txt"))
    for case in golden.get("category_lists_eval_style", []):
        name, prompts = case["name"], case["prompt"]
        report.equal(f"{name}.cleaned", [clean_name(category) for category in case["categories"]], case["cleaned"])
        around = prompts and [(prompt["prefix"], prompt["suffix"]) for prompt in prompts]
        names = [prompt["name"] for prompt in prompts] if prompts else case["categories"]
        _check_caption(report, name, tokenizer, category_caption(names, around), case)
    for number, case in enumerate(golden.get("category_lists_interactive_style", [])):
        _check_caption(report, f"interactive.{number}", tokenizer, interactive_caption(case["categories"]), case)
    for number, case in enumerate(golden.get("free_text_spans", [])):
        caption = Caption(case["caption"], tuple(tuple((b, e) for b, e in spans) for spans in case["spans"]))
        tokens = tokenizer(caption)
        report.equal(f"free text.{number}.ids", list(tokens.ids), case["input_ids"])
        report.equal(f"free text.{number}.tokens", _lists(tokens.labels), case["tokens_of_span"])
    for number, case in enumerate(golden.get("noun_phrase_extraction_given_tags", [])):
        raw = noun_phrases([(word, tag) for word, tag in case["tagged_tokens"]])
        report.equal(f"noun phrases.{number}.raw", raw, case["noun_phrases_raw"])
        phrases = [phrase for phrase in map(strip_punctuation, raw) if phrase]
        report.equal(f"noun phrases.{number}.stripped", phrases, case["entities"])
        caption, _ = phrase_caption(case["caption"], phrases)
        _check_caption(report, f"noun phrases.{number}", tokenizer, caption, case)
    for case in golden.get("remove_punctuation", []):
        report.equal(f"strip {case['text']!r}", strip_punctuation(case["text"]), case["result"])
    for case in golden.get("tokenizer_probes", []):
        report.equal(f"tokenise {case['text'][:24]!r}", tokenizer.encode(case["text"]).ids, case["input_ids"])


def _check_caption(
    report: CheckReport, name: str, tokenizer: BertTokenizer, caption: Caption, case: dict[str, Any]
) -> None:
    tokens = tokenizer(caption)
    report.equal(f"{name}.caption", caption.text, case["caption"])
    if "spans" in case:
        report.equal(f"{name}.spans", _lists(_lists(spans) for spans in caption.spans), case["spans"])
    if "input_ids" in case:
        report.equal(f"{name}.ids", list(tokens.ids), case["input_ids"])
    labels = case.get("labels", range(1, len(tokens.labels) + 1))
    table = {str(label): list(positions) for label, positions in zip(labels, tokens.labels, strict=True)}
    report.equal(f"{name}.tokens", table, case["label_to_tokens"])


def _lists(rows: Any) -> list[list[Any]]:
    return [list(row) if isinstance(row, Sequence) else row for row in rows]
