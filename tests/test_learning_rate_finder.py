"""The range test against closed forms and an explicit loop, and everything put back afterwards."""

import copy
import itertools
import random
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from callbacks.learning_rate_finder import LearningRateFinder, _longest_falling

CURVATURE = 3.0


def build_quadratic(learning_rate=0.1, steps_per_execution=1, **optimizer_arguments):
    """One weight w = 1 whose loss is CURVATURE / 2 * w ** 2, whatever the batch."""
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]
    )
    model.compile(
        keras.optimizers.SGD(learning_rate, **optimizer_arguments),
        loss=lambda y_true, y_pred: CURVATURE / 2 * keras.ops.square(y_pred[:, 0]),
        steps_per_execution=steps_per_execution,
    )
    return model


def quadratic_losses(rates):
    """Gradient descent in closed form: each step multiplies w by 1 - rate * curvature."""
    rates = np.float32(rates).astype(float)
    weights = np.concatenate([[1.0], np.cumprod(1 - rates * CURVATURE)[:-1]])
    return CURVATURE / 2 * weights**2


ONES = np.ones((120, 1), "float32")


@pytest.mark.filterwarnings("ignore:No suggestion")
@pytest.mark.parametrize("spacing", ["exponential", "linear"])
def test_quadratic_loss_and_divergence_in_closed_form(spacing):
    finder = LearningRateFinder(
        minimum=1e-3, maximum=2.0, steps=60, spacing=spacing, divergence_factor=None
    )
    finder.find(build_quadratic(), ONES, ONES, batch_size=2)
    position = np.arange(60) / 59
    rates = 1e-3 * 2000**position if spacing == "exponential" else 1e-3 + 1.999 * position
    np.testing.assert_allclose(finder.learning_rates, rates, rtol=1e-12)
    np.testing.assert_allclose(finder.losses, quadratic_losses(rates), rtol=1e-4)
    # A step makes the loss grow exactly when its rate is above 2 / curvature.
    np.testing.assert_array_equal(np.diff(finder.losses) > 0, rates[:-1] > 2 / CURVATURE)


def test_stops_at_the_first_loss_above_factor_times_best():
    model = build_quadratic()
    losses = quadratic_losses(1e-3 * 2000 ** (np.arange(60) / 59))
    for factor in (1.5, 100.0):
        finder = LearningRateFinder(1e-3, 2.0, steps=60, smoothing=0.0, divergence_factor=factor)
        finder.find(model, ONES, ONES, batch_size=2)
        above = losses > factor * np.minimum.accumulate(losses)
        assert finder.diverged
        assert len(finder.losses) == 1 + np.argmax(above) < 60, factor


def test_negative_losses_diverge_upwards():
    finder = LearningRateFinder(steps=5, smoothing=0.0)
    finder.set_model(SimpleNamespace(stop_training=False))
    for loss in [-10.0, -30.0, -20.0, 59.0]:
        finder._record(loss)
        assert not finder.diverged
    finder._record(61.0)  # -30 + 3 * 30 = 60
    assert finder.diverged


@pytest.mark.filterwarnings("ignore:No suggestion")
def test_infinite_loss_stops_and_leaves_finite_weights():
    model = build_quadratic()
    finder = LearningRateFinder(1e-3, 1e30, steps=60, divergence_factor=None)
    finder.find(model, ONES, ONES, batch_size=2)
    assert finder.diverged
    assert np.isfinite(finder.losses[:-1]).all()
    assert not np.isfinite(finder.losses[-1])
    assert finder.model.get_weights() == [1.0]


def test_smoothing_is_the_weighted_mean_without_bias():
    finder = LearningRateFinder(steps=20, smoothing=0.7, divergence_factor=None)
    finder.set_model(SimpleNamespace(stop_training=False))
    losses = np.random.default_rng(0).normal(size=20)
    for loss in losses:
        finder._record(loss)
    for step in range(20):
        weights = 0.7 ** np.arange(step, -1, -1)
        expected = np.average(losses[: step + 1], weights=weights)
        np.testing.assert_allclose(finder.smoothed_losses[step], expected, rtol=1e-12)


# The losses of a network, against a loop that knows nothing of `fit`.

STEPS = 12
X = np.random.default_rng(1).normal(size=(20, 3)).astype("float32")
Y = np.random.default_rng(2).normal(size=(20, 2)).astype("float32")
SAMPLE_WEIGHT = np.random.default_rng(3).uniform(0.1, 2, size=20).astype("float32")


