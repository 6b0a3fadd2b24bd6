"""Cross-entropy and squared error, exactly: values at chance, gradients where a net is wrong."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import brier_score_loss

from recipes.cross_entropy import SURE_LOGIT, SquaredError, build_model
from tests.conftest import assert_is_relu_network

LOSSES = {
    "cross_entropy": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "squared_error": lambda y, logits: SquaredError()(y, tf.nn.softmax(logits)),
}


def gradient(loss, logits, labels):
    """Return the gradient of the sum over the batch, with respect to the logits."""
    z = tf.Variable(logits, dtype="float64")
    with tf.GradientTape() as tape:
        total = sum(loss(np.array([y]), z[i : i + 1]) for i, y in enumerate(labels))
    return tape.gradient(total, z).numpy()


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def without_kernel(model):
    """Make the outputs depend on the output biases alone."""
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([0 * kernel, bias])
    return model


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_loss_at_chance_is_the_logarithm_of_the_number_of_classes(classes):
    model = without_kernel(build_model((3,), classes))
    outputs = model(np.ones((2, 3)))
    value = float(model.loss(np.array([0, classes - 1]), outputs))
    assert value == pytest.approx(np.log(classes), rel=1e-5)


def test_sure_and_wrong_start_has_the_probability_and_loss_of_its_bias():
    model = without_kernel(build_model(wrong_logit=SURE_LOGIT))
    outputs = model(np.ones((1, 64)))
    total = np.exp(8) + 9
    np.testing.assert_allclose(outputs[0, 0], np.exp(8) / total, rtol=1e-5)
    assert float(outputs[0, 0]) == pytest.approx(0.997, abs=5e-4)
    for label, logit in ((0, 8), (3, 0)):
        value = float(model.loss(np.array([label]), outputs))
        assert value == pytest.approx(np.log(total) - logit, rel=1e-4)


def test_gradients_at_a_sure_and_wrong_answer():
    """Published figures for logits (8, 0, 0) and another class: .9997 against .0013."""
    logits = np.array([[8.0, 0.0, 0.0]])
    slopes = {name: gradient(loss, logits, [1])[0] for name, loss in LOSSES.items()}
    assert -slopes["cross_entropy"][1] == pytest.approx(0.9997, abs=5e-5)
    assert -slopes["squared_error"][1] == pytest.approx(0.0013, abs=5e-5)


@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_gradients_are_those_of_the_formulas(scale):
    logits = np.random.default_rng(0).normal(size=(20, 5)) * scale
    labels = np.random.default_rng(1).integers(0, 5, 20)
    p, y = softmax(logits), np.eye(5)[labels]
    found = gradient(LOSSES["cross_entropy"], logits, labels)
    np.testing.assert_allclose(found, p - y, rtol=1e-4, atol=1e-6)
    found = gradient(LOSSES["squared_error"], logits, labels)
    expected = 2 * p * ((p - y) - np.sum(p * (p - y), axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_squared_error_behind_a_sigmoid_has_its_slope_as_a_factor():
    logits = np.array([[-8.0, -2.0, 0.0, 1.0, 8.0]])
    found = gradient(lambda y, z: SquaredError()(y, tf.sigmoid(z)), logits, [0])
    p, y = 1 / (1 + np.exp(-logits)), np.eye(5)[[0]]
    np.testing.assert_allclose(found, 2 * (p - y) * p * (1 - p), rtol=1e-4, atol=1e-7)
    assert np.max(p * (1 - p)) == 0.25


def test_squared_error_of_linear_outputs_keeps_its_slope():
    logits = np.array([[8.0, 0.0, -50.0]])
    found = gradient(SquaredError(), logits, [1])
    np.testing.assert_allclose(found, 2 * (logits - np.eye(3)[[1]]), rtol=1e-6)


def test_squared_error_is_the_score_of_brier():
    probabilities = np.random.default_rng(2).random(50)
    labels = np.random.default_rng(3).integers(0, 2, 50)
    value = SquaredError()(labels, np.stack([1 - probabilities, probabilities], axis=1))
    expected = 2 * brier_score_loss(labels, probabilities)  # There, one of the two classes.
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_squared_error_of_a_softmax_lies_between_zero_and_two():
    assert float(SquaredError()(np.array([0, 1]), np.eye(3)[[0, 1]])) == 0
    assert float(SquaredError()(np.array([0, 1]), np.eye(3)[[1, 2]])) == 2


@pytest.mark.parametrize(
    ("activation", "function"),
    [("softmax", softmax), ("sigmoid", lambda z: 1 / (1 + np.exp(-z))), ("linear", lambda z: z)],
)
def test_squared_error_is_that_of_the_activation_asked_for(activation, function):
    model = without_kernel(build_model((3,), 4, "squared_error", activation, wrong_logit=2.0))
    expected = function(np.array([[2.0, 0.0, 0.0, 0.0]]))
    outputs = model(np.ones((1, 3)))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)
    value = float(model.loss(np.array([1]), outputs))
    assert value == pytest.approx(np.sum((expected - np.eye(4)[1]) ** 2), rel=1e-5)


def test_network_starts_and_learns_as_written_out():
    model = build_model((8, 8), learning_rate=0.2, seed=3)
    assert_is_relu_network(model, [64, 64], 0.2, momentum=0.9)


def test_wrong_logit_zero_is_the_normal_start():
    normal, zero = build_model(seed=5), build_model(wrong_logit=0.0, seed=5)
    sure = build_model(wrong_logit=8.0, seed=5)
    for one, other in zip(normal.get_weights(), zero.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    *same, bias = sure.get_weights()
    for one, other in zip(normal.get_weights(), same, strict=False):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(bias, [8, 0, 0, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "hinge"}, "`loss` must be one of cross_entropy, squared_error. .*loss='hinge'"),
        (
            {"activation": "sigmoid"},
            "`activation` must be one of softmax with loss='cross_entropy'. .*='sigmoid'",
        ),
        (
            {"loss": "squared_error", "activation": "relu"},
            "`activation` must be one of softmax, sigmoid, linear .*activation='relu'",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(**arguments)
