"""The statistics against values worked out by hand and against forward passes of their own."""

import copy
import csv
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from callbacks.activation_statistics import SATURATED, ActivationStatistics

STATISTICS = ("mean", "standard_deviation", "saturated", "dead")


def expect(measured, outputs, saturated=math.nan, unit_axis=-1):
    """Compares one layer's statistics with those of its outputs."""
    outputs = np.asarray(outputs, dtype="float64")
    others = tuple(axis for axis in range(outputs.ndim) if axis != unit_axis % outputs.ndim)
    dead = np.mean(np.max(np.abs(outputs), axis=others) == 0)
    expected = [
        outputs.mean(),
        math.sqrt(np.mean((outputs - outputs.mean()) ** 2)),
        saturated,
        dead,
    ]
    np.testing.assert_allclose([measured[name] for name in STATISTICS], expected, rtol=1e-5)


# Worked out by hand: four samples, three units.

SAMPLES = np.array([[1, 0], [0, 1], [1, 1], [-1, 2]], "float32")
KERNEL = np.array([[1, -1, -1], [1, 1, -1]], "float32")
BIAS = np.array([0, 0, -5], "float32")
# Before the ReLU: (1, -1, -6), (1, 1, -6), (2, 0, -7), (1, 3, -6). After it:
OUTPUTS = [[1, 0, 0], [1, 1, 0], [2, 0, 0], [1, 3, 0]]


def build_hand(activation="relu", **compile_arguments):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, activation, name="hidden")])
    model.layers[0].set_weights([KERNEL, BIAS])
    model.compile("sgd", "mse", **compile_arguments)
    return model


def test_values_worked_out_by_hand():
    measured = ActivationStatistics(SAMPLES, histogram=True).measure(build_hand())["hidden"]
    assert measured["mean"] == pytest.approx(9 / 12)
    assert measured["standard_deviation"] == pytest.approx(math.sqrt(17 / 12 - (9 / 12) ** 2))
    # The second unit is zero for two samples of four and alive; the third one is dead.
    assert measured["saturated"] == pytest.approx(6 / 12)
    assert measured["dead"] == pytest.approx(1 / 3)
    counts, edges = measured["histogram_counts"], measured["histogram_edges"]
    np.testing.assert_allclose(edges, np.arange(51) * 3 / 50, atol=1e-12)
    occupied = np.flatnonzero(counts)
    # Zero is in the first bin; 1, 2 and 3 in those that hold 1/3, 2/3 and all of the range.
    np.testing.assert_array_equal(occupied, [0, 16, 33, 49])
    np.testing.assert_array_equal(counts[occupied], [6, 4, 1, 1])


def test_separate_activation_layers_and_activations_that_are_layers():
    inputs = x = keras.Input((2,))
    x = layers.Dense(3, name="linear")(x)
    outputs = [
        layers.Activation("relu", name="activation")(x),
        layers.ReLU(max_value=2.0, name="capped")(x),
        layers.LeakyReLU(0.5, name="leaky")(x),
        layers.ReLU(negative_slope=0.5, name="leaky_too")(x),
        layers.ELU(name="elu")(x),
        layers.Dense(3, layers.ReLU(), name="layer_inside")(inputs),
    ]
    model = keras.Model(inputs, outputs)
    model.get_layer("linear").set_weights([KERNEL, BIAS])
    model.get_layer("layer_inside").set_weights([KERNEL, BIAS])
    measured = ActivationStatistics(SAMPLES).measure(model)
    before = SAMPLES @ KERNEL + BIAS
    expect(measured["linear"], before)
    expect(measured["activation"], OUTPUTS, saturated=6 / 12)
    expect(measured["capped"], np.minimum(OUTPUTS, 2), saturated=8 / 12)  # 2 and 3 are at the end.
    expect(measured["leaky"], np.where(before < 0, before / 2, before))
    expect(measured["leaky_too"], np.where(before < 0, before / 2, before))
    # exp(-5) - 1 and below are flat, exp(-1) - 1 is not.
    expect(measured["elu"], np.where(before < 0, np.expm1(before), before), saturated=4 / 12)
    expect(measured["layer_inside"], OUTPUTS, saturated=6 / 12)
    assert len(measured) == 7


