"""TLS options: files are checked at start, the terminal is never asked, and causes are named."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sinks.tls import TlsOptions, TlsOptionsError, find_tls_trouble, tls_cause
from tests.sinks.authority import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_no_options_trust_what_the_system_trusts() -> None:
    context = TlsOptions().context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert not TlsOptions(insecure=True).context().check_hostname


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cafile": "/nowhere.pem"}, "cafile='/nowhere.pem' cannot be read (No such file or directory)"),
        ({"certfile": "/nowhere.pem"}, "certfile='/nowhere.pem' cannot be read"),
        ({"certfile": "{cert}", "keyfile": "/nowhere.pem"}, "keyfile='/nowhere.pem' cannot be read"),
        ({"cafile": "{text}"}, "holds no certificate in PEM form"),
        ({"certfile": "{text}"}, "give a certificate and a private key in PEM form"),
        ({"certfile": "{cert}", "keyfile": "{other}"}, "does not belong to the certificate"),
        ({"certfile": "{cert}", "keyfile": "{locked}"}, "holds an encrypted key: give its password as key_password"),
        ({"certfile": "{cert}", "keyfile": "{locked}", "key_password": "x"}, "key_password is not its password"),
        ({"keyfile": "k.pem"}, "keyfile needs certfile"),
        ({"key_password": "x"}, "key_password needs certfile"),
        ({"cafile": "a", "insecure": True}, "give one of them"),
    ],
)
def test_options_that_cannot_work_are_one_sentence(
    authority: Authority, tmp_path: Path, options: dict, sentence: str
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("milk\n")
    cert, key = authority.issue("127.0.0.1")
    _, other = authority.issue("127.0.0.1")
    places = {"cert": cert, "text": text, "other": other, "locked": authority.lock(key, "sesame")}
    filled = {name: value.format(**places) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(TlsOptionsError) as found:
        TlsOptions(**filled).context()
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


def test_an_encrypted_key_opens_with_its_password(authority: Authority) -> None:
    cert, key = authority.issue("127.0.0.1")
    locked = authority.lock(key, "sesame")
    TlsOptions(certfile=str(cert), keyfile=str(locked), key_password="sesame").context()
    assert "sesame" not in repr(TlsOptions(certfile="c", key_password="sesame"))


@contextmanager
def tls_server(context: ssl.SSLContext | None) -> Iterator[int]:
    """Accepts, speaks TLS where it has a context, and waits until the client closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.settimeout(5)
                    if context is None:
                        connection.recv(10)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    else:
                        with context.wrap_socket(connection, server_side=True) as secure:
                            secure.recv(10)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


@pytest.mark.parametrize(
    ("server", "client", "cause"),
    [
        ({}, {"cafile": "{ca}"}, ""),
        ({}, {}, "give the certificate of its authority as cafile"),
        ({}, {"cafile": "{other_ca}"}, "is not trusted"),
        ({"host": "elsewhere.example"}, {"cafile": "{ca}"}, "certificate for another host"),
        ({"expired": True}, {"cafile": "{ca}"}, "certificate that has expired"),
        ({"expired": True}, {"insecure": True}, ""),
        ({"wants_client": True}, {"cafile": "{ca}"}, "wants a client certificate: give certfile and keyfile"),
        ({"wants_client": True, "old": True}, {"cafile": "{ca}"}, "wants a client certificate"),
        ({"wants_client": True}, {"cafile": "{ca}", "certfile": "{client}", "keyfile": "{client_key}"}, ""),
        (
            {"wants_client": True},
            {"cafile": "{ca}", "certfile": "{stranger}", "keyfile": "{stranger_key}"},
            "refuses the client certificate",
        ),
        (None, {"cafile": "{ca}"}, "does not speak TLS at this port"),
        ({}, None, "speaks TLS at this port: write the scheme with s"),
        (None, None, ""),
    ],
)
def test_the_cause_is_named(
    authority: Authority, tmp_path: Path, server: dict | None, client: dict | None, cause: str
) -> None:
    other = Authority(tmp_path)
    (mine, my_key), (foreign, foreign_key) = authority.issue("client"), other.issue("client")
    places = {"ca": authority.certificate, "other_ca": other.certificate, "client": mine, "client_key": my_key}
    places |= {"stranger": foreign, "stranger_key": foreign_key}
    context = None if server is None else authority.server_context(**server)
    with tls_server(context) as port:
        if client is None:
            found = find_tls_trouble("127.0.0.1", port, None)
        else:
            filled = {name: text.format(**places) if isinstance(text, str) else text for name, text in client.items()}
            options = TlsOptions(**filled)
            found = find_tls_trouble("127.0.0.1", port, options.context(), has_certificate=options.certfile is not None)
    assert cause in found
    assert bool(cause) == bool(found)


def test_what_is_not_tls_has_no_tls_cause() -> None:
    assert tls_cause(ConnectionRefusedError(111, "Connection refused")) == ""


def test_no_key_asks_the_terminal(authority: Authority) -> None:
    cert, key = authority.issue("127.0.0.1")
    locked = authority.lock(key, "sesame")
    code = (
        "import sys; from sinks.tls import TlsOptions; TlsOptions(certfile=sys.argv[1], keyfile=sys.argv[2]).context()"
    )
    done = subprocess.run(
        ["setsid", sys.executable, "-c", code, str(cert), str(locked)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert "pass phrase" not in done.stdout + done.stderr
    assert "give its password as key_password" in done.stderr
