"""Activations: derivatives against their formulas, the signal through layers, and dead units."""

import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
from recipes import activations
from tests.conftest import assert_is_relu_network


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def normal_density(z):
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def normal_distribution(z):
    return 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


DERIVATIVES = {
    "sigmoid": lambda z: sigmoid(z) * sigmoid(-z),
    "centred_sigmoid": lambda z: sigmoid(z) * sigmoid(-z),
    "tanh": lambda z: 1 / np.cosh(z) ** 2,
    "relu": lambda z: np.where(z > 0, 1, 0),
    "leaky_relu": lambda z: np.where(z > 0, 1, 0.01),
    "prelu": lambda z: np.where(z > 0, 1, 0.25),
    "softplus": sigmoid,
    "elu": lambda z: np.where(z > 0, 1, np.exp(z)),
    "gelu": lambda z: normal_distribution(z) + z * normal_density(z),
    "silu": lambda z: sigmoid(z) * (1 + z * sigmoid(-z)),
}
MAXIMA = {
    "sigmoid": 0.25,
    "centred_sigmoid": 0.25,
    "tanh": 1,
    "gelu": normal_distribution(2**0.5) + 2**0.5 * normal_density(2**0.5),  # 1.1289
    "silu": 1.0998,
}


@pytest.fixture(scope="module")
def split():
    return data.load("digits", samples=100)


def derivative(name, z):
    z = tf.constant(z[np.newaxis], "float32")
    activate = activations.make_activation(name)
    with tf.GradientTape() as tape:
        tape.watch(z)
        total = keras.ops.sum(activate(z))
    return tape.gradient(total, z).numpy()[0]


@pytest.mark.parametrize("name", activations.WEIGHT_SCALES)
def test_derivative_is_that_of_the_formula(name):
    z = np.linspace(-10, 10, 2002)  # 0 is not among them: half of these have a corner there.
    found = derivative(name, z)
    np.testing.assert_allclose(found, DERIVATIVES[name](z), atol=2e-5)
    assert found.max() == pytest.approx(MAXIMA.get(name, 1), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "at_minus_5", "at_minus_20"),
    [("relu", 0, 0), ("leaky_relu", 0.01, 0.01), ("softplus", 0.0067, 2.06e-9)],
)
def test_derivative_where_a_unit_is_said_to_be_dead(name, at_minus_5, at_minus_20):
    found = derivative(name, np.array([-5.0, -20.0]))
    np.testing.assert_allclose(found, [at_minus_5, at_minus_20], rtol=0.01, atol=0)


def test_slopes_are_those_of_the_papers_and_not_of_keras():
    assert keras.layers.LeakyReLU().negative_slope == pytest.approx(0.3)
    keras_own = keras.layers.PReLU()
    keras_own.build((None, 4))
    assert not keras_own.alpha.numpy().any()
    z = np.array([-1.0])
    assert derivative("leaky_relu", z) == pytest.approx(0.01)
    assert derivative("prelu", z) == pytest.approx(0.25)


def test_centred_sigmoid_is_the_sigmoid_less_one_half():
    z = np.linspace(-3, 3, 7, dtype="float32")[np.newaxis]
    centred = activations.make_activation("centred_sigmoid")(z)
    np.testing.assert_allclose(centred, sigmoid(z) - 0.5, atol=1e-6)
    assert centred[0, 3] == 0


@pytest.mark.parametrize(
    ("arguments", "scale"),
    [
        ({"activation": "tanh"}, 1),
        ({"activation": "relu"}, 2),
        ({"activation": "leaky_relu"}, 2 / 1.0001),
        ({"activation": "prelu"}, 2 / 1.0625),
        ({"activation": "relu", "weight_scale": 0.5}, 0.5),
    ],
)
def test_weights_have_the_variance_that_fits_the_activation(arguments, scale):
    model = activations.build_model((400,), units=300, hidden_layers=1, **arguments)
    assert model.layers[2].kernel.numpy().var() == pytest.approx(scale / 400, rel=0.015)


def test_network_starts_and_learns_as_written_out():
    model = activations.build_model((8, 8), hidden_layers=2, learning_rate=0.2, seed=3)
    assert_is_relu_network(model, [64, 64], 0.2, momentum=0.9)


# The signal on its way back.


def test_signal_sums_up_to_the_gradient_of_the_bias(split):
    """The trap's other side: a bias gradient shows what a kernel gradient hides."""
    model = activations.build_model((8, 8), activation="tanh", hidden_layers=3)
    x, y = split.train
    with tf.GradientTape() as tape:
        loss = model.loss(y, model(x))
    biases = [layer.bias for layer in model.layers if isinstance(layer, keras.layers.Dense)][:-1]
    signals = activations.signal_gradients(model, x, y)
    assert [signal.shape for signal in signals] == [(100, 64)] * 3
    for bias, signal in zip(tape.gradient(loss, biases), signals, strict=True):
        np.testing.assert_allclose(signal.mean(axis=0), bias, atol=1e-7)


