"""Output layers, exactly: which pairs of activation and loss agree, and what the wrong ones do."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
from recipes.output_layer import VARIANTS, build_model, measure, output_and_loss, prepare
from tests.conftest import assert_is_relu_network

CLASSES = 4
X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
LABELS = np.array([0, 1, 2, 3, 1, 0], "int32")
ONE_HOT = np.eye(CLASSES, dtype="float32")[LABELS]


def loss_and_gradients(model, loss, y):
    """Return the loss and all gradients of one training step, traced into a graph as by `fit`."""

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss(y, model(X, training=True))
        return value, tape.gradient(value, model.trainable_variables)

    value, gradients = step()
    return [value.numpy(), *(gradient.numpy() for gradient in gradients)]


def of_kind(output, y=LABELS):
    model = build_model((5,), CLASSES, output, seed=1)
    return loss_and_gradients(model, model.loss, y)


def of_layers(units, activation, loss, y, after=(), dtype=None):
    """The same for one dense layer, followed by the layers `after`."""
    dense = keras.layers.Dense(
        units,
        activation,
        kernel_initializer=keras.initializers.GlorotUniform(seed=3),
        dtype=dtype,
    )
    return loss_and_gradients(keras.Sequential([keras.Input((5,)), dense, *after]), loss, y)


def assert_same(one, other, **tolerance):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


# What agrees.


def test_softmax_logits_and_one_hot_labels_take_the_same_step():
    expected = of_kind("softmax")
    assert_same(of_kind("logits"), expected, rtol=0)
    assert_same(of_kind("one_hot", ONE_HOT), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("output", ["softmax", "logits"])
def test_network_starts_and_learns_as_written_out(output):
    model = build_model((8, 8), output=output, learning_rate=0.2, seed=3)
    assert_is_relu_network(model, [64, 64], 0.2, momentum=0.9)


@pytest.mark.parametrize(
    ("output", "y"),
    [("sigmoid", LABELS[:, np.newaxis] > 1), ("sigmoids", ONE_HOT), ("linear", X[:, :1])],
)
def test_sigmoids_and_numbers_have_the_losses_of_their_formulas(output, y):
    model = build_model((5,), CLASSES, output, seed=1)
    dense = model.layers[-1]
    kernel, bias = dense.get_weights()
    z = keras.Model(model.input, dense.input)(X).numpy() @ kernel + bias
    squared_error = np.mean((z - y) ** 2)
    cross_entropy = np.mean(np.log1p(np.exp(z)) - y * z)
    expected = squared_error if output == "linear" else cross_entropy
    assert of_kind(output, y.astype("float32"))[0] == pytest.approx(expected, rel=1e-4)


def test_numbers_have_no_accuracy():
    for output, names in (("linear", {"loss"}), ("sigmoid", {"loss", "accuracy"})):
        model = build_model((5,), output=output)
        model.run_eagerly = True
        assert set(model.test_on_batch(X, LABELS[:, np.newaxis] > 1, return_dict=True)) == names


def test_gradient_of_a_softmax_is_probability_minus_label():
    model = build_model((5,), CLASSES, "softmax", seed=1)
    *_, bias_gradient = loss_and_gradients(model, model.loss, LABELS)
    expected = (model(X).numpy() - ONE_HOT).mean(axis=0)
    np.testing.assert_allclose(bias_gradient, expected, rtol=1e-5, atol=1e-7)


def test_softmax_sums_to_one_and_independent_sigmoids_do_not():
    split = data.load("wine", samples=30)
    model = build_model((13,), 3, "softmax")
    assert measure(model, split)["distance_of_sum_from_one"] < 1e-6
    model = build_model((13,), 3, "sigmoids")
    for logit, total in ((40.0, 3.0), (-40.0, 0.0)):  # From no class at all to every class.
        kernel, bias = model.get_weights()[-2:]
        model.layers[-1].set_weights([0 * kernel, np.full_like(bias, logit)])
        np.testing.assert_allclose(model(split.test.x).numpy().sum(axis=1), total, atol=1e-6)
        assert measure(model, split)["distance_of_sum_from_one"] == pytest.approx(abs(total - 1))


def test_one_sigmoid_is_a_softmax_over_two_that_learns_half_as_fast():
    """The difference of two logits is the sigmoid's logit, and moves twice as far in a step."""
    y = (LABELS > 1).astype("int32")
    _, two_kernel, two_bias = of_layers(
        2, "softmax", keras.losses.SparseCategoricalCrossentropy(), y
    )
    layer = keras.layers.Dense(
        2, "softmax", kernel_initializer=keras.initializers.GlorotUniform(seed=3)
    )
    probabilities = keras.Sequential([keras.Input((5,)), layer])(X).numpy()[:, 1]
    kernel = layer.get_weights()[0]
    single = keras.layers.Dense(1, "sigmoid")
    model = keras.Sequential([keras.Input((5,)), single])
    single.set_weights([kernel[:, 1:] - kernel[:, :1], np.zeros(1)])
    np.testing.assert_allclose(model(X).numpy()[:, 0], probabilities, rtol=1e-5)
    _, one_kernel, one_bias = loss_and_gradients(model, keras.losses.BinaryCrossentropy(), y)
    np.testing.assert_allclose(two_kernel[:, 1] - two_kernel[:, 0], 2 * one_kernel[:, 0], rtol=1e-4)
    np.testing.assert_allclose(two_bias[1] - two_bias[0], 2 * one_bias[0], rtol=1e-4)