class Batches(keras.utils.PyDataset):
    """The rows in order, six at a time, so that the last batch has two."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        random.random(), np.random.random()
        rows = slice(6 * index, 6 * index + 6)
        return X[rows], Y[rows], SAMPLE_WEIGHT[rows]


def build_network(learning_rate=0.1, optimizer=None, built=True, dropout=0.0, **compile_arguments):
    model = keras.Sequential(
        [
            *([keras.Input((3,))] if built else []),
            keras.layers.Dense(
                4, "tanh", kernel_regularizer="l2", kernel_initializer=keras.initializers.Ones()
            ),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(dropout, seed=5),
            keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(7)),
        ]
    )
    model.compile(optimizer or keras.optimizers.SGD(learning_rate), "mse", **compile_arguments)
    return model


@pytest.fixture(scope="module")
def expected_losses():
    """Plain gradient descent at the rates of the test, with its own sums."""
    model = build_network()
    losses = []
    for step in range(STEPS):
        x, y, weight = Batches()[step % 4]
        with tf.GradientTape() as tape:
            squares = tf.reduce_mean((model(x, training=True) - y) ** 2, axis=-1)
            loss = tf.reduce_sum(weight * squares) / len(x)
            loss += 0.01 * tf.reduce_sum(model.layers[0].kernel.value ** 2)
        variables = [variable.value for variable in model.trainable_variables]
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(1e-3 * 1000 ** (step / (STEPS - 1)) * gradient)
        losses.append(float(loss))
    return np.array(losses)


def as_dataset(rows=20):
    arrays = (X[:rows], Y[:rows], SAMPLE_WEIGHT[:rows])
    return tf.data.Dataset.from_tensor_slices(arrays).batch(6)


@pytest.mark.parametrize(
    ("compile_arguments", "data"),
    [
        ({}, "arrays"),
        ({"jit_compile": True}, "PyDataset"),
        ({"run_eagerly": True}, "tf.data"),
        ({"steps_per_execution": 8}, "arrays"),
        ({"learning_rate": keras.optimizers.schedules.CosineDecay(5.0, 3)}, "endless tf.data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "plain",
)
def test_losses_are_those_of_an_explicit_loop(compile_arguments, data, expected_losses):
    arguments = {
        "arrays": {
            "x": X, "y": Y, "batch_size": 6, "sample_weight": SAMPLE_WEIGHT, "shuffle": False
        },
        "PyDataset": {"x": Batches(), "shuffle": False},
        "tf.data": {"x": as_dataset()},
        "endless tf.data": {"x": as_dataset().repeat()},
    }[data]  # fmt: skip
    finder = LearningRateFinder(1e-3, 1.0, steps=STEPS, divergence_factor=None)
    with pytest.warns(UserWarning, match="12 steps were recorded, which leaves 6 points"):
        finder.find(build_network(**compile_arguments), **arguments)
    np.testing.assert_allclose(finder.losses, expected_losses, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:No suggestion")
def test_losses_under_loss_scaling_are_unscaled(expected_losses):
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0)
    model = build_network(optimizer=scaled)
    finder = LearningRateFinder(1e-3, 1.0, steps=STEPS, divergence_factor=None)
    finder.find(model, Batches(), shuffle=False)
    np.testing.assert_allclose(finder.losses, expected_losses, rtol=1e-4)
    assert float(scaled.dynamic_scale) == 1024
    assert float(scaled.learning_rate) == np.float32(0.1)


@pytest.mark.filterwarnings("ignore:No suggestion")
@pytest.mark.parametrize("batches_before", [0, 1])
def test_accumulation_raises_the_rate_once_an_update(batches_before):
    model = build_quadratic(gradient_accumulation_steps=3)
    if batches_before:
        model.fit(ONES, ONES, batch_size=120, verbose=0)
    before = [variable.numpy() for variable in model.optimizer.variables]
    finder = LearningRateFinder(1e-3, 2.0, steps=20, divergence_factor=None)
    finder.find(model, ONES, ONES, batch_size=2)
    expected = quadratic_losses(1e-3 * 2000 ** (np.arange(20) / 19))
    np.testing.assert_allclose(finder.losses, expected, rtol=1e-4)
    after = [variable.numpy() for variable in model.optimizer.variables]
    for first, second in zip(before, after[: len(before)], strict=True):
        np.testing.assert_array_equal(first, second)


# Everything is put back.


def state(model):
    """All that training changes, as nested lists."""
    variables = [*model.variables, *model.optimizer.variables]
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    generator = keras.src.random.seed_generator.global_seed_generator()
    return [
        [variable.numpy().tolist() for variable in variables],
        generator.state.numpy().tolist(),
        optimizer._learning_rate,
        model.steps_per_execution,
        model.train_function,
        model.stop_training,
        getattr(model, "history", None),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2],
    ]


class UsesGlobalSeed(keras.layers.Layer):
    def call(self, x):
        return x + keras.random.normal((2,))


class Interrupted(LearningRateFinder):
    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if len(self.losses) == 3:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:No suggestion")
@pytest.mark.parametrize(("interrupted", "steps_per_execution"), [(False, 1), (True, 3)])
def test_everything_is_put_back(interrupted, steps_per_execution):
    keras.utils.set_random_seed(3)
    rate = 0.1 if steps_per_execution == 1 else keras.optimizers.schedules.CosineDecay(0.1, 50)
    model = build_network(dropout=0.5)
    model.add(UsesGlobalSeed())
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, use_ema=True),
        "mse",
        steps_per_execution=steps_per_execution,
    )
    model.fit(Batches(), verbose=0)
    before = state(model)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            Interrupted(steps=20, divergence_factor=None).find(model, Batches())
    else:
        LearningRateFinder(steps=20, divergence_factor=None).find(model, Batches())
    assert state(model) == before


@pytest.mark.filterwarnings("ignore:No suggestion")
def test_training_afterwards_is_bit_identical_for_a_model_that_was_not_built():
    def train(finder=None):
        keras.utils.set_random_seed(4)
        model = build_network(
            optimizer=keras.optimizers.SGD(
                keras.optimizers.schedules.CosineDecay(0.1, 50), momentum=0.9
            ),
            built=False,
            dropout=0.5,
        )
        if finder is not None:
            finder.find(model, X, Y, batch_size=6)
            assert not hasattr(model, "history")
        model.fit(X, Y, batch_size=6, epochs=2, verbose=0)
        return model.get_weights() + [variable.numpy() for variable in model.optimizer.variables]

    finder = LearningRateFinder(steps=20)
    for with_finder, without in zip(train(finder), train(), strict=True):
        np.testing.assert_array_equal(with_finder, without)


@pytest.mark.filterwarnings("ignore:No suggestion")
def test_mixed_precision_is_put_back():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_network()
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.fit(X, Y, verbose=0)
    before = state(model)
    finder = LearningRateFinder(steps=20, divergence_factor=None)
    finder.find(model, X, Y, batch_size=20)
    assert len(finder.losses) == 20
    assert state(model) == before
    np.testing.assert_allclose(finder.losses[0], model.train_on_batch(X, Y), rtol=1e-3)


# Readings of the curve.


def suggest(losses, rates=None, diverged=True):
    """The suggestions for a given smoothed curve."""
    finder = LearningRateFinder(1e-5, 1.0, steps=len(losses))
    finder.learning_rates = np.logspace(-5, 0, len(losses)) if rates is None else rates
    finder.losses = finder.smoothed_losses = np.array(losses, dtype=float)
    finder.diverged = diverged
    finder._suggest()
    return finder


def test_steepest_and_minimum_over_10_of_known_curves():
    log_rates = np.linspace(-5, 0, 101)
    # tanh is steepest at its middle; a spike that comes down later must not count.
    losses = -np.tanh(2 * (log_rates + 2)) + 2 * np.maximum(0, log_rates + 1.5)
    losses += 10 * np.exp(-((log_rates + 0.5) ** 2) / 0.001)
    assert suggest(losses).suggestions["steepest"] == pytest.approx(10**-2.0)
    rates = np.linspace(0.01, 1.01, 101)
    losses = -np.tanh(8 * (rates - 0.3)) + np.maximum(0, rates - 0.8)
    assert suggest(losses, rates).suggestions["steepest"] == pytest.approx(0.3)
    losses = (log_rates + 1.5) ** 2
    assert suggest(losses).suggestions["minimum_over_10"] == pytest.approx(10**-2.5)


def test_longest_falling_against_all_subsequences():
    rng = np.random.default_rng(0)
    for size in [2, 3, 7, 11, 12]:
        losses = rng.normal(size=size) - 0.2 * np.arange(size)
        falling = [
            places
            for length in range(2, size + 1)
            for places in itertools.combinations(range(size), length)
            if np.all(np.diff(losses[list(places)]) < 0)
        ]
        if not falling:
            assert _longest_falling(losses) is None
            continue
        length = max(map(len, falling))
        end = min(places[-1] for places in falling if len(places) == length)
        expected = max(0, end - length + length // 3 + length // 6)
        assert _longest_falling(losses) == expected


def test_valley_is_halfway_down_a_plain_slope():
    # 10 + 60 falling points + 30 rising ones + 5: the tenth and the last five do not count.
    losses = [*np.linspace(3, 2, 70), *np.linspace(2.1, 5, 30)]
    finder = suggest(losses)
    position = np.log10(finder.suggestions["valley"]) / 5 + 1  # from 0 to 1
    assert position == pytest.approx((10 + 30) / 99, abs=1.5 / 99)


@pytest.mark.parametrize(
    ("losses", "diverged", "reason"),
    [
        (np.linspace(1, 0, 14), True, "leaves 8 points"),
        (np.linspace(0, 1, 40), True, "never fell"),
        (np.linspace(1, 0, 40), False, "Raise `maximum`"),
    ],
    ids=["few", "rising", "falling"],
)
def test_missing_suggestions_say_why(losses, diverged, reason):
    finder = suggest(losses, diverged=diverged)
    missing = {name for name, rate in finder.suggestions.items() if rate is None}
    all_three = {"valley", "steepest", "minimum_over_10"}
    assert set(finder.suggestions) == all_three
    assert missing == ({"minimum_over_10"} if reason == "Raise `maximum`" else all_three)
    assert set(finder.reasons) == missing
    assert all(reason in text for text in finder.reasons.values())


# Use.


def test_plot_shows_the_curve_and_the_suggestions(tmp_path):
    finder = suggest(np.abs(np.linspace(-3, 1, 60)) + 0.1)
    path = tmp_path / "range_test.png"
    figure = finder.plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_title() == "Learning-rate range test: 60 of 60 steps, diverged"
    marked = {line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"}
    assert marked == set(finder.suggestions.values())
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:2] == ["loss of the batch", "smoothed"]
    assert labels[2] == f"valley: {finder.suggestions['valley']:.2g}"
    with pytest.raises(ValueError, match="call `find` first"):
        LearningRateFinder().plot()


@pytest.mark.filterwarnings("ignore:No suggestion")
def test_reuse_copies_and_saved_models(tmp_path):
    finder = LearningRateFinder(1e-3, 1.0, steps=20)
    model = build_network()
    first = copy.deepcopy(finder).find(model, X, Y, batch_size=6, shuffle=False)
    assert len(finder.losses) == 0
    assert finder.find(model, X, Y, batch_size=6, shuffle=False) == first
    assert copy.deepcopy(finder).suggestions == first
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert finder.find(loaded, X, Y, batch_size=6, shuffle=False) == first


@pytest.mark.parametrize(
    "arguments",
    [
        {"minimum": 0},
        {"minimum": float("nan")},
        {"minimum": 1.0, "maximum": 1.0},
        {"maximum": float("inf")},
        {"steps": 1},
        {"steps": 2.5},
        {"spacing": "log"},
        {"smoothing": 1.0},
        {"smoothing": -0.1},
        {"divergence_factor": 1.0},
    ],
    ids=str,
)
def test_bad_arguments(arguments):
    name = list(arguments)[-1]
    with pytest.raises(ValueError, match=rf"Argument `{name}` must be .*Received: {name}="):
        LearningRateFinder(**arguments)


def test_bad_uses():
    finder = LearningRateFinder()
    model = build_quadratic()
    with pytest.raises(ValueError, match="must be run by its method `find`"):
        model.fit(ONES, ONES, callbacks=[finder], verbose=0)
    with pytest.raises(ValueError, match="data that can be read again"):
        finder.find(model, (batch for batch in [(ONES, ONES)]))
    with pytest.raises(ValueError, match="needs a compiled model"):
        finder.find(keras.Sequential([keras.layers.Dense(1)]), ONES, ONES)
    optimizers = keras.optimizers.OptimizerMap(keras.optimizers.SGD())
    model.compile(keras.optimizers.MultiOptimizer(optimizers), "mse")
    with pytest.raises(ValueError, match="one learning rate"):
        finder.find(model, ONES, ONES)
