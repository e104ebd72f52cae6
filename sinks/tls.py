"""TLS options with one meaning for every sink, source and registry, and the causes of TLS failures in sentences."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from sinks.address import AddressOptions

TLS_OPTIONS = ("cafile", "certfile", "keyfile", "key_password", "insecure")

_ALERT_WAIT_S = 1.0
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE",
                     "UNKNOWN_PROTOCOL", "BAD_PACKET_LENGTH"})  # fmt: skip
_EXPIRED, _NOT_YET_VALID = 10, 9
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
_WRONG_HOST = frozenset({62, 64})


class TidySocket(ssl.SSLSocket):
    """A socket that is closed where its handshake fails, and where a library lets go of it amid one."""

    def __del__(self) -> None:
        self.close()

    def do_handshake(self, block: bool = False) -> None:
        """As of `ssl.SSLSocket`."""
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self.close()
            raise


class _TidyContext(ssl.SSLContext):
    sslsocket_class = TidySocket


class TlsOptionsError(ValueError):
    """The TLS options cannot be used: which one, why, and what to give, in one sentence without secrets."""


@dataclass(frozen=True)
class TlsOptions:
    """How a peer proves who it is, and how this client does.

    `cafile`: PEM certificates of the authorities to trust, instead of those of the system. `certfile` and `keyfile`:
    this client's certificate (with its chain) and private key in PEM form; without `keyfile`, `certfile` holds both.
    `key_password` opens an encrypted key. `insecure` trusts every certificate.
    """

    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    key_password: str | None = field(default=None, repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.keyfile and not self.certfile:
            raise TlsOptionsError("keyfile needs certfile: give the certificate that belongs to the key")
        if self.key_password is not None and not self.certfile:
            raise TlsOptionsError("key_password needs certfile: give the certificate whose key it opens")
        if self.insecure and self.cafile:
            raise TlsOptionsError("insecure trusts every certificate, cafile does not: give one of them")

    @classmethod
    def from_options(cls, options: AddressOptions, *, secure: bool = True) -> Self:
        """Takes the TLS options of an address.

        `secure` says whether the address's scheme uses TLS. Raises `SinkAddressError` for options that do not fit
        together or that stand in an address without TLS.
        """
        texts = {name: options.text(name) for name in TLS_OPTIONS[:-1]}
        insecure = options.flag("insecure")
        given = [name for name, text in texts.items() if text is not None] + ["insecure"] * insecure
        if given and not secure:
            raise options.error(
                f"option {given[0]} is about TLS, which this scheme does not use: write the scheme with s"
            )
        try:
            return cls(**texts, insecure=insecure)
        except TlsOptionsError as error:
            raise options.error(str(error)) from None

    def to_options(self) -> dict[str, str]:
        """Returns the options of an address that mean the same."""
        texts = {name: getattr(self, name) for name in TLS_OPTIONS[:-1]}
        given = {name: text for name, text in texts.items() if text is not None}
        return {**given, "insecure": "true"} if self.insecure else given

    def context(self) -> ssl.SSLContext:
        """Returns a client's context.

        Raises `TlsOptionsError` for files that cannot be read or do not belong together, and for an encrypted key
        without its password; the terminal is never asked for one.
        """
        return self.fill(_TidyContext(ssl.PROTOCOL_TLS_CLIENT))

    def fill(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """Applies the options to a client's context of any class; raises as `context` does."""
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.cafile:
            _load_authorities(context, self.cafile)
        else:
            context.load_default_certs()
        if self.certfile:
            self._load_certificate(context, self.certfile)
        return context

    def _load_certificate(self, context: ssl.SSLContext, certfile: str) -> None:
        asked = False

        def password() -> str:
            nonlocal asked
            asked = True
            return self.key_password or ""

        for name, path in (("certfile", certfile), ("keyfile", self.keyfile)):
            if path is not None:
                _check_readable(name, path)
        key = f"keyfile={self.keyfile!r}" if self.keyfile else f"certfile={certfile!r}"
        try:
            context.load_cert_chain(certfile, self.keyfile, password)
        except ssl.SSLError as error:
            if asked and self.key_password is None:
                raise TlsOptionsError(f"{key} holds an encrypted key: give its password as key_password") from None
            if asked:
                raise TlsOptionsError(f"{key} cannot be opened: key_password is not its password") from None
            if error.reason == "KEY_VALUES_MISMATCH":
                raise TlsOptionsError(f"{key} does not belong to the certificate in certfile={certfile!r}") from None
            raise TlsOptionsError(
                f"certfile={certfile!r} and its key cannot be used ({error.reason or 'no PEM found'}): give a "
                "certificate and a private key in PEM form"
            ) from None
        except (OSError, ValueError) as error:
            raise TlsOptionsError(f"{key} cannot be used ({error}): give PEM files") from None


