"""Holds the learning rate to the theory of gradient descent on a quadratic, trained by Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
from recipes import learning_rate as recipe


@pytest.fixture(scope="module")
def quadratic():
    """The data of the quadratic, as the bench gets them."""
    return recipe.prepare(data.load("diabetes", samples=recipe.ROWS), linear=True)


def descend(split, learning_rate, steps, **arguments):
    """Return the weights before and after each step, shape `(steps + 1, 2)`."""
    model = recipe.build_model(
        split.input_shape, linear=True, learning_rate=learning_rate, **arguments
    )
    weights = [model.get_weights()[0][:, 0]]
    for _ in range(steps):
        model.train_on_batch(*split.train)
        weights.append(model.get_weights()[0][:, 0])
    return np.array(weights)


@pytest.mark.parametrize("curvatures", [(10.0, 1.0), (3.0,), (100.0, 1.0, 0.01, 7.0)])
def test_squared_error_on_the_inputs_has_the_curvatures_asked_for(curvatures):
    x = recipe.inputs_with_curvatures(curvatures, rows=12, seed=3).astype("float64")
    hessian = 2 * x.T @ x / 12
    np.testing.assert_allclose(hessian, np.diag(curvatures), atol=1e-5)
    weights = np.linspace(-2, 3, len(curvatures))
    assert np.mean((x @ weights) ** 2) == pytest.approx(np.sum(curvatures * weights**2) / 2)


def test_inputs_need_a_row_for_each_curvature():
    assert recipe.inputs_with_curvatures((1.0, 2.0), rows=2).shape == (2, 2)
    with pytest.raises(ValueError, match="rows=1"):
        recipe.inputs_with_curvatures((1.0, 2.0), rows=1)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.198, 0.202])
def test_each_step_multiplies_each_direction_by_one_minus_rate_times_curvature(quadratic, rate):
    path = descend(quadratic, rate, steps=6)
    factors = 1 - rate * np.array(recipe.CURVATURES)
    np.testing.assert_allclose(path, factors ** np.arange(7)[:, np.newaxis], rtol=1e-4, atol=1e-6)


def test_at_two_over_curvature_the_steepest_direction_neither_shrinks_nor_grows(quadratic):
    path = descend(quadratic, 2 / max(recipe.CURVATURES), steps=9)
    np.testing.assert_allclose(path[:, 0], (-1.0) ** np.arange(10), rtol=1e-4)


def test_the_experiment_stands_on_both_sides_of_the_limit():
    limit = 2 / max(recipe.CURVATURES)
    rates = recipe.EXPERIMENTS["quadratic"]["learning_rates"]
    assert rates["below_limit"] == pytest.approx(0.99 * limit)
    assert rates["above_limit"] == pytest.approx(1.01 * limit)


def test_momentum_raises_the_limit_to_2_times_1_plus_momentum_over_curvature(quadratic):
    limit = 2 * (1 + 0.9) / max(recipe.CURVATURES)
    below = descend(quadratic, 0.97 * limit, steps=120, momentum=0.9)[:, 0]
    above = descend(quadratic, 1.03 * limit, steps=120, momentum=0.9)[:, 0]
    assert np.abs(below[-10:]).max() < 0.5
    assert np.abs(above[-10:]).max() > 100


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.5])
def test_noise_floor_of_sgd(rate):
    """The stationary variance is rate s² / (h (2 - rate h)), here with h = 1 and s = 1."""
    points, steps = 20_000, 60
    optimizer = recipe.build_model((2,), linear=True, learning_rate=rate).optimizer
    noise = tf.random.stateless_normal((steps, points), seed=(1, 2))
    floor = rate / (2 - rate)
    # Started at the floor's variance, it has to stay there: no burn-in to wait for.
    variable = keras.Variable(floor**0.5 * tf.random.stateless_normal((points,), seed=(3, 4)))
    optimizer.build([variable])

    @tf.function
    def train():
        for step in tf.range(steps):
            optimizer.apply([variable.value + noise[step]], [variable])

    train()
    # Relative standard error of a variance: sqrt(2 / 20,000) = 1%.
    assert np.var(variable.numpy()) == pytest.approx(floor, rel=0.04)


def test_without_noise_sgd_reaches_the_minimum_of_the_same_quadratic(quadratic):
    assert np.abs(descend(quadratic, 0.1, steps=120)[-1]).max() < 1e-5


def test_each_step_of_the_quadratic_sees_all_rows(quadratic):
    experiment = recipe.EXPERIMENTS["quadratic"]
    assert quadratic.samples == experiment["batch_size"] == experiment["samples"]
    assert quadratic.target_scale == 1.0


def test_the_network_keeps_its_data():
    split = data.load("digits", samples=20)
    assert recipe.prepare(split) is split


def test_rates_stand_for_their_names():
    for experiment in recipe.EXPERIMENTS.values():
        for variant, rate in experiment["learning_rates"].items():
            if variant.startswith("rate_"):
                assert float(variant.removeprefix("rate_")) == rate


def test_keras_has_other_defaults_for_other_optimizers():
    """The card names them: a rate that suits one optimizer says little about another's."""
    defaults = {"SGD": 0.01, "Adam": 0.001}
    for name, rate in defaults.items():
        optimizer = getattr(keras.optimizers, name)()
        assert float(optimizer.learning_rate) == pytest.approx(rate)