def measured(split, **arguments):
    return activations.measure(activations.build_model((8, 8), seed=1, **arguments), split)


def test_sigmoid_loses_three_quarters_of_the_signal_at_every_layer(split):
    assert measured(split, activation="sigmoid")["backward_ratio"] == pytest.approx(0.236, abs=0.01)


def test_relu_from_half_the_variance_loses_a_root_of_two_at_every_layer(split):
    """Both start from the same weights up to this factor, and ReLU passes a factor on."""
    he, glorot = (measured(split, weight_scale=scale) for scale in (2.0, 1.0))
    ratio = he["backward_ratio"] / glorot["backward_ratio"]
    assert ratio == pytest.approx(math.sqrt(2), rel=0.02)
    assert he["backward_ratio"] == pytest.approx(1, abs=0.1)


def test_measure_takes_the_signal_from_the_start_and_the_dead_units_from_the_end(split):
    model = activations.build_model((8, 8), seed=1, hidden_layers=2)
    before = activations.measure(model, split)
    assert before["dead_units"] < 0.5
    for layer in model.layers[2:-1:2]:
        layer.bias.assign(np.full(64, -1000))
    assert activations.measure(model, split) == {**before, "dead_units": 1}


# Dead units.


@pytest.mark.parametrize(("name", "dead"), [("relu", 1), ("leaky_relu", 0), ("softplus", 0)])
def test_units_from_a_bias_of_minus_5_are_dead_with_relu_alone(name, dead, split):
    found = measured(split, activation=name, first_bias=-5.0, hidden_layers=2)
    assert found["dead_units"] == dead
    assert math.isnan(found["backward_ratio"]) == bool(dead)


def test_every_dead_unit_counts_once(split):
    model = activations.build_model((8, 8), first_bias=10.0, hidden_layers=1)
    assert activations.measure(model, split)["dead_units"] == 0
    bias = model.layers[2].bias
    bias.assign(np.where(np.arange(64) < 3, -1000, bias))
    # A unit that half of the samples switch off is alive.
    half = np.median(split.train.x.reshape(-1, 64) @ model.layers[2].kernel.numpy()[:, 3])
    bias.assign(np.where(np.arange(64) == 3, -half, bias))
    assert activations.measure(model, split)["dead_units"] == pytest.approx(3 / 64)


@pytest.mark.parametrize(("name", "moves"), [("relu", False), ("softplus", True)])
def test_dead_units_stay_where_they_are(name, moves, split):
    model = activations.build_model(
        (8, 8), activation=name, first_bias=-5.0, hidden_layers=2, learning_rate=0.1
    )
    start = model.get_weights()
    model.run_eagerly = True
    model.fit(*split.train, batch_size=50, epochs=3, verbose=0)
    moved = [bool((one != other).any()) for one, other in zip(start, model.weights, strict=False)]
    assert moved[:4] == [moves] * 4
    assert moved[5]  # The output bias learns the frequencies of the classes.


# The rest.


def test_step_is_timed_without_touching_the_model(split):
    model = activations.build_model((8, 8), activation="tanh", hidden_layers=1, units=8)
    start = model.get_weights()
    found = activations.measure_step(model, split, batch_size=10, blocks=1)
    assert set(found) == {"step_milliseconds", "relu_step_milliseconds"}
    assert all(value > 0 for value in found.values())
    for one, other in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_shortest_block_counts_and_relu_is_timed_in_the_same_shape(split, monkeypatch):
    """By a clock that says how long the blocks took: this network, ReLU, this network, ReLU."""
    model = activations.build_model((8, 8), activation="tanh", hidden_layers=1, units=8)
    build_model, built = activations.build_model, []

    def recorded(*arguments, **named):
        built.append(build_model(*arguments, **named))
        return built[-1]

    readings = iter([0, 0.5, 1, 1.3, 2, 2.2, 3, 3.4])
    clock = types.SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr(activations, "time", clock)
    monkeypatch.setattr(activations, "build_model", recorded)
    found = activations.measure_step(model, split, batch_size=10, blocks=2)
    # A block has ten steps.
    assert found == pytest.approx({"step_milliseconds": 20, "relu_step_milliseconds": 30})
    (relu,) = built
    assert relu.layers[3].get_config()["activation"] == "relu"
    assert [w.shape for w in relu.weights] == [w.shape for w in model.weights]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "rectifier"}, "Received: activation='rectifier'"),
        ({"weight_scale": 0}, r"must be > 0\. Received: weight_scale=0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        activations.build_model(**arguments)