def _check_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        _refuse_file(name, path, error)


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    _check_readable("cafile", path)
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, ValueError):
        raise TlsOptionsError(f"cafile={path!r} holds no certificate in PEM form") from None


def _refuse_file(name: str, path: str, error: OSError) -> NoReturn:
    raise TlsOptionsError(f"{name}={path!r} cannot be read ({error.strerror or error}): give a PEM file") from None


def tls_cause(error: BaseException, *, has_certificate: bool = False) -> str:
    """Returns what a failure means where TLS is its cause, as the end of a sentence that begins with the peer; else "".

    `has_certificate`: whether this client showed a certificate.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_cause(error)
    if not isinstance(error, ssl.SSLError):
        return ""
    reason = error.reason or ""
    if reason in _NO_TLS:
        return "does not speak TLS at this port: write the scheme without s, or give its TLS port"
    if "CERTIFICATE_REQUIRED" in reason or (not has_certificate and re.search("HANDSHAKE_FAILURE|BAD_CERT", reason)):
        return "wants a client certificate: give certfile and keyfile"
    if has_certificate and re.search(
        "UNKNOWN_CA|BAD_CERT|CERTIFICATE_UNKNOWN|CERTIFICATE_EXPIRED|ACCESS_DENIED", reason
    ):
        return f"refuses the client certificate in certfile ({_words(reason)})"
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return "speaks only versions of TLS that are not safe any more: TLS 1.2 or newer is needed"
    if _is_end(error):
        return ""  # the cause is in an alert that was lost: `find_tls_trouble` has it
    return f"failed to agree on TLS ({_words(reason) or error})"


def _certificate_cause(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "shows a TLS certificate that has expired: have it renewed"
    if code == _NOT_YET_VALID:
        return "shows a TLS certificate that is not valid yet: check the clocks of both sides"
    if code in _WRONG_HOST or "ostname mismatch" in str(error) or "IP address mismatch" in str(error):
        return "shows a TLS certificate for another host: use the name that the certificate holds"
    if code in _UNKNOWN_AUTHORITY:
        return (
            "shows a TLS certificate that is not trusted "
            f"({error.verify_message}): give the certificate of its authority as cafile"
        )
    return f"shows a TLS certificate that is not trusted ({error.verify_message})"


def _is_end(error: OSError) -> bool:
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return True
    return isinstance(error, ssl.SSLError) and error.reason == "UNEXPECTED_EOF_WHILE_READING"


def _words(reason: str) -> str:
    return re.sub(r"^(?:SSLV3|TLSV1|TLSV13)_ALERT_", "", reason).replace("_", " ").lower()


def find_tls_trouble(host: str, port: int, context: ssl.SSLContext | None, *, has_certificate: bool = False,
                     timeout_s: float = 3.0) -> str:  # fmt: skip
    """Connects once more after a failure and returns what TLS has to do with it, as `tls_cause` does; else "".

    `context` is that of the connection that failed, None for one without TLS: then the peer is asked whether it speaks
    TLS. Libraries report many of these causes as a connection that was closed.
    """
    plain = context is None
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as connection,
            context.wrap_socket(connection, server_hostname=host) as secure,
        ):
            if plain:
                return "speaks TLS at this port: write the scheme with s"
            # The alert of a peer that wants a client certificate comes after the handshake of TLS 1.3.
            secure.settimeout(min(timeout_s, _ALERT_WAIT_S))
            with contextlib.suppress(TimeoutError):
                secure.recv(1)
    except OSError as error:
        if plain:
            return ""
        if isinstance(error, TimeoutError):
            return "does not answer the TLS handshake: does the port speak TLS?"
        if _is_end(error) or isinstance(error, ConnectionResetError):
            return "broke off the TLS handshake: does the port speak TLS, does the peer want a client certificate?"
        return tls_cause(error, has_certificate=has_certificate)
    return ""
