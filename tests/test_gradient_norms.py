"""GradientNorms against a slow version: an explicit GradientTape on the same batches."""

import ast
import copy
import csv
import functools
import importlib.util
import pathlib
import sys

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import callbacks.gradient_norms
import callbacks.update_ratios
from callbacks import GradientNorms, UpdateRatios
from tests.conftest import run_python

SAMPLES, BATCH = 43, 4  # 11 steps, the last with 3 samples; neither 8 nor 2 steps divide 11.


def data(outputs=1):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(SAMPLES, 6)).astype("float32")
    return inputs, generator.normal(size=(SAMPLES, outputs)).astype("float32")


def batches(*arrays):
    starts = range(0, len(arrays[0]), BATCH)
    return [tuple(array[start : start + BATCH] for array in arrays) for start in starts]


def dense_model(optimizer=None, **compile_arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [layers.Dense(5, activation="tanh", name="first"), layers.Dense(1, name="second")],
        name="net",
    )
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse", **compile_arguments)
    return model


def built_dense_model():
    model = dense_model()
    model.build((None, 6))
    return model


def fit(model, recorders, x, y=None, epochs=2, **arguments):
    if isinstance(x, np.ndarray | list):
        arguments = {"batch_size": BATCH, "shuffle": False, **arguments}
    return model.fit(x, y, epochs=epochs, callbacks=recorders, verbose=0, **arguments)


# The slow version.


def squared_error(targets, outputs, weights=1.0):
    errors = tf.reduce_mean((targets - tf.cast(outputs, tf.float32)) ** 2, axis=-1)
    return tf.reduce_mean(weights * errors)


def loss_of(model, x, y, weights=1.0):
    return squared_error(y, model(x, training=True), weights)


def dense(gradient):
    """Returns a gradient as a float64 array; the rows of IndexedSlices are added one by one."""
    if not isinstance(gradient, tf.IndexedSlices):
        return np.array(gradient, np.float64)
    total = np.zeros(gradient.dense_shape.numpy())
    np.add.at(total, gradient.indices.numpy(), gradient.values.numpy())
    return total


def tape_gradients(model, batch, loss=loss_of, variables=None):
    """Returns the gradient of every variable, zeros where the loss does not reach."""
    variables = model.trainable_variables if variables is None else variables
    with tf.GradientTape() as tape:
        value = loss(model, *batch)
        if model.losses:
            value += sum(model.losses)
    gradients = tape.gradient(value, variables)
    return [
        np.zeros(variable.shape) if gradient is None else dense(gradient)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def descend(variables, gradients, rate=0.1):
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign(variable.numpy() - rate * gradient)


def norms_of(gradients):
    return [np.sqrt(np.sum(gradient**2)) for gradient in gradients]


def replay(model, steps, loss=loss_of, change=lambda gradients: gradients):
    """Trains by gradient descent and returns the norms `(steps, variables)`, raw and changed."""
    raw, changed = [], []
    for batch in steps:
        gradients = tape_gradients(model, batch, loss)
        raw.append(norms_of(gradients))
        gradients = change(gradients)
        changed.append(norms_of(gradients))
        descend(model.trainable_variables, gradients)
    return np.array(raw), np.array(changed)


def assert_norms(norms, expected):
    # The gradient of a single bias can be a sum that nearly cancels: there digits of float32 end.
    np.testing.assert_allclose(norms.history, expected, rtol=1e-5, atol=1e-7)
    overall = np.sqrt(np.sum(np.square(expected), axis=1))
    np.testing.assert_allclose(norms.global_norm, overall, rtol=1e-5)


def assert_same_weights(model, other):
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_untouched(model):
    assert not hasattr(model.train_function, "recorders")
    assert "train_step" not in vars(model)
    assert "apply" not in vars(model.optimizer)


@pytest.fixture(scope="module")
def dense_norms():
    return replay(built_dense_model(), 2 * batches(*data()))[0]


# Modes of execution.


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"run_eagerly": True},
        {"steps_per_execution": 8},
        {"jit_compile": True},
        pytest.param({"jit_compile": True, "steps_per_execution": 8}, marks=pytest.mark.slow),
    ],
    ids=lambda arguments: "+".join(arguments) or "graph",
)
def test_norms_equal_an_explicit_tape(arguments, dense_norms):
    x, y = data()
    model, without, norms = dense_model(**arguments), dense_model(**arguments), GradientNorms()
    fit(model, [norms], x, y)
    assert_norms(norms, dense_norms)
    assert norms.variable_names == ["first/kernel", "first/bias", "second/kernel", "second/bias"]
    assert norms.layer_names == ["first", "second"]
    kernels, biases = dense_norms[:, ::2], dense_norms[:, 1::2]
    np.testing.assert_allclose(norms.layers, np.hypot(kernels, biases), rtol=1e-5)
    np.testing.assert_array_equal(norms.epochs, [0] * 11 + [1] * 11)
    assert_untouched(model)
    if "steps_per_execution" not in arguments:  # The step is the same, in a loop.
        fit(without, [], x, y)
        assert_same_weights(model, without)


