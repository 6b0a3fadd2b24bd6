"""The logged rates against the rates that the weights show, and the places where they land."""

import copy
import csv

import keras
import numpy as np
import pytest

from callbacks.learning_rate_logger import LearningRateLogger

schedules = keras.optimizers.schedules


class Weights(keras.callbacks.Callback):
    """Keeps the only weight after every batch."""

    def on_train_begin(self, logs=None):
        self.values = [float(self.model.get_weights()[0].squeeze())]

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(self.model.get_weights()[0].squeeze()))

    @property
    def steps_taken(self):
        """Equals the learning rate of each batch: the gradient is 1 (see `build_model`)."""
        return -np.diff(self.values)


class Rates(keras.callbacks.Callback):
    """Sets a rate of its own in one of the hooks."""

    def __init__(self, hook, rates):
        super().__init__()
        rates = iter(rates)

        def set_rate(*args, **kwargs):
            self.model.optimizer.learning_rate = next(rates)

        setattr(self, hook, set_rate)


def build_model(learning_rate=0.5, optimizer=None, **compile_arguments):
    """One weight w, output w * 1, loss the output's mean: the gradient is 1 whatever happens."""
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(learning_rate),
        loss=lambda y_true, y_pred: keras.ops.mean(y_pred, axis=-1),
        **compile_arguments,
    )
    return model


@pytest.fixture(scope="module")
def traced_model():
    return build_model()


@pytest.fixture
def model(traced_model):
    """A model with a float rate of 0.5, as new; it is traced only once."""
    for variable in (*traced_model.variables, traced_model.optimizer.iterations):
        variable.assign(keras.ops.zeros_like(variable))
    traced_model.optimizer.learning_rate = 0.5
    return traced_model


def fit(model, callbacks, batches=4, epochs=2, **arguments):
    x = np.ones((batches * 2, 1), "float32")
    return model.fit(x, x, batch_size=2, epochs=epochs, callbacks=callbacks, verbose=0, **arguments)


def read(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


decay = schedules.ExponentialDecay(0.5, decay_steps=3, decay_rate=0.8)
cosine = schedules.CosineDecay(0.01, 6, warmup_target=0.25, warmup_steps=3)


@pytest.mark.parametrize(
    ("learning_rate", "compile_arguments"),
    [
        (0.25, {}),
        (decay, {}),
        (cosine, {}),
        (decay, {"run_eagerly": True}),
        (decay, {"jit_compile": True}),
    ],
    ids=["float", "decay", "cosine", "eager", "jit"],
)
def test_rates_are_those_that_moved_the_weight(learning_rate, compile_arguments):
    logger, weights = LearningRateLogger(), Weights()
    history = fit(build_model(learning_rate, **compile_arguments), [logger, weights])
    np.testing.assert_array_equal(logger.steps, np.arange(8))
    np.testing.assert_allclose(logger.learning_rates, weights.steps_taken, rtol=0, atol=3e-7)
    np.testing.assert_array_equal(
        history.history["learning_rate"], logger.learning_rates[[3, 7]].astype(float)
    )


@pytest.mark.parametrize("steps_per_execution", [2, 32])
def test_steps_inside_one_execution_are_there(steps_per_execution):
    logger = LearningRateLogger()
    model = build_model(decay, steps_per_execution=steps_per_execution)
    # 5 batches: the last execution of the epoch is cut short.
    history = fit(model, [logger], batches=5)
    # The closed form in the documentation of ExponentialDecay.
    expected = 0.5 * 0.8 ** (np.arange(10) / 3)
    np.testing.assert_array_equal(logger.steps, np.arange(10))
    np.testing.assert_allclose(logger.learning_rates, expected, rtol=1e-6)
    np.testing.assert_allclose(model.get_weights()[0], -expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(history.history["learning_rate"], expected[[4, 9]], rtol=1e-6)


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end", "on_epoch_begin"])
@pytest.mark.parametrize("logger_first", [True, False])
def test_place_in_the_list_of_callbacks_does_not_matter(hook, logger_first, model):
    logger, weights = LearningRateLogger(), Weights()
    rates = Rates(hook, [2.0**-power for power in range(10)])
    callbacks = [logger, rates] if logger_first else [rates, logger]
    model.optimizer.learning_rate = 4.0
    history = fit(model, [*callbacks, weights])
    np.testing.assert_array_equal(logger.learning_rates, weights.steps_taken)
    assert len(set(logger.learning_rates)) == (2 if hook == "on_epoch_begin" else 8)
    assert history.history["learning_rate"] == [*weights.steps_taken[[3, 7]]]


@pytest.mark.parametrize("logger_first", [True, False])
@pytest.mark.parametrize(
    "other",
    [
        lambda: keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, mode="max"),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / (epoch + 1)),
    ],
    ids=["plateau", "scheduler"],
)
def test_epoch_logs_agree_with_the_callbacks_of_keras(other, logger_first, model):
    logger, weights = LearningRateLogger(), Weights()
    callbacks = [logger, other()] if logger_first else [other(), logger]
    together = fit(model, [*callbacks, weights], epochs=4).history["learning_rate"]
    np.testing.assert_allclose(logger.learning_rates, weights.steps_taken, rtol=1e-6)
    np.testing.assert_allclose(logger.learning_rates, np.repeat(together, 4), rtol=1e-7)
    model.set_weights([np.zeros((1, 1))])
    model.optimizer.learning_rate = 0.5
    alone = fit(model, [other()], epochs=4).history["learning_rate"]
    assert together == alone
    assert len(set(alone)) > 1


