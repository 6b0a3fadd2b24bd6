"""Initializers against their formulas, and the signal through deep networks against theory."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
from recipes import initialization
from tests.conftest import assert_steps_as_written_out

FUNCTIONS = {
    "linear": (lambda z: z, lambda z: np.ones_like(z)),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": (
        lambda z: 1 / (1 + np.exp(-z)),
        lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2,
    ),
}

INPUT_VARIANCE = 0.24  # The mean square of the pixels of the digits.


def draw(name, shape=(300, 500), activation="relu"):
    initializer = initialization.make_initializer(name, activation, seed=1)
    return keras.ops.convert_to_numpy(initializer(shape))


def random_batch(features, samples=64):
    generator = np.random.default_rng(0)
    x = INPUT_VARIANCE**0.5 * generator.standard_normal((samples, features))
    return x.astype("float32"), generator.integers(0, 10, samples)


# Variances. A variance from 150,000 draws of bounded spread is right within 1.5%.


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot", 2 / (300 + 500)),
        ("he", 2 / 300),
        ("small_normal", 1e-4),
        ("zeros", 0.0),
        ("constant", 0.0),
    ],
)
def test_variance_is_that_of_the_formula(name, variance):
    assert draw(name).var() == pytest.approx(variance, rel=0.015, abs=1e-12)
    assert abs(draw(name).mean() - (initialization.SMALL if name == "constant" else 0)) < 1e-3


@pytest.mark.parametrize(("name", "variance"), [("glorot", 2 / 800), ("he", 2 / 300)])
def test_normals_are_cut_at_two_deviations_and_widened_to_keep_their_variance(name, variance):
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    variance_of_cut = 1 - 2 * 2 * density / math.erf(math.sqrt(2))  # 0.774, a closed form
    limit = 2 * math.sqrt(variance / variance_of_cut)
    assert 0.98 * limit < np.abs(draw(name)).max() <= limit * (1 + 1e-6)


def test_truncated_normal_itself_does_not_correct_its_variance():
    kernel = keras.ops.convert_to_numpy(
        keras.initializers.TruncatedNormal(stddev=0.1, seed=1)((300, 500))
    )
    assert kernel.var() == pytest.approx(0.774 * 0.01, rel=0.015)
    assert np.abs(kernel).max() <= 0.2


def test_default_of_keras_has_the_variance_of_glorot_and_its_limit():
    kernel = keras.ops.convert_to_numpy(keras.initializers.GlorotUniform(seed=1)((300, 500)))
    limit = math.sqrt(6 / 800)
    assert 0.999 * limit < np.abs(kernel).max() <= limit
    assert kernel.var() == pytest.approx(2 / 800, rel=0.015)


@pytest.mark.parametrize(("activation", "gain"), [("relu", math.sqrt(2)), ("tanh", 1.0)])
def test_orthogonal_keeps_lengths_up_to_its_gain(activation, gain):
    kernel = draw("orthogonal", (64, 64), activation)
    np.testing.assert_allclose(kernel.T @ kernel, gain**2 * np.eye(64), atol=1e-5)


def test_orthogonal_outputs_have_no_gain_because_no_relu_follows():
    kernel = initialization.build_model(initializer="orthogonal", hidden_layers=1).layers[-1].kernel
    np.testing.assert_allclose(kernel.numpy().T @ kernel.numpy(), np.eye(10), atol=1e-5)


def test_seeded_instance_gives_equal_kernels_to_the_layers_that_share_it():
    """The trap that `make_initializer` avoids by returning a new one each time."""
    shared = keras.initializers.HeNormal(seed=1)
    np.testing.assert_array_equal(shared((64, 64)), shared((64, 64)))
    model = initialization.build_model(hidden_layers=3, initializer="he")
    kernels = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])


def test_unknown_initializer_is_named():
    with pytest.raises(ValueError, match="Received: initializer='xavier'"):
        initialization.build_model(initializer="xavier")


def test_network_learns_as_written_out():
    model = initialization.build_model(
        (8, 8), initializer="he", hidden_layers=2, learning_rate=0.2, seed=3
    )
    assert_steps_as_written_out(model, 0.2, momentum=0.9)


# The signal through the layers.


def per_layer(values):
    return (values[-1] / values[0]) ** (1 / (len(values) - 1))


def mean_field(activation, scale, layers):
    """Ratios of wide layers: z is normal with variance q, and each layer sees the one before.

    `scale` is fan_in times the variance of the weights; the inputs have `INPUT_VARIANCE`.
    Forward q' = scale E[f(z)^2]; backward, the ratio of squares is scale E[f'(z)^2].
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    function, derivative = FUNCTIONS[activation]
    q, forward, backward = scale * INPUT_VARIANCE, [], []
    for _ in range(layers - 1):
        z = math.sqrt(q) * nodes
        backward.append(scale * weights @ derivative(z) ** 2)
        following = scale * weights @ function(z) ** 2
        forward.append(following / q)
        q = following
    return tuple(math.exp(np.mean(np.log(ratios)) / 2) for ratios in (forward, backward))