@pytest.mark.filterwarnings("ignore:.*ran out of data", "ignore:.shuffle=True.")
def test_more_steps_of_unknown_number_than_the_buffer_holds(monkeypatch):
    monkeypatch.setattr(callbacks.gradient_norms, "_capacity", lambda model: 16)
    x, y = data()

    def generate():
        for index in range(SAMPLES):
            yield x[index : index + 1], y[index : index + 1]

    signature = (tf.TensorSpec((None, 6)), tf.TensorSpec((None, 1)))
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    norms = GradientNorms()
    fit(dense_model(steps_per_execution=8), [norms], dataset, epochs=1)
    assert_norms(norms, replay(built_dense_model(), generate())[0])


def test_py_dataset(dense_norms):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 11

        def __getitem__(self, index):
            return batches(*data())[index]

    norms = GradientNorms()
    fit(dense_model(), [norms], Batches(), shuffle=False)
    assert_norms(norms, dense_norms)


# Optimizers.


def clip_each(gradients, limit=0.5):
    return [gradient * min(1, limit / np.linalg.norm(gradient)) for gradient in gradients]


def clip_all(gradients, limit=0.5):
    norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
    return [gradient * min(1, limit / norm) for gradient in gradients]


def clip_values(gradients, limit=0.2):
    return [np.clip(gradient, -limit, limit) for gradient in gradients]


@pytest.mark.parametrize(
    "argument, clip",
    [
        ({"clipnorm": 0.5}, clip_each),
        ({"global_clipnorm": 0.5}, clip_all),
        ({"clipvalue": 0.2}, clip_values),
    ],
    ids=["clipnorm", "global_clipnorm", "clipvalue"],
)
def test_norms_before_and_after_clipping(argument, clip):
    x, y = data()
    norms = GradientNorms(after_clipping=True)
    model = dense_model(keras.optimizers.SGD(0.1, **argument))
    history = fit(model, [norms], x, y).history
    raw, clipped = replay(built_dense_model(), 2 * batches(x, y), change=clip)
    assert_norms(norms, raw)
    assert_norms(norms.clipped, clipped)
    assert (norms.clipped.global_norm < 0.99 * norms.global_norm).any()
    means = np.linalg.norm(clipped, axis=1).reshape(2, 11).mean(axis=1)
    np.testing.assert_allclose(history["gradient_norm_clipped"], means, rtol=1e-5)


def test_without_clipping_nothing_is_clipped(dense_norms):
    norms = GradientNorms()
    with pytest.raises(ValueError, match="after_clipping=False"):
        _ = norms.clipped
    norms = GradientNorms(after_clipping=True)
    fit(dense_model(), [norms], *data())
    assert_norms(norms.clipped, dense_norms)


def test_gradient_accumulation_per_micro_batch_and_per_update():
    x, y = data()
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3, global_clipnorm=0.5)
    norms = GradientNorms(after_clipping=True)
    history = fit(dense_model(optimizer), [norms], x, y).history
    model, kept, micro, updates, clipped = built_dense_model(), [], [], [], []
    for batch in 2 * batches(x, y):
        kept.append(tape_gradients(model, batch))
        micro.append(norms_of(kept[-1]))
        if len(kept) == 3:
            mean = [sum(of_variable) / 3 for of_variable in zip(*kept, strict=True)]
            updates.append(norms_of(mean))
            clipped.append(norms_of(clip_all(mean)))
            descend(model.trainable_variables, clip_all(mean))
            kept = []
    assert_norms(norms, np.array(micro))
    assert_norms(norms.updates, np.array(updates))
    assert_norms(norms.clipped, np.array(clipped))
    np.testing.assert_array_equal(norms.updates.steps, range(2, 22, 3))
    # The second update of the second epoch is its fourth: 3, 6, 9 in the first, 12 and so on after.
    first = np.linalg.norm(updates, axis=1)[:3].mean()
    np.testing.assert_allclose(history["gradient_norm_update"][0], first, rtol=1e-5)


