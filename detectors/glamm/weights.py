"""GLaMM's weights: strictly checked, from the hub's two folders or from one that was converted from them.

The hub's checkpoint lacks CLIP, whose weights come from CLIP's own folder. A converted folder holds everything under
the names of `GlammModel`: `config.json`, `model-*.safetensors`, `tokenizer.model`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from detectors.cache import model_folder
from detectors.checkpoints import load_checkpoint_file
from detectors.detector import DetectorError
from detectors.glamm.config import CLIP_NAME, RELEASED, GlammConfig
from detectors.glamm.keys import model_names
from detectors.glamm.model import GlammModel
from detectors.glamm.quantise import quantised

FORMAT = "groundstream-glamm-1"
_SHARD_BYTES = 4 << 30
_WORK_BYTES_FULL = 3 << 30  # SAM's global attention and the pyramid of one image at the released size
_LANGUAGE_LAYER = "llm.model.layers."


class WeightsError(DetectorError):
    """Weights are missing, damaged, or do not fit GLaMM."""


class UnknownCheckpoint(WeightsError, ValueError):
    """No checkpoint has that name."""


@dataclass(frozen=True)
class GlammFolder:
    """Where the parts of one GLaMM lie; `clip` is None for a converted folder."""

    glamm: Path
    clip: Path | None
    config: GlammConfig

    @property
    def tokenizer(self) -> Path:
        return self.glamm / "tokenizer.model"

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names of `GlammModel` with their tensors, in the order of the files."""
        if self.clip is None:
            yield from _read_tensors(self.glamm)
            return
        for folder in (self.glamm, self.clip):
            for official, tensor in _read_tensors(folder):
                for name in model_names(official):
                    yield name, tensor


def open_folder(folder: Path, clip: Path | None = None) -> GlammFolder:
    """Inspect a folder without loading weights. Raises `WeightsError` where something is missing."""
    table = _read_json(folder / "config.json")
    if table.get("format") == FORMAT:
        return GlammFolder(folder, None, GlammConfig.from_plain(table))
    if "mm_hidden_size" not in table and "mm_vision_tower" not in table:
        raise WeightsError(
            f"{folder} is not a GLaMM checkpoint: its config.json names no image encoder; "
            "give the folder of an MBZUAI/GLaMM-* repository, or one written by `python -m detectors.glamm.convert`"
        )
    if clip is None:
        raise WeightsError(
            f"{folder} holds no CLIP weights, as GLaMM is released without them: "
            f"give the folder of {CLIP_NAME} as well (--clip DIR)"
        )
    return GlammFolder(folder, clip, GlammConfig.from_hub(table, _read_json(clip / "config.json")))


def find(model: str, clip: Path | None = None) -> GlammFolder:
    """A released checkpoint by its name, fetched and converted once, or one in a folder by its path."""
    path = Path(model).expanduser()
    if path.is_dir():
        return open_folder(path, clip)
    if model not in RELEASED:
        raise UnknownCheckpoint(f"{model!r} is neither a folder nor one of {', '.join(RELEASED)}")
    converted = model_folder(model)
    if not converted.is_dir():
        convert(open_folder(_download_folder(RELEASED[model], model), _download_folder(CLIP_NAME, model)), converted)
    return open_folder(converted)


def _download_folder(repository: str, model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["config.json", "tokenizer.model", "*.safetensors", "pytorch_model*.bin"]
    try:
        # `load_checkpoint_file` makes nothing but tensors of the files that are pickles
        return Path(snapshot_download(repository, allow_patterns=wanted))  # nosec B615
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"{model} needs {repository}, which is neither cached nor to be had ({type(error).__name__}): connect to "
            "the hub, or give folders that hold it and CLIP (--model DIR --clip DIR)"
        ) from error


