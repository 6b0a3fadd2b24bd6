"""Holds batch normalization to its formulas: moving statistics, scale invariance, folding."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
from recipes import batch_normalization as recipe

generator = np.random.default_rng(7)


def normal(*shape, mean=0.0, deviation=1.0):
    return generator.normal(mean, deviation, shape).astype("float32")


def normalizations(model):
    return [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]


def give_random_weights(model):
    """Give every normalization gamma, beta and moving statistics that are far from neutral."""
    for layer in normalizations(model):
        units = layer.moving_mean.shape
        layer.moving_mean.assign(normal(*units))
        layer.moving_variance.assign(np.exp(normal(*units)))
        if layer.scale:
            layer.gamma.assign(normal(*units))
        if layer.center:
            layer.beta.assign(normal(*units))
    return model


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_moving_statistics_follow_their_formula(momentum):
    layer = keras.layers.BatchNormalization(momentum=momentum)
    mean, variance = np.zeros(3), np.ones(3)
    for _ in range(5):
        batch = normal(4, 3, mean=2.0, deviation=3.0)
        layer(batch, training=True)
        mean = momentum * mean + (1 - momentum) * batch.mean(axis=0)
        # The variance divided by n = 4; the unbiased one, by 3, would be a third larger.
        variance = momentum * variance + (1 - momentum) * np.mean((batch - batch.mean(0)) ** 2, 0)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 51, 459])
def test_default_momentum_leaves_a_residual_of_0_99_to_the_power_of_the_steps(steps):
    layer = keras.layers.BatchNormalization()
    batch = tf.constant([[4.0], [6.0]])  # Mean 5, variance 1.
    train_step = tf.function(lambda: layer(batch, training=True))
    for _ in range(steps):
        train_step()
    np.testing.assert_allclose((5 - layer.moving_mean) / 5, 0.99**steps, rtol=1e-3)


def test_card_counts_the_steps_of_the_default_momentum_right():
    assert 0.99**50 == pytest.approx(0.6, abs=0.01)
    assert 0.99**458 > 0.01 > 0.99**459
    assert 0.9**51 == pytest.approx(0.005, abs=0.0005)


def test_scaling_a_kernel_keeps_the_loss_and_divides_its_gradient():
    """Section 3.3: BN((a W) u) = BN(W u), and the gradient by (a W) is that by W divided by a."""
    model = recipe.build_model((6,), 3, batch_normalization=True)
    for layer in normalizations(model):
        layer.epsilon = 0.0  # The equality holds up to epsilon.
    x, y = normal(20, 6), generator.integers(0, 3, 20)
    kernels = [w for w in model.trainable_variables if w.path.endswith("kernel")][:-1]

    def loss_and_gradients():
        with tf.GradientTape() as tape:
            loss = model.loss(y, model(x, training=True))
        return loss, tape.gradient(loss, [kernel.value for kernel in kernels])

    loss, gradients = loss_and_gradients()
    for kernel in kernels:
        kernel.assign(3.0 * kernel)
    scaled_loss, scaled_gradients = loss_and_gradients()
    assert float(scaled_loss) == pytest.approx(float(loss), rel=1e-5)
    for gradient, scaled in zip(gradients, scaled_gradients, strict=True):
        np.testing.assert_allclose(3.0 * scaled, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gamma_and_beta", [True, False])
def test_folded_network_predicts_the_same(gamma_and_beta):
    model = recipe.build_model((8, 8), 10, batch_normalization=True, gamma_and_beta=gamma_and_beta)
    give_random_weights(model)
    x = normal(50, 8, 8)
    folded = recipe.fold(model)
    assert not normalizations(folded)
    np.testing.assert_allclose(folded(x), model(x, training=False), rtol=1e-5, atol=1e-5)


def test_convolution_with_a_bias_is_folded_too():
    model = keras.Sequential(
        [
            keras.Input((9, 9, 2)),
            keras.layers.Conv2D(5, 3, bias_initializer="random_normal"),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
        ]
    )
    give_random_weights(model)
    x = normal(6, 9, 9, 2)
    folded = recipe.fold(model)
    assert not normalizations(folded)
    np.testing.assert_allclose(folded(x), model(x, training=False), rtol=1e-4, atol=1e-4)


def test_folding_leaves_the_model_alone():
    model = give_random_weights(recipe.build_model((6,), 3, batch_normalization=True))
    before = model.get_weights()
    recipe.fold(model)
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


def after_activation(x):
    return keras.layers.BatchNormalization()(keras.layers.Dense(3, "relu")(x))


def first_layer(x):
    return keras.layers.BatchNormalization()(x)


def output_read_twice(x):
    x = keras.layers.Dense(3)(x)
    return keras.layers.Add()([x, keras.layers.BatchNormalization()(x)])


def output_of_the_model(x):
    x = keras.layers.Dense(3)(x)
    return [x, keras.layers.BatchNormalization()(x)]


def another_axis(x):
    x = keras.layers.Dense(3)(keras.layers.Reshape((3, 1))(x))
    return keras.layers.BatchNormalization(axis=1)(x)


@pytest.mark.parametrize(
    "misplaced",
    [after_activation, first_layer, output_read_twice, output_of_the_model, another_axis],
)
def test_folding_refuses_what_it_cannot_fold(misplaced):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, misplaced(inputs))
    with pytest.raises(ValueError, match=r"has no activation.*Received: layer 'batch_norm"):
        recipe.fold(model)


def test_a_batch_of_one_predicts_the_same_for_every_sample():
    """Normalized with itself, a single sample is its own mean: only beta is left."""
    model = give_random_weights(recipe.build_model((6,), 3, batch_normalization=True))
    outputs = [model(normal(1, 6), training=True) for _ in range(3)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-6)
    np.testing.assert_allclose(outputs[2], outputs[0], rtol=1e-6)


def test_batch_statistics_accuracy_restores_the_moving_statistics():
    model = recipe.build_model((6,), 3, batch_normalization=True)
    before = model.get_weights()
    x, y = normal(10, 6), np.arange(10) % 3
    accuracy = recipe.batch_statistics_accuracy(model, x, y, batch_size=10)
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)
    assert accuracy == np.mean(np.argmax(model(x, training=True), axis=-1) == y)


def test_batch_statistics_accuracy_normalizes_every_batch_with_itself():
    model = give_random_weights(recipe.build_model((6,), 3, batch_normalization=True))
    x = normal(20, 6)
    batches = [model(x[start : start + 8], training=True) for start in (0, 8, 16)]
    y = np.argmax(np.concatenate(batches), axis=-1)
    assert (np.argmax(model(x, training=True), axis=-1) != y).any()
    assert recipe.batch_statistics_accuracy(model, x, y, batch_size=8) == 1.0
    y[:5] = (y[:5] + 1) % 3
    assert recipe.batch_statistics_accuracy(model, x, y, batch_size=8) == 0.75


@pytest.fixture(scope="module")
def split():
    return data.load("digits", samples=100)


def test_measure_gives_mixed_and_sorted_batches_of_all_test_samples(split, monkeypatch):
    given = []

    def count_calls(_, x, y):
        given.append((x, y))
        return len(given)

    monkeypatch.setattr(recipe, "batch_statistics_accuracy", count_calls)
    measured = recipe.measure(recipe.build_model((8, 8), batch_normalization=True), split)
    assert (measured["mixed_batch_accuracy"], measured["sorted_batch_accuracy"]) == (1, 2)
    pairs = sorted((x.tobytes(), y) for x, y in zip(*split.test, strict=True))
    for x, y in given:
        assert sorted((a.tobytes(), b) for a, b in zip(x, y, strict=True)) == pairs
    (_, mixed), (_, by_class) = given
    assert len(set(mixed[: recipe.BATCH_SIZE])) == 10
    np.testing.assert_array_equal(by_class, np.sort(split.test.y))


def test_measure_removes_the_normalization_and_nothing_else(split):
    """The labels are what the network written out without its normalization predicts."""
    model = give_random_weights(recipe.build_model((8, 8), batch_normalization=True, seed=1))
    *kernels, last = (w.numpy() for w in model.weights if w.path.endswith("kernel"))
    hidden = split.test.x.reshape(-1, 64)
    for kernel in kernels:
        hidden = 1 / (1 + np.exp(-hidden @ kernel))
    logits = hidden @ last
    bias = -logits.mean(axis=0)  # So that the classes take turns.
    model.layers[-1].bias.assign(bias)
    y = np.argmax(logits + bias, axis=-1)
    assert len(set(y)) > 3
    relabelled = dataclasses.replace(split, test=split.test._replace(y=y))
    assert recipe.measure(model, relabelled)["removed_accuracy"] > 0.99


def test_measure_reports_the_largest_difference_of_the_folded_network(split, monkeypatch):
    model = give_random_weights(recipe.build_model((8, 8), batch_normalization=True))
    assert 0 < recipe.measure(model, split)["folded_difference"] < 1e-4
    difference = np.zeros((397, 10), "float32")
    difference[5, 3] = -0.5
    monkeypatch.setattr(recipe, "fold", lambda model: lambda x: model(x) + difference)
    assert recipe.measure(model, split)["folded_difference"] == pytest.approx(0.5, rel=1e-4)


def test_momentum_changes_inference_and_not_training():
    x, y = normal(4, 10, 6), generator.integers(0, 3, (4, 10))
    trained = []
    for momentum in (0.9, 0.99):
        model = recipe.build_model((6,), 3, batch_normalization=True, moving_momentum=momentum)
        for batch_x, batch_y in zip(x, y, strict=True):
            with tf.GradientTape() as tape:
                loss = model.loss(batch_y, model(batch_x, training=True))
            weights = model.trainable_variables
            model.optimizer.apply(tape.gradient(loss, [w.value for w in weights]), weights)
        trained.append(model)
    for one, other in zip(*(model.trainable_variables for model in trained), strict=True):
        np.testing.assert_array_equal(one, other)
    one, other = (normalizations(model)[0].moving_mean.numpy() for model in trained)
    assert np.abs(one - other).min() > 0


def test_kernels_start_equal_with_and_without_normalization():
    models = [
        recipe.build_model(seed=5, batch_normalization=normalize) for normalize in (False, True)
    ]
    kernels = [[w for w in m.weights if w.path.endswith("kernel")] for m in models]
    assert len(kernels[0]) == 4
    for one, other in zip(*kernels, strict=True):
        np.testing.assert_array_equal(one, other)


def test_layers_before_a_normalization_have_no_bias():
    model = recipe.build_model(batch_normalization=True)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.use_bias for layer in dense] == [False, False, False, True]
