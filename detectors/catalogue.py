"""Catalogue of released models: names, repositories, files, what they know, and how each is fetched and converted.

Weights released as a pickle are read with `weights_only`, checked against the network and kept as safetensors.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from detectors.cache import (
    BERT_REPOSITORY,
    BERT_VOCABULARY_SHA256,
    ReleasedModel,
    cache_home,
    fetch_file,
    fetch_package_file,
    fetch_repository,
    model_folder,
)
from detectors.detector import DetectorError

# The released names of transformers' own models and their repositories on the Hugging Face hub.
ZERO_SHOT = {
    "grounding-dino-tiny": "IDEA-Research/grounding-dino-tiny",
    "grounding-dino-base": "IDEA-Research/grounding-dino-base",
    "mm-grounding-dino-tiny": "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
    "mm-grounding-dino-base": "openmmlab-community/mm_grounding_dino_base_all",
    "mm-grounding-dino-large": "openmmlab-community/mm_grounding_dino_large_all",
    "llmdet-tiny": "iSEE-Laboratory/llmdet_tiny",
    "llmdet-base": "iSEE-Laboratory/llmdet_base",
    "llmdet-large": "iSEE-Laboratory/llmdet_large",
    "owlv2-base": "google/owlv2-base-patch16-ensemble",
    "owlv2-large": "google/owlv2-large-patch14-ensemble",
}


CLOSED = {
    "rf-detr-nano": "Roboflow/rf-detr-nano",
    "rf-detr-base": "Roboflow/rf-detr-base",
    "d-fine-nano": "ustc-community/dfine-nano-coco",
    "d-fine-small": "ustc-community/dfine-small-coco",
    "d-fine-medium": "ustc-community/dfine-medium-coco",
    "d-fine-xlarge": "ustc-community/dfine-xlarge-coco",
    "d-fine-xlarge-objects365": "ustc-community/dfine-xlarge-obj365",
    "rt-detr-v2-r18": "PekingU/rtdetr_v2_r18vd",
    "rt-detr-v2-r50": "PekingU/rtdetr_v2_r50vd",
}
"""Detectors of a closed vocabulary: COCO's 80 names, or the 365 of Objects365."""
OMDET = {"omdet-turbo-tiny": "omlab/omdet-turbo-swin-tiny-hf"}
SAM3 = {"sam3": "facebook/sam3"}


_SIZES = {
    "rt-detr-v2-r18": 80_900_000,
    "grounding-dino-tiny": 689_000_000,
    "mm-grounding-dino-tiny": 692_000_000,
    "llmdet-tiny": 692_000_000,
    "owlv2-base": 620_000_000,
}
"""Bytes of the weights where they are known; LLMDet's network is that of MM Grounding DINO."""
_GLAMM_PURPOSE = "masks and descriptions of pictures"


class UnknownModel(DetectorError, ValueError):
    """No model has that name."""


