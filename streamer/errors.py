"""What can go wrong, told in one sentence: what was found, what is allowed, what to do.

Errors about what the caller asked for are also `ValueError`s; the command line ends with 2 for them and with 1 for
the others.
"""

from __future__ import annotations


class StreamerError(Exception):
    """groundstream cannot do what it was asked to."""


class SourceError(StreamerError):
    """A source cannot be read: missing, damaged, unreachable, refused."""


class SourceAddressError(SourceError, ValueError):
    """A source's address cannot be understood."""


class ConfigError(StreamerError, ValueError):
    """A configuration or a command line cannot be used."""