@pytest.mark.parametrize("accumulation_steps", [None, 2])
def test_mixed_precision_norms_are_unscaled(accumulation_steps):
    def model_with(optimizer):
        keras.utils.set_random_seed(1)
        policy = keras.DTypePolicy("mixed_float16")
        hidden = layers.Dense(5, activation="tanh", dtype=policy)
        model = keras.Sequential([keras.Input((6,)), hidden, layers.Dense(1, dtype=policy)])
        model.compile(optimizer, "mse")
        return model

    x, y = data()
    norms = GradientNorms()
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulation_steps)
    scaler = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**20)
    fit(model_with(scaler), [norms], x, y)

    model, scale, expected, updates, kept = model_with("sgd"), 2.0**20, [], {}, []
    for step, batch in enumerate(2 * batches(x, y)):
        gradients = tape_gradients(model, batch, lambda *a: scale * loss_of(*a))  # noqa: B023
        gradients = [gradient / scale for gradient in gradients]
        expected.append(norms_of(gradients))
        if not np.isfinite(expected[-1]).all():
            scale /= 2
            continue
        kept.append(gradients)
        if len(kept) == (accumulation_steps or 1):
            mean = [sum(each) / len(kept) for each in zip(*kept, strict=True)]
            updates[step] = norms_of(mean)
            descend(model.trainable_variables, mean)
            kept = []
    expected = np.array(expected)
    finite = np.isfinite(expected)
    assert 0 < norms.non_finite_steps < 11
    np.testing.assert_array_equal(np.isfinite(norms.history), finite)
    np.testing.assert_allclose(norms.history[finite], expected[finite], rtol=1e-5)
    np.testing.assert_array_equal(norms.updates.steps, list(updates))
    assert_norms(norms.updates, np.array(list(updates.values())))


def test_fixed_loss_scale_is_divided_out(dense_norms):
    norms = GradientNorms()
    fit(dense_model(keras.optimizers.SGD(0.1, loss_scale_factor=1024.0)), [norms], *data())
    assert_norms(norms, dense_norms)


def test_moving_average_of_the_weights():
    arguments = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}
    x, y = data()
    model, without, norms = [
        dense_model(keras.optimizers.SGD(0.1, **arguments)) for _ in range(2)
    ] + [GradientNorms()]
    fit(model, [norms], x, y, epochs=1)
    fit(without, [], x, y, epochs=1)
    assert_same_weights(model, without)
    slow, average, rows = built_dense_model(), None, []
    for step, batch in enumerate(batches(x, y), start=1):
        gradients = tape_gradients(slow, batch)
        rows.append(norms_of(gradients))
        descend(slow.trainable_variables, gradients)
        weights = slow.get_weights()
        average = [
            w if average is None else 0.5 * a + 0.5 * w
            for a, w in zip(average or weights, weights, strict=True)
        ]
        if step % 3 == 0:
            slow.set_weights(average)
    assert_norms(norms, np.array(rows))


# Models.


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    "jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "jit"]
)
def test_embedding_shared_unused_regularized_and_several_outputs(jit_compile):
    def build():
        keras.utils.set_random_seed(2)
        tokens, features = keras.Input((4,), dtype="int32"), keras.Input((6,))
        embedded = layers.Embedding(5, 3, name="embedding")(tokens)
        shared = layers.Dense(6, activation="tanh", kernel_regularizer="l2", name="shared")
        hidden = shared(shared(features) + layers.Dense(6)(layers.Flatten()(embedded)))
        outputs = [layers.Dense(1, name=name)(hidden) for name in ("left", "right", "unused")]
        model = keras.Model([tokens, features], outputs)
        losses = ["mse", "mse", None]
        optimizer = keras.optimizers.SGD(0.1)
        model.compile(optimizer, losses, loss_weights=[1.0, 0.5, 1.0], jit_compile=jit_compile)
        return model

    def loss(model, tokens, features, left, right):
        outputs = model([tokens, features], training=True)
        return squared_error(left, outputs[0]) + 0.5 * squared_error(right, outputs[1])

    features, targets = data(outputs=2)
    tokens = np.random.default_rng(3).integers(0, 5, size=(SAMPLES, 4)).astype("int32")
    left, right = targets[:, :1], targets[:, 1:]
    norms, model = GradientNorms(), build()
    fit(model, [norms], [tokens, features], [left, right, left], epochs=1)
    slow = build()
    with tf.GradientTape() as tape:
        value = loss(slow, tokens, features, left, right)
    gradient = tape.gradient(value, slow.get_layer("embedding").embeddings)
    assert isinstance(gradient, tf.IndexedSlices)
    expected, _ = replay(slow, batches(tokens, features, left, right), loss)
    assert_norms(norms, expected)
    unused = [name.startswith("unused/") for name in norms.variable_names]
    assert (norms.history[:, unused] == 0).all() and sum(unused) == 2
    assert norms.non_finite_steps == 0


