"""What there is to compute on."""

from __future__ import annotations


def describe_devices() -> list[tuple[str, str]]:
    """(name, description) of the CPU and of every GPU that torch can use."""
    import torch

    devices = [("device cpu", f"{torch.get_num_threads()} threads, torch {torch.__version__}")]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices.append((f"device cuda:{number}", f"{properties.name}, {properties.total_memory / 1024**3:.0f} GiB"))
    return devices
