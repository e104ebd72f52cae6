"""Tokens, sessions, one-time links and rate limits."""

from __future__ import annotations

import stat

import pytest

from streamer.errors import ConfigError, StreamerError
from streamer.web.access import (
    LOGIN_LIMITS,
    OneTimeCodes,
    RateLimiter,
    Role,
    SessionStore,
    load_tokens,
    store_tokens,
)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_missing_tokens_are_generated_once_and_stored_as_hashes_that_only_the_owner_reads(tmp_path):
    path = tmp_path / "tokens.json"
    tokens, made = load_tokens(path, {})
    store_tokens(path, made)
    assert set(made) == {Role.VIEWER, Role.OPERATOR}
    assert all(len(token) >= 40 for token in made.values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(token in path.read_text() for token in made.values())
    again, made_again = load_tokens(path, {})
    assert made_again == {}
    assert [again.find_role(made[role]) for role in Role] == list(Role)
    assert tokens.find_role("wrong") is None


def test_tokens_of_a_start_that_failed_are_not_stored(tmp_path):
    load_tokens(tmp_path / "tokens.json", {})
    assert list(tmp_path.iterdir()) == []


def test_configured_tokens_replace_stored_ones(tmp_path):
    tokens, made = load_tokens(tmp_path / "t", {Role.VIEWER: "v" * 20, Role.OPERATOR: "o" * 20})
    assert made == {}
    assert tokens.find_role("v" * 20) is Role.VIEWER
    assert tokens.find_role("o" * 20) is Role.OPERATOR


def test_both_roles_with_one_token_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="give each role its own"):
        load_tokens(tmp_path / "t", {Role.VIEWER: "x" * 20, Role.OPERATOR: "x" * 20})


@pytest.mark.parametrize("damage", ["{", "[]", '"x"'])
def test_a_damaged_file_of_tokens_names_itself_and_the_way_out(tmp_path, damage):
    path = tmp_path / "t.json"
    path.write_text(damage)
    with pytest.raises(StreamerError, match="delete the file"):
        load_tokens(path, {})


def test_a_session_ends_after_twelve_hours_or_by_logging_out():
    clock = Clock()
    sessions = SessionStore(clock)
    first, second = sessions.start(Role.VIEWER), sessions.start(Role.OPERATOR)
    assert sessions.find(first).role is Role.VIEWER
    sessions.end(second)
    assert sessions.find(second) is None
    clock.now += 12 * 3600 + 1
    assert sessions.find(first) is None


def test_a_login_link_works_once_and_not_after_fifteen_minutes():
    clock = Clock()
    codes = OneTimeCodes(clock)
    code, late = codes.issue(Role.OPERATOR), codes.issue(Role.OPERATOR)
    assert codes.redeem(code) is Role.OPERATOR
    assert codes.redeem(code) is None
    clock.now += 15 * 60 + 1
    assert codes.redeem(late) is None


def test_failed_logins_are_limited_by_second_minute_and_hour():
    clock = Clock()
    limiter = RateLimiter(LOGIN_LIMITS, clock)

    def attempt() -> bool:
        if limiter.wait_s("10.0.0.1") > 0:
            return False
        limiter.record("10.0.0.1")
        return True

    assert [attempt(), attempt()] == [True, False]
    made = 1
    for _ in range(7200):
        clock.now += 1.0
        made += attempt()
        if clock.now - 1000 < 60:
            assert made <= 6
    assert 38 <= made <= 42
    assert limiter.wait_s("10.0.0.2") == 0