def test_sample_and_class_weights(dense_norms):
    x, y = data()
    weights = np.random.default_rng(4).uniform(size=SAMPLES).astype("float32")
    norms = GradientNorms()
    fit(dense_model(), [norms], x, y, sample_weight=weights)
    assert_norms(norms, replay(built_dense_model(), 2 * batches(x, y, weights))[0])
    labels = (y > 0).astype("float32")
    of_class = {0: 0.5, 1: 3.0}
    fit(dense_model(), [norms], x, labels, class_weight=of_class)
    weights = np.where(labels[:, 0] > 0, 3.0, 0.5).astype("float32")
    assert_norms(norms, replay(built_dense_model(), 2 * batches(x, labels, weights))[0])


def test_layers_of_the_same_name_and_weights_of_the_model_itself():
    class Scaled(keras.Model):
        def __init__(self):
            super().__init__(name="scaled")
            inner = [layers.Input((6,)), layers.Dense(6, name="same", use_bias=False)]
            self.inner = [keras.Sequential([inner[0], copy.copy(inner[1])]) for _ in range(2)]
            for name, model in zip("ab", self.inner, strict=True):
                model.name = name
            self.scale = self.add_weight(shape=(6,), initializer="ones", name="scale")

        def call(self, inputs):
            return self.inner[1](self.inner[0](inputs)) * self.scale

    model = Scaled()
    model.compile("sgd", "mse")
    norms = GradientNorms(per_layer=True)
    logs = fit(model, [norms], *data(outputs=6), epochs=1).history
    assert len(set(norms.layer_names)) == 3 and "scaled" in norms.layer_names
    assert len(set(norms.variable_names)) == 3 and "scaled/scale" in norms.variable_names
    assert len([key for key in logs if key.startswith("gradient_norm_")]) == 2 + 3


def test_layer_that_is_frozen_between_two_fits(dense_norms):
    x, y = data()
    model, norms = dense_model(), GradientNorms()
    fit(model, [norms], x, y)
    assert_norms(norms, dense_norms)
    slow = built_dense_model()
    slow.set_weights(model.get_weights())
    for each in (model, slow):
        each.layers[0].trainable = False
    model.compile(keras.optimizers.SGD(0.1), "mse")
    fit(model, [norms], x, y, epochs=1)
    assert norms.layer_names == ["second"]
    assert_norms(norms, replay(slow, batches(x, y))[0])


class TwoOptimizers(keras.Model):
    """Descends on `slow` in every second step only, from inside a condition in the graph."""

    def __init__(self):
        super().__init__(name="two")
        keras.utils.set_random_seed(1)
        self.often, self.slow = layers.Dense(5, name="often"), layers.Dense(1, name="slow")
        self.steps = tf.Variable(0, trainable=False)
        self.slow_optimizer = keras.optimizers.SGD(0.1)

    def call(self, inputs):
        return self.slow(self.often(inputs))

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape(persistent=True) as tape:
            loss = squared_error(y, self(x, training=True))
        often, slow = self.often.trainable_variables, self.slow.trainable_variables
        for_often, for_slow = tape.gradient(loss, often), tape.gradient(loss, slow)
        self.slow_optimizer.build(slow)
        self.optimizer.apply_gradients(zip(for_often, often, strict=True))
        tf.cond(
            self.steps % 2 == 1,
            lambda: self.slow_optimizer.apply(for_slow, slow),
            lambda: None,
        )
        self.steps.assign_add(1)
        return {"loss": loss}


@pytest.mark.parametrize("steps_per_execution", [1, 8])
def test_custom_train_step_with_two_optimizers(steps_per_execution):
    x, y = data()
    model, norms = TwoOptimizers(), GradientNorms()
    model(x)
    model.compile(keras.optimizers.SGD(0.1), steps_per_execution=steps_per_execution)
    fit(model, [norms], x, y)
    slow, expected = TwoOptimizers(), []
    slow(x)
    for step, batch in enumerate(2 * batches(x, y)):
        gradients = tape_gradients(slow, batch)
        row = norms_of(gradients)
        if step % 2 == 0:
            row[2:] = [np.nan, np.nan]
            gradients, variables = gradients[:2], slow.often.trainable_variables
        else:
            variables = slow.trainable_variables
        descend(variables, gradients)
        expected.append(row)
    assert norms.layer_names == ["often", "slow"]
    np.testing.assert_allclose(norms.history, expected, rtol=1e-5, atol=1e-7)
    overall = np.sqrt(np.nansum(np.square(expected), axis=1))
    np.testing.assert_allclose(norms.global_norm, overall, rtol=1e-5)
    assert norms.non_finite_steps == 0 and norms.first_non_finite is None


