"""Model files on this machine: where they lie and how they are fetched from the hub.

Everything is below one folder, $GROUNDSTREAM_CACHE or `groundstream` in the user's cache. A model is fetched once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from detectors.detector import DetectorError

TRANSFORMERS_FILES = ["*.json", "*.txt", "*.safetensors"]
BERT_REPOSITORY = "google-bert/bert-base-uncased"
BERT_VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


class DownloadError(DetectorError):
    """Files could not be fetched: no connection, no such repository, another content than expected."""


@dataclass(frozen=True)
class ReleasedModel:
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


def fetch_repository(model: ReleasedModel) -> Path:
    """All files that transformers needs of a repository, into the model's folder, which appears whole."""
    from huggingface_hub import snapshot_download

    work = cache_home() / "downloads" / model.name
    with _HubErrors(model.name):
        snapshot_download(
            model.repository, allow_patterns=TRANSFORMERS_FILES, local_dir=work, endpoint=os.environ.get("HF_ENDPOINT")
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
    with _HubErrors(model):
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _HubErrors:
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
