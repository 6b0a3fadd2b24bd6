"""Early stopping: when it ends, what it restores, what it does in silence, and as a penalty."""

import functools
import warnings

import keras
import numpy as np
import pytest

import data
from recipes import early_stopping as recipe
from tests.conftest import assert_is_relu_network

generator = np.random.default_rng(3)


@functools.cache
def one_weight():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(loss="mse", metrics=["accuracy"])
    model.evaluate(np.ones((1, 1)), np.ones((1, 1)), verbose=0)  # Builds the metrics.
    return model


def train_on(values, callback, monitor="val_loss"):
    """Feed one value an epoch; return the number of epochs and the epoch whose weights remain."""
    model = one_weight()
    model.stop_training = False
    callback.set_model(model)
    callback.on_train_begin()
    epochs = 0
    for epoch, value in enumerate(values):
        model.set_weights([np.full((1, 1), epoch)])
        callback.on_epoch_end(epoch, {monitor: value})
        epochs += 1
        if model.stop_training:
            break
    callback.on_train_end()
    return epochs, int(model.get_weights()[0][0, 0])


def by_hand(values, patience):
    """Return the epochs trained and the best one: stop `patience` epochs after the best so far."""
    for epoch in range(1, len(values)):
        best = int(np.argmin(values[: epoch + 1]))
        if epoch - best >= max(patience, 1):
            return epoch + 1, best
    return len(values), int(np.argmin(values))


@pytest.mark.parametrize("patience", [0, 1, 2, 5, 30])
def test_training_ends_patience_epochs_after_the_best_one(patience):
    for _ in range(5):
        values = generator.normal(size=20)
        (callback,) = recipe.make_callbacks("val_loss", patience)
        assert train_on(values, callback) == by_hand(values, patience)


def test_accuracy_has_to_rise():
    values = generator.normal(size=20)
    (callback,) = recipe.make_callbacks("val_accuracy", 3)
    assert train_on(values, callback, "val_accuracy") == by_hand(-values, 3)


def test_without_restoring_the_last_weights_remain():
    (callback,) = recipe.make_callbacks("val_loss", 2, restore=False)
    assert train_on([3.0, 1.0, 2.0, 2.0, 0.0], callback) == (4, 3)


def test_keras_restores_nothing_unless_asked():
    callback = keras.callbacks.EarlyStopping("val_loss")
    assert train_on([3.0, 1.0, 2.0, 0.0], callback) == (3, 2)


def test_best_weights_come_back_where_nothing_stopped_the_training():
    (callback,) = recipe.make_callbacks("val_loss", 10)
    assert train_on([3.0, 1.0, 2.0], callback) == (3, 1)


def test_epochs_before_the_start_are_not_watched_and_not_kept():
    (callback,) = recipe.make_callbacks("val_loss", 2, start_from_epoch=3)
    assert train_on([0.0, 5.0, 5.0, 3.0, 2.0, 4.0, 4.0, 1.0], callback) == (7, 4)


@pytest.mark.filterwarnings("error")
def test_start_past_the_last_epoch_neither_stops_nor_restores_and_says_nothing():
    values = [0.0, 1.0, 2.0, 3.0, 4.0]
    (callback,) = recipe.make_callbacks("val_loss", 1, start_from_epoch=len(values))
    assert train_on(values, callback) == (5, 4)