@pytest.mark.parametrize(
    ("activation", "initializer", "known"),
    [
        ("relu", "glorot", math.sqrt(0.5)),
        ("relu", "he", 1.0),
        ("linear", "he", math.sqrt(2)),
        ("linear", "glorot", 1.0),
        ("tanh", "glorot", 0.937),
        ("sigmoid", "glorot", 0.236),
        ("sigmoid", "he", 0.315),
    ],
)
def test_signal_of_wide_layers_follows_theory(activation, initializer, known, monkeypatch):
    monkeypatch.setattr(initialization, "UNITS", 256)
    model = initialization.build_model(
        (256,), initializer=initializer, activation=activation, seed=5
    )
    forward, backward = initialization.signal_by_layer(model, *random_batch(256))
    scale = {"glorot": 1.0, "he": 2.0}[initializer]
    expected_forward, expected_backward = mean_field(activation, scale, len(forward))
    assert per_layer(forward) == pytest.approx(expected_forward, rel=0.03)
    assert 1 / per_layer(backward) == pytest.approx(expected_backward, rel=0.03)
    assert expected_backward == pytest.approx(known, rel=0.01)


def test_signal_equals_backpropagation_by_hand():
    model = initialization.build_model((7,), classes=4, initializer="he", hidden_layers=2, seed=3)
    generator = np.random.default_rng(1)
    x, y = generator.standard_normal((5, 7)).astype("float32"), np.array([0, 1, 2, 3, 0])
    weights = [weight.astype("float64") for weight in model.get_weights()]
    kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3 = weights
    z_1 = x @ kernel_1 + bias_1
    z_2 = np.maximum(z_1, 0) @ kernel_2 + bias_2
    logits = np.maximum(z_2, 0) @ kernel_3 + bias_3
    errors = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(4)[y]
    gradient_2 = errors @ kernel_3.T * (z_2 > 0)
    gradient_1 = gradient_2 @ kernel_2.T * (z_1 > 0)
    forward, backward = initialization.signal_by_layer(model, x, y)
    root_mean_squares = [np.sqrt(np.mean(z**2)) for z in (z_1, z_2, gradient_1, gradient_2)]
    np.testing.assert_allclose([*forward, *backward], root_mean_squares, rtol=1e-5)


def gradients_of_weights(model, x, y):
    with tf.GradientTape() as tape:
        loss = model.loss(y, model(x))
    gradients = tape.gradient(loss, model.trainable_variables)
    return [gradient.numpy().astype("float64") for gradient in gradients]


def test_gradient_of_the_weights_hides_what_that_of_the_signal_shows():
    """dL/dz falls by 12 a layer and the inputs of the layers do so too, the other way round."""
    model = initialization.build_model(initializer="small_normal", activation="linear", seed=2)
    x, y = random_batch(64)
    _, backward = initialization.signal_by_layer(model, x, y)
    kernels = [np.linalg.norm(gradient) for gradient in gradients_of_weights(model, x, y)[::2]]
    biases = [np.linalg.norm(gradient) for gradient in gradients_of_weights(model, x, y)[1::2]]
    assert backward[0] / backward[-1] < 1e-18
    assert 0.2 < kernels[1] / kernels[19] < 5
    # The gradient of a bias is the batch sum of dL/dz, and shows it for nothing.
    assert biases[0] / biases[19] < 1e-18


def test_measure_looks_at_the_start_even_after_training():
    split = data.load("digits", samples=50)
    model = initialization.build_model((8, 8), initializer="he", hidden_layers=3)
    before = initialization.measure(model, split)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    assert initialization.measure(model, split) == before
    assert before["distinct_units"] == initialization.UNITS


def test_measure_takes_the_mean_factor_from_a_layer_to_the_next_and_the_units_of_the_end():
    split = data.load("digits", samples=50)
    model = initialization.build_model((8, 8), initializer="glorot", hidden_layers=3)
    forward, backward = initialization.signal_by_layer(model, *split.train)
    kernel = model.layers[2].kernel
    kernel.assign(np.tile(kernel.numpy()[:, :4], 16))
    measured = initialization.measure(model, split)
    # Two factors lead through three layers.
    assert measured["forward_ratio"] ** 2 == pytest.approx(forward[2] / forward[0])
    assert measured["backward_ratio"] ** 2 == pytest.approx(backward[0] / backward[2])
    assert measured["distinct_units"] == 4


# Weights that start equal.


@pytest.fixture(scope="module")
def trained():
    """One hidden layer from each of "constant" and "zeros" after 20 steps, and its start."""
    x, y = data.load("digits", samples=100).train
    models = {}
    for name in ("constant", "zeros"):
        model = initialization.build_model(
            (8, 8), initializer=name, hidden_layers=1, learning_rate=0.5
        )
        start = model.get_weights()
        model.run_eagerly = True  # To trace the step would take longer than to make 20 of them.
        model.fit(x, y, batch_size=100, epochs=20, shuffle=False, verbose=0)
        models[name] = model, start
    return models


def test_units_that_start_equal_stay_equal(trained):
    model, start = trained["constant"]
    kernel, bias, output_kernel, _ = model.get_weights()
    assert np.abs(kernel - start[0]).max() > 1e-3
    np.testing.assert_allclose(kernel, np.repeat(kernel[:, :1], 64, axis=1), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(bias, bias[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(output_kernel, output_kernel[:1].repeat(64, 0), rtol=1e-4, atol=1e-7)
    assert initialization.count_distinct_units(model) == 1


def test_from_zeros_the_output_bias_alone_learns(trained):
    model, _ = trained["zeros"]
    kernel, bias, output_kernel, output_bias = model.get_weights()
    assert not kernel.any() and not bias.any() and not output_kernel.any()
    assert output_bias.any()


def test_each_unit_that_repeats_another_is_left_out_of_the_count():
    model = initialization.build_model((8,), initializer="he", hidden_layers=1)
    kernel, *others = model.get_weights()
    kernel[:, 10:13] = kernel[:, :1]
    model.set_weights([kernel, *others])
    assert initialization.count_distinct_units(model) == initialization.UNITS - 3