def catalogue() -> list[ReleasedModel]:
    """Every released model that `pull` can fetch."""
    from detectors.glamm.config import RELEASED
    from detectors.glip.convert import KNOWN
    from detectors.glip.model_files import MINI, PACKAGED
    from detectors.nanodet import weights as nano

    return [
        ReleasedModel(
            nano.NAME,
            "NanoDet",
            f"npm:{nano.PACKAGE}@{nano.VERSION}",
            model_folder(nano.NAME),
            nano.MEMBER,
            nano.SIZE,
            nano.SHA256,
            "80 names of COCO",
            "Apache-2.0",
            "people and vehicles on a CPU",
        ),
        ReleasedModel(
            MINI,
            "GLIP",
            "part of this package",
            PACKAGED,
            vocabulary="the synthetic street only",
            licence="that of this package",
            purpose="demonstration and tests",
        ),
        *(
            ReleasedModel(
                name,
                "GLIP",
                file.repository,
                model_folder(name),
                file.filename,
                file.size,
                file.sha256,
                licence="MIT",
                purpose="queries in free words",
            )
            for name, file in KNOWN.items()
        ),
        *(
            ReleasedModel(
                name, "GLaMM", hub, model_folder(name), vocabulary="phrases, questions", purpose=_GLAMM_PURPOSE
            )
            for name, hub in RELEASED.items()
        ),
        *(
            ReleasedModel(
                name,
                _kind(name),
                hub,
                model_folder(name),
                size=_SIZES.get(name),
                licence="Apache-2.0",
                purpose="queries in free words",
            )
            for name, hub in {**ZERO_SHOT, **OMDET}.items()
        ),
        *(
            ReleasedModel(
                name,
                _kind(name),
                hub,
                model_folder(name),
                size=_SIZES.get(name),
                vocabulary="365 names of Objects365" if name.endswith("objects365") else "80 names of COCO",
                licence="Apache-2.0",
                purpose="everyday names, exact and fast",
            )
            for name, hub in CLOSED.items()
        ),
        *(
            ReleasedModel(
                name,
                "SAM 3",
                hub,
                model_folder(name),
                licence="SAM License of Meta, gated: accept it on the hub and set HF_TOKEN",
                purpose="boxes and masks for short phrases",
            )
            for name, hub in SAM3.items()
        ),
    ]


def find_model(name: str) -> ReleasedModel:
    """Raises `UnknownModel` with the nearest names."""
    known = {model.name: model for model in catalogue()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UnknownModel(f"no model is called {name!r}: {hint}known are {', '.join(known)}")


def pull(name: str) -> Path:
    """Fetch a released model, once; returns its folder.

    What was begun before is taken up again. Raises `DownloadError` with the ways out when the hub cannot be reached.
    """
    model = find_model(name)
    if model.is_here:
        return model.folder
    if model.kind == "NanoDet":
        return _pull_nano(model)
    if model.kind == "GLIP":
        return _pull_glip(model)
    if model.kind == "GLaMM":
        from detectors.glamm.weights import find

        return find(name).glamm
    return fetch_repository(model)


def convert_glip(name: str, checkpoint: Path, vocabulary: Path, folder: Path) -> Path:
    """A checkpoint of the released GLIP `name` as a model folder. Raises `DetectorError` when it does not fit."""
    from detectors.glip.config import CONFIGS
    from detectors.glip.convert import build_released, fill_model, load_checkpoint
    from detectors.glip.model_files import write_folder

    tensors = load_checkpoint(checkpoint)
    fill_model(build_released(name), tensors, str(checkpoint))
    write_folder(folder, CONFIGS[name], tensors, vocabulary)
    return folder


def _pull_glip(model: ReleasedModel) -> Path:
    assert model.filename is not None
    vocabulary = fetch_file(model.name, BERT_REPOSITORY, "vocab.txt", BERT_VOCABULARY_SHA256)
    checkpoint = fetch_file(model.name, model.repository, model.filename, model.sha256)
    folder = convert_glip(model.name, checkpoint, vocabulary, model.folder)
    if checkpoint.is_relative_to(cache_home()):  # gigabytes of an optimiser's state; a shared cache keeps its own
        checkpoint.unlink()
    return folder


def _pull_nano(model: ReleasedModel) -> Path:
    from detectors.nanodet import weights as nano

    package = f"{nano.PACKAGE}@{nano.VERSION}"
    published = fetch_package_file(model.name, package, nano.MEMBER, nano.SHA256, nano.SIZE)
    folder = nano.write_folder(model.folder, published)
    published.unlink()
    return folder


_KINDS = {
    "llmdet-": "LLMDet",
    "owlv2-": "OWLv2",
    "mm-": "MM Grounding DINO",
    "grounding-": "Grounding DINO",
    "omdet-": "OmDet-Turbo",
    "rf-detr-": "RF-DETR",
    "d-fine-": "D-FINE",
    "rt-detr-v2-": "RT-DETRv2",
}


def _kind(name: str) -> str:
    return next(kind for prefix, kind in _KINDS.items() if name.startswith(prefix))
