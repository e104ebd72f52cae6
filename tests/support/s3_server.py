"""An S3 server for tests: HEAD, ranged GET, PUT, DeleteObjects, ListObjectsV2 on loopback, with checked signatures.

Signature: AWS Signature Version 4, https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

import hashlib
import hmac
import http.server
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

_LONG_AGO = datetime(2026, 5, 4, 12, tzinfo=UTC)
ACCESS, SECRET = "AKIATESTKEY", "wJalrXUtnFEMI/K7MDENG+secret"


@dataclass
class S3Server:
    """Serves `buckets` (bucket -> key -> content). `before_get` is called with the key before each ranged answer.

    `requests` remembers (method, path), `modified` when objects were written, where that was not long ago. With
    `secret` None requests need no signature. A context manager.
    """

    buckets: dict[str, dict[str, bytes]]
    secret: str | None = SECRET
    page: int = 1000
    before_get: Callable[[str], None] = lambda _key: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    modified: dict[str, datetime] = field(default_factory=dict)

    def __enter__(self) -> Self:
        owner = self

        class Handler(_Handler):
            server_data = owner

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_data: S3Server

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def do_PUT(self) -> None:
        def put(objects: dict[str, bytes], key: str, content: bytes) -> str:
            self.server_data.modified[key] = datetime.now(UTC)
            objects[key] = content
            return ""

        self._change(put)

    def do_POST(self) -> None:
        """DeleteObjects: https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html"""

        def remove(objects: dict[str, bytes], _: str, content: bytes) -> str:
            keys = re.findall("<Key>([^<]*)</Key>", content.decode())
            for key in keys:
                objects.pop(unescape(key), None)
            return f"<DeleteResult>{''.join(f'<Deleted><Key>{key}</Key></Deleted>' for key in keys)}</DeleteResult>"

        self._change(remove)

    def _change(self, change: Callable[[dict[str, bytes], str, bytes], str]) -> None:
        data = self.server_data
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        data.requests.append((self.command, path))
        bucket, _, key = path.lstrip("/").partition("/")
        if data.secret is not None and (code := self._check_signature(data.secret)):
            self._answer(403, _error(code), with_body=True)
        elif bucket not in data.buckets:
            self._answer(404, _error("NoSuchBucket"), with_body=True)
        else:
            body = change(data.buckets[bucket], key, content)
            self._answer(200, body.encode(), {"ETag": '"x"'}, with_body=True)

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def _serve(self, *, with_body: bool) -> None:
        data = self.server_data
        url = urlsplit(self.path)
        data.requests.append((self.command, unquote(url.path)))
        if data.secret is not None and (code := self._check_signature(data.secret)):
            self._answer(403, _error(code), with_body=with_body)
            return
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if bucket not in data.buckets:
            self._answer(404, _error("NoSuchBucket"), with_body=with_body)
        elif not key:
            self._answer(200, self._listing(data.buckets[bucket], dict(parse_qsl(url.query))), with_body=True)
        else:
            self._object(data.buckets[bucket], key, with_body=with_body)

    def _object(self, objects: dict[str, bytes], key: str, *, with_body: bool) -> None:
        if with_body:
            self.server_data.before_get(key)
        if key not in objects:
            self._answer(404, _error("NoSuchKey"), with_body=with_body)
            return
        content = objects[key]
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": etag, "Last-Modified": "Mon, 04 May 2026 12:00:00 GMT", "Accept-Ranges": "bytes"}
        if self.headers.get("If-Match", etag) != etag:
            self._answer(412, _error("PreconditionFailed"), with_body=with_body)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            self._answer(200, content, headers, with_body=with_body)
            return
        first, last = int(match[1]), min(int(match[2]), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], headers, with_body=with_body)

    def _listing(self, objects: dict[str, bytes], query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token", "")
        found: list[str] = []
        folders: set[str] = set()
        for key in sorted(key for key in objects if key.startswith(prefix) and key > after):
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                found.append(key)
        page, more = found[: self.server_data.page], found[self.server_data.page :]
        body = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key])}</Size><ETag>x</ETag>"
            f"<LastModified>{self.server_data.modified.get(key, _LONG_AGO):%Y-%m-%dT%H:%M:%S.%f}Z</LastModified>"
            "</Contents>"
            for key in page
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
        cut = "true" if more else "false"
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return f"<ListBucketResult><IsTruncated>{cut}</IsTruncated>{token}{body}</ListBucketResult>".encode()

    def _check_signature(self, secret: str) -> str:
        """The code of S3's error, empty where the signature is right."""
        match = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?"
            r"Signature=([0-9a-f]{64})",
            self.headers.get("Authorization", ""),
        )
        if match is None:
            return "AccessDenied"
        user, day, region, names, signature = match.groups()
        if user != ACCESS:
            return "InvalidAccessKeyId"
        url = urlsplit(self.path)
        query = "&".join(
            f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
            for name, value in sorted(parse_qsl(url.query, keep_blank_values=True))
        )
        headers = "".join(f"{name}:{' '.join(self.headers.get(name, '').split())}\n" for name in names.split(";"))
        request = "\n".join(
            [self.command, url.path, query, headers, names, self.headers.get("x-amz-content-sha256", "")]
        )
        scope = f"{day}/{region}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = "\n".join(["AWS4-HMAC-SHA256", self.headers.get("x-amz-date", ""), scope, digest])
        key = f"AWS4{secret}".encode()
        for part in (day, region, "s3", "aws4_request", text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return "" if key.hex() == signature else "SignatureDoesNotMatch"

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def environment(names: Iterable[str] = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")) -> dict[str, str]:
    """The environment of a client of this server."""
    values = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu-central-1"}
    return {name: value for name, value in values.items() if name in names or name == "AWS_REGION"}
