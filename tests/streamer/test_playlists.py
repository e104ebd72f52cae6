"""HLS playlists: encrypted segments and their keys, byte ranges, discontinuities, parts that break off."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sinks.tls import TlsOptions
from tests.sinks.authority import Authority
from tests.support.clips import make_clip
from tests.support.reading import failed, many, read
from tests.support.web_server import Answer, WebServer

KEY, OTHER_KEY = b"0123456789abcdef", b"fedcba9876543210"
LENGTH = 10  # frames of a segment


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Three segments that follow one another."""
    folder = tmp_path_factory.mktemp("parts")
    times = [[(n * LENGTH + m) / 25 for m in range(LENGTH)] for n in range(3)]
    return [
        make_clip(folder / f"{n}.ts", LENGTH, first=n * LENGTH, times_s=times[n], form="mpegts").read_bytes()
        for n in range(3)
    ]


def encrypted(data: bytes, vector: int, key: bytes = KEY) -> bytes:
    """AES-128 in CBC mode with PKCS #7 padding (RFC 8216, 4.3.2.4)."""
    padding = 16 - len(data) % 16
    encryptor = Cipher(algorithms.AES(key), modes.CBC(vector.to_bytes(16, "big"))).encryptor()
    return encryptor.update(data + bytes([padding]) * padding) + encryptor.finalize()


def playlist(entries: Iterable[str], *, sequence: int = 0, ended: bool = True) -> Answer:
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-TARGETDURATION:2", f"#EXT-X-MEDIA-SEQUENCE:{sequence}", *entries]
    return Answer("\n".join([*lines, *["#EXT-X-ENDLIST"] * ended, ""]).encode())


def entry(name: str, *before: str) -> str:
    return "\n".join([*before, "#EXTINF:0.4,", name])


def served(
    segments: Sequence[bytes], **more: Answer | Callable[[], Answer]
) -> dict[str, Answer | Callable[[], Answer]]:
    answers = {f"/{n}.ts": Answer(segment) for n, segment in enumerate(segments)}
    return {**answers, "/key": Answer(KEY), "/other": Answer(OTHER_KEY), **{f"/{k}": v for k, v in more.items()}}


KEY_LINE = '#EXT-X-KEY:METHOD=AES-128,URI="key"'


def test_encrypted_segments_take_their_vector_from_the_media_sequence(parts: list[bytes]) -> None:
    segments = [encrypted(part, 41 + n) for n, part in enumerate(parts)]
    entries = [entry("0.ts", KEY_LINE), entry("1.ts"), entry("2.ts")]
    with WebServer(served(segments, m=playlist(entries, sequence=41))) as server:
        seen = read(server.url("/m"))
        asked = [path for path, _ in server.asked]
    assert (seen.numbers, seen.error) == (list(range(30)), "")
    assert asked.count("/key") == 1


def test_keys_rotate_and_vectors_are_given(parts: list[bytes]) -> None:
    segments = [encrypted(parts[0], 7), parts[1], encrypted(parts[2], 2**127 + 5, OTHER_KEY)]
    entries = [
        entry("0.ts", KEY_LINE + ",IV=0x7"),
        entry("1.ts", "#EXT-X-KEY:METHOD=NONE"),
        entry("2.ts", f'#EXT-X-KEY:METHOD=AES-128,URI="other",IV=0X{2**127 + 5:032X}'),
    ]
    with WebServer(served(segments, m=playlist(entries))) as server:
        seen = read(server.url("/m"))
    assert (seen.numbers, seen.error) == (list(range(30)), "")


