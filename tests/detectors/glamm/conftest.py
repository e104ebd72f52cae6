from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _tiny() -> ModuleType:
    """The module beside this file, whatever way pytest imports tests."""
    spec = importlib.util.spec_from_file_location("tiny_glamm", Path(__file__).with_name("tiny.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_glamm"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    return _tiny()


@pytest.fixture(scope="session")
def hub(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `glamm` and `clip` of a tiny GLaMM that describes every image as a cat."""
    folder = tmp_path_factory.mktemp("hub")
    return tiny.save_hub(tiny.random_glamm(), folder, answer="<p> cat </p> [SEG]")