@pytest.mark.parametrize("activation", SATURATED, ids=lambda activation: activation.__name__)
def test_saturated_means_a_slope_below_six_percent_of_the_greatest(activation):
    z = tf.constant(np.linspace(-8, 8, 3200), tf.float32)  # Without the kinks at 0, 3 and 6.
    with tf.GradientTape() as tape:
        tape.watch(z)
        output = activation(z)
    slope = tape.gradient(output, z).numpy()
    saturated = SATURATED[activation](output.numpy())
    assert saturated.any()
    assert slope[saturated].max() < 0.0605 * slope.max()
    assert slope[~saturated].min() > 0.058 * slope.max()


def build_images():
    """Convolution, normalization, dropout, a nested model that is called twice."""
    keras.utils.set_random_seed(0)
    inner_input = keras.Input((3,))
    inner = keras.Model(
        inner_input, layers.Dense(5, "tanh", name="dense")(inner_input), name="inner"
    )
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, activation="relu", name="convolution")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.9, name="dropout")(x)
    x = layers.GlobalAveragePooling2D()(x)
    both = layers.Add()([inner(x), inner(layers.Rescaling(20.0)(x))])
    model = keras.Model(inputs, layers.Dense(1, "sigmoid", name="dense")(both))
    kernel, bias = model.get_layer("convolution").get_weights()
    model.get_layer("convolution").set_weights([kernel, bias - np.array([100, 0, 0])])
    model.layers[2].set_weights([np.full(3, value) for value in (2.0, 1.0, 0.5, 4.0)])
    return model


def test_convolution_nested_and_shared_layers_against_a_forward_pass_in_numpy():
    model = build_images()
    x = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype("float32")
    measured = ActivationStatistics(x).measure(model)
    assert list(measured) == ["convolution", "inner/dense", "inner/dense (call 2)", "dense"]

    kernel, bias = model.get_layer("convolution").get_weights()
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    output = np.maximum(np.einsum("bhwcij,ijco->bhwo", patches, kernel) + bias, 0)
    assert (output[..., 1] == 0).any()
    expect(measured["convolution"], output, saturated=np.mean(output == 0))
    assert measured["convolution"]["dead"] == pytest.approx(1 / 3)

    pooled = (2 * (output - 0.5) / np.sqrt(4 + 0.001) + 1).mean(axis=(1, 2))
    kernel, bias = model.get_layer("inner").get_weights()
    calls = [np.tanh(pooled @ kernel + bias), np.tanh(20 * pooled @ kernel + bias)]
    for name, output in zip(["inner/dense", "inner/dense (call 2)"], calls, strict=True):
        expect(measured[name], output, saturated=np.mean(np.abs(output) > 0.97))
    assert measured["inner/dense (call 2)"]["saturated"] > 0

    kernel, bias = model.get_layer("dense").get_weights()
    output = 1 / (1 + np.exp(-(sum(calls) @ kernel + bias)))
    expect(measured["dense"], output, saturated=np.mean((output < 0.015) | (output > 0.985)))


def test_layers_by_name_at_any_depth():
    model, x = build_images(), np.ones((2, 6, 6, 2))
    for selected, names in [
        (["dropout", model.get_layer("inner")], ["dropout", "inner", "inner (call 2)"]),
        (["inner/dense"], ["inner/dense", "inner/dense (call 2)"]),
        (["dense"], ["inner/dense", "inner/dense (call 2)", "dense"]),
    ]:
        assert list(ActivationStatistics(x, layers=selected).measure(model)) == names


class Block(layers.Layer):
    def __init__(self):
        super().__init__(name="block")
        self.dense = layers.Dense(3, "relu", name="hidden")
        self.noise = layers.Dropout(0.5)

    def call(self, x):
        return self.noise(self.dense(x), training=True)  # Draws from its seed also in inference.


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.recurrent = layers.LSTM(2, name="lstm")
        self.simple = layers.SimpleRNN(2, name="simple")
        self.both = layers.Bidirectional(layers.GRU(2), name="both")
        self.distributed = layers.TimeDistributed(layers.Dense(4, "relu"), name="distributed")
        self.head = layers.Dense(1, name="head")

    def call(self, x):
        x = self.distributed(self.block(x)[:, None, :] + tf.zeros((1, 5, 1)))
        x = tf.concat([self.recurrent(x), self.simple(x), self.both(x)], axis=-1)
        return self.head(x)


