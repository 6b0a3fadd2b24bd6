"""Holds the cycles to tables worked by hand, and to the form of `exp_range` that is the paper's."""

import math

import keras
import numpy as np
import pytest

from recipes import cyclic_learning_rate as recipe
from recipes.cyclic_learning_rate import CyclicLearningRate


@pytest.mark.parametrize(
    ("mode", "rates"),
    [
        ("triangular", [1, 3, 5, 3, 1, 3, 5, 3, 1, 3, 5, 3, 1]),
        ("triangular2", [1, 3, 5, 3, 1, 2, 3, 2, 1, 1.5, 2, 1.5, 1]),
    ],
)
def test_cycles_of_4_steps_by_hand(mode, rates):
    schedule = CyclicLearningRate(1, 5, step_size=2, mode=mode)
    assert [float(schedule(step)) for step in range(13)] == rates


def test_exp_range_shrinks_both_bounds_as_in_the_paper():
    schedule = CyclicLearningRate(1, 5, 2, "exp_range", gamma=0.5)
    expected = [1, 3 / 2, 5 / 4, 3 / 8, 1 / 16, 3 / 32, 5 / 64]
    rates = [float(schedule(step)) for step in range(7)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    # The widespread callback would be back at the lower bound.
    assert rates[4] == pytest.approx(0.5**4 * 1)


@pytest.mark.parametrize("mode", ["triangular", "triangular2"])
@pytest.mark.parametrize(("base", "maximum"), [(0.001, 0.006), (0.058, 0.945)])
def test_bounds_are_hit_exactly_and_never_crossed(base, maximum, mode):
    schedule = CyclicLearningRate(base, maximum, 7, mode)
    rates = np.array([float(schedule(step)) for step in range(60)])
    assert rates[0] == rates[14] == rates[28] == np.float32(base)
    assert rates[7] == np.float32(maximum)
    assert rates.min() == np.float32(base) and rates.max() == np.float32(maximum)
    if mode == "triangular":
        assert rates[21] == rates[35] == np.float32(maximum)
        np.testing.assert_array_equal(rates[:14], rates[14:28])


def test_place_in_the_cycle_is_exact_after_10_million_steps():
    """In float32, step / step_size has no digits left for it."""
    schedule = CyclicLearningRate(0.0, 1.0, 2001)
    start = 10_000_000 // 4002 * 4002
    for place in (0, 1, 2, 2000, 2001, 2002, 4001, 4002):
        height = min(place % 4002, 4002 - place % 4002) / 2001
        assert float(schedule(start + place)) == np.float32(height)


def test_mean_rate_is_the_middle_of_the_bounds():
    schedule = CyclicLearningRate(0.1, 0.7, 25)
    assert np.mean([float(schedule(step)) for step in range(100)]) == pytest.approx(0.4)


def test_bounds_that_are_schedules_are_followed():
    bound = keras.optimizers.schedules.ExponentialDecay(4.0, 1, 0.5)
    schedule = CyclicLearningRate(0.0, bound, 2)
    assert [float(schedule(step)) for step in range(7)] == [0, 1, 1, 0.25, 0, 1 / 16, 1 / 16]
    bounds = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5), bound
    rates = [float(CyclicLearningRate(*bounds, 2)(step)) for step in range(9)]
    of_mode = CyclicLearningRate(1.0, 4.0, 2, "exp_range", 0.5)
    np.testing.assert_allclose(rates, [float(of_mode(step)) for step in range(9)], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"base_learning_rate": -0.1}, "base_learning_rate=-0.1"),
        ({"base_learning_rate": math.nan}, "base_learning_rate=nan"),
        ({"max_learning_rate": 0.05}, "max_learning_rate=0.05, base_learning_rate=0.1"),
        ({"max_learning_rate": math.nan}, "max_learning_rate=nan"),
        ({"max_learning_rate": math.inf}, "max_learning_rate=inf"),
        ({"step_size": 0}, "step_size=0"),
        ({"step_size": -5}, "step_size=-5"),
        ({"mode": "triangle"}, "mode='triangle'"),
        ({"mode": "exp_range", "gamma": 0.0}, "gamma=0.0"),
        ({"mode": "exp_range", "gamma": 1.01}, "gamma=1.01"),
        ({"mode": "exp_range", "gamma": math.nan}, "gamma=nan"),
        ({"gamma": 0.9}, "gamma=0.9, mode='triangular'"),
    ],
)
def test_nonsense_is_refused(arguments, received):
    valid = {"base_learning_rate": 0.1, "max_learning_rate": 0.2, "step_size": 10}
    with pytest.raises(ValueError, match=f"Received: {received}"):
        CyclicLearningRate(**{**valid, **arguments})


def test_half_a_step_is_refused_and_a_whole_float_taken():
    with pytest.raises(ValueError, match=r"Received: step_size=2\.5"):
        CyclicLearningRate(0.1, 0.2, 2.5)
    assert CyclicLearningRate(0.1, 0.2, 2.0).step_size == 2


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="Received: mode='sawtooth'"):
        recipe.build_model(schedule="sawtooth")


@pytest.mark.parametrize("name", ["triangular", "triangular2", "exp_range"])
def test_training_ends_with_a_cycle(name):
    schedule = recipe.make_schedule(0.6, 384, name, cycles=3)
    assert schedule.step_size == 64
    shrink = recipe.FINAL_FRACTION if name == "exp_range" else 1.0
    assert float(schedule(384)) == pytest.approx(0.1 * shrink, rel=1e-5)
    assert float(schedule(64)) == pytest.approx(0.6 * shrink ** (1 / 6), rel=1e-5)


def test_constant_and_linear_are_the_controls():
    assert recipe.make_schedule(0.6, 384) == 0.6
    linear = recipe.make_schedule(0.6, 384, "linear")
    assert [float(linear(step)) for step in (0, 96, 192, 384, 999)] == pytest.approx(
        [0.6, 0.45, 0.3, 0.0, 0.0]
    )


def test_too_few_steps_for_the_cycles_are_refused():
    with pytest.raises(ValueError, match="Received: step_size=0"):
        recipe.make_schedule(0.6, 5, "triangular", cycles=3)
