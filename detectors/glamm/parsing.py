"""What an answer says: its words without marks, the phrases in it, and which mask belongs to which phrase."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PHRASE = re.compile(r"<p>(.*?)</p>")
_MARK = re.compile(r"<.*?>|\[SEG\]")
_ANSWER = "ASSISTANT: "


@dataclass(frozen=True)
class AnswerPhrase:
    """Characters [start, end) of the caption that stand for the masks with the numbers `masks`."""

    start: int
    end: int
    text: str
    masks: tuple[int, ...]


@dataclass(frozen=True)
class ParsedAnswer:
    """`caption` is the answer in plain words; `num_masks` counts its `[SEG]`, tied to a phrase or not."""

    caption: str
    phrases: tuple[AnswerPhrase, ...]
    num_masks: int


def tidy(text: str) -> str:
    """Decoded text as the released scripts clean it: line ends deleted, two spaces made one once, the answer only."""
    return text.replace("\n", "").replace("  ", " ").split(_ANSWER)[-1]


def phrases(answer: str) -> list[str]:
    """The texts between `<p>` and `</p>`."""
    return [match.strip() for match in _PHRASE.findall(answer)]


def caption(answer: str) -> str:
    """The answer without marks: everything in angle brackets goes, spaces are folded, quotes at the ends dropped."""
    return parse(answer).caption


def parse(answer: str, by_order: bool = False) -> ParsedAnswer:
    """Tie each `[SEG]` to the last phrase closed before it.

    `by_order` ties the k-th mask to the k-th phrase, as the released scripts do; a phrase without a mask then shifts
    all that follow.
    """
    found = list(_PHRASE.finditer(answer))
    places = [match.start() for match in re.finditer(r"\[SEG\]", answer)]
    owners: list[int | None] = []
    for number, place in enumerate(places):
        before = [k for k, match in enumerate(found) if match.end() <= place]
        owner = number if by_order and number < len(found) else None
        owners.append(owner if by_order else before[-1] if before else None)
    text, origin = _plain_text(answer)
    result = []
    for k, match in enumerate(found):
        inside = [i for i, place in enumerate(origin) if match.start() <= place < match.end() and text[i] != " "]
        start, end = (inside[0], inside[-1] + 1) if inside else (0, 0)
        masks = tuple(number for number, owner in enumerate(owners) if owner == k)
        result.append(AnswerPhrase(start, end, match[1].strip(), masks))
    return ParsedAnswer(text, tuple(result), len(places))


def _plain_text(answer: str) -> tuple[str, list[int]]:
    """The caption, and for each of its characters the place in the answer that it came from."""
    kept = [True] * len(answer)
    for match in _MARK.finditer(answer):
        kept[match.start() : match.end()] = [False] * (match.end() - match.start())
    characters: list[tuple[str, int]] = []
    for place, character in enumerate(answer):
        if not kept[place]:
            continue
        if not character.isspace():
            characters.append((character, place))
        elif characters and characters[-1][0] != " ":
            characters.append((" ", place))
    edges = "' "
    while characters and characters[0][0] in edges:
        characters.pop(0)
    while characters and characters[-1][0] in edges:
        characters.pop()
    return "".join(character for character, _ in characters), [place for _, place in characters]
