"""LLaMA's tokens and GLaMM's seven more, exactly as the checkpoints were trained.

That is what the slow tokenizer of transformers 4.28 did; later tokenizers give other ids for every GLaMM prompt, and
the model then answers poorly or without masks. So sentencepiece is called here directly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from detectors.detector import DetectorError
from detectors.glamm.config import ADDED_TOKENS, IMAGE_PLACEHOLDER, SpecialTokens

IMAGE_MARK = "<image>"
_CONTROL = {"<unk>": 0, "<s>": 1, "</s>": 2}


class LlamaTokenizer:
    def __init__(self, model_file: Path) -> None:
        """`model_file` is LLaMA's `tokenizer.model`. Raises `DetectorError` when it cannot be read."""
        try:
            import sentencepiece
        except ImportError:
            raise DetectorError(
                "GLaMM's words need sentencepiece, which is not installed: pip install 'groundstream[glamm]'"
            ) from None
        if not model_file.is_file():
            raise DetectorError(f"{model_file} is missing: GLaMM reads and writes with LLaMA's tokenizer.model")
        self._pieces: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.Load(str(model_file))
        except (OSError, RuntimeError) as error:
            raise DetectorError(f"{model_file} is no sentencepiece model: {error}") from error
        first = int(self._pieces.GetPieceSize())
        self.tokens = SpecialTokens.behind(first)
        self._added = {token: first + place for place, token in enumerate(ADDED_TOKENS)}
        self._texts = {number: token for token, number in {**_CONTROL, **self._added}.items()}
        marks = sorted([*self._added, *_CONTROL], key=len, reverse=True)
        self._marks = re.compile("(" + "|".join(map(re.escape, marks)) + ")")

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of a prompt, `<s>` first and the image's placeholder, -200, in place of `<image>`."""
        ids = [_CONTROL["<s>"]]
        for number, chunk in enumerate(prompt.split(IMAGE_MARK)):
            ids += [IMAGE_PLACEHOLDER] * (number > 0) + self.encode(chunk)
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text without `<s>`. White space beside an added token belongs to the token and is lost."""
        pieces = self._marks.split(text)  # text at even places, marks at odd ones
        ids: list[int] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                ids.append(self._added[piece] if piece in self._added else _CONTROL[piece])
                continue
            if place and pieces[place - 1] in self._added:
                piece = piece.lstrip()
            if place + 1 < len(pieces) and pieces[place + 1] in self._added:
                piece = piece.rstrip()
            if piece:
                ids += self._pieces.EncodeAsIds(piece)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; the image's placeholder is left out. Two spaces may stand where an added token ended."""
        return " ".join(self._special_runs([number for number in ids if number != IMAGE_PLACEHOLDER]))

    def _special_runs(self, ids: Sequence[int]) -> Iterator[str]:
        added = set(self._added.values())
        for is_added, run in groupby(ids, added.__contains__):
            if is_added:
                yield from (self._texts[number] for number in run)
            else:
                yield self._decode_run(list(run))

    def _decode_run(self, ids: Sequence[int]) -> str:
        text, buffer = "", list[int]()
        for place, number in enumerate(ids):
            if number not in _CONTROL.values():
                buffer.append(number)
                continue
            if place and ids[place - 1] not in _CONTROL.values():
                text += " "  # before the words that it follows, not after them: kept from the original
            text += self._join_pieces(buffer) + self._texts[number]
            buffer = []
        return text + self._join_pieces(buffer)

    def _join_pieces(self, ids: list[int]) -> str:
        return str(self._pieces.DecodeIds(ids))