# Logits without from_logits=True.


def test_logits_read_as_probabilities_lose_the_gradient_outside_of_zero_to_one():
    """Keras clips them and divides by their sum: -log(c_y / sum(c)), with c = clip(z)."""
    logits = np.array([[-2.0, 0.3, 0.5, 3.0], [0.2, 0.4, -1.0, 0.8], [2.0, 5.0, -3.0, 7.0]])
    labels = np.array([1, 2, 0])
    clipped = np.clip(logits, 1e-7, 1 - 1e-7)
    expected = -np.log(clipped[np.arange(3), labels] / clipped.sum(axis=1))
    inside = (logits > 0) & (logits < 1)
    slope = 1 / clipped.sum(axis=1, keepdims=True) - np.eye(4)[labels] / clipped
    _, _, loss = output_and_loss("no_softmax", CLASSES)
    z = tf.Variable(logits, dtype="float32")
    with tf.GradientTape() as tape:
        value = loss(labels, z)
    assert float(value) == pytest.approx(expected.mean(), rel=1e-4)
    gradient = tape.gradient(value, z).numpy()
    np.testing.assert_allclose(gradient, inside * slope / 3, rtol=1e-4, atol=1e-6)
    assert (gradient[2] == 0).all()  # A wrong answer that teaches nothing.


def test_a_logit_read_as_a_probability_loses_the_gradient_outside_of_zero_to_one():
    _, _, loss = output_and_loss("no_sigmoid", 2)
    z = tf.Variable([[-1.0], [0.25], [2.0]])
    with tf.GradientTape() as tape:
        value = loss(np.array([1.0, 1.0, 0.0]), z)
    expected = -(np.log(1e-7) + np.log(0.25) + np.log(1e-7)) / 3
    assert float(value) == pytest.approx(expected, rel=1e-2)  # 1 - 1e-7 has few digits in float32.
    np.testing.assert_allclose(tape.gradient(value, z)[:, 0], [0, -4 / 3, 0], rtol=1e-5)


# from_logits=True behind a softmax or sigmoid.


def test_a_softmax_that_keras_sees_is_taken_back_with_a_warning():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.warns(UserWarning, match="was produced by a Softmax activation"):
        found = of_layers(CLASSES, "softmax", loss, LABELS)
    assert_same(found, of_layers(CLASSES, None, loss, LABELS), rtol=0)


