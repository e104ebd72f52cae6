"""Compute devices: the one choice of a device by name, and their description."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detectors.detector import OptionError

if TYPE_CHECKING:
    import torch


def choose_device(name: str | None = None) -> torch.device:
    """The device called `name`; None or `auto`: the first GPU, else the CPU.

    Raises `OptionError` for a device that does not exist here.
    """
    import torch

    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise OptionError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:1")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise OptionError(f"device {name!r} is not available: torch sees {count} GPUs here; use cpu or auto")
    return device


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in hardware (AMX or AVX-512 BF16)."""
    import torch

    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def describe_devices() -> list[tuple[str, str]]:
    """(name, description) of the CPU and of every GPU that torch can use."""
    import torch

    devices = [("device cpu", f"{torch.get_num_threads()} threads, torch {torch.__version__}")]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices.append((f"device cuda:{number}", f"{properties.name}, {properties.total_memory / 1024**3:.0f} GiB"))
    return devices
