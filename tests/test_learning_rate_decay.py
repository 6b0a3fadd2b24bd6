"""Holds every decay to its closed form, Keras to its traps, and SGD to its noise floor."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes import learning_rate_decay as recipe

schedules = keras.optimizers.schedules
FACTORS = {
    "step": lambda p: 1 if p < 0.5 else 0.1 if p < 0.75 else 0.01,
    "exponential": lambda p: 0.01**p,
    "inverse_time": lambda p: 1 / (1 + 9 * p),
    "linear": lambda p: max(1 - p, 0),
    "cosine": lambda p: (1 + math.cos(math.pi * min(p, 1))) / 2,
}


@pytest.mark.parametrize("decay", recipe.DECAYS)
@pytest.mark.parametrize("total", [2, 100, 10_000_000])
def test_decay_follows_its_closed_form(decay, total):
    schedule = recipe.make_schedule(0.3, total, decay)
    parts = [0, 0.25, 0.5, 0.75, 1, 2]
    steps = {max(0, int(part * total) + side) for part in parts for side in (-1, 0, 1)}
    for step in sorted(steps):
        expected = 0.3 * FACTORS[decay](step / total)
        # 1e-7: a cosine that is almost -1 has lost that much of the first rate in float32.
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-7), step


@pytest.mark.parametrize("decay", recipe.DECAYS)
def test_decay_starts_at_the_rate_and_never_rises(decay):
    schedule = recipe.make_schedule(0.3, 60, decay)
    rates = np.array([float(schedule(step)) for step in range(80)])
    assert rates[0] == np.float32(0.3)
    assert (np.diff(rates) <= 0).all() and (rates >= 0).all()


@pytest.mark.parametrize("decay", recipe.DECAYS)
def test_graph_and_xla_give_what_eager_mode_gives(decay):
    schedule = recipe.make_schedule(0.3, 60, decay)
    compiled = tf.function(schedule, jit_compile=True)
    for step in (0, 29, 30, 44, 45, 60, 10_000_000):
        step = tf.constant(step, tf.int64)
        # XLA multiplies with 1/60, and 60 times that, rounded, is not 1.
        np.testing.assert_allclose(compiled(step), schedule(step), rtol=1e-5, atol=3e-8)


def test_integer_rates_are_rates():
    for decay in recipe.DECAYS:
        assert float(recipe.make_schedule(1, 4, decay)(0)) == 1.0


def test_no_decay_is_the_float_itself():
    assert recipe.make_schedule(0.1, 100) == 0.1


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ((0.0, 100, "cosine"), "learning_rate=0.0"),
        ((-0.1, 100, None), "learning_rate=-0.1"),
        ((math.nan, 100, None), "learning_rate=nan"),
        ((0.1, 1, "step"), "total_steps=1"),
        ((0.1, -5, "linear"), "total_steps=-5"),
        ((0.1, 100, "quadratic"), "decay='quadratic'"),
    ],
)
def test_nonsense_is_refused(arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        recipe.make_schedule(*arguments)


def test_traps_of_keras_are_still_there():
    """What the card warns of. A failure here means that Keras has changed, and the card must."""
    at_boundary = schedules.PiecewiseConstantDecay([10], [1.0, 0.1])
    assert float(at_boundary(10)) == 1.0
    assert float(at_boundary(11)) == np.float32(0.1)
    assert float(schedules.PolynomialDecay(0.1, 10)(10)) == np.float32(1e-4)
    assert float(schedules.CosineDecay(1, 10)(10)) == pytest.approx((1 + math.cos(3)) / 2)


def sgd_chains(learning_rate, steps, chains=20_000):
    """Run many SGD chains side by side on w^2 / 2 with gradient noise of variance 1, from 0."""
    optimizer = keras.optimizers.SGD(learning_rate)
    w = keras.Variable(np.zeros(chains, "float32"))
    optimizer.build([w])
    noise = tf.random.Generator.from_seed(0)

    @tf.function
    def train():
        for _ in tf.range(steps):
            optimizer.apply([w.value + noise.normal((chains,))], [w])

    train()
    return float(np.var(w.numpy()))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_constant_rate_circles_at_its_noise_floor(rate):
    """The variance of w no longer falls below rate / (2 - rate): 0.0526 at a rate of 0.1."""
    # Six standard errors of a variance of 20,000 chains are 6%.
    assert sgd_chains(rate, 200) == pytest.approx(rate / (2 - rate), rel=0.06)


@pytest.mark.parametrize("decay", ["step", "linear", "cosine"])
def test_decay_goes_below_the_floor_by_as_much_as_the_recursion_says(decay):
    schedule = recipe.make_schedule(0.5, 200, decay)
    variance = 0.0
    for step in range(200):
        rate = float(schedule(step))
        variance = (1 - rate) ** 2 * variance + rate**2
    assert variance < 0.1 * 0.5 / (2 - 0.5)
    assert sgd_chains(schedule, 200) == pytest.approx(variance, rel=0.06)


def test_inverse_time_makes_sgd_the_mean_of_all_it_saw():
    """Robbins and Monro: with the rates 1, 1/2, 1/3, ..., w is the mean of the targets so far."""
    targets = np.random.default_rng(0).normal(size=100).astype("float32")
    optimizer = keras.optimizers.SGD(schedules.InverseTimeDecay(1.0, 1, 1.0))
    w = keras.Variable(np.float32(7))
    optimizer.build([w])
    step = tf.function(lambda target: optimizer.apply([w.value - target], [w]))
    for count, target in enumerate(targets, start=1):
        step(tf.constant(target))
        assert float(w.numpy()) == pytest.approx(targets[:count].mean(), abs=2e-6)


def test_model_decays_over_all_its_steps():
    optimizer = recipe.build_model(decay="linear", total_steps=100, learning_rate=0.4).optimizer
    optimizer.iterations.assign(75)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
