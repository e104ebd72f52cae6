"""Prompt tuning: learned text features for a frozen network. GLIP, arXiv:2112.03857, section 4.3 (v2)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from detectors.detector import DetectorError, PromptError
from detectors.glip.caption import CaptionTokens
from detectors.glip.modeling.model import GlipModel
from detectors.glip.modeling.text import TextFeatures

ROWS = 1000  # as in the checkpoints; a caption uses up to 256 of them


class TextOffsets(nn.Module):
    """Row j is added to the text feature of position j of every caption, [CLS], [SEP] and padding included.

    Both the unmasked features and the masked ones move, after the masking, before the tower.
    """

    def __init__(self, width: int, rows: int = ROWS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, text: TextFeatures) -> TextFeatures:
        rows: Tensor = self.weight[: text.hidden.shape[1]]
        return TextFeatures(text.hidden + rows, text.embedded + rows, text.mask)


def add_offsets(model: GlipModel, rows: int = ROWS) -> TextOffsets:
    """Add zero offsets to the model and return them; everything else is frozen and in evaluation mode."""
    model.eval().requires_grad_(False)
    offsets = TextOffsets(model.config.text.hidden_size, rows).to(model.rpn.head.bias0.device)
    model.rpn.tunable_linear = offsets
    return offsets


@dataclass(frozen=True, eq=False)
class TunedPrompt:
    """The features of one caption after tuning, so that the text encoder is not needed for it any more."""

    queries: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]  # token positions of each query
    text: TextFeatures  # B = 1

    @classmethod
    @torch.no_grad()
    def of(cls, model: GlipModel, queries: Sequence[str], tokens: CaptionTokens) -> TunedPrompt:
        """Features of the caption `tokens` by `model`, offsets included; label i belongs to `queries[i]`."""
        ids = torch.tensor([tokens.ids], device=model.rpn.head.bias0.device)
        return cls(tuple(queries), tokens.labels, model.encode_text(ids, torch.ones_like(ids)))

    def save(self, path: Path) -> None:
        """One safetensors file; queries and positions are in its header."""
        tensors = {name: part.detach().cpu().contiguous() for name, part in self.text._asdict().items()}
        header = {"queries": json.dumps(self.queries), "labels": json.dumps(self.labels)}
        save_file(tensors, path, metadata=header)

    @classmethod
    def load(cls, path: Path) -> TunedPrompt:
        """Read a file written by `save`. Raises `DetectorError` for any other file."""
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                text = TextFeatures(*(file.get_tensor(name) for name in TextFeatures._fields))
            labels = tuple(tuple(positions) for positions in json.loads(header["labels"]))
            return cls(tuple(json.loads(header["queries"])), labels, text)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DetectorError(f"{path} is no file of tuned words: {error}") from error

    def select(self, queries: Sequence[str]) -> tuple[TextFeatures, list[tuple[int, ...]]]:
        """The features, and the positions for some of the queries. Raises `PromptError` for one not tuned for."""
        for query in queries:
            if query not in self.queries:
                raise PromptError(
                    f"the words were tuned for {', '.join(self.queries)}, not for {query!r}: "
                    "ask for these, or use the detector without `tuned`"
                )
        return self.text, [self.labels[self.queries.index(query)] for query in queries]