def test_keys_come_with_the_credentials_and_tls_options_of_the_stream(parts: list[bytes], tmp_path: object) -> None:
    authority = Authority(tmp_path)  # type: ignore[arg-type]
    segments = [encrypted(part, n) for n, part in enumerate(parts)]
    entries = [entry("0.ts", KEY_LINE), entry("1.ts"), entry("2.ts")]
    tls = TlsOptions(cafile=str(authority.certificate))
    with WebServer(
        served(segments, m=playlist(entries)), login=("ann", "pw"), certificate=authority.issue("127.0.0.1")
    ) as server:
        seen = read(server.url("/m", login="ann:pw"), tls=tls)
        assert (seen.numbers, seen.error) == (list(range(30)), "")
        with WebServer(served(segments)) as plain:
            away = [entry("0.ts", f'#EXT-X-KEY:METHOD=AES-128,URI="{plain.url("/key")}"')]
            server.answers["/away"] = playlist(away)
            refused = read(server.url("/away", login="ann:pw"), tls=tls)
            assert plain.asked == []
        with WebServer(served(segments), login=("ann", "pw"), certificate=authority.issue("127.0.0.1")) as other:
            server.answers["/other"] = playlist([entry("0.ts", f'#EXT-X-KEY:METHOD=AES-128,URI="{other.url("/key")}"')])
            foreign = read(server.url("/other", login="ann:pw"), tls=tls)
            assert {given for _, given in other.asked} == {""}
    assert "without TLS" in refused.error
    assert "(401)" in foreign.error
    assert foreign.frames == refused.frames == []


CERTIFICATES: dict[str, tuple[str, bool, bool, str]] = {
    "right": ("127.0.0.1", False, True, ""),
    "of another authority": ("127.0.0.1", False, False, "not trusted"),
    "expired": ("127.0.0.1", True, True, "has expired"),
    "of another host": ("camera.example", False, True, "for another host"),
}


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_playlist_over_tls_is_read_from_a_server_that_proves_itself(
    parts: list[bytes], tmp_path: Path, name: str, ended: bool
) -> None:
    host, is_expired, is_trusted, words = CERTIFICATES[name]
    authority = Authority(tmp_path)
    tls = TlsOptions(cafile=str(authority.certificate) if is_trusted else None)
    answers = served(parts, **{"m.m3u8": playlist([entry("0.ts"), entry("1.ts"), entry("2.ts")], ended=ended)})
    certificate = authority.issue(host, expired=is_expired)
    with WebServer(answers, login=("ann", "pw"), certificate=certificate) as server:
        address = server.url("/m.m3u8", login="ann:pw")
        seen = read(address, lambda seen: failed(seen) or len(seen.frames) >= 30, live=not ended, tls=tls)
        if words:
            assert words in seen.error + seen.causes
            assert (server.asked, seen.frames) == ([], [])
        else:
            assert None not in seen.numbers
            assert seen.live is not ended
            assert len(seen.numbers) >= (30 if ended else 8)
            assert {given for path, given in server.asked[1:] if path.endswith(".ts")} != {""}


@pytest.mark.parametrize("name", [name for name in CERTIFICATES if name != "right"])
def test_a_segment_of_another_server_is_read_only_where_that_one_proves_itself(
    parts: list[bytes], tmp_path: Path, name: str
) -> None:
    host, is_expired, is_trusted, words = CERTIFICATES[name]
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    stranger = authority if is_trusted else Authority(tmp_path / "other")
    with WebServer(served(parts), certificate=stranger.issue(host, expired=is_expired)) as other:
        answers = {"/m.m3u8": playlist([entry(other.url(f"/{n}.ts")) for n in range(3)])}
        with WebServer(answers, certificate=authority.issue("127.0.0.1")) as server:
            seen = read(server.url("/m.m3u8"), tls=TlsOptions(cafile=str(authority.certificate)))
        assert other.asked == []
    assert words in seen.error
    assert seen.frames == []


def test_a_live_encrypted_playlist_is_a_camera(parts: list[bytes]) -> None:
    segments = [encrypted(part, n) for n, part in enumerate(parts)]
    entries = [entry("0.ts", KEY_LINE), entry("1.ts"), entry("2.ts")]
    with WebServer(served(segments, m=playlist(entries, ended=False))) as server:
        seen = read(server.url("/m"), many(8))
    assert seen.live
    assert len(seen.frames) >= 8