def test_absent_monitor_only_warns():
    """This is what `val_loss` meets where `fit` got no validation data."""
    (callback,) = recipe.make_callbacks("val_loss", 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train_on([0.0, 1.0, 2.0, 3.0], callback, monitor="loss") == (4, 3)
    assert len(caught) == 4
    assert "conditioned on metric `val_loss` which is not available" in str(caught[0].message)


def test_misspelled_monitor_raises_unless_a_mode_is_given():
    (callback,) = recipe.make_callbacks("val_lose", 1)
    with pytest.raises(ValueError, match="monitor=val_lose"):
        train_on([0.0, 1.0], callback)
    callback = keras.callbacks.EarlyStopping("val_lose", mode="min", restore_best_weights=True)
    with pytest.warns(UserWarning, match="`val_lose` which is not available"):
        assert train_on([0.0, 1.0, 2.0], callback) == (3, 2)


def test_no_monitor_means_no_callback():
    assert recipe.make_callbacks() == []


@pytest.mark.parametrize("name", ["patience", "start_from_epoch"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be >= 0\. Received: {name}=-1"):
        recipe.make_callbacks("val_loss", **{name: -1})


def test_steps_on_a_quadratic_shrink_nearly_as_a_penalty_does():
    """Gradient descent from 0 keeps 1 - (1 - r h)^t of the solution along curvature h."""
    rate, steps = 0.01, 60
    curvatures = np.array([0.01, 0.1, 1.0, 4.0, 50.0, 180.0])  # Below 2 / rate = 200.
    x = np.diag(np.sqrt(curvatures * len(curvatures) / 2))
    solution = np.array([1.0, -2.0, 3.0, 1.0, -1.0, 2.0])
    model = keras.Sequential(
        [
            keras.Input((len(solution),)),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        ]
    )
    model.compile(keras.optimizers.SGD(rate), "mse")
    every_step = np.tile(x, (steps, 1))
    model.fit(every_step, every_step @ solution, batch_size=len(x), shuffle=False, verbose=0)
    kept = model.get_weights()[0][:, 0] / solution
    np.testing.assert_allclose(kept, 1 - (1 - rate * curvatures) ** steps, rtol=1e-4)

    # The solution of the penalized problem; its gradient is h (w - solution) + penalty w.
    penalty = 1 / (rate * steps)
    hessian = 2 / len(x) * x.T @ x
    ridge = np.linalg.solve(hessian + penalty * np.eye(len(x)), hessian @ solution)
    small = curvatures < 0.02 * penalty
    assert small.sum() == 1
    np.testing.assert_allclose(kept[small], (ridge / solution)[small], rtol=0.02)
    # 1 - exp(-z) and z / (1 + z) differ most at exp(z) = (1 + z)^2, by 0.2037.
    moderate = rate * curvatures < 0.05
    assert moderate.sum() == 4
    assert np.abs(kept - ridge / solution)[moderate].max() < 0.21


def test_network_starts_and_learns_as_written_out():
    model = recipe.build_model((8, 8), units=48, learning_rate=0.2, seed=3)
    assert_is_relu_network(model, [48, 48], 0.2, momentum=0.9)


def test_joined_data_hold_every_sample_of_both_parts_once():
    split = data.load("digits", samples=600, label_noise=0.3)
    joined = recipe.prepare(split, join_validation=True)
    np.testing.assert_array_equal(joined.train.x[:600], split.train.x)
    np.testing.assert_array_equal(joined.train.x[600:], split.validation.x)
    np.testing.assert_array_equal(joined.train.y[600:], split.validation.y)
    np.testing.assert_array_equal(joined.wrong_labels.train[600:], split.wrong_labels.validation)
    assert joined.test is split.test and joined.validation is split.validation
    assert recipe.prepare(split) is split


def test_memorized_counts_the_wrong_labels_that_come_back():
    split = data.load("digits", samples=100, label_noise=0.3)
    wrong = split.wrong_labels.train
    one_hot = np.eye(10, dtype="float32")
    looked_up = {x.tobytes(): one_hot[y] for x, y in zip(*split.train, strict=True)}

    def learned_by_heart(x):
        return np.stack([looked_up[np.asarray(row).tobytes()] for row in x])

    def always_seven(x):
        return np.tile(one_hot[7], (len(x), 1))

    assert recipe.measure(learned_by_heart, split) == {"memorized": 1.0}
    assert recipe.measure(always_seven, split)["memorized"] == np.mean(split.train.y[wrong] == 7)