def test_training_without_an_optimizer_of_the_model_warns():
    class ByHand(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, inputs):
            return self.dense(inputs)

        def train_step(self, batch):
            return {"loss": squared_error(batch[1], self(batch[0]))}

    model, norms = ByHand(), GradientNorms()
    model.compile()
    with pytest.warns(UserWarning, match="GradientNorms recorded nothing in epoch 0"):
        fit(model, [norms], *data(), epochs=1)
    assert norms.history.shape == (11, 0) and np.isnan(norms.global_norm).all()


# Several replicas. Logical devices must be set before TensorFlow starts: a process of its own.


def compare_under_mirrored_strategy():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def build(optimizer, embed=True):
        keras.utils.set_random_seed(2)
        tokens, features = keras.Input((4,), dtype="int32"), keras.Input((6,))
        hidden = layers.Flatten()(layers.Embedding(5, 3, trainable=embed)(tokens))
        hidden = layers.Dense(5, activation="tanh")(layers.Concatenate()([hidden, features]))
        model = keras.Model([tokens, features], layers.Dense(1)(hidden))
        model.compile(optimizer, "mse")
        return model

    def gradients_of_replicas(model, tokens, features, targets):
        # The larger half of the batch goes to the first replica; both count the same.
        half = (len(targets) + 1) // 2

        def loss(part, model):
            outputs = model([tokens[part], features[part]], training=True)
            return squared_error(targets[part], outputs) / 2

        parts = [slice(None, half), slice(half, None)]
        return [tape_gradients(model, (), functools.partial(loss, part)) for part in parts]

    x, y = [array[:11] for array in data()]  # 3 steps, the last with 3 samples: 2 and 1.
    tokens = np.random.default_rng(3).integers(0, 5, size=(11, 4)).astype("int32")
    steps = batches(tokens, x, y)

    with strategy.scope():
        model, without = build(keras.optimizers.SGD(0.1)), build(keras.optimizers.SGD(0.1))
    norms = GradientNorms()
    with strategy.scope():  # `fit` may be called inside and outside of the scope.
        fit(model, [norms], [tokens, x], y, epochs=1)
    fit(model, [norms], [tokens, x], y, epochs=1)
    fit(without, [], [tokens, x], y, epochs=1)
    fit(without, [], [tokens, x], y, epochs=1)
    assert_same_weights(model, without)
    assert_untouched(model)
    slow, expected = build("sgd"), []
    for batch in 2 * steps:
        gradients = [sum(each) for each in zip(*gradients_of_replicas(slow, *batch), strict=True)]
        expected.append(norms_of(gradients))
        descend(slow.trainable_variables, gradients)
    assert_norms(norms, np.array(expected)[3:])

    with strategy.scope():
        inner = keras.optimizers.SGD(0.1, clipvalue=0.2)
        # Without the embedding: Keras clips the rows of IndexedSlices before it adds them up.
        model = build(keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0), embed=False)
    norms, ratios = GradientNorms(after_clipping=True), UpdateRatios()
    fit(model, [norms, ratios], [tokens, x], y, epochs=1)
    slow, expected, clipped, moves = build("sgd", embed=False), [], [], []
    for batch in steps:
        of_replicas = gradients_of_replicas(slow, *batch)
        expected.append(norms_of([sum(each) for each in zip(*of_replicas, strict=True)]))
        of_replicas = [clip_values(gradients) for gradients in of_replicas]
        gradients = [sum(each) for each in zip(*of_replicas, strict=True)]
        clipped.append(norms_of(gradients))
        old = [variable.numpy() for variable in slow.trainable_variables]
        descend(slow.trainable_variables, gradients)
        moves.append(0.1 * np.linalg.norm(clipped[-1]) / np.linalg.norm(norms_of(old)))
    assert_norms(norms, np.array(expected))
    assert_norms(norms.clipped, np.array(clipped))
    np.testing.assert_allclose(ratios.global_ratio, moves, rtol=1e-5)

    with strategy.scope():
        model = build("sgd")
    with pytest.raises(tf.errors.InvalidArgumentError):
        fit(model, [norms], [np.full_like(tokens, 99), x], y)  # No such row in the embedding.
    assert_untouched(model)
    print("compared")


@pytest.mark.slow
def test_global_gradient_of_two_replicas():
    program = "from tests.test_gradient_norms import *; compare_under_mirrored_strategy()"
    code, output, errors = run_python("-c", program)
    assert code == 0 and "compared" in output, errors


# Numbers at the ends of the range.


