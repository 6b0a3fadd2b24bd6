"""Holds Keras's optimizers to the formulas of their papers, and Wilson's data to their theory."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
from recipes import optimizers as recipe

RATE = 0.01
GRADIENT = np.array([3.0, -0.5, 0.02], "float32")


def steps_of(optimizer, gradients, start=0.0):
    """Return what the optimizer adds to a vector at each of the gradients, `(steps, size)`."""
    gradients = np.asarray(gradients, "float32")
    variable = keras.Variable(np.full(gradients.shape[1:], start, "float32"))
    optimizer.build([variable])
    values = [variable.numpy()]
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [variable])
        values.append(variable.numpy())
    return np.diff(np.array(values, "float64"), axis=0)


def nadam_first_step():
    """Dozat's: momentum 0.9 (1 - 0.96^t / 2), the next one's taken ahead, bias corrected."""
    now, ahead = (0.9 * (1 - 0.96**t / 2) for t in (1, 2))
    return ahead * 0.1 / (1 - now * ahead) + (1 - now) / (1 - now)


ROOT = np.sqrt(0.1 * GRADIENT.astype("float64") ** 2 + 1e-7)
FIRST_STEPS = {
    "sgd": GRADIENT,
    "momentum": GRADIENT,
    "nesterov": 1.9 * GRADIENT,
    "adagrad": GRADIENT / np.sqrt(0.1 + GRADIENT.astype("float64") ** 2 + 1e-7),
    "adagrad_from_0": np.sign(GRADIENT),
    "rmsprop": GRADIENT / ROOT,  # 1 / sqrt(1 - 0.9) = 3.16 where epsilon is small.
    "adam": np.sign(GRADIENT),
    "adamw": np.sign(GRADIENT),  # From zero, where there is nothing to decay.
    "nadam": nadam_first_step() * np.sign(GRADIENT),
    "lion": np.sign(GRADIENT),
    "muon": np.sign(GRADIENT),  # A vector: Muon leaves it to AdamW.
}


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_first_step(name):
    (step,) = steps_of(recipe.make_optimizer(name, RATE), [GRADIENT])
    # Adam's epsilon of 1e-7 is 0.016% of 0.02 * sqrt(1 - 0.999).
    np.testing.assert_allclose(step, -RATE * FIRST_STEPS[name], rtol=3e-4)


def test_the_table_of_first_steps_has_every_optimizer():
    assert set(FIRST_STEPS) == {arguments["optimizer"] for arguments in recipe.VARIANTS.values()}


@pytest.mark.parametrize(
    "name, factor",
    [
        ("sgd", lambda t: 1.0 + 0 * t),
        ("momentum", lambda t: (1 - 0.9**t) / 0.1),
        ("adagrad_from_0", lambda t: 1 / np.sqrt(t)),
        ("adagrad", lambda t: 1 / np.sqrt(0.1 + t)),
        ("rmsprop", lambda t: 1 / np.sqrt(1 - 0.9**t)),
        ("adam", lambda t: 1.0 + 0 * t),
        ("lion", lambda t: 1.0 + 0 * t),
    ],
)
def test_steps_along_a_constant_gradient_of_one(name, factor):
    steps = steps_of(recipe.make_optimizer(name, RATE), np.ones((8, 1)))[:, 0]
    np.testing.assert_allclose(steps, -RATE * factor(np.arange(1.0, 9.0)), rtol=2e-4)


def test_adam_follows_its_algorithm_on_random_gradients():
    """Algorithm 1 of the paper, its epsilon moved as the remark at the end of section 2 says."""
    gradients = np.random.default_rng(0).standard_normal((12, 5))
    m, v, expected = np.zeros(5), np.zeros(5), []
    for t, g in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        expected.append(-RATE * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7))
    steps = steps_of(recipe.make_optimizer("adam", RATE), gradients)
    np.testing.assert_allclose(steps, expected, rtol=2e-3, atol=1e-7)


def test_lion_takes_the_sign_of_a_mixture_and_remembers_another():
    gradients = np.random.default_rng(1).standard_normal((12, 5))
    m, expected = np.zeros(5), []
    for g in gradients:
        expected.append(-RATE * np.sign(0.9 * m + 0.1 * g))
        m = 0.99 * m + 0.01 * g
    steps = steps_of(recipe.make_optimizer("lion", RATE), gradients)
    np.testing.assert_allclose(steps, expected, rtol=1e-3)


def test_epsilon_shortens_adams_first_step_at_a_gradient_of_1e_8():
    (step,) = steps_of(recipe.make_optimizer("adam", 1.0), [[1e-8]])
    paper = 1e-8 / (1e-8 + 1e-7)
    assert -step[0] == pytest.approx(1e-8 / (1e-8 + 1e-7 / np.sqrt(0.001)), rel=1e-3)
    assert paper / -step[0] == pytest.approx(29, abs=0.5)


def test_adamw_and_muon_shrink_weights_without_a_gradient_and_adam_does_not():
    for name, decay in {"adamw": 0.004, "muon": 0.004, "adam": 0.0, "lion": 0.0}.items():
        steps = steps_of(recipe.make_optimizer(name, 0.5), np.zeros((5, 2)), start=1.0)
        assert 1 + steps.sum(axis=0) == pytest.approx((1 - 0.5 * decay) ** 5, rel=1e-5)


def newton_schulz_of_singular_values(matrix):
    """Five steps of Jordan's quintic, on the singular values of the matrix over its norm."""
    left, values, right = np.linalg.svd(matrix / np.linalg.norm(matrix), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left, values, right


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (6, 6)])
def test_muon_makes_the_step_of_a_matrix_nearly_orthogonal(shape):
    gradient = np.random.default_rng(0).standard_normal(shape)
    (step,) = steps_of(recipe.make_optimizer("muon", RATE), [gradient])
    left, values, right = newton_schulz_of_singular_values(gradient)
    scale = RATE * 0.2 * max(shape) ** 0.5  # Keras's `rms_rate`: steps about as long as Adam's.
    np.testing.assert_allclose(-step / scale, left @ np.diag(values) @ right, atol=2e-3)
    if shape != (6, 6):
        assert 0.65 < values.min() and values.max() < 1.25