def test_two_loggers_and_a_loop_without_fit(model):
    first, second = LearningRateLogger(), LearningRateLogger()
    rates = [2.0**-power for power in range(8)]
    history = fit(model, [first, Rates("on_train_batch_begin", rates), second])
    np.testing.assert_array_equal(first.learning_rates, rates)
    np.testing.assert_array_equal(second.learning_rates, rates)
    assert "on_train_batch_begin" not in vars(history)

    # Without the History of a `fit`, even if the model has an old one.
    alone = LearningRateLogger()
    callbacks = keras.callbacks.CallbackList([alone], model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    for batch, rate in enumerate([0.5, 0.25]):
        model.optimizer.learning_rate = rate
        callbacks.on_train_batch_begin(batch)
        model.train_on_batch(np.ones((2, 1)), np.ones((2, 1)))
        callbacks.on_train_batch_end(batch)
    callbacks.on_epoch_end(0)
    np.testing.assert_array_equal(alone.steps, [8, 9])
    np.testing.assert_array_equal(alone.learning_rates, [0.5, 0.25])


def test_accumulation_has_one_row_an_update_with_the_rate_at_its_last_batch():
    logger, weights = LearningRateLogger(), Weights()
    model = build_model(optimizer=keras.optimizers.SGD(decay, gradient_accumulation_steps=3))
    history = fit(model, [logger, weights], batches=2, epochs=4)
    np.testing.assert_array_equal(logger.steps, [2, 5])
    moved = np.flatnonzero(weights.steps_taken)
    np.testing.assert_array_equal(moved, [2, 5])
    np.testing.assert_allclose(logger.learning_rates, weights.steps_taken[moved], rtol=1e-6)
    # Batches 0-1 and 6-7 update nothing.
    np.testing.assert_array_equal(np.isnan(history.history["learning_rate"]), [1, 0, 0, 1])


def test_loss_scaling_shows_the_inner_rate_and_no_row_for_skipped_updates():
    inner = keras.optimizers.SGD(decay)
    # 2**127 * 4 overflows float32: the first batches are skipped until the scale has come down.
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**127)
    model = build_model(optimizer=scaled)
    model.compile(optimizer=scaled, loss=lambda y, p: 4 * keras.ops.mean(p, axis=-1))
    logger, weights = LearningRateLogger(), Weights()
    fit(model, [logger, weights])
    taken = weights.steps_taken[weights.steps_taken != 0] / 4
    assert 0 < len(taken) < 8
    np.testing.assert_array_equal(logger.steps, np.arange(len(taken)))
    np.testing.assert_allclose(logger.learning_rates, taken, rtol=1e-6)


def test_several_fits_go_on_and_a_compiled_model_starts_anew(tmp_path):
    path = tmp_path / "folder" / "rates.csv"
    logger = LearningRateLogger(csv=path)
    model = build_model(decay)
    fit(model, [logger], epochs=1)
    fit(model, [logger], epochs=1)
    expected = (0.5 * 0.8 ** (np.arange(8) / 3)).astype("float32")
    np.testing.assert_array_equal(logger.steps, np.arange(8))
    np.testing.assert_allclose(logger.learning_rates, expected, rtol=1e-6)
    rows = read(path)
    assert rows[0] == ["epoch", "step", "learning_rate"]
    assert [row[:2] for row in rows[1:]] == [["0", str(step)] for step in range(8)]
    np.testing.assert_array_equal([np.float32(row[2]) for row in rows[1:]], logger.learning_rates)

    model.compile("sgd", "mse")
    history = fit(model, [logger], epochs=1)
    assert history.history["learning_rate"] == [np.float32(0.01)]
    np.testing.assert_array_equal(logger.steps, np.arange(4))
    assert read(path)[1:] == [["0", str(step), "0.01"] for step in range(4)]


