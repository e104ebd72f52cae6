"""From words to what GLIP reads: captions, their tokens, and which tokens speak for which label."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detectors.detector import DetectorError

if TYPE_CHECKING:
    from tokenizers import Encoding

Span = tuple[int, int]  # first character, one past the last

_PUNCTUATION = str.maketrans("", "", "|:;@()[]{}^'\"’`?$%#!&*+,.")
_NOUN_PHRASE = re.compile(r"(?:<DT>)?(?:<JJ[^>]*>)*(?:<NN[^>]*>)+")
_REACH = 3  # characters that a span's end may lie beside a token


class VocabularyError(DetectorError):
    """The vocabulary file is missing or is no vocabulary."""


@dataclass(frozen=True)
class Caption:
    """A text and, for each label, the spans in it that name the label."""

    text: str
    spans: tuple[tuple[Span, ...], ...]


@dataclass(frozen=True)
class CaptionTokens:
    """A caption as token ids ([CLS] ... [SEP]), and for each label the positions that speak for it."""

    ids: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]


def clean_name(name: str) -> str:
    """A data set's category name as GLIP was shown it: no parentheses, blanks for underscores, no double blanks.

    Nothing is trimmed: `bat_(animal)` becomes `bat `, with its blank.
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def category_caption(names: Sequence[str], prompts: Sequence[tuple[str, str]] | None = None) -> Caption:
    """`person. traffic light. dog`: names as in GLIP's detection benchmarks; no dot at the end.

    `prompts`, a prefix and a suffix for each name, are part of the text but not of the name's span; the names are then
    taken as they are.
    """
    texts = [clean_name(name) for name in names] if prompts is None else list(names)
    around = [("", "")] * len(texts) if prompts is None else prompts
    return _join_names([(prefix, text, suffix) for text, (prefix, suffix) in zip(texts, around, strict=True)], ". ")


def interactive_caption(names: Sequence[str]) -> Caption:
    """`person . dog . `: the form of GLIP's demo, where the last name has its dot, too."""
    joined = _join_names([("", name, "") for name in names], " . ")
    return Caption(joined.text + " . ", joined.spans)


def _join_names(pieces: Iterable[tuple[str, str, str]], separator: str) -> Caption:
    text = ""
    spans: list[tuple[Span, ...]] = []
    for prefix, name, suffix in pieces:
        text += (separator if spans else "") + prefix
        spans.append(((len(text), len(text) + len(name)),))
        text += name + suffix
    return Caption(text, tuple(spans))


def phrase_caption(text: str, phrases: Sequence[str]) -> tuple[Caption, list[int]]:
    """Free text and the phrases in it to look for: each place where a phrase stands is a label of its own.

    A phrase is searched for as a regular expression in the lower-cased text, as GLIP's demo does; an invalid
    expression is skipped. Returns the caption and for each label the phrase's index.
    """
    spans, owners = [], []
    for index, phrase in enumerate(phrases):
        try:
            found = [match.span() for match in re.finditer(phrase.lower(), text.lower())]
        except re.error:
            continue
        for span in found:
            spans.append((span,))
            owners.append(index)
    return Caption(text, tuple(spans)), owners


def noun_phrases(tagged: Sequence[tuple[str, str]]) -> list[str]:
    """Things named in a sentence of (word, Penn tag): an optional determiner, adjectives, nouns."""
    tags, starts = "", []
    for _, tag in tagged:
        starts.append(len(tags))
        tags += f"<{tag}>"
    phrases = []
    for match in _NOUN_PHRASE.finditer(tags):
        words = [word for (word, _), start in zip(tagged, starts, strict=True) if match.start() <= start < match.end()]
        phrases.append(" ".join(words))
    return phrases


def strip_punctuation(phrase: str) -> str:
    """A noun phrase without the marks that GLIP's demo deletes."""
    return phrase.translate(_PUNCTUATION).strip()


class BertTokenizer:
    """BERT's lower-casing WordPiece, arXiv:1609.08144, from a `vocab.txt` with one piece a line."""

    def __init__(self, vocabulary: Path) -> None:
        from tokenizers import BertWordPieceTokenizer

        try:
            pieces = vocabulary.read_text(encoding="utf-8").rstrip("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise VocabularyError(f"cannot read the vocabulary {vocabulary}: {error}") from error
        missing = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in pieces]
        if missing:
            raise VocabularyError(
                f"{vocabulary} is not BERT's vocabulary ({missing[0]} is not in it): "
                "give the vocab.txt of bert-base-uncased, one piece a line"
            )
        self.size = len(pieces)
        self._tokenizer = BertWordPieceTokenizer({piece: number for number, piece in enumerate(pieces)}, lowercase=True)

    def encode(self, text: str) -> Encoding:
        """Ids with [CLS] and [SEP], and where in the text each comes from."""
        encoding: Encoding = self._tokenizer.encode(text)
        return encoding

    def count(self, text: str) -> int:
        """Tokens of the text alone, without [CLS] and [SEP]."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def spelled(self, text: str) -> list[str]:
        """The words that the vocabulary has no piece of, only their letters."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        words: dict[int, list[int]] = defaultdict(list)
        for token, word in enumerate(encoding.word_ids):
            words[word].append(token)
        spans = [[encoding.offsets[token] for token in tokens] for tokens in words.values() if len(tokens) > 1]
        return [text[one[0][0] : one[-1][1]] for one in spans if all(end - begin == 1 for begin, end in one)]

    def unknown(self, text: str) -> list[str]:
        """The pieces of a text that the vocabulary cannot write at all: they become [UNK]."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        pairs = zip(encoding.tokens, encoding.offsets, strict=True)
        return [text[begin:end] for token, (begin, end) in pairs if token == "[UNK]"]

    def __call__(self, caption: Caption) -> CaptionTokens:
        encoding = self.encode(caption.text)
        labels = tuple(_tokens_of(encoding, spans) for spans in caption.spans)
        return CaptionTokens(tuple(encoding.ids), labels)


def _tokens_of(encoding: Encoding, spans: Iterable[Span]) -> tuple[int, ...]:
    """Positions of all tokens from a span's first character to its last, [CLS] being 0; spans are united."""
    found: set[int] = set()
    for begin, end in spans:
        first = _first_token(encoding, range(begin, begin + _REACH))
        last = _first_token(encoding, range(end - 1, end - 1 - _REACH, -1))
        if first is not None and last is not None:
            found.update(range(first, last + 1))
    return tuple(sorted(found))


def _first_token(encoding: Encoding, characters: Iterable[int]) -> int | None:
    for character in characters:
        token = encoding.char_to_token(character) if character >= 0 else None
        if token is not None:
            return int(token)
    return None
