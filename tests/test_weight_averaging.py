"""Weight averaging against slow loops and closed forms, and what Keras does with the average."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes import weight_averaging as recipe

generator = np.random.default_rng(5)


def values(variables):
    return [variable.numpy().copy() for variable in variables]


class Recorder(keras.callbacks.Callback):
    """Keeps the weights after each epoch, and the validation loss that `fit` reported."""

    def on_train_begin(self, logs=None):
        self.path, self.losses = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.path.append(values(self.model.trainable_variables))
        self.losses.append((logs or {}).get("val_loss"))


def line(**arguments):
    """Return a model y = w x from w = 0, with SGD."""
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    model.compile(keras.optimizers.SGD(0.1, **arguments), loss="mse", run_eagerly=True)
    return model


X = generator.normal(size=(12, 1)).astype("float32")
Y = (3.0 * X + generator.normal(size=(12, 1))).astype("float32")


def fit(model, epochs=6, batch_size=12, callbacks=(), **options):
    """Train one epoch of one step after the other, unless `batch_size` says otherwise."""
    recorder = Recorder()
    model.fit(
        X,
        Y,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        callbacks=[*callbacks, recorder],
        verbose=0,
        **options,
    )
    return recorder


def weight(model):
    return float(model.trainable_variables[0][0, 0])


def exponential_average(path, momentum):
    """Average by the formula; the first weights start it."""
    average = path[0]
    for weights in path[1:]:
        average = momentum * average + (1 - momentum) * weights
    return average


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0])
def test_exponential_average_follows_a_slow_loop(momentum):
    model = line(use_ema=True, ema_momentum=momentum)
    recorder = fit(model)
    path = [float(weights[0][0, 0]) for weights in recorder.path]
    assert len(set(path)) == 6
    assert weight(model) == pytest.approx(exponential_average(path, momentum), rel=1e-5)


def test_first_weights_keep_a_share_of_momentum_to_the_power_of_the_later_steps():
    """For a momentum of 0.999 and 960 steps, the weights after step 1 count for 38%."""
    unit_impulse = np.array([1.0] + [0.0] * 959)
    assert exponential_average(unit_impulse, 0.999) == pytest.approx(0.999**959)
    assert 0.999**959 == pytest.approx(0.383, abs=0.001)


def test_training_is_the_same_with_and_without_the_average():
    paths = [fit(line(**arguments)).path for arguments in ({}, {"use_ema": True})]
    for one, other in zip(*paths, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_overwriting_changes_the_training_itself():
    plain, overwritten = line(), line(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    assert fit(plain).path[2] != fit(overwritten).path[2]


def loss_at(w):
    return float(np.mean((Y - w * X) ** 2))


def test_validation_during_fit_is_of_the_raw_weights():
    model = line(use_ema=True, ema_momentum=0.9)
    recorder = fit(model, validation_data=(X, Y))
    for weights, loss in zip(recorder.path, recorder.losses, strict=True):
        assert loss == pytest.approx(loss_at(weights[0][0, 0]), rel=1e-5)
    last = float(recorder.path[-1][0][0, 0])
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(loss_at(weight(model)), rel=1e-5)
    assert abs(weight(model) - last) > 0.1


def test_swapping_callback_validates_with_the_average():
    model = line(use_ema=True, ema_momentum=0.9)
    swap = keras.callbacks.SwapEMAWeights()
    recorder = fit(model, validation_data=(X, Y), callbacks=[swap])
    path = [float(weights[0][0, 0]) for weights in recorder.path]
    for epoch, loss in enumerate(recorder.losses):
        average = exponential_average(path[: epoch + 1], 0.9)
        assert loss == pytest.approx(loss_at(average), rel=1e-4)


@pytest.mark.parametrize("from_epoch", [0, 2, 5])
def test_epoch_average_is_the_mean_of_the_weights_after_each_epoch(from_epoch):
    model = line()
    recorder = fit(model, batch_size=5, callbacks=recipe.make_callbacks(from_epoch))
    path = [weights[0][0, 0] for weights in recorder.path]
    assert weight(model) == pytest.approx(np.mean(path[from_epoch:]), rel=1e-6)


def test_epoch_average_that_never_begins_leaves_the_last_weights():
    model = line()
    recorder = fit(model, callbacks=[recipe.EpochAverage(6)])
    assert weight(model) == recorder.path[-1][0][0, 0]


def test_epoch_average_can_be_used_twice():
    callback = recipe.EpochAverage()
    fit(line(), callbacks=[callback])
    model = line()
    recorder = fit(model, epochs=2, callbacks=[callback])
    path = [weights[0][0, 0] for weights in recorder.path]
    assert weight(model) == pytest.approx(np.mean(path), rel=1e-6)


def test_no_epoch_average_unless_asked():
    assert recipe.make_callbacks() == []


def test_negative_epoch_is_refused():
    with pytest.raises(ValueError, match=r"must be >= 0. Received: from_epoch=-1"):
        recipe.EpochAverage(-1)


def test_average_removes_the_noise_of_sgd_on_a_quadratic():
    """Loss w^2 / 2, gradients w + noise of variance 1, rate r, from the stationary state.

    The weights have variance v = r / (2 - r), and those k steps apart correlate by a^k, with
    a = 1 - r. Their exponential average has variance v (1 - m) / (1 + m) (1 + a m) / (1 - a m).
    """
    rate, steps, runs, momentum = 0.1, 80, 4000, 0.9
    variance, a = rate / (2 - rate), 1 - rate
    w = keras.Variable(generator.normal(0.0, np.sqrt(variance), runs).astype("float32"))
    optimizer = keras.optimizers.SGD(rate, use_ema=True, ema_momentum=momentum)
    optimizer.build([w])
    for _ in range(steps):
        optimizer.apply([w + generator.normal(size=runs).astype("float32")], [w])
    assert np.var(w) == pytest.approx(variance, rel=0.1)
    optimizer.finalize_variable_values([w])
    expected = variance * (1 - momentum) / (1 + momentum) * (1 + a * momentum) / (1 - a * momentum)
    assert np.var(w) == pytest.approx(expected, rel=0.1)
    assert expected < 0.55 * variance


def normalized_network():
    model = recipe.build_model((6,), 3, batch_normalization=True)
    return model, [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]


def test_recomputed_statistics_are_those_of_the_whole_data():
    """One batch: a pass in training mode and one in inference mode agree on the same data."""
    model, _ = normalized_network()
    x = generator.normal(2.0, 3.0, (40, 6)).astype("float32")
    before = model(x, training=False)
    recipe.recompute_statistics(model, x)
    np.testing.assert_allclose(model(x, training=False), model(x, training=True), atol=1e-5)
    assert np.abs(model(x, training=False) - before).max() > 0.1


def test_recomputed_statistics_are_the_mean_over_batches_by_size():
    model, (first, _) = normalized_network()
    x = generator.normal(2.0, 3.0, (40, 6)).astype("float32")
    recipe.recompute_statistics(model, x, batch_size=16)  # 16, 16 and 8.
    kernel, bias, *_ = values(model.trainable_variables)
    inputs = x @ kernel + bias
    batches = [inputs[:16], inputs[16:32], inputs[32:]]
    np.testing.assert_allclose(first.moving_mean, inputs.mean(axis=0), rtol=1e-4, atol=1e-5)
    variance = sum(len(b) * b.var(axis=0) for b in batches) / 40
    np.testing.assert_allclose(first.moving_variance, variance, rtol=1e-4)


def test_recomputing_keeps_weights_and_momentum():
    model, normalizations = normalized_network()
    kept = values(model.trainable_variables)
    recipe.recompute_statistics(model, np.ones((4, 6), "float32"))
    for variable, value in zip(model.trainable_variables, kept, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert {layer.momentum for layer in normalizations} == {recipe.NORMALIZATION_MOMENTUM}


def test_recomputing_reaches_nested_models():
    inner, (first, _) = normalized_network()
    model = keras.Sequential([keras.Input((6,)), inner])
    recipe.recompute_statistics(model, np.full((4, 6), 5.0, "float32"))
    assert np.abs(first.moving_mean).max() > 0.1


@pytest.mark.parametrize("arguments", [{"ema_momentum": 0.9}, {"average_from_epoch": 0}])
def test_neither_average_covers_the_moving_statistics(arguments):
    """The trap: the averaged weights are given the statistics of the raw ones."""
    x = generator.normal(size=(20, 6)).astype("float32")
    y = generator.integers(0, 3, 20)
    statistics = []
    for settings in ({}, arguments):
        callbacks = recipe.make_callbacks(settings.get("average_from_epoch"))
        model = recipe.build_model(
            (6,), 3, settings.get("ema_momentum", 0.0), batch_normalization=True, learning_rate=0.5
        )
        model.run_eagerly = True
        model.fit(x, y, epochs=3, shuffle=False, callbacks=callbacks, verbose=0)
        statistics.append(values(model.non_trainable_variables))
        kernel = values(model.trainable_variables)[0]
        statistics[-1].append(kernel)
    *plain, plain_kernel = statistics[0]
    *averaged, averaged_kernel = statistics[1]
    for one, other in zip(plain, averaged, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(plain_kernel - averaged_kernel).max() > 1e-3


def test_momentum_of_zero_keeps_no_average():
    assert recipe.build_model().optimizer.use_ema is False
    assert recipe.build_model(ema_momentum=0.5).optimizer.ema_momentum == 0.5


def test_cosine_falls_from_the_rate_to_zero():
    optimizer = recipe.build_model(cosine_decay=True, learning_rate=0.4, total_steps=100).optimizer
    rates = []
    for step in (0, 50, 100):
        optimizer.iterations.assign(step)
        rates.append(float(tf.convert_to_tensor(optimizer.learning_rate)))
    np.testing.assert_allclose(rates, [0.4, 0.2, 0.0], atol=1e-6)
