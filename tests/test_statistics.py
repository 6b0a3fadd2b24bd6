"""The statistics of the bench against scipy's paired t-test and examples worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recipes._lab.statistics import (
    CONTRADICTED,
    NO_CLEAR_DIFFERENCE,
    SUPPORTED,
    claim_p_value,
    holm,
    judge,
    mean_interval,
    paired_p_value,
)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_interval_and_p_value_agree_with_scipy(count):
    generator = np.random.default_rng(count)
    treated, control = generator.normal(0.5, 1, count), generator.normal(0, 1, count)
    expected = stats.ttest_rel(treated, control)
    low, high = expected.confidence_interval(0.95)
    interval = mean_interval(treated - control)
    np.testing.assert_allclose(interval[:3], [(treated - control).mean(), low, high], rtol=1e-12)
    np.testing.assert_allclose(paired_p_value(treated - control), expected.pvalue, rtol=1e-10)


def test_one_seed_has_a_mean_and_no_interval():
    interval = mean_interval([0.25])
    assert interval.mean == 0.25 and math.isnan(interval.low) and math.isnan(interval.high)
    assert math.isnan(paired_p_value([0.25]))


def test_equal_differences_are_certain():
    # The floating-point mean of three times 0.1 is not 0.1; the interval must not show that.
    assert mean_interval([0.1, 0.1, 0.1])[:3] == (0.1, 0.1, 0.1)
    assert paired_p_value([0.1, 0.1, 0.1]) == 0.0
    assert paired_p_value([0.0, 0.0, 0.0]) == 1.0


def test_holm_worked_by_hand():
    # m = 4: .005 * 4, .01 * 3, .03 * 2, .04 * 1 -> the last is lifted to the one before it.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_claims_that_were_not_tested():
    adjusted = holm([0.02, math.nan, 0.03])
    np.testing.assert_allclose([adjusted[0], adjusted[2]], [0.04, 0.04])
    assert math.isnan(adjusted[1])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_raw_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for raw, corrected in zip(p_values, adjusted, strict=True):
        assert raw <= corrected <= min(1.0, raw * len(p_values)) or corrected == max(
            a for a, p in zip(adjusted, p_values, strict=True) if p <= raw
        )
    # Definition from the other side: a set of hypotheses is rejected step by step.
    order = np.argsort(p_values)
    rejected = 0
    for rank, index in enumerate(order):
        if p_values[index] > 0.05 / (len(p_values) - rank):
            break
        rejected += 1
    assert sum(corrected <= 0.05 * (1 + 1e-12) for corrected in adjusted) == rejected


def test_equivalence_agrees_with_two_one_sided_t_tests():
    differences = np.random.default_rng(0).normal(0.1, 0.5, 12)
    above = stats.ttest_1samp(differences, -0.6, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, 0.6, alternative="less").pvalue
    np.testing.assert_allclose(
        claim_p_value(differences, "equal", 0.6), max(above, below), rtol=1e-10
    )
    assert claim_p_value([0.0, 0.0], "equal", 0.0) == 0.0
    assert claim_p_value([0.2, 0.2], "equal", 0.1) == 1.0


CLEARLY_UP = [0.10, 0.12, 0.11, 0.09, 0.10]
UNCLEAR = [0.30, -0.25, 0.02, -0.10, 0.20]


@pytest.mark.parametrize(
    ("differences", "direction", "at_least", "expected"),
    [
        (CLEARLY_UP, "higher", 0.02, SUPPORTED),
        (CLEARLY_UP, "lower", 0.02, CONTRADICTED),
        ([-d for d in CLEARLY_UP], "lower", 0.02, SUPPORTED),
        ([-d for d in CLEARLY_UP], "higher", 0.02, CONTRADICTED),
        (CLEARLY_UP, "higher", 0.2, NO_CLEAR_DIFFERENCE),  # real, but smaller than what counts
        (UNCLEAR, "higher", 0.0, NO_CLEAR_DIFFERENCE),
        (UNCLEAR, "equal", 0.1, NO_CLEAR_DIFFERENCE),  # not different, and not shown to be equal
        (CLEARLY_UP, "equal", 0.5, SUPPORTED),
        (CLEARLY_UP, "equal", 0.05, CONTRADICTED),
        ([0.0] * 5, "equal", 0.0, SUPPORTED),
        ([0.0] * 5, "higher", 0.0, NO_CLEAR_DIFFERENCE),
        ([0.3], "higher", 0.1, NO_CLEAR_DIFFERENCE),  # one seed
        ([*CLEARLY_UP, math.nan], "higher", 0.02, NO_CLEAR_DIFFERENCE),  # a diverged run
    ],
)
def test_verdicts(differences, direction, at_least, expected):
    p_value = claim_p_value(differences, direction, at_least)
    assert judge(differences, direction, at_least, p_value) == expected


def test_correction_can_take_a_verdict_back():
    p_value = claim_p_value([0.10, 0.02, 0.09, 0.03, 0.08], "higher", 0.01)
    assert 0.005 < p_value < 0.05
    adjusted = holm([p_value, *[0.04] * 9])[0]
    assert judge([0.10, 0.02, 0.09, 0.03, 0.08], "higher", 0.01, p_value) == SUPPORTED
    assert judge([0.10, 0.02, 0.09, 0.03, 0.08], "higher", 0.01, adjusted) == NO_CLEAR_DIFFERENCE
