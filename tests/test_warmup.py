"""Holds warm-up to tables worked by hand, to Vaswani's formula and to Keras's own cosine."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes import warmup as recipe
from recipes.warmup import InverseSquareRootDecay, WarmUp

CosineDecay = keras.optimizers.schedules.CosineDecay


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.4), (10**7, 0.4)],
)
def test_4_steps_to_0_4_by_hand(step, rate):
    assert float(WarmUp(0.4, 4)(step)) == np.float32(rate)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (1, 0.325), (2, 0.55), (4, 1.0), (9, 1.0)])
def test_a_rate_to_start_from_is_kept(step, rate):
    """Keras documents `CosineDecay` without it."""
    assert float(WarmUp(1.0, 4, initial_learning_rate=0.1)(step)) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(("initial", "rate"), [(0.058, 0.945), (0.7, 0.001)])
def test_full_rate_is_exact(initial, rate):
    """Unlike initial + (rate - initial) in float32."""
    assert np.float32(initial) + (np.float32(rate) - np.float32(initial)) != np.float32(rate)
    assert float(WarmUp(rate, 5, initial)(5)) == np.float32(rate)


def test_schedule_inside_counts_the_steps_of_the_warmup():
    schedule, inside = WarmUp(CosineDecay(0.1, 1000), 100), CosineDecay(0.1, 1000)
    assert float(schedule(1000)) == pytest.approx(0, abs=1e-9)
    for step in (100, 101, 500, 999):
        assert float(schedule(step)) == float(inside(step))
    top = 0.1 * (1 + math.cos(math.pi / 10)) / 2
    assert top == pytest.approx(0.0976, abs=5e-5)
    assert float(schedule(100)) == pytest.approx(top, rel=1e-6)
    assert float(schedule(50)) == pytest.approx(top / 2, rel=1e-6)
    assert float(schedule(99)) == pytest.approx(0.99 * top, rel=1e-6)


def test_keras_counts_decay_steps_from_the_end_of_the_warmup():
    of_keras = CosineDecay(0.0, 1000, warmup_target=0.1, warmup_steps=100)
    assert float(of_keras(1000)) > 1e-3
    assert float(of_keras(1100)) == pytest.approx(0, abs=1e-9)
    ours = recipe.make_schedule(0.1, 1000, 100, "cosine")
    assert float(ours(1000)) == pytest.approx(0, abs=1e-9)
    assert float(ours(100)) == pytest.approx(0.1)
    assert float(ours(50)) == pytest.approx(0.05)
    assert float(ours(550)) == pytest.approx(0.05)
    assert float(ours(0)) == 0


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 512**-0.5 * 4000**-1.5), (1999, 3.4939e-4), (3999, 6.9877e-4), (15_999, 3.4939e-4)],
)
def test_the_transformer_of_the_paper(step, rate):
    """Width 512 and 4,000 steps: the top is (512 * 4000)^-0.5, half of it at 1/2 and 4 times it."""
    schedule = InverseSquareRootDecay((512 * 4000) ** -0.5, 4000)
    assert float(schedule(step)) == pytest.approx(rate, rel=2e-5)


def test_both_branches_of_vaswani_meet_at_the_top():
    schedule = InverseSquareRootDecay(0.3, 10)
    rates = np.array([float(schedule(step)) for step in range(50)])
    assert rates.argmax() == 9 and rates[9] == np.float32(0.3)
    assert (np.diff(rates[:10]) > 0).all() and (np.diff(rates[9:]) < 0).all()


def test_keras_needs_a_float_to_warm_up_from():
    """What the card warns of. A failure here means that Keras has changed, and the card must."""
    of_keras = CosineDecay(0, 1000, warmup_target=0.1, warmup_steps=100)
    with pytest.raises(tf.errors.InvalidArgumentError):
        of_keras(50)
    assert float(recipe.make_schedule(1, 1000, 100, "cosine")(100)) == 1


def first_step(learning_rate):
    """Return how far Adam's first step goes: the rate, whatever the gradient."""
    optimizer = keras.optimizers.Adam(learning_rate)
    variable = keras.Variable(np.ones(1, "float32"))
    optimizer.build([variable])
    optimizer.apply([np.array([5.0], "float32")], [variable])
    return 1 - float(variable.numpy()[0])


def test_first_step_of_adam_is_as_long_as_the_first_rate():
    assert first_step(WarmUp(0.1, 10)) == 0
    assert first_step(WarmUp(0.1, 10, 0.02)) == pytest.approx(0.02, rel=1e-4)
    assert first_step(InverseSquareRootDecay(0.1, 10)) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"learning_rate": 0}, "learning_rate=0.0"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"warmup_steps": math.nan}, "warmup_steps=nan"),
        ({"initial_learning_rate": -1e-3}, "initial_learning_rate=-0.001"),
        ({"initial_learning_rate": math.nan}, "initial_learning_rate=nan"),
    ],
)
def test_nonsense_is_refused(arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        WarmUp(**{"learning_rate": 0.1, "warmup_steps": 10, **arguments})


def test_half_a_step_is_refused_and_a_whole_float_taken():
    with pytest.raises(ValueError, match=r"Received: warmup_steps=10\.5"):
        WarmUp(0.1, 10.5)
    assert WarmUp(0.1, 0.1 * 100).warmup_steps == 10


@pytest.mark.parametrize(
    ("arguments", "received"),
    [((0, 10), "learning_rate=0"), ((-1, 10), "learning_rate=-1"), ((0.1, 0), "warmup_steps=0")],
)
def test_nonsense_for_the_inverse_square_root_is_refused(arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        InverseSquareRootDecay(*arguments)


@pytest.mark.parametrize("warmup_steps", [-1, 100, 101])
def test_warmup_beyond_the_total_is_refused(warmup_steps):
    message = f"Received: warmup_steps={warmup_steps}, total_steps=100"
    with pytest.raises(ValueError, match=message):
        recipe.make_schedule(0.1, 100, warmup_steps)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="Received: decay='root'"):
        recipe.make_schedule(0.1, 100, 10, "root")
    with pytest.raises(ValueError, match="Received: optimizer='adamw'"):
        recipe.build_model(optimizer="adamw")


def test_without_warmup_and_decay_the_rate_is_the_float_itself():
    assert recipe.make_schedule(0.1, 100) == 0.1
    assert recipe.build_model(learning_rate=0.1).optimizer.get_config()["learning_rate"] == (
        pytest.approx(0.1)
    )


def test_model_warms_up_over_its_fraction_of_all_steps():
    optimizer = recipe.build_model(
        warmup_fraction=0.25, total_steps=200, learning_rate=0.4
    ).optimizer
    config = optimizer.get_config()["learning_rate"]["config"]
    assert config["warmup_steps"] == 50
    optimizer.iterations.assign(25)
    assert float(optimizer.learning_rate) == pytest.approx(0.2)


def test_integer_rates_are_rates():
    assert float(WarmUp(1, 2, 0)(1)) == 0.5
    assert float(WarmUp(1, 2, 0)(2)) == 1.0
    assert float(recipe.make_schedule(1, 2, decay="cosine")(2)) == 0.0