def load(
    folder: GlammFolder, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, bits: int | None = None
) -> GlammModel:
    """The model, ready to answer. `bits` 8 or 4 stores the language model's layers so.

    Raises `WeightsError` when a tensor is missing, unknown or of the wrong shape.
    """
    device = torch.device(device)
    with torch.device("meta"):
        model = GlammModel(folder.config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    seen = set()
    for name, tensor in folder.tensors():
        if name not in expected or name in seen:
            fault = "stands there twice" if name in seen else "is no part of GLaMM"
            raise WeightsError(f"{name!r} in {folder.glamm} {fault}: the checkpoint does not fit this configuration")
        if tensor.shape != expected[name]:
            raise WeightsError(
                f"{name!r} in {folder.glamm} has shape {tuple(tensor.shape)}, GLaMM of this configuration "
                f"{tuple(expected[name])}"
            )
        seen.add(name)
        _place_tensor(model, name, tensor.to(device, dtype), bits)
    if missing := sorted(expected.keys() - seen):
        raise WeightsError(f"{folder.glamm} lacks {len(missing)} tensors of GLaMM, the first is {missing[0]!r}")
    model.fill_buffers(device)
    return model.eval().requires_grad_(False)


def _place_tensor(model: GlammModel, name: str, tensor: Tensor, bits: int | None) -> None:
    path, _, leaf = name.rpartition(".")
    if bits and name.startswith(_LANGUAGE_LAYER) and tensor.ndim == 2:
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, quantised(tensor, bits))
    else:
        setattr(model.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))


def convert(folder: GlammFolder, out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write one folder with all that GLaMM needs. It appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_shards(folder, work, dtype)
        shutil.copyfile(folder.tokenizer, work / "tokenizer.model")
        (work / "config.json").write_text(json.dumps({"format": FORMAT, **asdict(folder.config)}, indent=1))
        work.chmod(0o755)
        os.replace(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _write_shards(folder: GlammFolder, work: Path, dtype: torch.dtype) -> None:
    shard: dict[str, Tensor] = {}
    count = size = 0
    for name, tensor in folder.tensors():
        shard[name] = tensor.to(dtype).contiguous().clone()
        size += shard[name].nbytes
        if size >= _SHARD_BYTES:
            save_file(shard, work / f"model-{count:05d}.safetensors")
            shard, size, count = {}, 0, count + 1
    if shard:
        save_file(shard, work / f"model-{count:05d}.safetensors")


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise WeightsError(f"{folder} holds no weights: neither *.safetensors nor pytorch_model*.bin")
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                        yield name, tensors.get_tensor(name)
            else:
                yield from load_checkpoint_file(file).items()
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WeightsError(f"cannot read the weights {file} ({reason}): download it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing: give a folder with a model in it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise WeightsError(f"{path} holds no table: download it again")
    return table


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that GLaMM takes on its device: `weights`, and `work` for one image at a time."""

    weights: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.work

    def __str__(self) -> str:
        return f"{self.total / 1e9:.1f} GB ({self.weights / 1e9:.1f} GB of weights)"


def memory(config: GlammConfig, dtype: torch.dtype, bits: int | None = None) -> MemoryNeed:
    """What a model of these sizes needs, without loading it."""
    with torch.device("meta"):
        model = GlammModel(config)
    weights = 0.0
    for name, parameter in model.named_parameters():
        packed = bits and name.startswith(_LANGUAGE_LAYER) and parameter.ndim == 2
        weights += parameter.numel() * (bits / 8 if packed and bits else dtype.itemsize)
    full = GlammConfig().sam.image_size
    return MemoryNeed(int(weights), int(_WORK_BYTES_FULL * (config.sam.image_size / full) ** 4))


def free_memory(device: torch.device | str) -> int:
    """Bytes free on a GPU, or available to a process on the CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_memory(needed: MemoryNeed, device: torch.device | str) -> None:
    """Raises `WeightsError` before loading what cannot fit."""
    free = free_memory(device)
    if needed.total > free:
        raise WeightsError(
            f"GLaMM needs {needed} on {device}, where {free / 1e9:.1f} GB are free: "
            "take another --device, compute in --dtype bfloat16, or store the language model in --bits 8 or 4"
        )
