"""Objects in S3-compatible stores: addresses, listing, byte ranges, and folders that are written (through obstore).

Credentials come from where other S3 tools take them: the environment (`AWS_ACCESS_KEY_ID`, ...), the profile in
`~/.aws/credentials`, else the role of the machine. They never stand in an address.
"""

from __future__ import annotations

import configparser
import io
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl, urlencode, urlsplit

from sinks.address import redact
from sinks.tls import TlsOptions
from streamer.errors import SourceAddressError, StreamerError

if TYPE_CHECKING:
    from obstore.store import S3Store

_OPTIONS = ("endpoint", "region", "anonymous")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", re.IGNORECASE)
_PIECE = 4 * 2**20
"""Bytes of one request; large enough that the delay of a request does not count."""
_PIECES_KEPT = 4  # FFmpeg goes back and forth between the index of a file and its pictures
_REQUEST_S, _CONNECT_S, _RETRIES, _RETRY_S = 30, 10, 3, 20


class ObjectStoreError(StreamerError):
    """An object store cannot be read: unreachable, refused, or there is no such object."""


@dataclass(frozen=True, slots=True)
class S3Address:
    """`s3://BUCKET/KEY[?endpoint=URL&region=NAME&anonymous=true]` in its parts. The key stands as it is, unencoded."""

    bucket: str
    key: str
    options: tuple[tuple[str, str], ...] = ()

    def of(self, key: str) -> str:
        """Returns the address of another key in the same bucket."""
        return f"s3://{self.bucket}/{key}" + (f"?{urlencode(self.options)}" if self.options else "")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as the store describes it: `size` in bytes, `version` changes with the content."""

    size: int
    version: str


def parse_s3(text: str) -> S3Address:
    """Returns the parts of an `s3://` address. Raises `SourceAddressError`."""
    rest = text.partition("://")[2]
    place, mark, query = rest.rpartition("?")
    options = dict(parse_qsl(query, keep_blank_values=True)) if mark else {}
    if not options or not set(options) <= set(_OPTIONS):
        place, options = rest, {}  # a question mark may stand in a key
    bucket, _, key = place.partition("/")
    shown = redact(text)
    if "@" in bucket:
        raise SourceAddressError(
            f"{shown}: credentials do not belong in an S3 address: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not _BUCKET.fullmatch(bucket):
        raise SourceAddressError(f"{shown} names no bucket: give s3://BUCKET/KEY, or s3://BUCKET/FOLDER/")
    endpoint = urlsplit(options.get("endpoint", "https://s3"))
    if endpoint.scheme not in ("http", "https") or not endpoint.hostname or "@" in endpoint.netloc:
        raise SourceAddressError(f"{shown}: the endpoint is no web address: give endpoint=https://HOST[:PORT]")
    if options.get("anonymous", "true").lower() not in ("true", "false"):
        raise SourceAddressError(f"{shown}: option anonymous={options['anonymous']!r} must be true or false")
    return S3Address(bucket, key, tuple(options.items()))


def is_pattern(address: S3Address) -> bool:
    """Whether the address stands for several objects: it ends with `/` or has `*` in its key."""
    return not address.key or address.key.endswith("/") or "*" in address.key


def list_objects(address: S3Address, tls: TlsOptions | None = None) -> list[str]:
    """Returns the addresses of the objects directly below a folder, or of those that a pattern fits.

    In a pattern `*` stands for any text without `/`, `**` for any text. Raises `ObjectStoreError`.
    """
    store = _open_store(address, tls)
    try:
        if "*" not in address.key:
            found = store.list_with_delimiter(address.key.rstrip("/") or None)["objects"]
        else:
            prefix = address.key.partition("*")[0].rpartition("/")[0]
            found = [entry for batch in store.list(prefix or None) for entry in batch]
    except Exception as error:
        _fail(error, address)
    keys = [str(entry["path"]) for entry in found]
    if "*" in address.key:
        parts = re.split(r"(\*+)", address.key)
        words = [re.escape(part) if not part.startswith("*") else ("[^/]*" if part == "*" else ".*") for part in parts]
        keys = [key for key in keys if re.fullmatch("".join(words), key, re.DOTALL)]
    return [address.of(key) for key in keys]


def describe_object(address: S3Address, tls: TlsOptions | None = None) -> StoredObject:
    """Asks the store for an object. Raises `ObjectStoreError`."""
    return _describe(_open_store(address, tls), address)


class ObjectFile(io.RawIOBase):
    """An object as a file that can be read from any place.

    `broken` is the error that ended reading early; the reader then gets the end of the file, so that all that came
    before is used. An object that is replaced while it is read counts as broken.
    """

    def __init__(self, address: S3Address, tls: TlsOptions | None = None) -> None:
        """Raises `ObjectStoreError`."""
        self._address = address
        self._store = _open_store(address, tls)
        found = _describe(self._store, address)
        self.size = found.size
        self._version = found.version
        self._place = 0
        self._pieces: OrderedDict[int, bytes] = OrderedDict()
        self.broken: ObjectStoreError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def read(self, count: int = -1) -> bytes:
        if self._place >= self.size or self.broken is not None:
            return b""
        number, start = divmod(self._place, _PIECE)
        try:
            piece = self._piece(number)
        except ObjectStoreError as error:
            self.broken = error
            return b""
        data = piece[start:] if count < 0 else piece[start : start + count]
        self._place += len(data)
        return data

    def _piece(self, number: int) -> bytes:
        piece = self._pieces.pop(number, None)
        if piece is None:
            first, end = number * _PIECE, min(self.size, (number + 1) * _PIECE)
            options: dict[str, Any] = {"range": (first, end)}
            if self._version:
                options["if_match"] = self._version
            try:
                piece = bytes(self._store.get(self._address.key, options=options).bytes())  # type: ignore[arg-type]
            except Exception as error:
                _fail(error, self._address)
            if len(piece) != end - first:
                raise ObjectStoreError(f"the store sent {len(piece)} of {end - first} bytes")
            while len(self._pieces) >= _PIECES_KEPT:
                self._pieces.popitem(last=False)
        self._pieces[number] = piece
        return piece


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object below a folder: its name there, its bytes and when it was written (seconds since 1970)."""

    name: str
    size: int
    modified_s: float


