"""The public door: what `import groundstream` offers, and what it does without."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import groundstream

ROOT = Path(__file__).resolve().parents[1]


def run_python(*arguments: str, cwd: Path | None = None, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (path, ROOT) if path else (ROOT,)))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def test_every_exported_name_exists_and_is_listed() -> None:
    assert groundstream.__all__ == sorted(groundstream.__all__, key=lambda name: (not name[0].isupper(), name))
    assert dir(groundstream) == sorted(groundstream.__all__)
    for name in groundstream.__all__:
        assert getattr(groundstream, name) is not None


def test_types_and_lazy_names_agree() -> None:
    """What type checkers see under TYPE_CHECKING is what loads on first use."""
    tree = ast.parse((ROOT / "groundstream.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {(place, name) for name, place in groundstream._PLACE_OF.items()}


@pytest.mark.parametrize("name", ["DetectorError", "SinkError", "StreamerError", "TrackerError", "SourceError"])
def test_every_family_of_errors_has_one_base(name: str) -> None:
    assert issubclass(getattr(groundstream, name), groundstream.GroundstreamError)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'wach'"):
        groundstream.wach  # noqa: B018


@pytest.mark.parametrize("module", ["groundstream", "streamer"])
def test_the_package_runs_as_the_command(module: str) -> None:
    done = run_python("-m", module, "--version")
    assert (done.returncode, done.stdout) == (0, f"groundstream {groundstream.__version__}\n")


@pytest.mark.parametrize("package", ["trackers", "sinks", "detectors", "streamer"])
def test_a_package_of_another_project_is_named_in_one_sentence(package: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text('"""A package of that name from another project."""\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_python("-m", "groundstream", "doctor", cwd=elsewhere, path=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"the package {package!r} at {tmp_path / package}" in done.stderr
    assert "pip install --force-reinstall" in done.stderr


def test_our_own_packages_are_recognised() -> None:
    assert groundstream.foreign_package() is None
