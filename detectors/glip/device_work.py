"""Counters of what a computation asks of its device: launches, traffic and waits of the host.

They count operators as torch dispatches them, so they work without a GPU, on real tensors and on fake ones.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detectors.glip.config import GlipConfig
from detectors.glip.modeling.dyhead import DyConv, plan_stage
from detectors.glip.modeling.fpn import Fpn
from detectors.glip.modeling.fusion import Fusion
from detectors.glip.modeling.model import GlipModel
from detectors.glip.modeling.swin import Swin, shift_mask
from detectors.glip.modeling.text import TextFeatures, TextLayer
from detectors.glip.runtime import ComputePrecision

STAGES: dict[type[nn.Module], str] = {
    Swin: "picture encoder",
    Fpn: "feature pyramid",
    Fusion: "fusion",
    TextLayer: "text layers",
    DyConv: "dynamic head",
}

_FREE = {"_unsafe_view", "_reshape_alias", "detach", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty"}
"""Operators without a view's schema that still launch nothing."""

_WAITS = {
    "_local_scalar_dense": "reads a value of the device",
    "item": "reads a value of the device",
    "is_nonzero": "reads a value of the device",
    "allclose": "reads a value of the device",
    "lift_fresh": "makes a tensor from values of the host",
    "scalar_tensor": "makes a tensor from a value of the host",
    "argwhere": "asks how many values are true",
    "nonzero": "asks how many values are true",
    "masked_select": "asks how many values are true",
    "equal": "reads a value of the device",
    "unique_dim": "asks how many values there are",
    "_unique2": "asks how many values there are",
}
"""Operators for which the host waits for a GPU, each with the reason. In inference mode composite operators are seen
whole."""


def _is_view(operator: Any) -> bool:
    aliases = [returned.alias_info for returned in operator._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _caller() -> str:
    """File, line and function of the innermost frame outside torch and this module."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
    return "torch"


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts launches and bytes of traffic by operator; views and allocations are free."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not _is_view(func) and name not in _FREE:
            self.launches[name] += 1
            touched = tree_leaves((args, kwargs or {}, result))
            self.bytes[name] += sum(part.numel() * part.element_size() for part in touched if isinstance(part, Tensor))
        return result


class WaitFinder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects, in `waits`, the operators for which the host would wait for a GPU, each with the reason."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        reason = _WAITS.get(name)
        if name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            reason = "asks how many values are true"
        if name == "where" and "Scalar" in func._overloadname:
            reason = "makes a tensor from a value of the host"
        if reason is not None:
            self.waits.append(f"{name} {reason}, in {_caller()}")
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_", "to"):
            places = {part.device for part in tree_leaves((args, result)) if isinstance(part, Tensor)}
            if len(places) > 1:
                self.waits.append(f"{name} copies between {' and '.join(sorted(map(str, places)))}, in {_caller()}")
        return result


@contextmanager
def count_stages(stages: dict[type[nn.Module], str], model: nn.Module, counter: WorkCounter) -> Iterator[Counter[str]]:
    """The launches of each stage of a model, by the stage's name, filled while the context is open."""
    found: Counter[str] = Counter()
    started: list[int] = []

    def begin(_module: nn.Module, _inputs: object) -> None:
        started.append(counter.launches.total())

    def end(module: nn.Module, _inputs: object, _outputs: object) -> None:
        found[stages[type(module)]] += counter.launches.total() - started.pop()

    hooks = []
    for module in model.modules():
        if type(module) in stages:
            hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class ForwardWork:
    """Work of one forward pass: launches by stage (and `all`) and traffic in bytes, views left out."""

    launches: dict[str, int]
    bytes: int
    by_operator: Counter[str]


def _drop_data(model: GlipModel) -> None:
    """Replace weights by fake ones, in a fake mode."""
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(value, device="cpu"), requires_grad=False))
        for name, constant in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(constant, device="cpu"))


def count_forward(
    config: GlipConfig, *, width: int = 960, height: int = 544, batch: int = 1, tokens: int = 28
) -> ForwardWork:
    """Work of a model's forward pass in half precision, counted on tensors without data.

    Sizes are in pixels, multiples of 32. Products take the way that they take on a GPU.
    """
    caches = plan_stage, shift_mask
    threads = torch.get_num_threads()
    for cache in caches:
        cache.cache_clear()
    torch.set_num_threads(1)  # products of matrices then stay what they are (`modeling.linear`)
    with torch.device("meta"):
        model = ComputePrecision(torch.bfloat16, torch.device("cpu")).lower(GlipModel(config).eval())
    try:
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        ):
            _drop_data(model)
            hidden = torch.empty(batch, tokens, config.text.hidden_size)
            text = TextFeatures(hidden, hidden, torch.ones(batch, tokens, dtype=torch.int64))
            images = torch.empty(batch, 3, height, width).contiguous(memory_format=torch.channels_last)
            model(images, text)  # constants are made now
            with WorkCounter() as counter, count_stages(STAGES, model, counter) as launches:
                model(images, text)
    finally:
        torch.set_num_threads(threads)
        for cache in caches:
            cache.cache_clear()
    return ForwardWork({**launches, "all": counter.launches.total()}, counter.bytes.total(), counter.launches)