def test_interrupted_fit_keeps_its_steps():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    logger, model = LearningRateLogger(), build_model(decay)
    with pytest.raises(KeyboardInterrupt):
        fit(model, [logger, Interrupt()])
    np.testing.assert_array_equal(logger.steps, [0, 1, 2])
    fit(model, [logger], epochs=1)
    np.testing.assert_allclose(logger.learning_rates, 0.5 * 0.8 ** (np.arange(7) / 3), rtol=1e-6)
    with pytest.raises(KeyboardInterrupt):
        fit(model, [logger, Interrupt()])
    model.compile(keras.optimizers.SGD(0.25), "mse")
    fit(model, [logger], epochs=1)
    np.testing.assert_array_equal(logger.steps, np.arange(4))
    np.testing.assert_array_equal(logger.learning_rates, [0.25] * 4)


def test_training_is_bit_identical_and_the_train_function_stays():
    def train(callbacks):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dropout(0.5)]
        )
        model.compile(keras.optimizers.Adam(decay), "mse")
        x = np.random.default_rng(0).normal(size=(20, 3))
        model.fit(x, np.zeros((20, 4)), batch_size=6, epochs=2, callbacks=callbacks, verbose=0)
        return model, [variable.numpy() for variable in model.variables]

    logger = LearningRateLogger()
    model, variables = train([logger])
    for with_logger, without in zip(variables, train([])[1], strict=True):
        np.testing.assert_array_equal(with_logger, without)
    train_function = model.train_function
    model.fit(np.zeros((2, 3)), np.zeros((2, 4)), callbacks=[logger], verbose=0)
    assert model.train_function is train_function


def test_copies_and_saved_models(tmp_path):
    logger = LearningRateLogger(csv=tmp_path / "a.csv", tensorboard=tmp_path / "logs")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(decay), "mse")
    fit(model, [copy.deepcopy(logger)], epochs=1)
    assert len(logger.steps) == 0
    fit(model, [logger], epochs=1)
    np.testing.assert_array_equal(logger.steps, np.arange(4, 8))
    duplicate = copy.deepcopy(logger)
    assert duplicate.model is None
    np.testing.assert_array_equal(duplicate.learning_rates, logger.learning_rates)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fit(loaded, [duplicate], epochs=1)
    np.testing.assert_array_equal(duplicate.steps, np.arange(4, 12))
    expected = 0.5 * 0.8 ** (np.arange(4, 12) / 3)
    np.testing.assert_allclose(duplicate.learning_rates, expected, rtol=1e-6)


def test_tensorboard_has_every_step(tmp_path, model):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    logger = LearningRateLogger(tensorboard=tmp_path)
    fit(model, [logger, Rates("on_train_batch_begin", [2.0**-power for power in range(8)])])
    events = EventAccumulator(str(tmp_path)).Reload().Tensors("learning_rate")
    assert [event.step for event in events] == [*range(8)]
    values = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events]
    np.testing.assert_array_equal(np.float32(values), logger.learning_rates)


def test_resumed_run_goes_on_in_the_file_of_the_one_that_died(tmp_path):
    path = tmp_path / "rates.csv"

    class Die(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise MemoryError

    def train(*more):
        # The logger comes first, and so does not know yet that there is a backup.
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        fit(build_model(decay), [LearningRateLogger(csv=path), backup, *more], epochs=4)

    with pytest.raises(MemoryError):
        train(Die())
    assert len(read(path)) == 1 + 8
    # What the backup lags behind is done again: here a row too many, and half a row.
    with open(path, "a") as file:
        file.write("2,8,0.7\n2,1")
    train()
    rows = read(path)[1:]
    assert [row[:2] for row in rows] == [[str(step // 4), str(step)] for step in range(16)]
    expected = 0.5 * 0.8 ** (np.arange(16) / 3)
    np.testing.assert_allclose([float(row[2]) for row in rows], expected, rtol=1e-6)


def test_rows_are_in_the_file_at_the_end_of_each_epoch(tmp_path, model):
    path, lengths = tmp_path / "rates.csv", []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: lengths.append(len(path.read_bytes().splitlines()))
    )
    fit(model, [LearningRateLogger(csv=path), look])
    assert lengths == [5, 9]


def test_a_file_of_something_else_is_replaced(tmp_path, model):
    path = tmp_path / "rates.csv"
    path.write_text("something else\n1,2,3\n")
    fit(model, [], epochs=1)
    fit(model, [LearningRateLogger(csv=path)], epochs=1)
    assert read(path) == [
        ["epoch", "step", "learning_rate"],
        *([["0", str(step), "0.5"] for step in range(4, 8)]),
    ]


@pytest.mark.parametrize("arguments", [{"csv": 3}, {"csv": ""}, {"tensorboard": True}], ids=str)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=r"must be a path\. Received: (csv|tensorboard)="):
        LearningRateLogger(**arguments)


def test_several_optimizers_are_refused():
    optimizers = keras.optimizers.OptimizerMap(keras.optimizers.SGD())
    model = build_model(optimizer=keras.optimizers.MultiOptimizer(optimizers))
    with pytest.raises(ValueError, match=r"one learning rate\. Received: optimizer="):
        fit(model, [LearningRateLogger()])
