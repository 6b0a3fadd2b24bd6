"""Holds one cycle to PyTorch's formula by hand, and the optimizer to a slow one in NumPy."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes import one_cycle as recipe
from recipes.one_cycle import OneCycle, OneCycleMomentum, SGDWithMomentumSchedule


def test_11_steps_by_hand():
    """With 4 of 10 steps for the rise the top is at step 3, and the end at step 9."""
    schedule = OneCycle(1.0, 10, 0.4, initial_divisor=5, final_divisor=4)
    rise = [0.2, 0.2 + 0.8 / 4, 0.2 + 0.8 * 3 / 4, 1.0]
    fall = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(1, 7)]
    expected = [*rise, *(0.05 + 0.95 * height for height in fall), 0.05]
    np.testing.assert_allclose([float(schedule(step)) for step in range(11)], expected, rtol=1e-6)


def test_momentum_mirrors_the_rate():
    rate = OneCycle(1.0, 100, 0.3, initial_divisor=1e6, final_divisor=1)
    momentum = OneCycleMomentum(100)
    for step in (0, 7, 29, 30, 64, 99, 100, 10**7):
        expected = 0.95 - 0.1 * float(rate(step))
        assert float(momentum(step)) == pytest.approx(expected, rel=1e-5)


def test_ends_and_top_are_exact():
    # In float32, start + (maximum - start) is not this maximum.
    rate, momentum = OneCycle(0.33, 1000), OneCycleMomentum(1000)
    start, end = 0.33 / 25, 0.33 / 25 / 1e4
    expected = {0: (start, 0.95), 299: (0.33, 0.85), 999: (end, 0.95), 10**7: (end, 0.95)}
    for step, values in expected.items():
        assert (float(rate(step)), float(momentum(step))) == tuple(map(np.float32, values))


def test_last_rates_are_right_to_five_digits():
    """The difference of the cosine from -1 would have two."""
    total = 1_000_000
    schedule = OneCycle(1.0, total)
    last, top = total - 1, 0.3 * total - 1
    for before in (1, 10, 100, 1000):
        left = math.sin(math.pi / 2 * before / (last - top)) ** 2
        expected = 4e-6 + (1 - 4e-6) * left
        assert float(schedule(last - before)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"max_learning_rate": 0}, "max_learning_rate=0"),
        ({"max_learning_rate": math.nan}, "max_learning_rate=nan"),
        ({"total_steps": 1}, "total_steps=1"),
        ({"total_steps": -10}, "total_steps=-10"),
        ({"rise_fraction": 0.0}, "rise_fraction=0.0, total_steps=100"),
        ({"rise_fraction": 0.01}, "rise_fraction=0.01, total_steps=100"),
        ({"rise_fraction": 1.0}, "rise_fraction=1.0, total_steps=100"),
        ({"rise_fraction": 1.5}, "rise_fraction=1.5"),
        ({"initial_divisor": 0.5}, "initial_divisor=0.5"),
        ({"final_divisor": 0.5}, "initial_divisor=25.0, final_divisor=0.5"),
    ],
)
def test_nonsense_is_refused(arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        OneCycle(**{"max_learning_rate": 0.1, "total_steps": 100, **arguments})


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"total_steps": 1}, "total_steps=1"),
        ({"rise_fraction": 1.0}, "rise_fraction=1.0"),
        ({"max_momentum": 0.8}, "min_momentum=0.85, max_momentum=0.8"),
        ({"max_momentum": 1.0}, "min_momentum=0.85, max_momentum=1.0"),
        ({"min_momentum": -0.1}, "min_momentum=-0.1"),
    ],
)
def test_nonsense_momenta_are_refused(arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        OneCycleMomentum(**{"total_steps": 100, **arguments})


def test_half_a_step_is_refused_and_a_whole_float_taken():
    with pytest.raises(ValueError, match=r"Received: total_steps=10\.5"):
        OneCycle(0.1, 10.5)
    assert OneCycle(0.1, 10.0).total_steps == 10


GRADIENTS = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")


def slow(rate, momentum, nesterov, steps_between=1):
    """SGD with momentum in NumPy, one update after each `steps_between` gradients."""
    w, velocity = np.zeros(3), np.zeros(3)
    for first in range(0, len(GRADIENTS), steps_between):
        gradient = GRADIENTS[first : first + steps_between].mean(axis=0)
        step = first + steps_between - 1
        velocity = momentum(step) * velocity - rate(step) * gradient
        w = w + (momentum(step) * velocity - rate(step) * gradient if nesterov else velocity)
    return w


def apply(optimizer, jit_compile=None):
    """Apply all gradients, eagerly or in a compiled function; return the weights."""
    w = keras.Variable(np.zeros(3, "float32"))
    optimizer.build([w])

    def step(gradient):
        optimizer.apply([gradient], [w])

    if jit_compile is not None:
        step = tf.function(step, jit_compile=jit_compile)
    for gradient in GRADIENTS:
        step(tf.constant(gradient))
    return w.numpy()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_optimizer_follows_the_slow_one(nesterov, jit_compile):
    rate, momentum = OneCycle(0.5, 10), OneCycleMomentum(10, 0.4, 0.9, 0.2)
    optimizer = SGDWithMomentumSchedule(rate, momentum, nesterov)
    expected = slow(lambda s: float(rate(s)), lambda s: float(momentum(s)), nesterov)
    np.testing.assert_allclose(apply(optimizer, jit_compile), expected, rtol=2e-5)


def test_momentum_and_rate_keep_the_same_time_when_gradients_are_accumulated():
    rate, momentum = OneCycle(0.5, 10), OneCycleMomentum(10, 0.4, 0.9, 0.2)
    optimizer = SGDWithMomentumSchedule(rate, momentum, gradient_accumulation_steps=3)
    expected = slow(lambda s: float(rate(s)), lambda s: float(momentum(s)), False, 3)
    np.testing.assert_allclose(apply(optimizer), expected, rtol=2e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steady_momentum_trains_exactly_as_in_keras(nesterov):
    expected = apply(keras.optimizers.SGD(0.1, 0.9, nesterov))
    steady = OneCycleMomentum(5, max_momentum=0.9, min_momentum=0.9)
    for momentum in (0.9, steady):
        weights = apply(SGDWithMomentumSchedule(0.1, momentum, nesterov))
        np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize("momentum", [0.8, OneCycleMomentum(50, 0.4)])
def test_optimizer_survives_its_config(momentum):
    optimizer = SGDWithMomentumSchedule(
        OneCycle(0.1, 50), momentum, nesterov=True, global_clipnorm=1.0
    )
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    assert type(again) is SGDWithMomentumSchedule
    assert again.get_config() == optimizer.get_config()
    np.testing.assert_array_equal(apply(again), apply(optimizer))


class SetMomentum(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch > 0:
            self.model.optimizer.momentum = 0.1 * batch


def test_setting_the_momentum_of_keras_in_a_callback_does_nothing():
    """It is part of the traced step: the reason for an optimizer with a schedule."""
    weights = []
    for callbacks in ([], [SetMomentum()]):
        dense = keras.layers.Dense(1, kernel_initializer="ones")
        model = keras.Sequential([keras.Input((3,)), dense])
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        model.fit(
            GRADIENTS, GRADIENTS[:, :1], batch_size=4, shuffle=False, verbose=0, callbacks=callbacks
        )
        weights.append(dense.kernel.numpy())
    np.testing.assert_array_equal(*weights)


def test_model_cycles_both_over_all_steps():
    optimizer = recipe.build_model(
        schedule="one_cycle", cycle_momentum=True, total_steps=100, learning_rate=0.5
    ).optimizer
    optimizer.iterations.assign(29)
    assert float(optimizer.learning_rate) == 0.5
    assert float(optimizer.momentum(29)) == np.float32(0.85)


def test_constant_is_the_float_itself_and_other_names_are_refused():
    assert recipe.make_schedule(0.1, 100) == 0.1
    assert recipe.build_model().optimizer.momentum == recipe.MOMENTUM
    assert float(recipe.make_schedule(0.1, 100, "cosine")(50)) == pytest.approx(0.05)
    assert float(recipe.make_schedule(1, 100, "cosine")(100)) == 0
    with pytest.raises(ValueError, match="Received: schedule='two_cycles'"):
        recipe.make_schedule(0.1, 100, "two_cycles")
