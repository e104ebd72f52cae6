"""Configuration file of a running monitor, edited in place so that comments and `${NAME}` references survive.

Where the file cannot be written, cannot be reproduced byte for byte, or does not exist, changes are kept as overrides
in the state folder and applied over it; an override is dropped once the node that it replaced has changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from sinks.permissions import create_private, open_private
from streamer.config import Config, load_config, read_config_text
from streamer.errors import ConfigError, StreamerError

log = logging.getLogger("groundstream")

NodePath = tuple[str | int, ...]
_INDENTS = ((2, 4, 2), (2, 2, 0), (4, 6, 4), (2, 6, 4))
"""(mapping, sequence, offset) as ruamel counts them: the styles that people write."""


@dataclass(frozen=True, slots=True)
class NodeEdit:
    """One change of the document: sets the node at `path`, appends to the list there, or removes it."""

    path: NodePath
    value: Any = None
    kind: str = "set"


@dataclass(frozen=True, slots=True)
class Override:
    """A value of the page that stands over the file; `base` is the hash of the node that it replaced."""

    path: NodePath
    base: str
    value: Any


@dataclass(frozen=True, slots=True)
class ConfigDraft:
    """An edited and checked configuration that is not yet stored. `text` is None where overrides are kept instead."""

    config: Config
    text: str | None
    overrides: tuple[Override, ...]


@dataclass(slots=True)
class ConfigDocument:
    """The configuration as text, edits of it, and where they are stored.

    `path` is the file, None for a monitor that was started from the command line, whose settings are `initial`.
    """

    path: Path | None
    overrides_path: Path
    initial: Config | None = None
    overrides: tuple[Override, ...] = field(default=(), init=False)

    def load(self) -> Config:
        """Reads the file and the overrides that still hold. Raises `ConfigError`."""
        text = self._base_text()
        known = _read_overrides(self.overrides_path)
        tree = yaml.safe_load(text)
        kept = []
        for override in known:
            if _node_hash(tree, override.path) == override.base:
                kept.append(override)
            else:
                place = _describe_path(override.path)
                log.warning("%s has changed in the configuration: the value set on the page is dropped", place)
        self.overrides = tuple(kept)
        if len(kept) < len(known):
            _write_overrides(self.overrides_path, self.overrides)
        if not self.overrides:
            return self._check_text(text)
        return self._check_text(self._merged_text(text, self.overrides))

    def find_node(self, path: NodePath) -> Any:
        """Returns the effective node at a path as plain data, `${NAME}` unresolved; None where there is none."""
        return _find(yaml.safe_load(self._effective_text()), path)

    def draft(self, edits: Sequence[NodeEdit]) -> ConfigDraft:
        """Returns the configuration after `edits`, checked. Raises `ConfigError` with the mistake; stores nothing."""
        base = self._base_text()
        if not self._find_obstacle(base) and not self.overrides:
            text = _edit_text(base, edits)
            return ConfigDraft(self._check_text(text), text, ())
        overrides = self._add_overrides(base, edits)
        return ConfigDraft(self._check_text(self._merged_text(base, overrides)), None, overrides)

    def store(self, draft: ConfigDraft) -> None:
        """Stores a draft in the file, or as overrides. Raises `StreamerError` when neither can be written."""
        if draft.text is not None and self.path is not None:
            try:
                _replace_file(self.path, draft.text)
                return
            except OSError as error:
                raise StreamerError(
                    f"the change is active but cannot be stored in {self.path.name}: {error.strerror}; "
                    "free space or make the folder writable, then change it again"
                ) from None
        _write_overrides(self.overrides_path, draft.overrides)
        self.overrides = draft.overrides

    def obstacle(self) -> str:
        """Returns why changes are kept as overrides, empty while they are written to the file."""
        return self._find_obstacle(self._base_text())

    def overridden_yaml(self) -> str:
        """Returns the overridden nodes as YAML to be copied into the file, empty without overrides."""
        if not self.overrides:
            return ""
        return yaml.safe_dump(yaml.safe_load(self._effective_text()), sort_keys=False, allow_unicode=True)

    def _base_text(self) -> str:
        if self.path is None:
            assert self.initial is not None, "a monitor without a file has its settings from the command line"
            return yaml.safe_dump(self.initial.model_dump(mode="json", exclude_unset=True), sort_keys=False)
        return read_config_text(self.path)

    def _effective_text(self) -> str:
        base = self._base_text()
        return self._merged_text(base, self.overrides) if self.overrides else base

    def _find_obstacle(self, base: str) -> str:
        if self.path is None:
            return "the monitor was started without a configuration file"
        if not (os.access(self.path, os.W_OK) and os.access(self.path.resolve().parent, os.W_OK)):
            return "the configuration file is not writable"
        return "" if _find_style(base) is not None else "the configuration file cannot be rewritten without changing it"

    def _add_overrides(self, base: str, edits: Sequence[NodeEdit]) -> tuple[Override, ...]:
        tree = yaml.safe_load(base)
        result = {override.path: override for override in self.overrides}
        for edit in edits:
            merged = yaml.safe_load(self._merged_text(base, tuple(result.values())))
            path, value = edit.path, edit.value
            if edit.kind != "set" and (isinstance(path[-1], int) or edit.kind == "append"):
                # A list that grows or shrinks is overridden whole: positions in it would mean other items.
                path = path if edit.kind == "append" else path[:-1]
                items = list(_find(merged, path) or [])
                if edit.kind == "append":
                    items.append(value)
                else:
                    items.pop(int(edit.path[-1]))
                value = items
            result = {known: entry for known, entry in result.items() if known[: len(path)] != path}
            outer = next((known for known in result if path[: len(known)] == known), None)
            if outer is not None:
                inner = json.loads(json.dumps(result[outer].value))
                _set_plain(inner, path[len(outer) :], value)
                result[outer] = Override(outer, result[outer].base, inner)
            else:
                result[path] = Override(path, _node_hash(tree, path), value)
        return tuple(result.values())

    @staticmethod
    def _merged_text(base: str, overrides: Sequence[Override]) -> str:
        tree = yaml.safe_load(base)
        for override in overrides:
            _set_plain(tree, override.path, override.value)
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)

    def _check_text(self, text: str) -> Config:
        name = str(self.path) if self.path is not None else "command line"
        handle, temporary = tempfile.mkstemp(prefix="groundstream-", suffix=".yaml")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            return load_config(Path(temporary))
        except ConfigError as error:
            raise ConfigError(str(error).replace(temporary, name)) from None
        finally:
            os.unlink(temporary)


def _edit_text(text: str, edits: Sequence[NodeEdit]) -> str:
    style = _find_style(text)
    assert style is not None
    editor = _new_editor(style)
    tree = editor.load(text)
    for edit in edits:
        _apply_edit(tree, edit)
    return _dump(editor, tree)


def _apply_edit(tree: Any, edit: NodeEdit) -> None:
    *parents, last = edit.path
    node = tree
    for part in parents:
        if isinstance(node, dict) and part not in node:
            node[part] = CommentedMap()
        node = node[part]
    if edit.kind == "remove":
        if isinstance(node, list):
            node.pop(int(last))
        else:
            node.pop(last, None)
    elif edit.kind == "append":
        if node.get(last) is None:
            node[last] = CommentedSeq()
        node[last].append(_to_nodes(edit.value))
    else:
        node[last] = _to_nodes(edit.value)


def _to_nodes(value: Any) -> Any:
    """Plain data as ruamel nodes: points in one line, strings that YAML 1.1 would read as something else quoted."""
    if isinstance(value, Mapping):
        return CommentedMap((key, _to_nodes(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        sequence = CommentedSeq(_to_nodes(item) for item in value)
        if not any(isinstance(item, Mapping) for item in value):
            sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, str):
        try:
            is_plain = yaml.safe_load(value) == value and "\n" not in value
        except yaml.YAMLError:
            is_plain = False
        return value if is_plain else DoubleQuotedScalarString(value)
    return value


def _new_editor(style: tuple[int, int, int]) -> YAML:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.indent(mapping=style[0], sequence=style[1], offset=style[2])
    return editor


def _find_style(text: str) -> tuple[int, int, int] | None:
    """The indentation with which the untouched text comes back byte for byte."""
    for style in _INDENTS:
        editor = _new_editor(style)
        try:
            if _dump(editor, editor.load(text)) == text:
                return style
        except YAMLError:
            return None
    return None


def _dump(editor: YAML, tree: Any) -> str:
    stream = io.StringIO()
    editor.dump(tree, stream)
    return stream.getvalue()


def _replace_file(path: Path, text: str) -> None:
    """Replaces a file at once, keeping mode and owner; the text before stays in `NAME.bak`."""
    target = path.resolve()
    backup = target.with_name(f"{target.name}.bak")
    create_private(backup)  # a configuration may hold passwords: the copy gets its rights only when it is complete
    shutil.copy2(target, backup)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with open(temporary, "w", opener=open_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(target, temporary)
        status = target.stat()
        if os.geteuid() == 0:
            os.chown(temporary, status.st_uid, status.st_gid)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read_overrides(path: Path) -> tuple[Override, ...]:
    try:
        raw = yaml.safe_load(path.read_text())
        return tuple(Override(tuple(entry["path"]), str(entry["base"]), entry["value"]) for entry in raw or ())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"cannot read the changes of the page in {path}: {error}; delete the file") from None


def _write_overrides(path: Path, overrides: Sequence[Override]) -> None:
    entries = [{"path": list(entry.path), "base": entry.base, "value": entry.value} for entry in overrides]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            yaml.safe_dump(json.loads(json.dumps(entries)), file, sort_keys=False, allow_unicode=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StreamerError(
            f"the change is active but cannot be stored in {path.name}: {error.strerror}; "
            "make the state folder writable, then change it again"
        ) from None


def _find(tree: Any, path: NodePath) -> Any:
    for part in path:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _set_plain(tree: Any, path: NodePath, value: Any) -> None:
    for part, following in pairwise(path):
        if isinstance(tree, dict) and tree.get(part) is None:
            tree[part] = [] if isinstance(following, int) else {}
        tree = tree[part]
    tree[path[-1]] = value


def _node_hash(tree: Any, path: NodePath) -> str:
    """The hash of a node and of the names of the list items around it, so that a position in a list means one item."""
    owners = []
    for length, part in enumerate(path):
        owner = _find(tree, path[: length + 1])
        if isinstance(part, int) and isinstance(owner, dict):
            owners.append(owner.get("name") or owner.get("source"))
    known = json.dumps([owners, _find(tree, path)], sort_keys=True, default=str)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _describe_path(path: NodePath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
