"""Addresses of lease stores."""

from __future__ import annotations

from pathlib import Path

from sinks.address import parse_address
from sinks.postgres import open_client
from sinks.sink import SinkError
from streamer.cluster.lease_store import (
    LEASE_TABLES,
    TIMEOUT_S,
    LeaseStore,
    PostgresLeaseStore,
    SqliteLeaseStore,
)
from streamer.errors import ConfigError


def open_lease_store(address: str) -> LeaseStore:
    """The store at `postgresql://USER:PASSWORD@HOST/DATABASE`, `sqlite:PATH` or `ray://HOST:PORT/GROUP`. A database is
    connected when it is first used, a cluster at once.

    Raises `ConfigError` for an address that cannot be used, `LeaseError` for a cluster that does not answer.
    """
    try:
        parts = parse_address(address)
        if parts.scheme == "sqlite":
            if not parts.path:
                raise ConfigError(f"the address of leases {parts.public} has no file: write sqlite:PATH")
            parts.options.finish()
            return SqliteLeaseStore(Path(parts.path))
        if parts.scheme == "postgresql":
            client = open_client(parts, table=LEASE_TABLES, timeout_s=TIMEOUT_S)
            parts.options.finish()
            return PostgresLeaseStore(client)
        if parts.scheme == "ray":
            if not parts.host or not parts.path:
                raise ConfigError(f"the address of leases {parts.public} is not complete: write ray://HOST:PORT/GROUP")
            parts.options.finish()
            from streamer.cluster.ray_leases import open_ray_store

            return open_ray_store(parts.hosts, parts.path)
    except SinkError as error:
        raise ConfigError(f"the address of leases cannot be used: {error}") from error
    raise ConfigError(
        f"the address of leases {parts.public} has the scheme {parts.scheme!r}: write postgresql://HOST/DATABASE, "
        "ray://HOST:PORT/GROUP, or sqlite:PATH for several processes of one machine"
    )
