"""Hidden layers, exactly: what no line separates, and the two units that are enough on paper."""

from itertools import pairwise

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linprog

from recipes.hidden_layer import WIDTHS_AT_EQUAL_SIZE, build_model, tunable_model
from tests.conftest import assert_is_relu_network

CORNERS = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]], "float32")
LABELS = np.array([0, 1, 1, 0])


def is_separable(labels):
    """Ask a linear program for a line with every corner at least 1 on its side."""
    sides = np.where(labels == 1, 1, -1)[:, None]
    constraints = -sides * np.column_stack([CORNERS, np.ones(4)])
    return linprog(np.zeros(3), constraints, -np.ones(4), bounds=(None, None)).status == 0


def test_no_line_separates_the_exclusive_or():
    """Of all sixteen ways to label four corners, a line fails at two: this one and its opposite."""
    failed = [labels for labels in np.ndindex(2, 2, 2, 2) if not is_separable(np.array(labels))]
    assert failed == [(0, 1, 1, 0), (1, 0, 0, 1)]


def test_without_hidden_layer_the_best_answer_to_the_exclusive_or_is_no_answer():
    """The loss is convex, so the point without a gradient is its minimum: ln 2, a coin's."""
    model = build_model((2,), 2, widths=[])
    model.set_weights([np.zeros((2, 2)), np.zeros(2)])
    with tf.GradientTape() as tape:
        loss = model.loss(LABELS, model(CORNERS))
    assert float(loss) == pytest.approx(np.log(2))
    for gradient in tape.gradient(loss, model.trainable_variables):
        np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_two_units_are_enough_on_paper():
    """The solution in section 6.1 of Deep Learning, for corners at 0 and 1."""
    model = build_model((2,), 2, widths=[2])
    hidden = [np.ones((2, 2)), np.array([0, -1])]
    outputs = [np.array([[0, 1], [0, -2]]), np.array([0.5, 0])]
    model.set_weights([*hidden, *outputs])
    logits = model((CORNERS + 1) / 2).numpy()
    np.testing.assert_array_equal(logits[:, 1], [0, 1, 1, 0])
    np.testing.assert_array_equal(logits.argmax(axis=1), LABELS)


def test_layers_without_activation_are_one_linear_map():
    model = build_model((5,), 3, widths=[7, 4], activation="linear", seed=2)
    weights = [w + 0.1 if w.ndim == 1 else w for w in model.get_weights()]
    model.set_weights(weights)
    first, a, second, b, last, c = (w.astype("float64") for w in weights)
    x = np.random.default_rng(0).normal(size=(10, 5))
    expected = x @ (first @ second @ last) + ((a @ second + b) @ last + c)
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_no_width_is_no_hidden_layer():
    model = build_model((5,), 3, widths=[])
    assert [layer.name for layer in model.layers if layer.weights] == [model.layers[-1].name]
    assert model.count_params() == (5 + 1) * 3


@pytest.mark.parametrize("widths", [[], [64, 64]])
def test_network_starts_and_learns_as_written_out(widths):
    model = build_model((8, 8), widths=widths, learning_rate=0.2, seed=3)
    assert_is_relu_network(model, widths, 0.2, momentum=0.9)


def test_networks_of_equal_size_have_as_many_weights():
    """Inputs and bias to the first layer, layer to layer, last layer and bias to the outputs."""
    counts = {}
    for depth, widths in WIDTHS_AT_EQUAL_SIZE.items():
        assert len(widths) == depth
        sizes = [40, *widths, 10]
        counts[depth] = sum((m + 1) * n for m, n in pairwise(sizes))
        assert build_model(widths=widths).count_params() == counts[depth]
    assert max(counts.values()) / min(counts.values()) < 1.005
    assert all(abs(count - 15_754) <= 36 for count in counts.values())


def test_search_covers_networks_with_and_without_hidden_layers():
    hyperparameters = keras_tuner.HyperParameters()
    tunable_model(hyperparameters)
    depth = next(entry for entry in hyperparameters.space if entry.name == "hidden_layers")
    for hyperparameters.values["hidden_layers"] in (depth.min_value, depth.max_value):
        model = tunable_model(hyperparameters)
        dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
        assert len(dense) == hyperparameters.values["hidden_layers"] + 1
        assert len({layer.units for layer in dense[:-1]}) <= 1
    assert (depth.min_value, depth.max_value) == (0, 4)


def test_bad_width_is_refused():
    with pytest.raises(ValueError, match=r"`widths` must hold numbers >= 1. .*widths=\[8, 0\]"):
        build_model(widths=[8, 0])
