"""Checkpoints as people keep them: what lies beside the weights neither runs nor keeps them from being read."""

from __future__ import annotations

import argparse
import collections
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detectors.checkpoints import load_checkpoint_file

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4).half(), "c": torch.ones(2, dtype=torch.bfloat16)}


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        np.float64(3.5),
        np.arange(3),
        argparse.Namespace(lr=1),
        collections.defaultdict(list, a=[1]),
        collections.Counter("abca"),
        Path("somewhere"),
        {1, 2},
        torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0),
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_are_read_whatever_lies_beside_them(tmp_path: Path, beside: Any, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": WEIGHTS, "beside": beside}, path, _use_new_zipfile_serialization=zipped)
    found = load_checkpoint_file(path)["model"]
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_checkpoint_runs(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": WEIGHTS, "beside": Harmful(tmp_path / "made")}, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load_checkpoint_file(path)["model"]["a"], WEIGHTS["a"])
    assert not (tmp_path / "made").exists()
