"""What every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference material that stands beside a developer's checkout; tests that need it skip elsewhere."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference material (../shared), which is only beside a developer's checkout")
    return SHARED
