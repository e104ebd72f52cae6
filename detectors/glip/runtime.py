"""Runtime options of GLIP: precision, compilation and the implementation of its deformable convolutions."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from detectors.detector import OptionError
from detectors.device import has_fast_bfloat16
from detectors.glip.modeling.deform import IMPLEMENTATIONS
from detectors.glip.modeling.deform_grid import Kernel, join_grids, make_grid
from detectors.glip.modeling.dyhead import DyConv
from detectors.glip.modeling.model import GlipModel

log = logging.getLogger(__name__)

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


def use_deform(
    model: GlipModel, name: str | None, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> GlipModel:
    """Compute the deformable convolutions by one of `deform.IMPLEMENTATIONS`; by `choose_deform`'s when None."""
    if name is None:
        name = choose_deform(device or torch.device("cpu"), dtype)
    if name not in IMPLEMENTATIONS:
        raise OptionError(f"unknown deformable convolution {name!r}: use {', '.join(IMPLEMENTATIONS)}")
    package = {"torchvision": "torchvision", "triton": "triton"}.get(name)
    if package and find_spec(package) is None:
        raise OptionError(f"the deformable convolution {name!r} needs the package {package}, which is not installed")
    for module in model.modules():
        if isinstance(module, DyConv):
            module.implementation = IMPLEMENTATIONS[name]
    return model


def choose_deform(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest deformable convolution that works on a device: `triton` on a GPU where it passes a self-test, else
    `embedding-bag`. A fallback on a GPU is reported with its reason."""
    if device.type != "cuda":
        return "embedding-bag"
    reason = "the package triton is not installed"
    if find_spec("triton") is not None:
        reason = find_deform_fault("triton", device, dtype)
    if not reason:
        return "triton"
    log.warning("deformable convolutions on %s go by embedding bags, which is slower: %s", device, reason)
    return "embedding-bag"


def find_deform_fault(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with an implementation on a device, compared with embedding bags on random maps; "" for nothing."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, spread: float = 1.0) -> torch.Tensor:
        return (spread * torch.randn(*shape, generator=generator)).to(device)

    shapes, channels = ((12, 20), (6, 10)), 64
    grids = [make_grid(shapes, [0, 1], shapes, 1, device), make_grid(shapes, [0], shapes[1:], 2, device)]
    grid = join_grids(grids, batch=2)
    kernels = [Kernel(random(channels, 9 * channels, spread=0.05), random(channels)) for _ in grids]
    offsets, mask = random(sum(grid.counts), 18, spread=3), random(sum(grid.counts), 9).sigmoid()
    regions = random(2, 300, channels)
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            mine, want = (
                torch.cat([part.float() for part in IMPLEMENTATIONS[way](regions, grid, offsets, mask, kernels)])
                for way in (name, "embedding-bag")
            )
            worst = float((mine - want).abs().max())
    except Exception as error:  # compilers and drivers fail in many ways, and none may stop the detector
        return f"{name} failed in its self-test ({type(error).__name__}: {_first_line(error)})"
    limit = 1e-3 if dtype == torch.float32 else 0.05
    return "" if worst <= limit else f"{name} failed in its self-test (it is off by {worst:.3g})"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def use_huge_pages() -> None:
    """Let torch ask for 2 MiB pages for large tensors, unless the environment has decided otherwise.

    A picture's features are tensors of tens of megabytes that come and go; in 4 KiB pages the kernel spends up to half
    the time of a layer on handing them out. torch reads this once, when it first allocates.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