class ObjectFolder:
    """The objects below a key that is empty or ends with `/`: read, written, listed and removed. Thread-safe."""

    def __init__(self, address: S3Address, tls: TlsOptions | None = None) -> None:
        """Raises `ObjectStoreError` without asking the store."""
        self._address = address
        self._store = _open_store(address, tls)

    @property
    def name(self) -> str:
        """The folder's address without options."""
        return f"s3://{self._address.bucket}/{self._address.key}"

    def address_of(self, name: str) -> str:
        """Returns the address of an object."""
        return self._address.of(self._address.key + name)

    def list_all(self) -> list[ListedObject]:
        """Returns all objects of the folder. Raises `ObjectStoreError`."""
        try:
            found = [entry for batch in self._store.list(self._address.key or None) for entry in batch]
        except Exception as error:
            _fail(error, self._address)
        return [
            ListedObject(
                str(entry["path"]).removeprefix(self._address.key),
                int(entry["size"]),
                entry["last_modified"].timestamp(),
            )
            for entry in found
        ]

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object, None where there is none. Raises `ObjectStoreError`."""
        try:
            return bytes(self._store.get(self._address.key + name).bytes())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                _fail(error, self._address)
            return None
        except Exception as error:
            _fail(error, self._address)

    def write(self, name: str, content: bytes) -> None:
        """Writes an object, whole or not at all. Raises `ObjectStoreError`."""
        try:
            self._store.put(self._address.key + name, content)
        except Exception as error:
            _fail(error, self._address)

    def remove(self, names: Sequence[str]) -> None:
        """Removes objects; those that are not there are ignored. Raises `ObjectStoreError`."""
        try:
            self._store.delete([self._address.key + name for name in names])
        except Exception as error:
            _fail(error, self._address)


def _open_store(address: S3Address, tls: TlsOptions | None) -> S3Store:
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise ObjectStoreError("S3 addresses need obstore: pip install 'groundstream[s3]'") from error
    options = dict(address.options)
    endpoint = (
        options.get("endpoint")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or os.environ.get("AWS_ENDPOINT")
    )
    config: dict[str, Any] = dict(_profile())
    if endpoint:
        config["endpoint"] = endpoint
    if region := options.get("region"):
        config["region"] = region
    if options.get("anonymous", "").lower() == "true":
        config["skip_signature"] = True
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "timeout": timedelta(seconds=_REQUEST_S),
        "user_agent": "groundstream",
        "allow_http": bool(endpoint) and urlsplit(str(endpoint)).scheme == "http",
    }
    if tls is not None and tls.insecure:
        client["allow_invalid_certificates"] = True
    if tls is not None and tls.cafile is not None:
        try:
            client["root_certificate"] = Path(tls.cafile).read_bytes()
        except OSError as error:
            raise ObjectStoreError(f"cannot read the certificates of {tls.cafile}: {error.strerror}") from error
    retry = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)}
    try:
        return S3Store(address.bucket, config=config, client_options=client, retry_config=retry)  # type: ignore[arg-type]
    except Exception as error:
        _fail(error, address)


def _profile() -> dict[str, str]:
    """Returns the keys of the AWS profile where the environment has none: obstore reads no profiles itself."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return {}
    name = os.environ.get("AWS_PROFILE", "default")
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    settings = configparser.RawConfigParser()
    try:
        settings.read(path, encoding="utf-8")
        section = dict(settings[name])
    except (OSError, ValueError, configparser.Error, KeyError):
        return {}
    keys = {
        "access_key_id": "aws_access_key_id",
        "secret_access_key": "aws_secret_access_key",
        "session_token": "aws_session_token",
        "region": "region",
    }
    return {ours: section[theirs] for ours, theirs in keys.items() if section.get(theirs)}


