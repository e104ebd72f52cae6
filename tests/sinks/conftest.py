"""Coroutine tests of this folder run in asyncio."""

from __future__ import annotations

import pytest

import sinks.kafka.client  # noqa: F401  imports kafka-python, whose own import warns, as the sinks do


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
