"""Reader of YAML configuration files: plain values, with the original text of scalars that YAML does not read as text.

YAML reads `no`, `12:30` and `2026-05-04` as a truth value, a number and a date. Where a text is expected, the original
spelling is needed for an error that says what to quote.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from streamer.errors import ConfigError

MOST_NODES = 100_000
"""Values of a file with its aliases expanded: more is a mistake or an attack ("billion laughs")."""
MOST_LEVELS = 50

Place = tuple[str | int, ...]


def read_yaml(text: str, origin: str) -> tuple[Any, dict[Place, str]]:
    """Value of the document, and the spelling of every unquoted scalar that is not a text, by its place.

    `origin` names the file in errors. Raises `ConfigError` with line and column.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        spellings = dict(_spellings(node, origin))
        return loader.construct_document(node), spellings
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{origin}{place} is not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError:
        raise ConfigError(f"{origin} is nested too deeply: a configuration has at most {MOST_LEVELS} levels") from None
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{origin} holds a value that YAML cannot read ({error}): quote it") from error


def _spellings(root: yaml.Node, origin: str) -> Iterator[tuple[Place, str]]:
    """Walks the tree with all aliases expanded."""
    count = 0
    waiting: list[tuple[yaml.Node, Place, tuple[int, ...]]] = [(root, (), ())]
    while waiting:
        node, place, above = waiting.pop()
        count += 1
        where = f"{origin} line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"
        if id(node) in above:
            raise ConfigError(f"{where}: an alias refers to a value that contains it: write the value out")
        if len(above) > MOST_LEVELS or count > MOST_NODES:
            raise ConfigError(
                f"{where}: the file has more than {MOST_LEVELS} levels or, with its aliases expanded, more than "
                f"{MOST_NODES} values: write it simpler"
            )
        inside = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, (*place, number), inside) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else ""
                if not name:
                    raise ConfigError(f"{where}: a key is not a word: write NAME: VALUE")
                if name in seen and name != "<<":
                    raise ConfigError(
                        f"{origin} line {key.start_mark.line + 1}: the key {name!r} is given twice: keep one of them"
                    )
                seen.add(name)
                waiting.append((value, (*place, name), inside))
        elif isinstance(node, yaml.ScalarNode) and node.style is None and node.tag != "tag:yaml.org,2002:str":
            kind = _odd_kind(node)
            if kind is not None:
                raise ConfigError(f'{where}: YAML reads {node.value} as {kind}: quote it, "{node.value}"')
            yield place, node.value


def _odd_kind(node: yaml.ScalarNode) -> str | None:
    """What YAML makes of a plain scalar for which a configuration has no use."""
    if node.tag == "tag:yaml.org,2002:timestamp":
        return "a date"
    if node.tag == "tag:yaml.org,2002:value":
        return "a default value"
    if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and ":" in node.value:
        return "a number to the base of 60"
    return None