@pytest.mark.parametrize("given", [OTHER_KEY, b"<html>log in first</html>", b"short"])
def test_a_wrong_key_is_named(parts: list[bytes], given: bytes) -> None:
    segments = [encrypted(part, n) for n, part in enumerate(parts)]
    entries = [entry("0.ts", KEY_LINE), entry("1.ts"), entry("2.ts")]
    with WebServer({**served(segments, m=playlist(entries)), "/key": Answer(given)}) as server:
        seen = read(server.url("/m"))
    assert "is the key of its playlist right?" in seen.error
    assert seen.frames == []


def test_a_key_that_is_missing_is_named(parts: list[bytes]) -> None:
    with WebServer(served([], m=playlist([entry("0.ts", '#EXT-X-KEY:METHOD=AES-128,URI="none"')]))) as server:
        seen = read(server.url("/m"))
        camera = read(server.url("/m"), failed, live=True)
    assert "there is nothing at this path (404)" in seen.error
    assert "(404)" in camera.causes


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ('METHOD=SAMPLE-AES,URI="key"', "(SAMPLE-AES)"),
        ('METHOD=SAMPLE-AES-CTR,URI="x",KEYFORMAT="com.widevine"', "(SAMPLE-AES-CTR, com.widevine)"),
        ('METHOD=AES-128,URI="skd://1",KEYFORMAT="com.apple.streamingkeydelivery"', "(AES-128, com.apple."),
    ],
)
def test_other_encryption_is_refused_in_one_sentence(parts: list[bytes], attributes: str, words: str) -> None:
    with WebServer(served(parts, m=playlist([entry("0.ts", f"#EXT-X-KEY:{attributes}")]))) as server:
        seen = read(server.url("/m"))
    assert f"encrypted {words}" in seen.error
    assert "only AES-128 with a plain key can be read" in seen.error


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("is_encrypted", [True, False])
def test_segments_may_be_byte_ranges_of_one_file(parts: list[bytes], ranges: bool, is_encrypted: bool) -> None:
    pieces = [encrypted(part, n) for n, part in enumerate(parts)] if is_encrypted else parts
    entries, at = [KEY_LINE] * is_encrypted, 0
    for piece in pieces:
        entries.append(entry("all.ts", f"#EXT-X-BYTERANGE:{len(piece)}@{at}"))
        at += len(piece)
    answers = {"/m": playlist(entries), "/all.ts": Answer(b"".join(pieces), ranges=ranges), "/key": Answer(KEY)}
    with WebServer(answers) as server:
        seen = read(server.url("/m"))
    assert (seen.numbers, seen.error) == (list(range(30)), "")


