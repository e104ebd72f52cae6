"""Access rights of the web server: tokens, roles, sessions, one-time links and rate limits."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from streamer.errors import ConfigError, StreamerError

SESSION_S = 12 * 3600.0
LINK_S = 15 * 60.0
_MOST_SESSIONS = 1000
_MOST_ADDRESSES = 10_000
_TOKEN_BYTES = 32

LOGIN_LIMITS = ((1.0, 1), (60.0, 5), (3600.0, 20))
"""Failed logins of one address: at most 1 in a second, 5 in a minute, 20 in an hour."""
WRITE_LIMITS = ((60.0, 60),)
"""Writes of one session or token: at most 60 in a minute."""


class Role(StrEnum):
    """What a client may do: a viewer reads, an operator also changes."""

    VIEWER = "viewer"
    OPERATOR = "operator"

    def covers(self, needed: Role) -> bool:
        """Returns whether this role includes the rights of `needed`."""
        return self is Role.OPERATOR or needed is Role.VIEWER


def hash_secret(secret: str) -> str:
    """Returns the SHA-256 of a secret in hexadecimal digits. Tokens are random, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


class AccessTokens:
    """The tokens of both roles, kept as hashes."""

    def __init__(self, hashes: Mapping[Role, str]) -> None:
        self._hashes = dict(hashes)

    def find_role(self, token: str) -> Role | None:
        """Returns the role of a token, or None for an unknown one; takes the same time for every token."""
        digest = hash_secret(token)
        found = None
        for role, known in self._hashes.items():
            if hmac.compare_digest(digest, known):
                found = role
        return found


def load_tokens(path: Path, configured: Mapping[Role, str | None]) -> tuple[AccessTokens, dict[Role, str]]:
    """Returns the access tokens, and the ones generated now (32 bytes), to be shown once and stored.

    Configured tokens count first, the others are read as hashes from `path`. Raises `ConfigError` when both roles
    share a token, `StreamerError` when the file cannot be read.
    """
    given = {role: token for role, token in configured.items() if token is not None}
    if len(set(given.values())) < len(given):
        raise ConfigError("web.tokens: viewer and operator have the same token: give each role its own")
    stored = _read_hashes(path)
    made: dict[Role, str] = {}
    for role in Role:
        if role not in given and role.value not in stored:
            made[role] = secrets.token_urlsafe(_TOKEN_BYTES)
            stored[role.value] = hash_secret(made[role])
    hashes = {role: hash_secret(given[role]) if role in given else stored[role.value] for role in Role}
    return AccessTokens(hashes), made


def store_tokens(path: Path, made: Mapping[Role, str]) -> None:
    """Stores generated tokens as hashes, file mode 0600. Raises `StreamerError` when the file cannot be written."""
    if made:
        _write_hashes(path, _read_hashes(path) | {role.value: hash_secret(token) for role, token in made.items()})


def _read_hashes(path: Path) -> dict[str, str]:
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise StreamerError(f"cannot read the web tokens in {path}: {error}; delete the file to get new ones") from None
    if not isinstance(raw, dict):
        raise StreamerError(f"cannot read the web tokens in {path}: not a mapping; delete the file to get new ones")
    return {str(role): str(value) for role, value in raw.items() if role in set(Role)}


def _write_hashes(path: Path, hashes: Mapping[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(dict(hashes), file)
        os.replace(temporary, path)
    except OSError as error:
        raise StreamerError(
            f"cannot store the web tokens in {path}: {error.strerror}; make the folder writable"
        ) from None


@dataclass(frozen=True, slots=True)
class WebSession:
    """A login: its role, when it ends on the monotonic clock, and a name for rate limits that is no secret."""

    role: Role
    ends_s: float
    name: str


class SessionStore:
    """Logins by their random ids, kept hashed in memory. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, WebSession] = {}

    def start(self, role: Role) -> str:
        """Begins a session of 12 hours; returns its id for the cookie."""
        session_id = secrets.token_urlsafe(_TOKEN_BYTES)
        digest = hash_secret(session_id)
        with self._lock:
            self._drop_expired()
            while len(self._sessions) >= _MOST_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[digest] = WebSession(role, self._clock() + SESSION_S, f"session:{digest[:16]}")
        return session_id

    def find(self, session_id: str) -> WebSession | None:
        """Returns a session that has not ended, or None."""
        with self._lock:
            session = self._sessions.get(hash_secret(session_id))
        return session if session is not None and session.ends_s > self._clock() else None

    def end(self, session_id: str) -> None:
        """Ends a session; an unknown one is ignored."""
        with self._lock:
            self._sessions.pop(hash_secret(session_id), None)

    def _drop_expired(self) -> None:
        now = self._clock()
        self._sessions = {digest: session for digest, session in self._sessions.items() if session.ends_s > now}


class OneTimeCodes:
    """Codes of login links: each opens one session, within 15 minutes. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._codes: dict[str, tuple[Role, float]] = {}

    def issue(self, role: Role) -> str:
        """Returns a new code for a login link."""
        code = secrets.token_urlsafe(24)
        with self._lock:
            self._codes[hash_secret(code)] = (role, self._clock() + LINK_S)
        return code

    def redeem(self, code: str) -> Role | None:
        """Uses up a code; returns its role, or None for an unknown or expired one."""
        with self._lock:
            found = self._codes.pop(hash_secret(code), None)
        return found[0] if found is not None and found[1] > self._clock() else None


class RateLimiter:
    """Sliding-window limits for each key: `limits` holds (seconds, most actions within them). Thread-safe."""

    def __init__(self, limits: tuple[tuple[float, int], ...], clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._longest_s = max(seconds for seconds, _ in limits)
        self._clock = clock
        self._lock = threading.Lock()
        self._times: dict[str, deque[float]] = {}

    def wait_s(self, key: str) -> float:
        """Returns the seconds until another action of `key` is allowed, 0 when it is allowed now."""
        with self._lock:
            times = self._times.get(key)
            if not times:
                return 0.0
            now = self._clock()
            waits = [0.0]
            for seconds, most in self._limits:
                if len(times) >= most and now - times[-most] < seconds:
                    waits.append(seconds - (now - times[-most]))
            return max(waits)

    def record(self, key: str) -> None:
        """Counts an action of `key`."""
        with self._lock:
            now = self._clock()
            if len(self._times) >= _MOST_ADDRESSES and key not in self._times:
                self._times = {name: times for name, times in self._times.items() if now - times[-1] < self._longest_s}
                while len(self._times) >= _MOST_ADDRESSES:
                    del self._times[next(iter(self._times))]
            times = self._times.setdefault(key, deque(maxlen=max(most for _, most in self._limits)))
            times.append(now)


@dataclass(slots=True)
class AccessControl:
    """Everything that decides who may do what."""

    tokens: AccessTokens
    sessions: SessionStore = field(default_factory=SessionStore)
    codes: OneTimeCodes = field(default_factory=OneTimeCodes)
    failed_logins: RateLimiter = field(default_factory=lambda: RateLimiter(LOGIN_LIMITS))
    writes: RateLimiter = field(default_factory=lambda: RateLimiter(WRITE_LIMITS))
