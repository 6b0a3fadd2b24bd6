"""Holds the noise of mini-batches to its formula, by counting all batches of a small data set."""

from itertools import combinations

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
from recipes import batch_size as recipe


@pytest.fixture(scope="module")
def model():
    return recipe.build_model((3,), 2)


@pytest.fixture(scope="module")
def samples():
    """Six samples, few enough to list all their batches."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((6, 3)).astype("float32")
    return x, np.array([0, 1, 1, 0, 1, 0])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 6])
def test_variance_of_the_gradient_over_all_batches_is_that_of_the_formula(
    model, samples, batch_size
):
    x, y = samples
    whole = recipe.gradient_of(model, x, y).numpy()
    single = [recipe.gradient_of(model, x[i : i + 1], y[i : i + 1]).numpy() for i in range(6)]
    batches = [
        recipe.gradient_of(model, x[list(rows)], y[list(rows)]).numpy()
        for rows in combinations(range(6), batch_size)
    ]
    # Unbiased: the mean over all batches is the gradient over all data.
    np.testing.assert_allclose(np.mean(batches, axis=0), whole, atol=1e-6)
    variance = np.mean(np.sum((np.array(batches) - whole) ** 2, axis=1))
    of_samples = np.mean(np.sum((np.array(single) - whole) ** 2, axis=1))
    expected = recipe.variance_of_batches(6, batch_size, of_samples)
    assert variance == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_formula_at_both_ends():
    assert recipe.variance_of_batches(100, 1, 3.0) == 3.0
    assert recipe.variance_of_batches(100, 100, 3.0) == 0.0
    assert recipe.variance_of_batches(10**9, 50, 3.0) == pytest.approx(3.0 / 50)


@pytest.mark.parametrize("total, batch_size", [(1, 1), (5, 0), (5, 6)])
def test_formula_refuses_batches_that_cannot_be_drawn(total, batch_size):
    with pytest.raises(ValueError, match=f"samples={total}, batch_size={batch_size}"):
        recipe.variance_of_batches(total, batch_size, 1.0)


def test_measured_variance_agrees_with_the_formula():
    split = data.load("digits", samples=64)
    model = recipe.build_model(split.input_shape, 10)
    # 200 draws: the standard error of a variance is about 10%, less for many parameters.
    assert recipe.measured_variance(model, split, 4) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("rate, curvature", [(0.1, 1.0), (0.5, 2.0)])
def test_noise_floor_of_sgd_falls_as_one_over_the_batch_size(rate, curvature):
    """Around a minimum the variance settles at rate (s²/B) / (h (2 - rate h))."""
    points, steps, variances = 20_000, 40, {}
    for batch_size in (1, 4, 16):
        floor = rate / batch_size / (curvature * (2 - rate * curvature))
        noise = tf.random.stateless_normal((steps, points), (1, 2)) / batch_size**0.5
        optimizer = recipe.build_model((3,), 2, learning_rate=rate).optimizer
        start = floor**0.5 * tf.random.stateless_normal((points,), (3, 4))
        variable = keras.Variable(start)  # At the floor already, where it has to stay.
        optimizer.build([variable])

        for step in range(steps):
            optimizer.apply([curvature * variable.value + noise[step]], [variable])
        variances[batch_size] = np.var(variable.numpy())
        assert variances[batch_size] == pytest.approx(floor, rel=0.04)
    assert variances[1] / variances[16] == pytest.approx(16, rel=0.08)


def test_averaging_four_batches_equals_one_batch_four_times_as_large():
    x = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
    y = np.array([0, 1] * 4)
    large = recipe.build_model((3,), 2)
    large.train_on_batch(x, y)
    averaged = recipe.build_model((3,), 2, batches_per_update=4)
    start = averaged.get_weights()
    for first in range(0, 8, 2):
        for weight, initial in zip(averaged.get_weights(), start, strict=True):
            np.testing.assert_array_equal(weight, initial)  # No update before the fourth batch.
        averaged.train_on_batch(x[first : first + 2], y[first : first + 2])
    for one, other in zip(averaged.get_weights(), large.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_one_batch_per_update_is_plain_sgd():
    assert recipe.build_model(batches_per_update=1).optimizer.gradient_accumulation_steps is None


def test_race_counts_updates_and_epochs_of_one_size(monkeypatch):
    monkeypatch.setattr(recipe, "TARGET_ACCURACY", 0.5)
    split = data.load("digits", samples=64)
    model = recipe.build_model(split.input_shape, 10, learning_rate=0.3)
    result = recipe.race(model, split, batch_size=16)
    assert result["epochs_to_target"] == result["updates_to_target"] * 16 / 64
    assert 0 < result["updates_to_target"] < 200
    assert 0 <= result["rises_of_loss"] <= recipe.FIRST_UPDATES


def test_full_batch_at_a_small_rate_never_raises_the_loss(monkeypatch):
    split = data.load("digits", samples=64)
    model = recipe.build_model(split.input_shape, 10, learning_rate=0.01)
    monkeypatch.setattr(recipe, "MOST_UPDATES", 100)
    assert recipe.race(model, split, batch_size=64)["rises_of_loss"] == 0


def test_batch_sizes_divide_the_samples_so_that_measure_can_tell_them():
    for variant in recipe.VARIANTS.values():
        steps = -(-recipe.SAMPLES // variant["batch_size"])
        assert -(-recipe.SAMPLES // steps) == variant["batch_size"]


def test_runs_of_equal_updates_have_equal_updates():
    experiment = recipe.EXPERIMENTS["equal_updates"]
    updates = {
        variant["epochs"] * -(-recipe.SAMPLES // variant["batch_size"])
        for name, variant in recipe.VARIANTS.items()
        if name in experiment["learning_rates"]
    }
    assert updates == {320}
