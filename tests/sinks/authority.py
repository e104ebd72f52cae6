"""A certificate authority for tests: certificates for any host, also expired, and encrypted keys."""

from __future__ import annotations

import datetime
import itertools
import ssl
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization


class Authority:
    """Issues certificates into a folder; `certificate` is the path of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        self._numbers = itertools.count()
        self.certificate = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.certificate)

    def issue(self, host: str, *, expired: bool = False) -> tuple[Path, Path]:
        """The paths of a certificate with its chain and of its key."""
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=-1 if expired else 30)
        issued = self._authority.issue_cert(host, not_after=end)
        number = next(self._numbers)
        certificate, key = self._folder / f"{number}.pem", self._folder / f"{number}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    def lock(self, key: Path, password: str) -> Path:
        """A copy of a key that is encrypted with the password."""
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        locked = key.with_suffix(".locked")
        locked.write_bytes(
            loaded.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password.encode()),
            )
        )
        return locked

    def server_context(
        self, *, host: str = "127.0.0.1", expired: bool = False, wants_client: bool = False, old: bool = False
    ) -> ssl.SSLContext:
        """A server's context; `old` speaks TLS 1.2 at most."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(host, expired=expired))
        if wants_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.certificate)
        if old:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context