def test_subclassed_models_that_are_not_built():
    keras.utils.set_random_seed(0)
    model = Subclassed()
    measured = ActivationStatistics(SAMPLES).measure(model)
    # In the order of the calls, and nothing of what is inside a layer of Keras's.
    names = ["block/hidden", "distributed", "lstm", "simple", "both", "head"]
    assert list(measured) == names
    before = [variable.numpy() for variable in model.variables]
    measured = ActivationStatistics(SAMPLES).measure(model)
    for first, second in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(first, second.numpy())
    expect(
        measured["block/hidden"],
        output := model.block.dense(SAMPLES).numpy(),
        saturated=np.mean(output == 0),
    )
    nothing_known = [name for name in names if math.isnan(measured[name]["saturated"])]
    assert nothing_known == ["lstm", "both", "head"]
    assert "call" not in vars(model.block.dense)


def test_layer_with_two_parents_has_a_row_for_every_call_under_one_name():
    shared = layers.Dense(2, "relu", name="shared")
    first = keras.Sequential([shared], name="first")
    second = keras.Sequential([shared, layers.Dense(1, name="own")], name="second")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, second(first(inputs)))  # Of two branches, either may run first.
    names = list(ActivationStatistics(SAMPLES).measure(model))
    assert names == ["first/shared", "first/shared (call 2)", "second/own"]


@pytest.mark.parametrize(
    "compile_arguments",
    [
        {"steps_per_execution": 3},
        {"jit_compile": True},
        {"run_eagerly": True},
    ],
    ids=str,
)
def test_training_is_bit_identical(compile_arguments):
    x = np.random.default_rng(0).normal(size=(9, 2))

    def train(callbacks):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([Block(), layers.BatchNormalization(), layers.Dropout(0.5)])
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", **compile_arguments)
        model.fit(x, x[:, [0, 0, 0]], batch_size=3, epochs=2, callbacks=callbacks, verbose=0)
        return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]

    statistics = ActivationStatistics(SAMPLES)
    for with_statistics, without in zip(train([statistics]), train([]), strict=True):
        np.testing.assert_array_equal(with_statistics, without)
    assert statistics.layer_names == ["block/hidden"]
    np.testing.assert_array_equal(statistics.history["epoch"], [-1, 0, 1])
    assert len(np.unique(statistics.history["mean"])) == 3


def test_dying_relu_is_dead_and_a_sparse_one_is_not():
    """One step of plain gradient descent at an absurd rate kills a layer for good."""
    keras.utils.set_random_seed(2)
    x = np.random.default_rng(0).uniform(0.5, 1, size=(256, 8))
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, "relu", name="hidden"), layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(1000.0, clipvalue=1.0), "mse")
    model.layers[1].set_weights(
        [np.ones((16, 1)), np.array([10.0])]
    )  # Every unit pushes the loss up.
    statistics = ActivationStatistics(x, layers=[model.layers[0]])
    model.fit(x, np.zeros((256, 1)), batch_size=256, callbacks=[statistics], verbose=0)
    before, after = statistics.history["dead"][:, 0]
    assert 0 <= before < 0.5
    assert after > before
    output = np.maximum(x @ model.layers[0].kernel.numpy() + model.layers[0].bias.numpy(), 0)
    assert after == np.mean(output.max(axis=0) == 0)

    sparse = np.random.default_rng(0).normal(size=(256, 8))
    measured = ActivationStatistics(sparse).measure(build_sparse())["hidden"]
    assert measured["saturated"] > 0.8
    assert measured["dead"] == 0


def build_sparse():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu", name="hidden")])
    model.layers[0].set_weights([np.eye(8, 16) + np.eye(8, 16, 8), -np.ones(16)])
    return model


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_summed_in_float32(policy):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(4, dtype=policy, name="d")])
    model.layers[0].set_weights([np.full((2, 4), 300.0), np.zeros(4)])
    x = np.full((1000, 2), 100.0)  # 60,000 each: a sum, or one square, overflows float16.
    measured = ActivationStatistics(x, histogram=True).measure(model)["d"]
    assert measured["mean"] == pytest.approx(60_000, rel=2**-8)
    assert measured["standard_deviation"] == 0
    assert measured["histogram_counts"].sum() == 4000


