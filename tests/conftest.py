"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The suite runs several processes beside one another. Two threads of torch that share a core with them wait for each
# other for seconds at every step, so each process, and every one that a test starts, has one. Torch reads this once,
# when it is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# On a busy machine an example may take any time; the time-out of the test bounds them all.
settings.register_profile("groundstream", deadline=None)
settings.load_profile("groundstream")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference material that stands beside a developer's checkout; tests that need it skip elsewhere."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference material (../shared), which is only beside a developer's checkout")
    return SHARED
