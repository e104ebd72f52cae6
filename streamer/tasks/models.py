"""The `models` command: lists released models, fetches and converts them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from detectors import catalogue
from detectors.cache import ReleasedModel
from detectors.registry import detector_options
from streamer.errors import ConfigError
from streamer.tasks.console import report_line, user_console


def show_list(*, as_json: bool) -> None:
    models = catalogue.catalogue()
    if as_json:
        print(json.dumps([_model_facts(model) for model in models], indent=2))  # noqa: T201 - the output asked for
        return
    table = Table(box=None)
    table.add_column("name", no_wrap=True, overflow="ignore")
    for title in ("here", "download", "knows", "licence", "for", "repository"):
        table.add_column(title)
    for model in models:
        here = _readable_size(model.bytes_here) if model.is_here else "-"
        download = "?" if model.size is None else _readable_size(model.size)
        table.add_row(model.name, here, download, model.vocabulary, model.licence, model.purpose, model.repository)
    user_console().print(table)


def pull_models(names: Sequence[str]) -> None:
    for name in names:  # a wrong name among them stops everything before gigabytes were fetched
        catalogue.find_model(name)
    for name in names:
        model = catalogue.find_model(name)
        if not model.is_here and model.size is not None:
            report_line(f"{name}: fetching {_readable_size(model.size)} from {model.repository}")
        folder = catalogue.pull(name)
        user_console().print(f"{name}: {folder}")


def convert_checkpoint(checkpoint: Path, name: str | None, vocabulary: Path | None, out: Path | None) -> None:
    glips = {model.name: model for model in catalogue.catalogue() if model.kind == "GLIP"}
    if name is None:
        name = next((known for known, model in glips.items() if model.filename == checkpoint.name), None)
    if name not in glips:
        found = f"{name!r} is not a GLIP" if name else f"the name of {checkpoint} does not say which GLIP it is"
        raise ConfigError(f"{found}: give --as with one of {', '.join(glips)}")
    words = vocabulary or checkpoint.parent / "vocab.txt"
    if not words.is_file():
        raise ConfigError(f"there is no vocabulary {words}: give bert-base-uncased's vocab.txt with --vocabulary")
    folder = catalogue.convert_glip(name, checkpoint, words, out or glips[name].folder)
    user_console().print(f"{name}: {folder}")


def show_model(name: str, *, as_json: bool) -> None:
    facts = _model_facts(catalogue.find_model(name))
    if as_json:
        print(json.dumps(facts, indent=2))  # noqa: T201 - the output asked for
        return
    table = Table(box=None, show_header=False)
    for key, value in facts.items():
        if value is not None:
            table.add_row(key.replace("_", " "), _readable_size(value) if key.startswith("bytes") else str(value))
    user_console().print(table)


def show_options(name: str, *, as_json: bool) -> None:
    options = detector_options(name)
    if as_json:
        print(json.dumps(options, indent=2))  # noqa: T201 - the output asked for
        return
    table = Table("option", "value", box=None)
    for option, kind in options.items():
        table.add_row(option, kind)
    user_console().print(table)


def _model_facts(model: ReleasedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "kind": model.kind,
        "here": model.is_here,
        "folder": str(model.folder),
        "bytes_here": model.bytes_here if model.is_here else None,
        "repository": model.repository,
        "file": model.filename,
        "bytes_released": model.size,
        "sha256": model.sha256,
        "vocabulary": model.vocabulary,
        "licence": model.licence,
        "purpose": model.purpose,
    }


def _readable_size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
