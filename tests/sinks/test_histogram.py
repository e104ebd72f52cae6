"""Histograms: each value in the first bucket that holds it, and cumulative counts as Prometheus reads them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sinks.histogram import Histogram

BOUNDS = (0.5, 1.0, 2.0)


@given(st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0]) | st.floats(0, 10)))
def test_every_value_is_counted_in_its_bucket(values: list[float]) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    wanted = [(str(bound), sum(value <= bound for value in values)) for bound in BOUNDS]
    assert histogram.cumulative() == [*wanted, ("+Inf", len(values))]
    assert histogram.count == len(values)
    assert abs(histogram.total - sum(values)) < 1e-6
