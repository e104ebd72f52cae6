"""Reader of PyTorch checkpoints that builds tensors and nothing else.

A checkpoint is a pickle: it names functions that are called while it is read. Here only those that make tensors are;
anything else, such as numpy scalars, `argparse.Namespace` or paths beside the weights, becomes an inert placeholder. So
no code of the file runs, and what lies beside the weights does not keep them from being read.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

_HARMLESS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.serialization", "_get_layout"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "TypedStorage"),
}
_STORAGES = {
    f"{kind}Storage"
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "Untyped")
}


class Placeholder:
    """Stands for an object of a checkpoint that is not a tensor; takes whatever a pickle does to it."""

    def __new__(cls, *_: Any, **__: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        return self

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def add(self, _: Any) -> None:
        pass


class TensorUnpickler(pickle.Unpickler):
    """An unpickler whose only classes and functions are those that tensors are made of."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function where it is harmless, else `Placeholder`."""
        known = (module, name) in _HARMLESS
        if known or (module in ("torch", "torch.cuda") and name in _STORAGES):
            return super().find_class("torch" if module == "torch.cuda" else module, name)
        return Placeholder


def _load(file: Any, **options: Any) -> Any:
    return TensorUnpickler(file, **options).load()


_PICKLE = SimpleNamespace(
    __name__="detectors.checkpoints", Unpickler=TensorUnpickler, load=_load, UnpicklingError=pickle.UnpicklingError
)


def load_checkpoint_file(path: Path) -> Any:
    """The content of a checkpoint, zipped or in the legacy format, with placeholders for all that is not a tensor.

    Tensors of a zipped file are mapped into memory, not copied. Raises what torch raises for a damaged file, and
    `pickle.UnpicklingError` for one that asks for more memory than there is.
    """
    zipped = zipfile.is_zipfile(path)
    try:
        return torch.load(  # `_PICKLE` makes nothing but tensors  # nosec B614
            path, map_location="cpu", weights_only=False, pickle_module=_PICKLE, mmap=True if zipped else None
        )
    except MemoryError as error:
        raise pickle.UnpicklingError("it asks for more memory than there is") from error