def _describe(store: S3Store, address: S3Address) -> StoredObject:
    try:
        found = store.head(address.key)
    except Exception as error:
        _fail(error, address)
    return StoredObject(int(found["size"]), str(found["e_tag"] or found["last_modified"] or ""))


def _fail(error: Exception, address: S3Address) -> NoReturn:
    """Raises the error in our words: obstore's own name addresses and headers."""
    if isinstance(error, ObjectStoreError):
        raise error
    from obstore import exceptions

    whole = str(error)
    text = whole.splitlines()[0] if whole else ""  # the rest describes the client's own state
    if isinstance(error, exceptions.PreconditionError):
        reason = "it was replaced while it was read: run again"
    elif "NoSuchBucket" in whole:
        reason = f"there is no bucket {address.bucket}"
    elif isinstance(error, (exceptions.NotFoundError, FileNotFoundError)):
        reason = "there is nothing at this key (404): check the bucket and the key"
    elif isinstance(error, exceptions.UnauthenticatedError) or "401 Unauthorized" in text:
        reason = "credentials are missing or wrong (401): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif isinstance(error, exceptions.PermissionDeniedError) or "403 Forbidden" in text:
        reason = "access is forbidden (403): check the credentials and their rights to read and list"
    elif "169.254.169.254" in text or "AccessKey" in text or "credential" in text.lower():
        reason = (
            "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give ?anonymous=true for a "
            "public bucket"
        )
    elif "Could not parse path" in text or isinstance(error, exceptions.InvalidPathError):
        reason = "the key is not valid: leave out empty parts, . and .."
    elif "redirect" in text.lower() or "301 Moved" in text:
        reason = "the bucket lies in another region: give ?region=NAME or set AWS_REGION"
    elif "timed out" in whole or "TimedOut" in whole:
        reason = "the store does not answer in time"
    elif "error sending request" in text:
        reason = "the store cannot be reached: check ?endpoint= or AWS_ENDPOINT_URL"
    else:
        reason = f"the store reports {type(error).__name__}: {redact(text)[:200]}"
    raise ObjectStoreError(reason) from error