def test_epochs_and_several_fits(tmp_path):
    path = tmp_path / "folder" / "activations.csv"
    statistics = ActivationStatistics(SAMPLES, epochs=["begin", 1, 3], csv=path, histogram=True)
    model = build_hand()
    fit = {"x": SAMPLES, "y": -np.ones((4, 3)), "callbacks": [statistics], "verbose": 0}
    means = {}
    means[-1] = np.mean(OUTPUTS)
    model.fit(**fit, epochs=2)
    means[1] = np.mean(model(SAMPLES))
    model.fit(**fit, epochs=4, initial_epoch=2)
    means[3] = np.mean(model(SAMPLES))
    history = statistics.history
    # What is measured before epoch 2 is the state after epoch 1.
    np.testing.assert_array_equal(history["epoch"], [-1, 1, 1, 3])
    expected = [means[-1], means[1], means[1], means[3]]
    np.testing.assert_allclose(history["mean"], np.transpose([expected]), rtol=1e-6)
    assert history["dead"].shape == (4, 1)
    assert history["histogram_counts"].shape == (4, 1, 50)
    assert history["histogram_edges"].shape == (4, 1, 51)
    np.testing.assert_array_equal(history["histogram_counts"].sum(axis=-1), 12)
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["epoch", "layer", *STATISTICS]
    assert [row[:2] for row in rows[1:]] == [[epoch, "hidden"] for epoch in ["-1", "1", "1", "3"]]
    for column, name in enumerate(STATISTICS, 2):
        values = [float(row[column]) for row in rows[1:]]
        np.testing.assert_array_equal(values, history[name][:, 0])

    # A run that is resumed in a new process keeps the earlier rows; another model replaces them.
    with open(path, "a") as file:
        file.write("0,hid")  # The earlier run was killed while it wrote.
    resumed = ActivationStatistics(SAMPLES, csv=path)
    model.fit(**{**fit, "callbacks": [resumed]}, epochs=3, initial_epoch=2)
    with open(path, newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["epoch", "-1", "1", "2"]
    build_hand().fit(**{**fit, "callbacks": [resumed]}, epochs=1)
    np.testing.assert_array_equal(resumed.history["epoch"], [-1, 0])
    with open(path, newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["epoch", "-1", "0"]


def test_copies_saved_models_and_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    statistics = ActivationStatistics(SAMPLES, histogram=True, tensorboard=tmp_path / "logs")
    model = build_hand()
    fit = {"x": SAMPLES, "y": np.ones((4, 3)), "verbose": 0}
    model.fit(**fit, callbacks=[copy.deepcopy(statistics)])
    assert len(statistics.history["epoch"]) == 0
    model.fit(**fit, callbacks=[statistics])
    duplicate = copy.deepcopy(statistics)
    assert duplicate.model is None
    for name, values in statistics.history.items():
        np.testing.assert_array_equal(duplicate.history[name], values)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert duplicate.measure(loaded)["hidden"]["mean"] == statistics.history["mean"][-1, 0]

    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert set(events.Tags()["tensors"]) == {"hidden", *(f"hidden/{name}" for name in STATISTICS)}
    scalars = events.Tensors("hidden/mean")
    values = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in scalars][-2:]
    np.testing.assert_allclose(values, statistics.history["mean"][:, 0], rtol=1e-6)


def test_activations_that_are_not_finite():
    model = build_hand("linear")
    model.layers[0].set_weights([KERNEL, BIAS + np.array([np.nan, np.inf, 0])])
    measured = ActivationStatistics(SAMPLES, histogram=True).measure(model)["hidden"]
    assert math.isnan(measured["mean"])
    assert measured["dead"] == 0
    assert measured["histogram_counts"].sum() == 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": None},
        {"x": np.zeros((0, 2))},
        {"x": {"a": SAMPLES, "b": SAMPLES[:0]}},
        {"layers": "hidden"},
        {"layers": []},
        {"epochs": 3},
        {"epochs": "begin"},
        {"epochs": [-2]},
        {"epochs": [0.5]},
        {"epochs": ["end"]},
        {"histogram": 20},
        {"csv": 1},
        {"tensorboard": ""},
    ],
    ids=str,
)
def test_bad_arguments(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"Argument `{name}` must .*Received: {name}="):
        ActivationStatistics(**{"x": SAMPLES, **arguments})


def test_models_without_the_layers():
    with pytest.raises(ValueError, match=r"Received: 'other'. The model has: .*hidden"):
        build_hand().fit(
            SAMPLES, SAMPLES, callbacks=[ActivationStatistics(SAMPLES, layers=["other"])]
        )
    with pytest.raises(ValueError, match="must have a layer with an activation"):
        ActivationStatistics(SAMPLES).measure(keras.Sequential([layers.Flatten()]))

    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)
            self.dense.build((None, 2))

        @tf.function
        def call(self, x):
            return self.dense(x)

    with pytest.raises(ValueError, match="must be called eagerly"):
        ActivationStatistics(SAMPLES).measure(Compiled())
