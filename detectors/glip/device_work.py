"""Counters of what a computation asks of its device: launches, traffic and waits of the host.

They count operators as torch dispatches them, so they work without a GPU, on real tensors and on fake ones.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FREE = {"_unsafe_view", "_reshape_alias", "detach", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty"}
"""Operators without a view's schema that still launch nothing."""

_WAITS = {
    "_local_scalar_dense": "reads a value of the device",
    "lift_fresh": "makes a tensor from values of the host",
    "scalar_tensor": "makes a tensor from a value of the host",
    "nonzero": "asks how many values are true",
    "masked_select": "asks how many values are true",
    "equal": "reads a value of the device",
    "unique_dim": "asks how many values there are",
    "_unique2": "asks how many values there are",
}
"""Operators for which the host waits for a GPU, each with the reason."""


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
        if not _is_view(func) and name not in _FREE:
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
        if reason is not None:
            self.waits.append(f"{name} {reason}, in {_caller()}")
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
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