def test_muon_takes_hidden_matrices_only():
    model = recipe.build_model(optimizer="muon")
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    by_muon = [
        variable.path
        for variable, velocity in zip(
            model.trainable_variables, optimizer.adam_velocities, strict=True
        )
        if velocity is None
    ]
    assert by_muon == ["hidden_2/kernel", "hidden_3/kernel"]


@pytest.mark.parametrize(
    "name, slots",
    [
        ("sgd", 0),
        *((name, 1) for name in ("momentum", "nesterov", "adagrad", "rmsprop", "lion")),
        *((name, 2) for name in ("adam", "adamw", "nadam")),
    ],
)
def test_numbers_kept_for_each_weight(name, slots):
    optimizer = recipe.make_optimizer(name, RATE)
    optimizer.build([keras.Variable(np.zeros((4, 5), "float32"))])
    assert sum(v.shape == (4, 5) for v in optimizer.variables) == slots


def test_default_rates_are_those_of_keras():
    experiments = recipe.EXPERIMENTS
    for name in ("default_rates", "newer_defaults"):
        for variant, rate in experiments[name]["learning_rates"].items():
            default = type(recipe.make_optimizer(variant, 1.0))()
            assert float(default.learning_rate) == pytest.approx(rate)


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="optimizer='adamm'"):
        recipe.build_model(optimizer="adamm")


def test_adam_goes_to_the_wrong_end_and_amsgrad_to_the_right_one():
    """Reddi et al. 2018, theorem 1: f is 3x at every third step, else -x, on [-1, 1].

    The sum of three is x, least at -1. With beta_1 = 0 and beta_2 = 1 / (1 + 3^2) Adam ends at +1.
    """
    ends = {}
    for amsgrad in (False, True):
        optimizer = keras.optimizers.Adam(0.5, beta_1=0.0, beta_2=0.1, amsgrad=amsgrad)
        x = keras.Variable(0.0)
        optimizer.build([x])

        for t in range(300):
            optimizer.learning_rate = 0.5 / math.sqrt(t + 1)
            optimizer.apply([keras.ops.convert_to_tensor(3.0 if t % 3 == 0 else -1.0)], [x])
            x.assign(keras.ops.clip(x, -1.0, 1.0))
        ends[amsgrad] = float(x)
    assert ends[False] == pytest.approx(1.0, abs=0.1)
    assert ends[True] == pytest.approx(-1.0, abs=0.1)


@pytest.fixture(scope="module")
def wilson():
    """Wilson's data, as the bench gets them."""
    return recipe.prepare(data.load("xor", seed=0, samples=100), linear=True)


def test_wilson_samples_worked_by_hand():
    x = recipe.wilson_inputs(np.array([1, 0]), np.array([0, 1]))
    expected = [[1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], [-1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(x[:, :13], expected)


def test_wilson_parts_have_60_percent_of_class_1_and_share_no_block(wilson):
    for part in (wilson.train, wilson.validation, wilson.test):
        assert part.y.mean() == pytest.approx(recipe.POSITIVE_SHARE)
        assert part.x.shape == (len(part.y), wilson.train.x.shape[1])
    used = [part.x[:, 3:].any(axis=0) for part in (wilson.train, wilson.test)]
    assert not (used[0] & used[1]).any()
    assert wilson.train.x[:, 3:].astype(bool).sum(axis=0).max() == 1


def accuracy(weights, part):
    return np.mean((part.x @ weights > 0) == part.y)


def test_wilson_signs_fit_the_training_data_and_err_on_every_new_sample_of_class_0(wilson):
    """Adaptive methods go along sign(X'y); least squares of minimum norm generalizes."""
    x, y = wilson.train.x.astype("float64"), 2.0 * wilson.train.y - 1
    signs = np.sign(x.T @ y)
    assert accuracy(signs, wilson.train) == 1
    assert accuracy(signs, wilson.test) == pytest.approx(recipe.POSITIVE_SHARE)
    shortest = np.linalg.pinv(x) @ y
    assert accuracy(shortest, wilson.train) == accuracy(shortest, wilson.test) == 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad_from_0", "rmsprop"])
def test_wilson_ends_as_theory_says(wilson, name):
    rate = recipe.EXPERIMENTS["wilson"]["learning_rates"][name]
    shape = wilson.train.x.shape[1:]
    model = recipe.build_model(shape, optimizer=name, linear=True, learning_rate=rate)
    for _ in range(10):
        model.train_on_batch(*wilson.train)
    weights = model.get_weights()[0][:, 0]
    assert accuracy(weights, wilson.train) == 1
    expected = 1.0 if name == "sgd" else recipe.POSITIVE_SHARE
    assert accuracy(weights, wilson.test) == pytest.approx(expected)


def test_the_network_keeps_its_data():
    split = data.load("digits", samples=20)
    assert recipe.prepare(split) is split
