"""UpdateRatios against a slow version: one batch at a time, with the weights read out between."""

import csv
import itertools

import keras
import numpy as np
import pytest
from keras import layers

from callbacks import UpdateRatios

SAMPLES, BATCH = 43, 4  # 11 steps, the last with 3 samples; 8 and 3 steps do not divide 11.


def data():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(SAMPLES, 6)).astype("float32")
    return inputs, generator.normal(size=(SAMPLES, 1)).astype("float32")


def dense_model(optimizer, constraint=None, **compile_arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, activation="tanh", kernel_constraint=constraint, name="first"),
            layers.Dense(1, name="second"),
        ]
    )
    model.compile(optimizer, "mse", **compile_arguments)
    return model


def fit(model, recorder, epochs=2):
    x, y = data()
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    return model.fit(x, y, epochs=epochs, callbacks=[recorder], **arguments).history


def weights_of_every_step(model, epochs=2):
    """Trains one batch at a time; returns the list of weights before, between and after."""
    x, y = data()
    weights = [model.get_weights()]
    for start in epochs * list(range(0, SAMPLES, BATCH)):
        model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
        weights.append(model.get_weights())
    return [[np.array(each, np.float64) for each in of_step] for of_step in weights]


def ratio(old, new):
    """Of two lists of arrays, taken together."""
    old, new = [np.concatenate([each.ravel() for each in arrays]) for arrays in (old, new)]
    if not old.any():
        return float(new.any())
    return np.linalg.norm(new - old) / np.linalg.norm(old)


def ratios_of(weights, chosen):
    steps = itertools.pairwise(weights)
    return np.array([ratio(old[chosen], new[chosen]) for old, new in steps])


def model_with_everything(**compile_arguments):
    average = {"use_ema": True, "ema_overwrite_frequency": 3}
    adam = keras.optimizers.Adam(0.01, weight_decay=0.01, global_clipnorm=0.5, **average)
    return dense_model(adam, constraint=keras.constraints.MaxNorm(1.0), **compile_arguments)


@pytest.fixture(scope="module")
def trained():
    return weights_of_every_step(model_with_everything())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"run_eagerly": True},
        {"steps_per_execution": 8},
        pytest.param({"jit_compile": True, "steps_per_execution": 8}, marks=pytest.mark.slow),
    ],
    ids=lambda arguments: "+".join(arguments) or "graph",
)
def test_ratios_equal_weights_read_out_between_steps(arguments, trained):
    ratios, model = UpdateRatios(per_layer=True), model_with_everything(**arguments)
    logs = fit(model, ratios)
    # A move is the difference of two float32 numbers near to each other, of which digits are lost.
    close = {"rtol": 1e-4}
    first, second = ratios_of(trained, slice(0, 2)), ratios_of(trained, slice(2, 4))
    np.testing.assert_allclose(ratios.layers, np.stack([first, second], axis=1), **close)
    for variable in range(4):
        one = ratios_of(trained, slice(variable, variable + 1))
        np.testing.assert_allclose(ratios.history[:, variable], one, **close)
    overall = ratios_of(trained, slice(None))
    np.testing.assert_allclose(ratios.global_ratio, overall, **close)
    assert ratios.layer_names == ["first", "second"]
    assert ratios.variable_names[2:] == ["second/kernel", "second/bias"]

    in_epochs = overall.reshape(2, 11)
    np.testing.assert_allclose(logs["update_ratio"], in_epochs.mean(axis=1), **close)
    np.testing.assert_allclose(logs["update_ratio_max"], in_epochs.max(axis=1), **close)
    means = second.reshape(2, 11).mean(axis=1)
    np.testing.assert_allclose(logs["update_ratio_second"], means, **close)
    assert "update_ratio_first" in logs

    if not arguments:
        without = model_with_everything()
        fit(without, keras.callbacks.Callback())
        for ours, theirs in zip(model.get_weights(), without.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_that_are_all_zero_never_give_infinity():
    class Zeros(keras.Model):
        def __init__(self):
            super().__init__(name="zeros")
            self.moving = self.add_weight(shape=(3,), initializer="zeros", name="moving")
            self.resting = self.add_weight(shape=(3,), initializer="zeros", name="resting")

        def call(self, inputs):
            return keras.ops.mean(inputs) + keras.ops.sum(self.moving + 0 * self.resting)

    model, ratios = Zeros(), UpdateRatios()
    loss = lambda targets, outputs: keras.ops.mean(outputs)  # noqa: E731
    model.compile(keras.optimizers.SGD(0.5), loss)
    model.fit(np.ones((3, 1)), np.ones((3, 1)), batch_size=1, verbose=0, callbacks=[ratios])
    # Every step moves by -0.5: from 0 to -0.5, -1 and -1.5.
    np.testing.assert_allclose(ratios.history, [[1, 0], [1, 0], [0.5, 0]])
    np.testing.assert_allclose(ratios.global_ratio, [1, 1, 0.5])


def test_steps_without_an_update_are_zero_and_not_in_the_mean():
    ratios = UpdateRatios()
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    logs = fit(dense_model(optimizer), ratios)
    weights = weights_of_every_step(
        dense_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3))
    )
    expected = ratios_of(weights, slice(None))
    np.testing.assert_allclose(ratios.global_ratio, expected, rtol=1e-4)
    moved = ratios.global_ratio > 0
    np.testing.assert_array_equal(moved.nonzero()[0], range(2, 22, 3))
    np.testing.assert_allclose(logs["update_ratio"][0], expected[2:11:3].mean(), rtol=1e-4)

    ratios = UpdateRatios()
    logs = fit(dense_model(keras.optimizers.SGD(0.0)), ratios, epochs=1)
    assert logs["update_ratio"] == [0.0] and logs["update_ratio_max"] == [0.0]


def test_half_precision_weights_are_compared_in_single_precision():
    keras.utils.set_random_seed(1)
    layer = layers.Dense(300, dtype="float16", use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((300,)), layer])
    loss = lambda targets, outputs: keras.ops.mean(keras.ops.sum(outputs, axis=-1))  # noqa: E731
    model.compile(keras.optimizers.SGD(1 / 64), loss)
    ratios = UpdateRatios()
    model.fit(np.ones((1, 300)), np.ones((1, 300)), verbose=0, callbacks=[ratios])
    # The 90,000 weights of 1 all move by 1/64: a sum of squares above float16's 65,504.
    np.testing.assert_allclose(ratios.global_ratio, [1 / 64], rtol=1e-6)


def test_csv_has_the_ratios(tmp_path):
    path = tmp_path / "ratios.csv"
    ratios = UpdateRatios(csv=path)
    fit(dense_model("sgd"), ratios)
    rows = list(csv.reader(path.open(newline="")))
    assert rows[0] == ["epoch", "step", "update_ratio", *ratios.variable_names]
    values = np.array(rows[1:], float)
    np.testing.assert_array_equal(values[:, 2], ratios.global_ratio)
    np.testing.assert_array_equal(values[:, 3:], ratios.history)