class Linear(keras.Model):
    """A model whose gradient is `constants`, whatever the batch."""

    def __init__(self, constants):
        super().__init__(name="linear")
        self.constants = constants
        self.parts = [
            self.add_weight(shape=value.shape, dtype=value.dtype.name, name=f"part_{i}")
            for i, value in enumerate(constants)
        ]

    def call(self, inputs):
        total = keras.ops.mean(inputs) * 0
        for part, value in zip(self.parts, self.constants, strict=True):
            total += keras.ops.sum(keras.ops.cast(part * value, "float32"))
        return keras.ops.reshape(total, (1, 1))


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize(
    "constants, expected",
    [
        ([np.full((3, 3), 1e30, "float32"), np.ones(4, "float32")], [3e30, 2]),
        ([np.full(16, 1e-25, "float32"), np.ones(4, "float32")], [4e-25, 2]),
        ([np.array([3e20, 4e20, 1e-20], "float32"), np.zeros(4, "float32")], [5e20, 0]),
        # 300^2 is above 65504, the largest number of float16.
        ([np.full(10_000, 300, "float16"), np.full(4, 3, ml_dtypes.bfloat16)], [30_000, 6]),
    ],
    ids=["huge", "tiny", "zero", "narrow"],
)
def test_gradients_at_the_ends_of_the_range(constants, expected, run_eagerly):
    model, norms = Linear(constants), GradientNorms()
    loss = lambda targets, outputs: keras.ops.mean(outputs)  # noqa: E731
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=run_eagerly)
    fit(model, [norms], np.zeros((4, 1)), np.zeros((4, 1)), epochs=1)
    np.testing.assert_allclose(norms.history[0], expected, rtol=1e-6)
    assert norms.non_finite_steps == 0


def test_first_non_finite_step_and_layer():
    inputs = keras.Input((2,))
    left = layers.Dense(1, name="left")(inputs[:, :1])
    right = layers.Dense(1, name="right", use_bias=False)(inputs[:, 1:])
    model = keras.Model(inputs, left + right)
    model.compile(keras.optimizers.SGD(0.0), lambda targets, outputs: keras.ops.mean(outputs))
    x = np.ones((40, 2), "float32")
    x[13, 1] = np.inf
    x[25, 0] = np.nan
    norms = GradientNorms()
    logs = fit(model, [norms], x, np.zeros((40, 1)), epochs=2).history
    assert norms.non_finite_steps == 4
    assert norms.first_non_finite == (3, "right", ["right"])
    assert logs["gradient_norm_non_finite"] == [2, 2]
    np.testing.assert_allclose(logs["gradient_norm"], np.sqrt(3), rtol=1e-6)


# Life around a fit.


def test_model_that_was_trained_before_keeps_its_own_trace(dense_norms):
    x, y = data()
    model, norms = dense_model(), GradientNorms()
    fit(model, [], x, y)
    train_function = model.train_function
    model.set_weights(built_dense_model().get_weights())
    fit(model, [norms], x, y)
    assert_norms(norms, dense_norms)
    assert model.train_function is train_function
    fit(model, [], x, y)
    assert_norms(norms, dense_norms)


def test_callback_used_again_records_the_latest_fit_without_a_new_trace(dense_norms):
    traces = []

    class Counting(keras.Sequential):
        def train_step(self, batch):
            traces.append(batch)
            return super().train_step(batch)

    x, y = data()
    model = Counting(built_dense_model().layers)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    weights = model.get_weights()
    norms = GradientNorms()
    for _ in range(2):
        fit(model, [norms], x, y)
        assert_norms(norms, dense_norms)
        model.set_weights(weights)
    traced = len(traces)
    fit(model, [norms], x, y)
    assert len(traces) == traced
    model.set_weights(weights)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    fit(model, [norms], x, y)
    assert len(traces) > traced
    assert_norms(norms, dense_norms)


def test_several_callbacks_at_once(dense_norms):
    x, y = data()
    model, first, second, ratios = dense_model(), GradientNorms(), GradientNorms(), UpdateRatios()
    weights = built_dense_model().get_weights()
    for recorders in ([first, ratios, second], [second], [ratios, first]):
        model.build((None, 6))
        model.set_weights(weights)
        fit(model, recorders, x, y)
        for recorder in recorders:
            if recorder is not ratios:
                assert_norms(recorder, dense_norms)
        assert_untouched(model)
    # Plain gradient descent: the step is the learning rate times the gradient.
    sizes = np.linalg.norm(np.concatenate([w.ravel() for w in weights]))
    expected = 0.1 * np.linalg.norm(dense_norms[0]) / sizes
    np.testing.assert_allclose(ratios.global_ratio[0], expected, rtol=1e-5)


