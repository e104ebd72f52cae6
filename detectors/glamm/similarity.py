"""How alike two phrases are to BERT: the measure behind GLaMM's mask recall (arXiv:2311.03356, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from detectors.glamm.metrics import Matrix
from detectors.glamm.weights import WeightsError

DEFAULT_MODEL = "bert-base-uncased"


class TextSimilarity:
    """Cosine between means of a text model's last hidden states."""

    def __init__(self, model: transformers.BertModel, tokenizer: transformers.BertTokenizer) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, name: str = DEFAULT_MODEL) -> TextSimilarity:
        """A BERT by its name on the hub, or from a folder. Raises `WeightsError`."""
        try:
            # safetensors and texts run nothing
            model = transformers.BertModel.from_pretrained(  # nosec B615
                name, use_safetensors=True, add_pooling_layer=False
            )
            return cls(model, transformers.BertTokenizer.from_pretrained(name))  # nosec B615
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"mask recall compares phrases with {name!r}, which is neither in a folder nor cached nor to be had "
                "from the hub: connect to it, give a folder, or leave recall out (--text-model none)"
            ) from error

    @torch.inference_mode()
    def matrix(self, first: Sequence[str], second: Sequence[str]) -> Matrix:
        """Cosines of every pair: (len(first), len(second))."""
        if not first or not second:
            return np.zeros((len(first), len(second)))
        return (self._token_means(first) @ self._token_means(second).T).double().numpy()

    def _token_means(self, texts: Sequence[str]) -> Tensor:
        words = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        states = self._model(**words).last_hidden_state
        real = words["attention_mask"][..., None].to(states.dtype)
        return F.normalize((states * real).sum(1) / real.sum(1), dim=-1)