@pytest.mark.parametrize("dtype", [None, "mixed_float16"])
def test_a_softmax_that_keras_does_not_see_is_applied_twice_in_silence(dtype):
    """A layer after it hides it; so does the cast from float16, without any layer."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    hidden = [] if dtype else [keras.layers.Reshape((CLASSES,))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = of_layers(CLASSES, "softmax", loss, LABELS, hidden, dtype)
    twice = of_layers(CLASSES, "softmax", loss, LABELS, [keras.layers.Reshape((CLASSES,))])
    once = of_layers(CLASSES, None, loss, LABELS)
    assert_same(found, twice, rtol=1e-2, atol=1e-3)
    assert np.linalg.norm(found[1]) < 0.5 * np.linalg.norm(once[1])


def test_softmax_twice_is_built_so_that_keras_does_not_see_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, *_ = of_kind("softmax_twice")
    probabilities = softmax(build_model((5,), CLASSES, "softmax", seed=1)(X).numpy())
    expected = -np.log(probabilities[np.arange(6), LABELS]).mean()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 10])
def test_softmax_twice_has_one_kth_of_the_gradient_at_chance(classes):
    """The inner softmax's slope at equal logits is (I - 1/K) / K."""
    gradients = {}
    for output in ("softmax", "softmax_twice"):
        model = build_model((5,), classes, output, seed=1)
        kernel, bias = model.layers[3].get_weights()
        model.layers[3].set_weights([0 * kernel, bias])
        gradients[output] = loss_and_gradients(model, model.loss, LABELS % classes)[-1]
    expected = gradients["softmax"] / classes
    np.testing.assert_allclose(gradients["softmax_twice"], expected, rtol=1e-4, atol=1e-7)


def test_softmax_twice_cannot_bring_its_loss_below_a_floor():
    """Even sure and right, with output 1 for the label: ln(1 + (K - 1) / e), 1.461 for ten."""
    _, _, loss = output_and_loss("softmax_twice", 10)
    assert float(loss(np.arange(10), np.eye(10))) == pytest.approx(np.log(1 + 9 / np.e), rel=1e-6)
    assert np.log(1 + 9 / np.e) == pytest.approx(1.461, abs=5e-4)


# Other wrong pairs that Keras takes without an error.


def test_softmax_over_one_unit_trains_like_a_sigmoid_and_answers_one():
    y, loss = (LABELS > 1).astype("float32"), keras.losses.BinaryCrossentropy()
    with pytest.warns(UserWarning, match="Did you mean to use a sigmoid"):
        found = of_layers(1, "softmax", loss, y)
        outputs = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, "softmax")])(X)
    assert_same(found, of_layers(1, "sigmoid", loss, y), rtol=0)
    np.testing.assert_array_equal(outputs, np.ones((6, 1)))


def test_sigmoids_with_categorical_cross_entropy_train_like_a_softmax():
    loss = keras.losses.SparseCategoricalCrossentropy()
    found = of_layers(CLASSES, "sigmoid", loss, LABELS)
    assert_same(found, of_layers(CLASSES, "softmax", loss, LABELS), rtol=0)


def test_relu_output_has_no_gradient_where_it_is_zero():
    model = build_model((5,), output="relu")
    layer = model.layers[-1]
    layer.set_weights([layer.get_weights()[0], np.array([-8.0])])
    _, *gradients = loss_and_gradients(model, model.loss, np.ones((6, 1), "float32"))
    assert all((gradient == 0).all() for gradient in gradients)


# The recipe.


def test_prepare_makes_labels_one_hot_and_leaves_the_rest():
    split = data.load("wine", samples=30)
    prepared = prepare(split, "one_hot")
    for part in ("train", "validation", "test"):
        before, after = getattr(split, part), getattr(prepared, part)
        np.testing.assert_array_equal(after.x, before.x)
        np.testing.assert_array_equal(after.y, np.eye(3)[before.y])
    assert prepare(split) is split


def test_every_variant_has_the_labels_that_its_loss_asks_for():
    one_hot = {name for name, arguments in VARIANTS.items() if "labels" in arguments}
    assert one_hot == {"one_hot", "sigmoids"}


def test_unknown_output_is_refused():
    with pytest.raises(ValueError, match=r"`output` must be one of softmax, .*output='maxout'"):
        build_model(output="maxout")