def test_deep_copies_are_independent(dense_norms):
    x, y = data()
    norms = GradientNorms(per_layer=True)
    before = copy.deepcopy(norms)
    fit(dense_model(), [norms], x, y)
    after = copy.deepcopy(norms)
    assert_norms(after, dense_norms)
    assert after.model is None and after.layer_names == norms.layer_names
    for copied in (before, after):
        fit(dense_model(), [copied], x, y, epochs=1)
        assert_norms(copied, dense_norms[:11])
    assert_norms(norms, dense_norms)


def test_saved_model_does_not_know_of_the_callback(tmp_path, dense_norms):
    x, y = data()
    model, without = [dense_model(keras.optimizers.SGD(0.1, 0.9)) for _ in range(2)]
    fit(model, [GradientNorms(), UpdateRatios()], x, y)
    fit(without, [], x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_weights(loaded, without)
    assert len(loaded.optimizer.variables) == len(without.optimizer.variables)
    for each in (loaded, without):
        fit(each, [], x, y, epochs=1)
    assert_same_weights(loaded, without)


class RaisesAt(keras.callbacks.Callback):
    def __init__(self, hook, step, error):
        super().__init__()
        self.remaining, self.error = step, error
        setattr(self, hook, self.count)

    def count(self, *arguments, **keywords):
        self.remaining -= 1
        if self.remaining < 0:
            raise self.error


@pytest.mark.parametrize(
    "hook, error, recorded",
    [
        ("on_train_batch_begin", RuntimeError, 13),
        ("on_train_batch_end", KeyboardInterrupt, 14),
    ],
)
def test_exception_in_the_middle_of_fit(hook, error, recorded, dense_norms):
    x, y = data()
    model, without, norms = dense_model(), dense_model(), GradientNorms()
    for each, recorders in ((model, [norms]), (without, [])):
        with pytest.raises(error):
            fit(each, [*recorders, RaisesAt(hook, 13, error)], x, y)
    assert "apply" not in vars(model.optimizer)
    assert_norms(norms, dense_norms[:recorded])
    for each in (model, without):
        fit(each, [], x, y, epochs=1)
        each.train_on_batch(x[:4], y[:4])
    assert_untouched(model)
    assert_same_weights(model, without)
    assert_norms(norms, dense_norms[:recorded])
    model.set_weights(built_dense_model().get_weights())
    fit(model, [norms], x, y)
    assert_norms(norms, dense_norms)


def test_batch_that_begins_and_never_runs(dense_norms):
    x, y = data()
    model, norms, other = dense_model(), GradientNorms(), GradientNorms()
    for recorder in (norms, norms, other, norms):
        model.build((None, 6))
        model.set_weights(built_dense_model().get_weights())
        with pytest.raises(RuntimeError):
            fit(model, [recorder, RaisesAt("on_train_batch_begin", 5, RuntimeError)], x, y)
        assert_norms(recorder, dense_norms[:5])
    fit(model, [], x, y)
    assert_untouched(model)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_exception_inside_the_training_step(run_eagerly):
    class Fails(keras.Sequential):
        def train_step(self, batch):
            logs = super().train_step(batch)
            tf.debugging.assert_all_finite(batch[0], "bad batch")
            return logs

    x, y = data()
    x[20] = np.nan
    model, norms = Fails([layers.Dense(1)]), GradientNorms()
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    with pytest.raises(tf.errors.InvalidArgumentError, match="bad batch"):
        fit(model, [norms], x, y)
    assert_untouched(model)
    assert 5 <= len(norms.history) <= 6
    x[20] = 0
    model.set_weights([np.ones((6, 1)), np.ones(1)])
    fit(model, [norms], x, y)
    assert norms.history.shape == (22, 2) and norms.non_finite_steps == 0


def test_random_numbers_stay_the_same():
    class Noise(layers.Layer):
        def call(self, inputs):
            return inputs + tf.random.normal(tf.shape(inputs))  # Seeded by its place in the graph.

    def train(recorders):
        keras.utils.set_random_seed(5)
        hidden = layers.Dense(64, activation="relu")
        model = keras.Sequential([Noise(), hidden, layers.Dropout(0.5), layers.Dense(1)])
        model.compile("adam", "mse")
        history = fit(model, recorders, *data()).history
        return model, history["loss"]

    model, loss = train([GradientNorms(), UpdateRatios()])
    without, loss_without = train([])
    assert loss == loss_without
    assert_same_weights(model, without)


# What is written.


@pytest.mark.parametrize(
    "arguments",
    [{"per_layer": "yes"}, {"after_clipping": 1.0}, {"csv": True}, {"csv": ""}, {"tensorboard": 3}],
)
def test_bad_argument_is_named_with_its_value(arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(
        ValueError, match=f"Argument `{name}` must be .* Received: {name}={value!r}"
    ):
        GradientNorms(**arguments)


def test_epoch_logs(dense_norms):
    logs = fit(dense_model(), [GradientNorms(per_layer=True)], *data()).history
    overall = np.linalg.norm(dense_norms, axis=1).reshape(2, 11)
    np.testing.assert_allclose(logs["gradient_norm"], overall.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(logs["gradient_norm_max"], overall.max(axis=1), rtol=1e-5)
    second = np.hypot(dense_norms[:, 2], dense_norms[:, 3]).reshape(2, 11)
    np.testing.assert_allclose(logs["gradient_norm_second"], second.mean(axis=1), rtol=1e-5)
    keys = {"loss", "gradient_norm", "gradient_norm_max", "gradient_norm_non_finite"}
    assert set(logs) == keys | {"gradient_norm_first", "gradient_norm_second"}
    logs = fit(dense_model(), [GradientNorms()], *data(), epochs=1).history
    assert set(logs) == keys


def test_csv_holds_every_step_also_of_an_interrupted_fit(tmp_path, dense_norms):
    path = tmp_path / "new" / "norms.csv"
    norms = GradientNorms(csv=path, after_clipping=True)
    model = dense_model()
    for _ in range(2):  # The second fit overwrites.
        model.build((None, 6))
        model.set_weights(built_dense_model().get_weights())
        with pytest.raises(RuntimeError):
            fit(model, [norms, RaisesAt("on_train_batch_begin", 13, RuntimeError)], *data())
    assert len(path.read_text().splitlines()) == 1 + 11
    assert len(norms.history) == 13
    rows = list(csv.reader(path.open(newline="")))
    names = ["first/kernel", "first/bias", "second/kernel", "second/bias"]
    assert rows[0] == ["epoch", "step", "gradient_norm", "gradient_norm_clipped", *names]
    values = np.array(rows[1:], float)
    np.testing.assert_array_equal(values[:, 0], [0] * 11 + [1] * 2)
    np.testing.assert_array_equal(values[:, 1], range(13))
    np.testing.assert_allclose(values[:, 2], np.linalg.norm(dense_norms[:13], axis=1), rtol=1e-5)
    np.testing.assert_array_equal(values[:, 2], values[:, 3])
    np.testing.assert_allclose(values[:, 4:], dense_norms[:13], rtol=1e-5)


def test_tensorboard_holds_every_step(tmp_path, dense_norms):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(dense_model(), [GradientNorms(tensorboard=tmp_path)], *data())
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert events.Tags()["scalars"] == [
        "gradient_norm",
        "gradient_norm/first",
        "gradient_norm/second",
    ]
    scalars = events.Scalars("gradient_norm")
    assert [scalar.step for scalar in scalars] == list(range(22))
    values = [scalar.value for scalar in scalars]
    np.testing.assert_allclose(values, np.linalg.norm(dense_norms, axis=1), rtol=1e-5)


# The files.

SECTION = "# --- Recording a step from inside the graph -"
END = "# --- End of the section that gradient_norms.py and update_ratios.py share -"
FILES = [callbacks.gradient_norms.__file__, callbacks.update_ratios.__file__]


def test_shared_section_is_the_same_and_alone_speaks_tensorflow():
    sections = []
    for path in FILES:
        text = pathlib.Path(path).read_text()
        first, last = [text[: text.index(mark)].count("\n") for mark in (SECTION, END)]
        sections.append(text.splitlines()[first:last])
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Name) and node.id == "tf":
                assert first < node.lineno <= last, f"{path}:{node.lineno}"
    assert sections[0] == sections[1]


@pytest.mark.parametrize("path", FILES)
def test_file_alone_with_another_backend_says_what_it_needs(path, monkeypatch):
    imports = list(ast.walk(ast.parse(pathlib.Path(path).read_text())))
    named = {each.name for node in imports if isinstance(node, ast.Import) for each in node.names}
    named |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert named - sys.stdlib_module_names == {"keras", "numpy", "tensorflow"}
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # To import it fails.
    specification = importlib.util.spec_from_file_location("alone", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    name = "GradientNorms" if "gradient" in path else "UpdateRatios"
    with pytest.raises(RuntimeError, match=f"{name} .* TensorFlow backend. .*backend=jax"):
        getattr(module, name)().on_train_begin()


def test_package_is_lazy():
    program = "import sys, callbacks; print('keras' in sys.modules, sorted(dir(callbacks)))"
    code, output, errors = run_python("-c", program)
    assert code == 0, errors
    assert output.startswith("False") and "GradientNorms" in output
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = callbacks.Missing
