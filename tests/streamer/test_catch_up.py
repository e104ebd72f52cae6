"""What is skipped when decoding falls behind: as little as possible, and never the pictures that others need."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streamer.sources.catch_up import CatchUp
from streamer.sources.nal_units import UnitLayout

SECOND = 1_000_000_000
FRAME = SECOND // 25
GROUP = 25


def play(lags_s: Sequence[float], *, group: int = GROUP, reference: bool = True, clock_at: int = 0) -> list[bool]:
    """Which pictures of a stream with a key picture every `group` are skipped; each is handled `lags_s` late."""
    catch_up = CatchUp()
    return [
        catch_up.skips(
            clock_at + number * FRAME,
            5 * SECOND + number * FRAME + int(lag_s * SECOND),
            is_key=number % group == 0,
            is_reference=lambda: reference,
        )
        for number, lag_s in enumerate(lags_s)
    ]


def test_nothing_is_skipped_while_decoding_keeps_up():
    jitter = [0.03 * (number % 3) for number in range(500)]
    assert not any(play(jitter))


def test_a_little_lag_costs_only_pictures_that_no_other_builds_on():
    lags = [0.0] * 50 + [0.12] * 10
    assert not any(play(lags, reference=True))
    # The key picture at 50 is decoded in any case.
    assert [number for number, skipped in enumerate(play(lags, reference=False)) if skipped] == list(range(51, 60))


def test_more_lag_costs_everything_up_to_the_next_key_picture():
    lags = [0.0] * 60 + [0.5] * 3 + [0.0] * 40
    assert [number for number, skipped in enumerate(play(lags)) if skipped] == list(range(60, 75))


def test_a_stream_with_rare_key_pictures_is_not_blinded():
    lags = [0.0] * 650 + [1.0] * 100
    assert not any(play(lags, group=300))


def test_lag_is_judged_only_when_two_key_pictures_have_been_seen():
    assert not any(play([0.0] * 10 + [1.0] * 10))


def test_a_camera_that_sets_its_clock_is_not_late():
    catch_up = CatchUp()
    skipped = []
    for number in range(200):
        time_ns = number * FRAME + (0 if number < 100 else -3600 * SECOND)
        skipped.append(catch_up.skips(time_ns, number * FRAME, is_key=number % GROUP == 0, is_reference=lambda: True))
    assert not any(skipped)


def test_a_camera_whose_clock_is_slow_is_not_late():
    catch_up = CatchUp()
    for number in range(25 * 600):
        time_ns = int(number * FRAME * (1 - 2e-4))
        assert not catch_up.skips(time_ns, number * FRAME, is_key=number % GROUP == 0, is_reference=lambda: True)


@pytest.mark.parametrize("rate", [0.9, 0.96, 0.99])
def test_a_camera_that_counts_its_times_at_a_wrong_rate_loses_little(rate: float):
    """Its clock falls behind for ever, though nothing waits."""
    catch_up = CatchUp()
    skipped = sum(
        catch_up.skips(
            int(number * FRAME * rate), number * FRAME, is_key=number % GROUP == 0, is_reference=lambda: True
        )
        for number in range(25 * 300)
    )
    assert skipped < 25 * 300 * 0.02


def test_a_machine_that_stays_too_slow_gets_the_beginning_of_each_group():
    """Decoding takes 1.5 intervals a picture, skipping nothing."""
    catch_up = CatchUp()
    now_ns, decoded, ages = 0, 0, []
    for number in range(25 * 60):
        now_ns = max(now_ns, number * FRAME)
        if not catch_up.skips(number * FRAME, now_ns, is_key=number % GROUP == 0, is_reference=lambda: True):
            now_ns += FRAME * 3 // 2
            decoded += 1
            ages.append(now_ns - number * FRAME)
    assert max(ages[60:]) < 7 * FRAME
    assert decoded > 25 * 60 * 0.3


@pytest.mark.parametrize(
    ("codec", "unit", "expected"),
    [
        ("h264", b"\x41", True),
        ("h264", b"\x01", False),
        ("h264", b"\x65", True),
        ("hevc", b"\x02\x01", True),  # TRAIL_R
        ("hevc", b"\x00\x01", False),  # TRAIL_N
        ("hevc", b"\x26\x01", True),  # IDR
    ],
)
def test_packets_say_whether_others_build_on_them(codec: str, unit: bytes, expected: bool):
    assert UnitLayout(codec, None).is_reference(b"\0\0\0\1" + unit + b"\x88\x80") is expected
