"""Errors of the application: one sentence each with what failed, the value, what is expected and how to fix it.

Errors in what the caller asked for are also `ValueError`s: the command line ends with 2 for them, with 1 for others.
"""

from __future__ import annotations

from groundstream import GroundstreamError


class StreamerError(GroundstreamError):
    """groundstream cannot do what it was asked to."""


class SourceError(StreamerError):
    """A source cannot be read: missing, damaged, unreachable, refused."""


class SourceAddressError(SourceError, ValueError):
    """A source's address cannot be understood."""


class ConfigError(StreamerError, ValueError):
    """A configuration or a command line cannot be used."""
