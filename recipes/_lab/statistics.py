"""Paired differences with 95% t-intervals, Holm's correction, and the verdict on a claim."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from recipes._lab.wording import CONTRADICTED, NO_CLEAR_DIFFERENCE, SUPPORTED

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05


class Interval(NamedTuple):
    """A mean over seeds with its t-interval; `low` and `high` are nan for a single value."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self):
        return (self.high - self.low) / 2


def mean_interval(values, confidence=CONFIDENCE):
    """Return the mean of `values` with its two-sided t-interval.

    Args:
        values: Array-like of shape `(seeds,)`. One value gives an interval of nan; any value that
            is not finite makes mean and interval nan.
        confidence: Float, between 0 and 1.
    """
    values = np.asarray(values, dtype="float64")
    count = values.size
    if not count or not np.isfinite(values).all():
        return Interval(math.nan, math.nan, math.nan, count)
    # Equal values are summed in floating point too: their mean must be that value, exactly.
    mean = float(values[0]) if np.ptp(values) == 0.0 else float(values.mean())
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    standard_error = _standard_error(values)
    half_width = float(stdtrit(count - 1, (1 + confidence) / 2)) * standard_error
    return Interval(mean, mean - half_width, mean + half_width, count)


def paired_p_value(differences, hypothesis=0.0):
    """Return the two-sided p-value of the paired t-test that the mean difference is `hypothesis`.

    Differences that are all the same have no spread to test against: p is 1 where they equal the
    hypothesis and 0 elsewhere. Fewer than two, or a value that is not finite, gives nan.
    """
    differences = np.asarray(differences, dtype="float64") - hypothesis
    if differences.size < 2 or not np.isfinite(differences).all():
        return math.nan
    standard_error = _standard_error(differences)
    if standard_error == 0.0:
        return 1.0 if differences[0] == 0.0 else 0.0
    statistic = float(differences.mean()) / standard_error
    return float(2 * stdtr(differences.size - 1, -abs(statistic)))


def _standard_error(values):
    if np.ptp(values) == 0.0:
        return 0.0
    return float(values.std(ddof=1)) / math.sqrt(values.size)


def holm(p_values):
    """Adjust p-values for testing several claims at once (Holm 1979, section 3).

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on; none may become
    smaller than the one before it, or larger than 1. A p-value of nan was no test: it stays nan
    and does not count.
    """
    adjusted = [math.nan] * len(p_values)
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    running_maximum = 0.0
    for rank, (p, index) in enumerate(tested):
        running_maximum = max(running_maximum, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = running_maximum
    return adjusted


def claim_p_value(differences, direction, at_least):
    """Return the p-value by which a claim is judged.

    For "higher" and "lower" this is the two-sided paired t-test against no difference. For "equal"
    it is the larger of the two one-sided tests that the mean lies inside `-at_least .. at_least`
    (Schuirmann 1987): a small p-value means that the two are shown to be equivalent.
    """
    differences = np.asarray(differences, dtype="float64")
    if direction != "equal":
        return paired_p_value(differences)
    if differences.size < 2 or not np.isfinite(differences).all():
        return math.nan
    standard_error = _standard_error(differences)
    mean = mean_interval(differences).mean
    if standard_error == 0.0:
        return 0.0 if abs(mean) <= at_least else 1.0
    distance_to_bound = at_least - abs(mean)
    return float(stdtr(differences.size - 1, -distance_to_bound / standard_error))


def judge(differences, direction, at_least, adjusted_p):
    """Return the verdict on a claim about a paired difference.

    Args:
        differences: Array-like of shape `(seeds,)`: claimed side minus the other side.
        direction: "higher" or "lower" where a difference is claimed, "equal" where none is.
        at_least: Float >= 0, in the metric's unit. The least mean difference that counts; for
            "equal" the largest that still counts as none.
        adjusted_p: The p-value of `claim_p_value`, after `holm` over all claims of the recipe.

    Returns:
        `SUPPORTED`: the test is significant, and the mean difference has the claimed direction and
        at least the claimed size (for "equal": is shown to lie within the bounds).
        `CONTRADICTED`: a significant difference of at least that size the other way (for "equal":
        a difference that is significant and outside the bounds).
        `NO_CLEAR_DIFFERENCE`: everything else, so also a single seed and runs that diverged.
    """
    mean = mean_interval(differences).mean
    if math.isnan(adjusted_p) or math.isnan(mean):
        return NO_CLEAR_DIFFERENCE
    if direction == "equal":
        if adjusted_p < SIGNIFICANCE:
            return SUPPORTED
        outside = abs(mean) > at_least and paired_p_value(differences) < SIGNIFICANCE
        return CONTRADICTED if outside else NO_CLEAR_DIFFERENCE
    if adjusted_p >= SIGNIFICANCE or mean == 0.0 or abs(mean) < at_least:
        return NO_CLEAR_DIFFERENCE
    claimed_sign = 1.0 if direction == "higher" else -1.0
    return SUPPORTED if mean * claimed_sign > 0 else CONTRADICTED
