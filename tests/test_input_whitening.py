"""Holds input whitening to its formulas: identity covariance, and gradient descent in one step."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import data
from recipes import input_whitening as recipe
from tests.conftest import assert_is_relu_network

generator = np.random.default_rng(3)
WHITENED = ["pca", "zca"]


def correlated(samples, features):
    """Return inputs whose covariance is far from the identity, around a mean far from 0."""
    mixing = generator.normal(size=(features, features)) * 10.0 ** -np.arange(features)
    return generator.normal(size=(samples, features)) @ mixing.T + 5.0


def scale(x, inputs, epsilon=0.0):
    mean, matrix = recipe.fit_scaling(x, inputs, epsilon)
    return (x - mean) @ matrix


@pytest.mark.parametrize("inputs", WHITENED)
def test_whitened_inputs_have_the_identity_as_covariance(inputs):
    x = scale(correlated(50, 4), inputs)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(x.T @ x / 50, np.eye(4), atol=1e-6)


def test_standardized_inputs_have_variance_1_and_keep_their_correlations():
    x = correlated(50, 4)
    standardized = scale(x, "standardized")
    np.testing.assert_allclose(standardized.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(standardized.std(axis=0), 1)
    np.testing.assert_allclose(
        np.corrcoef(standardized, rowvar=False), np.corrcoef(x, rowvar=False)
    )


def test_pca_orders_by_variance_and_zca_is_symmetric():
    x = correlated(50, 4)
    _, pca = recipe.fit_scaling(x, "pca")
    _, zca = recipe.fit_scaling(x, "zca")
    # The columns of U diag(1 / sqrt(v)) have these lengths.
    variances = np.sort(np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True)))[::-1]
    np.testing.assert_allclose(np.linalg.norm(pca, axis=0), variances**-0.5, rtol=1e-6)
    np.testing.assert_allclose(zca, zca.T, rtol=1e-6, atol=1e-9)
    # They differ by a rotation.
    rotation = np.linalg.solve(pca, zca)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 10.0])
def test_epsilon_leaves_small_variances_small(epsilon):
    x = generator.normal(size=(2000, 2))
    x = scale(x, "zca") * [3.0, 1.0]  # Variances of exactly 9 and 1, with a mean of 5.
    variances = scale(x, "zca", epsilon).var(axis=0)
    np.testing.assert_allclose(variances, [9 / (9 + 5 * epsilon), 1 / (1 + 5 * epsilon)])


@pytest.mark.parametrize("inputs", ["standardized", *WHITENED])
def test_constant_inputs_become_zero(inputs):
    x = np.column_stack([correlated(50, 2), np.full(50, 7.0)])
    scaled = scale(x, inputs)
    assert np.isfinite(scaled).all()
    assert np.linalg.matrix_rank(scaled) == 2
    new = scale(np.vstack([x, x[0] + [0, 0, 100]]), inputs)
    assert np.isfinite(new).all()


@pytest.mark.parametrize("inputs", WHITENED)
def test_with_no_more_samples_than_inputs_all_samples_are_equally_far_apart(inputs):
    samples = 6
    x = scale(generator.normal(size=(samples, 9)), inputs)
    squared_distances = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
    np.testing.assert_allclose(squared_distances, 2 * samples * (1 - np.eye(samples)), atol=1e-9)


def linear_model(x, learning_rate, seed=0):
    return recipe.build_model(x.shape[1:], None, 0, learning_rate, seed)


def squared_error(model, x, y):
    return model.loss(y[:, None], model(x))


@pytest.mark.parametrize("inputs", WHITENED)
def test_hessian_of_least_squares_is_the_identity(inputs):
    """Of half the mean squared error; that of Keras's loss is twice that."""
    x, y = scale(correlated(50, 3), inputs).astype("float32"), np.ones(50, "float32")
    model = linear_model(x, 0.1)
    kernel, bias = (weight.value for weight in model.trainable_variables)
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as tape:
            loss = squared_error(model, x, y) / 2
        gradient = tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(loss, [kernel, bias])], 0)
    rows = [outer.jacobian(gradient, weight) for weight in (kernel, bias)]
    hessian = np.concatenate([np.reshape(row, (4, -1)) for row in rows], axis=1)
    np.testing.assert_allclose(hessian, np.eye(4), atol=1e-5)


def test_network_starts_and_learns_as_written_out():
    model = recipe.build_model((8, 8), 10, learning_rate=0.2, seed=3)
    assert_is_relu_network(model, [64, 64], 0.2)


