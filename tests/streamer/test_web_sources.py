"""Web addresses: camera or recording by what the server says, every dialect, verified TLS, passwords to one host."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import cv2
import pytest

from sinks.tls import TlsOptions
from tests.sinks.authority import Authority
from tests.support.clips import draw, make_clip
from tests.support.reading import failed, many, read
from tests.support.web_server import Answer, WebServer, jpeg, multipart

PLAYLIST = "application/vnd.apple.mpegurl"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("web")
    forms = {name: make_clip(folder / f"clip.{name}", 30).read_bytes() for name in ("mp4", "mkv", "ts", "flv", "avi")}
    forms["small ts"] = make_clip(folder / "small.ts", 30, size=(160, 128)).read_bytes()
    return forms


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


# Camera or recording


@pytest.mark.parametrize("form", ["mp4", "mkv", "ts", "flv"])
@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("path", ["/download", "/clip.mp4"])
def test_what_has_a_length_is_a_recording(clip: dict[str, bytes], form: str, ranges: bool, path: str) -> None:
    with WebServer({path: Answer(clip[form], ranges=ranges)}) as server:
        seen = read(server.url(path))
    assert (seen.live, seen.numbers, seen.error) == (False, list(range(30)), "")


@pytest.mark.parametrize("form", ["mkv", "flv", "avi"])
def test_a_finished_recording_without_a_length_is_read_once(clip: dict[str, bytes], form: str) -> None:
    with WebServer({"/file": Answer(lambda: [clip[form]])}) as server:
        seen = read(server.url("/file"))
    assert (seen.live, seen.numbers, seen.error) == (False, list(range(30)), "")


@pytest.mark.parametrize("path", ["/live.ts", "/live.mp4", "/stream"])
def test_what_has_no_length_is_a_camera_whatever_its_suffix(clip: dict[str, bytes], path: str) -> None:
    with WebServer({path: Answer(lambda: [clip["ts"]])}) as server:
        seen = read(server.url(path), lambda seen: "waiting" in seen.states)
        again = read(server.url(path), live=False)
    assert seen.live
    assert abs(seen.frames[0].time_s - time.time()) < 60
    assert (again.live, again.numbers, again.error) == (False, list(range(30)), "")


def test_a_connection_that_ends_before_the_length_is_no_end(clip: dict[str, bytes]) -> None:
    cut = Answer(lambda: [clip["ts"][: len(clip["ts"]) // 2]], {"Content-Length": str(len(clip["ts"]))})
    with WebServer({"/clip.ts": cut}) as server:
        seen = read(server.url("/clip.ts"))
    assert "bytes" in seen.error
    assert 5 < len(seen.frames) < 25


def segments(name: str, ended: bool) -> bytes:
    end = "#EXT-X-ENDLIST\n" if ended else ""
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\n{name}.ts\n{end}".encode()


def test_a_playlist_that_has_ended_is_read_once(clip: dict[str, bytes]) -> None:
    answers = {"/a.m3u8": Answer(segments("a", True), {"Content-Type": PLAYLIST}), "/a.ts": Answer(clip["ts"])}
    with WebServer(answers) as server:
        seen = read(server.url("/a.m3u8"))
    assert (seen.live, seen.numbers, seen.error) == (False, list(range(30)), "")


def test_only_the_best_variant_is_downloaded(clip: dict[str, bytes]) -> None:
    master = (
        b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=90000,RESOLUTION=160x128\nsmall.m3u8\n"
        b'#EXT-X-STREAM-INF:CODECS="avc1.4d,mp4a",BANDWIDTH=80000,RESOLUTION=320x240\nsub/large.m3u8\n'
    )
    answers = {
        "/m": Answer(master),
        "/small.m3u8": Answer(segments("small", True)),
        "/sub/large.m3u8": Answer(segments("large", True)),
        "/small.ts": Answer(clip["small ts"]),
        "/sub/large.ts": Answer(clip["ts"]),
    }
    with WebServer(answers) as server:
        seen = read(server.url("/m"))
        asked = {path for path, _ in server.asked}
    assert seen.numbers == list(range(30))
    assert {frame.width for frame in seen.frames} == {320}
    assert asked == {"/m", "/sub/large.m3u8", "/sub/large.ts"}


def test_a_compressed_answer_is_unpacked(clip: dict[str, bytes]) -> None:
    packed = Answer(gzip.compress(clip["mkv"]), {"Content-Encoding": "gzip"})
    damaged = Answer(b"\x1f\x8b" + bytes(50), {"Content-Encoding": "gzip"})
    with WebServer({"/clip.mkv": packed, "/bad.mkv": damaged}) as server:
        seen = read(server.url("/clip.mkv"))
        bad = read(server.url("/bad.mkv"), live=False)
    assert (seen.live, seen.numbers, seen.error) == (False, list(range(30)), "")
    assert bad.error


def test_a_circle_of_redirects_is_named() -> None:
    with WebServer({"/a": Answer(status=302, headers={"Location": "/a"})}) as server:
        seen = read(server.url("/a"), live=False)
    assert "it redirects in a circle or without an address (302)" in seen.error


# Pictures one by one


DIALECTS: dict[str, dict[str, Any]] = {
    "as usual": {},
    "boundary after the part": {"first": False},
    "no length": {"length": False},
    "image/jpg": {"kind": "image/jpg"},
    "no length, boundary after": {"first": False, "length": False},
}
HEADERS: dict[str, dict[str, str]] = {
    "quoted boundary": {"Content-Type": 'multipart/x-mixed-replace; boundary="next"'},
    "boundary with its dashes": {"Content-Type": "multipart/x-mixed-replace; boundary=--next"},
    "no boundary": {"Content-Type": "multipart/x-mixed-replace"},
    "mixed": {"Content-Type": "multipart/mixed; boundary=next"},
    "capitals": {"Content-Type": "Multipart/X-Mixed-Replace;Boundary=next"},
    "another type": {"Content-Type": "application/octet-stream"},
    "no type": {},
    "a length of zero": {"Content-Type": "multipart/x-mixed-replace; boundary=next", "Content-Length": "0"},
    "a length too long": {"Content-Type": "multipart/x-mixed-replace; boundary=next", "Content-Length": "9999999999"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_every_dialect_of_the_headers_of_multipart_pictures_is_read(name: str) -> None:
    numbers = itertools.count()

    def answer() -> Answer:
        return Answer(multipart(itertools.islice(numbers, 40)).body, HEADERS[name])

    with WebServer({"/cam": answer}) as server:
        seen = read(server.url("/cam"), many(8))
    assert seen.live
    assert None not in seen.numbers
    assert len(seen.numbers) >= 8


@pytest.mark.parametrize("kind", ["image/jpeg", "video/x-motion-jpeg", "application/octet-stream"])
@pytest.mark.parametrize("between", [b"", b"\r\n", bytes(64)])
def test_pictures_without_any_boundary_are_read_over_one_connection(kind: str, between: bytes) -> None:
    numbers = itertools.count()

    def pieces() -> Iterable[bytes]:
        for number in itertools.islice(numbers, 200):
            yield jpeg(number) + between
            time.sleep(0.02)

    with WebServer({"/cam": lambda: Answer(pieces, {"Content-Type": kind})}) as server:
        seen = read(server.url("/cam"), many(8))
        asked = len(server.asked)
    assert seen.live
    assert None not in seen.numbers
    assert len(seen.numbers) >= 8
    assert asked <= 3  # to find out what it is, here and in the source, and to read it


def test_a_snapshot_without_a_length_is_polled() -> None:
    numbers = itertools.count()

    def snapshot() -> Answer:
        picture = jpeg(next(numbers))
        return Answer(lambda: [picture], {"Content-Type": "image/jpeg"})

    with WebServer({"/snap": snapshot}) as server:
        seen = read(server.url("/snap"), many(4))
    assert None not in seen.numbers
    assert seen.states.count("live") == 1


def test_what_is_no_web_server_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(4):
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"\x00\x01SSH-2.0\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        seen = read(f"http://127.0.0.1:{listener.getsockname()[1]}/x", failed, live=True)
    assert "does not answer as a web server" in seen.causes
    assert "\n" not in seen.causes


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_of_multipart_pictures_is_read(name: str) -> None:
    numbers = itertools.count()
    with WebServer({"/video.mjpg": lambda: multipart(itertools.islice(numbers, 40), **DIALECTS[name])}) as server:
        seen = read(server.url("/video.mjpg"), many(25))
    assert seen.live
    assert None not in seen.numbers
    assert seen.numbers == sorted(set(seen.numbers))  # type: ignore[type-var]


@pytest.mark.parametrize("length", [0, 100, 99_999_999])
def test_a_wrong_length_of_a_part_loses_no_picture(length: int) -> None:
    def pieces() -> Iterable[bytes]:
        for number in range(20):
            yield b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (length, jpeg(number))
            time.sleep(0.03)

    with WebServer({"/v": Answer(pieces, {"Content-Type": "multipart/x-mixed-replace;boundary=x"})}) as server:
        seen = read(server.url("/v"), many(6))
    assert seen.numbers[:6] == list(range(6))


def test_a_picture_that_was_cut_off_costs_only_itself() -> None:
    def pieces() -> Iterable[bytes]:
        for number in range(20):
            picture = jpeg(number)[: -400 if number == 2 else None]
            yield b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(picture), picture)
            time.sleep(0.03)

    with WebServer({"/v": Answer(pieces, {"Content-Type": "multipart/x-mixed-replace;boundary=x"})}) as server:
        seen = read(server.url("/v"), many(6))
    assert seen.numbers[:6] == [0, 1, 3, 4, 5, 6]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".jpg"])
def test_snapshots_of_any_kind_are_whole_pictures(suffix: str) -> None:
    numbers = itertools.count()

    def snapshot() -> Answer:
        picture = cv2.imencode(suffix, draw(next(numbers)))[1].tobytes()
        return Answer(picture, {"Content-Type": f"image/{suffix[1:]}"})

    with WebServer({"/snap": snapshot}) as server:
        seen = read(server.url("/snap"), many(5))
    assert None not in seen.numbers
    assert len(set(seen.numbers)) == 5


def test_a_picture_with_a_preview_inside_ends_where_it_ends() -> None:
    def with_preview(number: int) -> bytes:
        picture, preview = jpeg(number), jpeg(999)
        return picture[:2] + b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview + picture[2:]

    def pieces() -> Iterable[bytes]:
        for number in range(20):
            yield b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + with_preview(number) + b"\r\n"
            time.sleep(0.03)

    with WebServer({"/v": Answer(pieces, {"Content-Type": "multipart/x-mixed-replace;boundary=x"})}) as server:
        seen = read(server.url("/v"), many(10))
    assert None not in seen.numbers
    assert 999 not in seen.numbers


def test_a_snapshot_address_is_polled_and_online_once() -> None:
    numbers = itertools.count()
    with WebServer({"/snap.jpg": lambda: Answer(jpeg(next(numbers)), {"Content-Type": "image/jpeg"})}) as server:
        seen = read(server.url("/snap.jpg"), many(8))
        fast = read(server.url("/snap.jpg"), many(20), limit_s=6, poll_s=0.05)
    assert seen.live
    assert seen.states == ["connecting", "live", "closed"]
    assert None not in seen.numbers
    assert len(fast.frames) >= 20


def test_a_snapshot_that_does_not_change_stays_online() -> None:
    with WebServer({"/snap.jpg": Answer(jpeg(1), {"Content-Type": "image/jpeg"})}) as server:
        seen = read(server.url("/snap.jpg"), many(3), limit_s=8)
    assert len(seen.frames) == 3
    assert seen.states == ["connecting", "live", "closed"]


# Who may read it


@pytest.mark.parametrize("scheme", ["basic", "MD5", "SHA-256"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_password_opens_recordings_and_cameras(clip: dict[str, bytes], scheme: str, host: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6 here")
    answers = {"/clip.mkv": Answer(clip["mkv"], ranges=True), "/video": lambda: multipart(range(40))}
    with WebServer(answers, login=("ann", "s3/cret"), scheme=scheme, host=host) as server:
        recording = read(server.url("/clip.mkv", login="ann:s3%2Fcret"))
        camera = read(server.url("/video", login="ann:s3%2Fcret"), many(5))
        refused = read(server.url("/video", login="ann:wrong"), failed, live=True)
    assert recording.numbers == list(range(30))
    assert len(camera.frames) >= 5
    assert "user name or password is missing or wrong (401)" in refused.causes
    assert "wrong@" not in refused.causes


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_password_is_not_sent_to_the_host_of_a_redirect(clip: dict[str, bytes]) -> None:
    with WebServer({"/clip.mkv": Answer(clip["mkv"])}, login=("ann", "pw")) as other:
        moved = Answer(status=302, headers={"Location": other.url("/clip.mkv")})
        with WebServer({"/clip.mkv": moved}) as server:
            seen = read(server.url("/clip.mkv", login="ann:pw"), live=False)
    assert "(401)" in seen.error
    assert [given for _, given in other.asked] == [""] * len(other.asked)


CHECKS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown authority": ({}, {}, "not trusted"),
    "wrong host": ({"host": "camera.example"}, {"cafile": True}, "for another host"),
    "expired": ({"expired": True}, {"cafile": True}, "has expired"),
}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("live", [True, False])
def test_no_password_goes_to_a_server_that_cannot_prove_itself(
    authority: Authority, clip: dict[str, bytes], name: str, live: bool
) -> None:
    issued, options, words = CHECKS[name]
    host = issued.get("host", "127.0.0.1")
    certificate = authority.issue(host, expired=issued.get("expired", False))
    tls = TlsOptions(cafile=str(authority.certificate) if options else None)
    with WebServer({"/clip.mkv": Answer(clip["mkv"])}, login=("ann", "pw"), certificate=certificate) as server:
        seen = read(server.url("/clip.mkv", login="ann:pw"), failed, live=live, tls=tls)
    assert words in seen.error + seen.causes
    assert server.asked == []
    assert seen.frames == []


def test_a_trusted_server_is_read_and_insecure_trusts_every_one(authority: Authority, clip: dict[str, bytes]) -> None:
    certificate = authority.issue("127.0.0.1")
    answers = {
        "/clip.mkv": Answer(clip["mkv"], ranges=True),
        "/a.m3u8": Answer(segments("a", True)),
        "/a.ts": Answer(clip["ts"]),
    }
    with WebServer(answers, login=("ann", "pw"), certificate=certificate) as server:
        for tls in (TlsOptions(cafile=str(authority.certificate)), TlsOptions(insecure=True)):
            for path in ("/clip.mkv", "/a.m3u8"):
                seen = read(server.url(path, login="ann:pw"), tls=tls)
                assert (seen.numbers, seen.error) == (list(range(30)), "")


def test_a_server_that_wants_a_client_certificate_gets_it(authority: Authority, clip: dict[str, bytes]) -> None:
    server_side, (certfile, keyfile) = authority.issue("127.0.0.1"), authority.issue("client.example")
    trusted = str(authority.certificate)
    with WebServer(
        {"/clip.mkv": Answer(clip["mkv"])}, certificate=server_side, client_authority=authority.certificate
    ) as server:
        good = read(server.url("/clip.mkv"), tls=TlsOptions(trusted, str(certfile), str(keyfile)), live=False)
        bad = read(server.url("/clip.mkv"), tls=TlsOptions(trusted), live=False)
    assert good.numbers == list(range(30))
    assert "certificate" in bad.error


def test_a_redirect_from_tls_to_plain_http_is_refused(authority: Authority, clip: dict[str, bytes]) -> None:
    with WebServer({"/clip.mkv": Answer(clip["mkv"])}) as plain:
        moved = Answer(status=301, headers={"Location": plain.url("/clip.mkv")})
        with WebServer({"/clip.mkv": moved}, certificate=authority.issue("127.0.0.1")) as server:
            tls = TlsOptions(cafile=str(authority.certificate))
            seen = read(server.url("/clip.mkv"), tls=tls, live=False)
            playlist = Answer(f"#EXTM3U\n#EXTINF:1,\n{plain.url('/a.ts')}\n#EXT-X-ENDLIST\n".encode())
            server.answers["/a.m3u8"] = playlist
            led_away = read(server.url("/a.m3u8"), tls=tls)
    assert "redirects to an address without TLS" in seen.error
    assert led_away.frames == []
    assert plain.asked == []