def test_a_recording_of_which_a_segment_breaks_off_says_so(parts: list[bytes]) -> None:
    cut = Answer(lambda: [parts[1][: len(parts[1]) // 2]], {"Content-Length": str(len(parts[1]))})
    entries = [entry(f"{n}.ts") for n in range(3)]
    with WebServer({**served(parts, m=playlist(entries)), "/1.ts": cut}) as server:
        seen = read(server.url("/m"))
    assert "the connection ended in the middle of a segment" in seen.error
    assert seen.numbers[:10] == list(range(10))
    assert seen.numbers[-10:] == list(range(20, 30))


def test_a_playlist_opens_no_file_of_this_machine(parts: list[bytes], tmp_path: object) -> None:
    secret = make_clip(f"{tmp_path}/secret.ts", 5)
    with WebServer({"/m": playlist([entry(f"file://{secret}")]), "/n": playlist([entry(str(secret))])}) as server:
        for path in ("/m", "/n"):
            seen = read(server.url(path))
            assert seen.frames == []
            assert seen.error


# Dialects


def plain(parts: Sequence[bytes], **options: Any) -> bytes:
    body = playlist([entry(f"{n}.ts") for n in range(len(parts))], **options).body
    assert isinstance(body, bytes)
    return body


DIALECTS: dict[str, Callable[[bytes], Answer]] = {
    "byte order mark": lambda text: Answer(b"\xef\xbb\xbf" + text),
    "CRLF and a byte order mark": lambda text: Answer(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n")),
    "blank lines before": lambda text: Answer(b"\n\r\n" + text),
    "gzip": lambda text: Answer(gzip.compress(text), {"Content-Encoding": "gzip"}),
    "VOD without an end": lambda text: Answer(text.replace(b"#EXT-X-ENDLIST", b"#EXT-X-PLAYLIST-TYPE:VOD")),
    "absolute paths": lambda text: Answer(text.replace(b"0.ts", b"/0.ts?token=1&x=2")),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_of_playlists_is_read_once(parts: list[bytes], name: str) -> None:
    with WebServer(served(parts, m=DIALECTS[name](plain(parts)))) as server:
        seen = read(server.url("/m"))
    assert (seen.live, seen.numbers, seen.error) == (False, list(range(30)), "")


VARIANT = "#EXT-X-STREAM-INF:BANDWIDTH="
MASTERS = {
    "a comment and a blank line between": [f"{VARIANT}1,RESOLUTION=320x240", "# camera", "", "m"],
    "the largest has sound only": [f'{VARIANT}900000,CODECS="mp4a.40.2"', "none", f'{VARIANT}5,CODECS="avc1.4d"', "m"],
    "no attributes but bits": [f"{VARIANT}5", "none", f"{VARIANT}50", "m"],
}


@pytest.mark.parametrize("name", MASTERS)
def test_a_variant_with_pictures_is_chosen(parts: list[bytes], name: str) -> None:
    master = Answer("\r\n".join(["#EXTM3U", *MASTERS[name]]).encode())
    with WebServer(served(parts, m=Answer(plain(parts)), master=master)) as server:
        seen = read(server.url("/master"))
    assert (seen.numbers, seen.error) == (list(range(30)), "")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_segment_that_is_missing_costs_its_own_pictures_and_is_reported(parts: list[bytes], missing: int) -> None:
    answers = served(parts, m=Answer(plain(parts)))
    del answers[f"/{missing}.ts"]
    with WebServer(answers) as server:
        seen = read(server.url("/m"))
    assert seen.numbers == [n for n in range(30) if n // LENGTH != missing]
    assert "there is nothing at this path (404)" in seen.error


def test_segments_that_begin_again_at_time_zero_follow_one_another(tmp_path: Path) -> None:
    segments = [make_clip(tmp_path / f"{n}.ts", 10, first=10 * n).read_bytes() for n in range(3)]
    entries = [entry("0.ts"), entry("1.ts", "#EXT-X-DISCONTINUITY"), entry("2.ts", "#EXT-X-DISCONTINUITY")]
    with WebServer(served(segments, m=playlist(entries))) as server:
        seen = read(server.url("/m"))
    assert seen.numbers == list(range(30))
    gaps = [after.time_s - before.time_s for before, after in itertools.pairwise(seen.frames)]
    assert gaps == pytest.approx([0.04] * 29, abs=0.002)


def test_a_live_playlist_that_ends_is_not_shown_again(parts: list[bytes]) -> None:
    asked = itertools.count()

    def growing() -> Answer:
        return Answer(plain(parts, ended=next(asked) > 4))

    with WebServer(served(parts, m=growing)) as server:
        seen = read(server.url("/m"), lambda seen: "waiting" in seen.states, limit_s=20)
        assert seen.live
        assert len(seen.numbers) > 20
        assert seen.numbers == sorted(set(seen.numbers))  # type: ignore[type-var]
        shown = read(server.url("/m"), lambda seen: "playlist has ended" in seen.causes, limit_s=6, live=True)
    assert shown.numbers == sorted(set(shown.numbers))  # type: ignore[type-var]