def test_regression_has_no_accuracy():
    for classes, names in ((None, {"loss"}), (3, {"loss", "accuracy"})):
        model = recipe.build_model((5,), classes, hidden_layers=0)
        model.run_eagerly = True
        values = model.test_on_batch(np.ones((2, 5)), np.ones((2, 1)), return_dict=True)
        assert set(values) == names


def train_one_step(model, x, y):
    with tf.GradientTape() as tape:
        loss = squared_error(model, x, y)
    weights = model.trainable_variables
    model.optimizer.apply(tape.gradient(loss, [w.value for w in weights]), weights)
    return [np.reshape(w, -1) for w in model.get_weights()]


@pytest.mark.parametrize("inputs", WHITENED)
@pytest.mark.parametrize("seed", [0, 1])
def test_one_step_at_rate_1_solves_least_squares_from_any_start(inputs, seed):
    raw, y = correlated(50, 3), generator.normal(size=50).astype("float32") + 2.0
    x = scale(raw, inputs).astype("float32")
    # A rate of 1 for half the mean squared error is 1/2 for Keras's.
    kernel, bias = train_one_step(linear_model(x, 0.5, seed), x, y)
    columns = np.column_stack([x, np.ones(50)]).astype("float64")
    solution = np.linalg.lstsq(columns, y, rcond=None)[0]
    np.testing.assert_allclose([*kernel, *bias], solution, atol=1e-5)


def test_one_step_does_not_solve_it_with_standardized_inputs():
    x = scale(correlated(50, 3), "standardized").astype("float32")
    y = generator.normal(size=50).astype("float32")
    kernel, bias = train_one_step(linear_model(x, 0.5), x, y)
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(50)]), y, rcond=None)[0]
    assert np.abs([*kernel, *bias] - solution).max() > 0.01


@pytest.fixture(scope="module")
def diabetes():
    return data.load("diabetes", seed=1)


def test_raw_inputs_are_left_alone(diabetes):
    assert recipe.prepare(diabetes, inputs="raw") is diabetes


def test_all_parts_are_scaled_by_the_training_part_alone(diabetes):
    prepared = recipe.prepare(diabetes, inputs="pca")
    mean, matrix = recipe.fit_scaling(diabetes.train.x, "pca")
    for name in ("train", "validation", "test"):
        part, original = getattr(prepared, name), getattr(diabetes, name)
        np.testing.assert_allclose(part.x, (original.x - mean) @ matrix, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(part.y, original.y)
        assert part.x.dtype == np.float32
    other_test = diabetes.test._replace(x=diabetes.test.x + 100)
    shifted = recipe.prepare(dataclasses.replace(diabetes, test=other_test), inputs="pca")
    np.testing.assert_array_equal(shifted.train.x, prepared.train.x)


def test_images_are_flattened():
    split = recipe.prepare(data.load("digits", samples=100), inputs="zca", epsilon=0.1)
    assert split.input_shape == (64,)
    assert split.test.x.shape == (397, 64)


def test_parts_are_scaled_with_the_epsilon(diabetes):
    mean, matrix = recipe.fit_scaling(diabetes.train.x, "zca", 0.5)
    prepared = recipe.prepare(diabetes, inputs="zca", epsilon=0.5)
    expected = (diabetes.test.x - mean) @ matrix
    np.testing.assert_allclose(prepared.test.x, expected, rtol=1e-4, atol=1e-4)


def test_least_squares_rmse_is_that_of_scikit_learn(diabetes):
    from sklearn.linear_model import LinearRegression

    x, y = diabetes.train
    residuals = y - LinearRegression().fit(x, y).predict(x)
    expected = np.sqrt(np.mean(residuals**2)) * diabetes.target_scale
    measured = recipe.measure(None, recipe.prepare(diabetes, inputs="pca"))
    assert measured["least_squares_train_rmse"] == pytest.approx(expected, rel=1e-5)
    # With a bias, so that it does not matter around which mean the targets lie.
    shifted = dataclasses.replace(diabetes, train=diabetes.train._replace(y=y + 5))
    assert recipe.measure(None, shifted) == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": "white"}, "Received: inputs='white'"),
        ({"inputs": "zca", "epsilon": -0.1}, r"must be >= 0\. Received: epsilon=-0\.1"),
        ({"inputs": "zca", "epsilon": float("nan")}, "Received: epsilon=nan"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.fit_scaling(np.eye(3), **arguments)
