"""RTSP cameras that FFmpeg alone cannot open safely: TLS, digest with SHA-256, refusals by number, IPv6, redirects."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from sinks.tls import TlsOptions
from streamer.sources.rtsp import RtspLogin, split_message
from tests.sinks.authority import Authority
from tests.streamer.test_live_sources import Watch, run
from tests.support.clips import make_clip, read_index
from tests.support.rtsp_server import RtspServer


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("access") / "clip.mp4", 50)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def watch_some(address: str, count: int = 10, **options: Any) -> Watch:
    """A camera that has shown some pictures."""
    seen: list[Watch] = []

    async def work() -> None:
        async with Watch(address, **options) as watch:
            seen.append(watch)
            await watch.more(count)

    run(work)
    return seen[0]


def first_trouble(address: str, **options: Any) -> str:
    """Why a camera cannot be watched."""
    causes: list[str] = []

    async def work() -> None:
        async with Watch(address, strict=True, **options) as watch:
            await watch.until(lambda: watch.error is not None or "waiting" in watch.states)
            causes.append(str(watch.error or watch.source.cause))  # type: ignore[attr-defined]

    run(work)
    return causes[0]


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
@pytest.mark.parametrize("qop", [False, True])
def test_a_password_opens_a_camera_with_either_digest(clip: Path, algorithm: str, qop: bool) -> None:
    with RtspServer({"cam": clip}, auth=("ann", "s3/cret")) as server:
        server.algorithm, server.qop = algorithm, qop
        watch = watch_some(server.url(user="ann", password="s3%2Fcret"))
        assert watch.states == ["connecting", "live", "closed"]
        assert "(401)" in first_trouble(server.url(user="ann", password="wrong"))


@pytest.mark.parametrize("status", [400, 451, 453, 461, 503])
def test_what_a_camera_refuses_is_named_by_its_number(clip: Path, status: int) -> None:
    with RtspServer({"cam": clip}) as server:
        server.refusals = {"tcp": status, "udp": status}
        assert f"({status})" in first_trouble(server.url())


def test_a_camera_that_refuses_to_play_is_named(clip: Path) -> None:
    with RtspServer({"cam": clip}) as server:
        server.refusals = {"PLAY": 454}
        assert "it does not know its own session any more (454)" in first_trouble(server.url())


@pytest.fixture
def ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_camera_is_watched_over_ipv6(clip: Path, transport: Any) -> None:
    with RtspServer({"cam": clip}, host="::1") as server:
        assert watch_some(server.url(), transport=transport).states == ["connecting", "live", "closed"]


# TLS


def secured(clip: Path, certificate: tuple[Path, Path], client_authority: Path | None = None) -> RtspServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if client_authority is not None:
        context.load_verify_locations(client_authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return RtspServer({"cam": clip}, auth=("ann", "pw"), context=context)


def test_a_camera_over_tls_is_watched_once_it_has_proved_itself(clip: Path, authority: Authority) -> None:
    with secured(clip, authority.issue("127.0.0.1")) as server:
        for tls in (TlsOptions(cafile=str(authority.certificate)), TlsOptions(insecure=True)):
            watch = watch_some(server.url(user="ann", password="pw"), 30, tls=tls)
            assert watch.states == ["connecting", "live", "closed"]
            assert None not in [read_index(frame.image) for frame in watch.frames]
            assert watch.frames[-1].clock.basis == "rtcp_sr"


CHECKS: dict[str, tuple[str, bool, bool, str]] = {
    "unknown authority": ("127.0.0.1", False, False, "not trusted"),
    "another host": ("camera.example", False, True, "for another host"),
    "expired": ("127.0.0.1", True, True, "has expired"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_no_password_goes_to_a_camera_that_cannot_prove_itself(clip: Path, authority: Authority, name: str) -> None:
    host, expired, trusted, words = CHECKS[name]
    tls = TlsOptions(cafile=str(authority.certificate) if trusted else None)
    with secured(clip, authority.issue(host, expired=expired)) as server:
        assert words in first_trouble(server.url(user="ann", password="pw"), tls=tls)
        assert server.requests == []


def test_a_camera_that_wants_a_client_certificate_gets_it(clip: Path, authority: Authority) -> None:
    certfile, keyfile = authority.issue("client.example")
    trusted = str(authority.certificate)
    with secured(clip, authority.issue("127.0.0.1"), authority.certificate) as server:
        tls = TlsOptions(trusted, str(certfile), str(authority.lock(keyfile, "open")), "open")
        watch_some(server.url(user="ann", password="pw"), tls=tls)
        assert first_trouble(server.url(user="ann", password="pw"), tls=TlsOptions(trusted))


def test_a_plain_camera_at_a_tls_address_gets_no_password(clip: Path, authority: Authority) -> None:
    with RtspServer({"cam": clip}, auth=("ann", "pw")) as server:
        address = server.url(user="ann", password="pw").replace("rtsp://", "rtsps://")
        assert "TLS" in first_trouble(address, tls=TlsOptions(cafile=str(authority.certificate)))
        assert server.requests == []


def test_a_redirect_from_tls_to_plain_rtsp_is_refused(clip: Path, authority: Authority) -> None:
    with RtspServer({"cam": clip}) as plain, secured(clip, authority.issue("127.0.0.1")) as server:
        server.moved_to = plain.url()
        tls = TlsOptions(cafile=str(authority.certificate))
        words = first_trouble(server.url(user="ann", password="pw"), tls=tls)
        assert "redirects to an address without TLS" in words
        assert plain.requests == []


def test_a_camera_over_tls_that_is_killed_is_watched_again(clip: Path, authority: Authority) -> None:
    async def work() -> None:
        with secured(clip, authority.issue("127.0.0.1")) as server:
            tls = TlsOptions(cafile=str(authority.certificate))
            async with Watch(server.url(user="ann", password="pw"), tls=tls) as watch:
                await watch.more(5)
                server.kill()
                await watch.until(lambda: "waiting" in watch.states)
                server.start()
                await watch.more(5)
            assert watch.states == ["connecting", "live", "waiting", "live", "closed"]

    run(work)


# Parts


def test_messages_are_split_where_they_end() -> None:
    described = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 3\r\n\r\nv=0"
    assert split_message(described + b"$\x00\x00\x02ab") == len(described)
    assert split_message(described[:-1]) is None
    assert split_message(b"$\x00\x00\x02abRTSP") == 6
    assert split_message(b"$\x00\x00\x09ab") is None
    assert split_message(b"$\x00") is None


def test_the_strongest_challenge_is_answered() -> None:
    from urllib.parse import urlsplit

    login = RtspLogin(urlsplit("rtsp://Mufasa:Circle%20of%20Life@camera/x"))
    assert login.answer("GET", "/") == ""
    assert login.challenge(
        [
            ("www-authenticate", 'Basic realm="cam"'),
            ("www-authenticate", 'Digest realm="cam", nonce="n", algorithm=SHA-256'),
            ("www-authenticate", 'Digest realm="cam", nonce="n"'),
        ]
    )
    assert login.algorithm == "SHA-256"
    assert "Circle" not in login.answer("DESCRIBE", "rtsp://camera/x")
    assert not login.challenge([("www-authenticate", 'Digest realm="cam", nonce="n", algorithm=MD5-sess')])
