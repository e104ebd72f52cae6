"""Weights on this machine: which models are known, where their files lie, how they come from the hub.

Everything stands below one folder, $GROUNDSTREAM_CACHE or groundstream in the user's cache. A model is fetched once;
weights that were released as a pickle are read with `weights_only`, checked against the network and kept as
safetensors from then on.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from detectors.detector import DetectorError

# The released names of transformers' own models and their repositories on the Hugging Face hub.
ZERO_SHOT = {
    "grounding-dino-tiny": "IDEA-Research/grounding-dino-tiny",
    "grounding-dino-base": "IDEA-Research/grounding-dino-base",
    "mm-grounding-dino-tiny": "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
    "mm-grounding-dino-base": "openmmlab-community/mm_grounding_dino_base_all",
    "mm-grounding-dino-large": "openmmlab-community/mm_grounding_dino_large_all",
    "owlv2-base": "google/owlv2-base-patch16-ensemble",
    "owlv2-large": "google/owlv2-large-patch14-ensemble",
}
_ZERO_SHOT_FILES = ["*.json", "*.txt", "*.safetensors"]
BERT_REPOSITORY = "google-bert/bert-base-uncased"
BERT_VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


class DownloadError(DetectorError):
    """Files could not be fetched: no connection, no such repository, another content than expected."""


class UnknownModel(DetectorError, ValueError):
    """No model has that name."""


@dataclass(frozen=True)
class Model:
    """A released model. `folder` is where it lies once it is here, `size` and `sha256` those of the released file."""

    name: str
    kind: str
    repository: str
    folder: Path
    filename: str | None = None
    size: int | None = None
    sha256: str | None = None

    @property
    def is_here(self) -> bool:
        return any(self.folder.glob("*.safetensors"))

    @property
    def bytes_here(self) -> int:
        return sum(file.stat().st_size for file in self.folder.glob("*") if file.is_file()) if self.is_here else 0


def cache_home() -> Path:
    """$GROUNDSTREAM_CACHE, or groundstream in the user's cache."""
    chosen = os.environ.get("GROUNDSTREAM_CACHE")
    return (
        Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "groundstream"
    )


def model_folder(name: str) -> Path:
    """Where the files of a fetched model lie."""
    return cache_home() / "models" / name


def catalogue() -> list[Model]:
    """Every released model that `pull` can fetch."""
    from detectors.glamm.config import RELEASED
    from detectors.glip.convert import KNOWN

    return [
        *(
            Model(name, "GLIP", file.repository, model_folder(name), file.filename, file.size, file.sha256)
            for name, file in KNOWN.items()
        ),
        *(Model(name, "GLaMM", hub, model_folder(name)) for name, hub in RELEASED.items()),
        *(Model(name, _kind(name), hub, model_folder(name)) for name, hub in ZERO_SHOT.items()),
    ]


def find_model(name: str) -> Model:
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
    if model.kind == "GLIP":
        return _pull_glip(model)
    if model.kind == "GLaMM":
        from detectors.glamm.weights import find

        return find(name).glamm
    return fetch_repository(model)


def convert_glip(name: str, checkpoint: Path, vocabulary: Path, folder: Path) -> Path:
    """A checkpoint of the released GLIP `name` as a model folder. Raises `DetectorError` when it does not fit."""
    from detectors.glip.config import CONFIGS
    from detectors.glip.convert import build, fill, load_checkpoint
    from detectors.glip.source import write_folder

    tensors = load_checkpoint(checkpoint)
    fill(build(name), tensors, str(checkpoint))
    write_folder(folder, CONFIGS[name], tensors, vocabulary)
    return folder


def fetch_repository(model: Model) -> Path:
    """All files that transformers needs of a repository, into the model's folder, which appears whole."""
    from huggingface_hub import snapshot_download

    work = cache_home() / "downloads" / model.name
    with _Told(model.name):
        snapshot_download(
            model.repository, allow_patterns=_ZERO_SHOT_FILES, local_dir=work, endpoint=os.environ.get("HF_ENDPOINT")
        )
    if not any(work.glob("*.safetensors")):
        raise DownloadError(f"{model.repository} holds no *.safetensors: fetch another release, or give --weights DIR")
    shutil.rmtree(work / ".cache", ignore_errors=True)
    model.folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(model.folder, ignore_errors=True)
    os.replace(work, model.folder)
    return model.folder


def fetch_file(model: str, repository: str, filename: str, sha256: str | None = None) -> Path:
    """One file of a repository, below the cache's downloads; checked where its sha256 is known.

    A file with another content is deleted, so that the next try begins anew.
    """
    from huggingface_hub import hf_hub_download

    work = cache_home() / "downloads" / repository.replace("/", "--")
    with _Told(model):
        path = Path(hf_hub_download(repository, filename, local_dir=work, endpoint=os.environ.get("HF_ENDPOINT")))
    if sha256 is not None and (found := _sha256(path)) != sha256:
        path.unlink()
        raise DownloadError(
            f"{filename} from {repository} has the sha256 {found}, expected is {sha256}: it was damaged on the way or "
            "changed at its source, and is deleted; try again"
        )
    return path


def missing(model: str) -> str:
    """The sentence for a model whose weights are not here."""
    return (
        f"the weights of {model} are not on this machine. Fetch them with `groundstream models pull {model}`, "
        f"give them with --weights, or {_without_download()}"
    )


def _without_download() -> str:
    """What can be used at once: the small model, where this version carries its weights."""
    packaged = Path(__file__).parent / "glip" / "mini" / "weights.safetensors"
    if packaged.is_file():
        return "use the small model that comes along with --detector glip-mini"
    return "look for 'anything that moves', which needs none, with --detector motion"


def _pull_glip(model: Model) -> Path:
    assert model.filename is not None
    vocabulary = fetch_file(model.name, BERT_REPOSITORY, "vocab.txt", BERT_VOCABULARY_SHA256)
    checkpoint = fetch_file(model.name, model.repository, model.filename, model.sha256)
    folder = convert_glip(model.name, checkpoint, vocabulary, model.folder)
    checkpoint.unlink()  # gigabytes of an optimiser's state that nobody needs
    return folder


def _kind(name: str) -> str:
    if name.startswith("owlv2-"):
        return "OWLv2"
    return "MM Grounding DINO" if name.startswith("mm-") else "Grounding DINO"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Told:
    """Turns what goes wrong between here and the hub into one sentence; no progress bar where nobody watches."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __enter__(self) -> None:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        # The hub's library has changed its HTTP library before: its own errors tell which one it is now.
        no_answer = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            reason = f"the hub answered {error.response.status_code}"
        elif isinstance(error, (LocalEntryNotFoundError, no_answer)):
            reason = "the hub cannot be reached"
        elif isinstance(error, OSError):
            reason = error.strerror or str(error).splitlines()[0]
        else:
            return
        raise DownloadError(
            f"{self._model} could not be fetched ({reason}). Try `groundstream models pull {self._model}` again when "
            f"there is a connection, give its files with --weights, or {_without_download()}"
        ) from error
