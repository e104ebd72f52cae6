"""Configuration that nodes share: offered to the others, with cameras that are known by name."""

from __future__ import annotations

import logging
from pathlib import Path

from streamer.cluster.lease_store import LeaseStore, SharedConfig
from streamer.config import Config
from streamer.errors import ConfigError

log = logging.getLogger("groundstream")


def require_camera_names(config: Config) -> Config:
    """The configuration itself. Raises `ConfigError` where a camera has no name."""
    for position, stream in enumerate(config.streams):
        if stream.name is None:
            raise ConfigError(
                f"streams[{position}] has no name: nodes know the cameras that they share by name, give it one"
            )
    return config


def offer_config(store: LeaseStore, file: Path, text: str, config: Config) -> SharedConfig:
    """Offers the text of a file, which means `config`, to all nodes, and returns the newest configuration; a copy of an
    earlier revision is logged. Raises `LeaseError`."""
    newest = store.offer_config(text, [stream.name for stream in config.streams if stream.name is not None])
    if newest.is_old_copy:
        log.warning(
            "%s is a copy of an earlier revision of the configuration and is ignored: revision %d is in use; "
            "edit that, or change the file",
            *(file, newest.revision),
        )
    return newest
