"""Runtime options of GLIP: precision, compilation and the implementation of its deformable convolutions."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from detectors.detector import OptionError
from detectors.device import has_fast_bfloat16
from detectors.glip.modeling.deform import IMPLEMENTATIONS
from detectors.glip.modeling.dyhead import ConvAndNorm
from detectors.glip.modeling.model import GlipModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BACKENDS = ("eager", "compile")


@dataclass(frozen=True)
class ComputePrecision:
    """Precision of the network. In a half precision the sensitive parts (norms, sampling positions, attention's
    softmax, scores and boxes) stay in single precision."""

    dtype: torch.dtype
    device: torch.device

    def autocast(self) -> torch.autocast:
        """The context of the network's forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False)

    def lower(self, model: GlipModel) -> GlipModel:
        """Convert once the weights that the forward pass would convert for every picture."""
        if self.dtype != torch.float32:
            for module in (model.backbone, *model.rpn.head.dyhead_tower):
                for part in module.modules():
                    if isinstance(part, nn.Linear | nn.Conv2d):
                        part.to(self.dtype)
        return model


def choose_precision(name: str | None, device: torch.device) -> ComputePrecision:
    """The precision called `name`; by default float16 on a GPU, float32 on a CPU. Raises `OptionError`."""
    if name is None:
        return ComputePrecision(torch.float16 if device.type == "cuda" else torch.float32, device)
    if name not in DTYPES:
        raise OptionError(f"unknown precision {name!r}: use {', '.join(DTYPES)}")
    return ComputePrecision(DTYPES[name], device)


def fast_precision(device: torch.device) -> str:
    """The fastest precision whose drift is small: float16 on a GPU, bfloat16 on a CPU that computes it in hardware.

    GLIP was trained in float16 and bounds its scores for it; on the reference tensors it drifts a fifth to a tenth as
    far as bfloat16 (benchmarks/results/glip.md), which is what CPUs can do faster.
    """
    return "float16" if device.type == "cuda" else "bfloat16" if has_fast_bfloat16() else "float32"


def compile_model(model: GlipModel, backend: str | None) -> GlipModel:
    """`eager` (the default) as it stands, or `compile`: torch.compile, minutes at first for each size of picture."""
    if backend not in (None, *BACKENDS):
        raise OptionError(f"unknown backend {backend!r}: use {' or '.join(BACKENDS)}")
    if backend == "compile":
        # The cached constants are functions of sizes alone: tracing through their cache is harmless.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        model.backbone.compile(dynamic=False)
        model.rpn.head.compile(dynamic=False)
    return model


def use_deform(model: GlipModel, name: str | None) -> GlipModel:
    """Compute the deformable convolutions by one of `deform.IMPLEMENTATIONS`; by embedding bags when None."""
    if name is None:
        return model
    if name not in IMPLEMENTATIONS:
        raise OptionError(f"unknown deformable convolution {name!r}: use {', '.join(IMPLEMENTATIONS)}")
    package = {"torchvision": "torchvision", "triton": "triton"}.get(name)
    if package and find_spec(package) is None:
        raise OptionError(f"the deformable convolution {name!r} needs the package {package}, which is not installed")
    for module in model.modules():
        if isinstance(module, ConvAndNorm):
            module.implementation = IMPLEMENTATIONS[name]
    return model


def use_huge_pages() -> None:
    """Let torch ask for 2 MiB pages for large tensors, unless the environment has decided otherwise.

    A picture's features are tensors of tens of megabytes that come and go; in 4 KiB pages the kernel spends up to half
    the time of a layer on handing them out. torch reads this once, when it first allocates.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
