from __future__ import annotations

import pytest

from resd_lightning.compare.interval import Estimate, estimate, student_quantile


@pytest.mark.parametrize(
    ("degrees", "confidence", "quantile"),
    [
        # As printed in tables of Student's distribution
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (3, 0.95, 3.182),
        (4, 0.95, 2.776),
        (9, 0.95, 2.262),
        (30, 0.95, 2.042),
        (120, 0.95, 1.980),
        (5, 0.99, 4.032),
        (6, 0.90, 1.943),
    ],
)
def test_quantiles_are_those_of_the_tables(degrees: int, confidence: float, quantile: float) -> None:
    assert student_quantile(degrees, confidence) == pytest.approx(quantile, abs=5e-4)


def test_the_interval_is_t_standard_errors_to_each_side() -> None:
    # Deviation 0.1, so a standard error of 0.1 / sqrt(3)
    assert estimate([0.5, 0.6, 0.7]) == Estimate(pytest.approx(0.6), pytest.approx(4.30265 * 0.0577350, rel=1e-5), 3)
    assert estimate([1, 3]) == Estimate(2, pytest.approx(12.7062, rel=1e-5), 2)
    assert estimate([0.25, 0.25]) == Estimate(0.25, 0.0, 2)


def test_one_value_has_no_interval() -> None:
    assert estimate([0.25]) == Estimate(0.25, None, 1)


def test_no_value_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


@pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (1, 0.0), (1, 1.0)])
def test_what_has_no_quantile_is_refused(degrees: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="degrees must be at least 1 and confidence in"):
        student_quantile(degrees, confidence)
