"""Holds momentum to the theory of the quadratic, whose paths are trained by Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
from recipes import momentum as recipe


@pytest.fixture(scope="module")
def quadratic():
    """The data of the quadratic, as the bench gets them."""
    return recipe.prepare(data.load("diabetes", samples=recipe.ROWS), linear=True)


def path_of(split, steps, **arguments):
    model = recipe.build_model((2,), linear=True, **arguments)
    return recipe.follow(model, *split.train, steps=steps).astype("float64")


def reference(start, steps, learning_rate, momentum, nesterov):
    """The textbook's recursion in NumPy; Nesterov's in the form that looks ahead."""
    curvatures = np.array([recipe.STEEP, recipe.FLAT])
    weights, velocity, path = start, np.zeros(2), [start]
    for _ in range(steps):
        at = weights + momentum * velocity if nesterov else weights
        velocity = momentum * velocity - learning_rate * curvatures * at
        weights = weights + velocity
        # Keras holds the point that the velocity leads to.
        path.append(weights + momentum * velocity if nesterov else weights)
    return np.array(path)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_paths_follow_the_recursions_of_polyak_and_sutskever(quadratic, momentum, nesterov):
    arguments = {"learning_rate": 0.009, "momentum": momentum, "nesterov": nesterov}
    path = path_of(quadratic, 40, **arguments)
    expected = reference(path[0], 40, **arguments)
    np.testing.assert_allclose(path, expected, atol=1e-5)


def test_momentum_zero_equals_plain_whatever_nesterov_says(quadratic):
    plain = path_of(quadratic, 20, learning_rate=0.015)
    same = path_of(quadratic, 20, learning_rate=0.015, momentum=0.0, nesterov=True)
    np.testing.assert_array_equal(plain, same)


def test_first_steps():
    """Plain and heavy ball: rate * g. Nesterov: (1 + momentum) * rate * g."""
    expected = {"plain": 0.1, "heavy_ball": 0.1, "nesterov": 0.19}
    for name, step in expected.items():
        model = recipe.build_model(learning_rate=0.1, **recipe.VARIANTS[name])
        variable = keras.Variable(np.zeros(3, "float32"))
        model.optimizer.build([variable])
        model.optimizer.apply([tf.constant([1.0, -2.0, 0.0])], [variable])
        np.testing.assert_allclose(variable, [-step, 2 * step, 0.0], rtol=1e-6)


def test_along_a_constant_gradient_the_step_grows_by_one_over_one_minus_momentum():
    optimizer = recipe.build_model(learning_rate=0.1, momentum=0.9).optimizer
    variable = keras.Variable(0.0)
    optimizer.build([variable])
    step = tf.function(lambda: optimizer.apply([tf.constant(1.0)], [variable]))
    positions = [0.0]
    for _ in range(150):
        step()
        positions.append(float(variable))
    steps = -np.diff(positions)
    expected = 0.1 * (1 - 0.9 ** np.arange(1, 151)) / (1 - 0.9)
    np.testing.assert_allclose(steps, expected, rtol=1e-3)


def test_best_settings_are_those_of_the_papers_at_condition_100():
    assert recipe.BEST_PLAIN_RATE == pytest.approx(2 / 101)
    assert recipe.BEST_HEAVY_BALL_RATE == pytest.approx(4 / 121)
    assert recipe.BEST_HEAVY_BALL_MOMENTUM == pytest.approx((9 / 11) ** 2)
    assert recipe.BEST_NESTEROV_MOMENTUM == pytest.approx(9 / 11)


def spectral_radius(curvature, learning_rate, momentum, nesterov=False):
    """Of the step's matrix on (weight, weight before)."""
    kept = 1 - learning_rate * curvature
    if nesterov:
        matrix = [[(1 + momentum) * kept, -momentum * kept], [1, 0]]
    else:
        matrix = [[kept + momentum, -momentum], [1, 0]]
    return np.abs(np.linalg.eigvals(np.array(matrix))).max()


def test_heavy_ball_optimum_beats_every_setting_around_it():
    def worst(learning_rate, momentum):
        ends = (recipe.STEEP, recipe.FLAT)
        return max(spectral_radius(h, learning_rate, momentum) for h in ends)

    best = worst(recipe.BEST_HEAVY_BALL_RATE, recipe.BEST_HEAVY_BALL_MOMENTUM)
    # At the optimum both directions shrink by sqrt(momentum) a step.
    assert best == pytest.approx(recipe.BEST_HEAVY_BALL_MOMENTUM**0.5, rel=1e-6)
    for rate in recipe.BEST_HEAVY_BALL_RATE * np.array([0.8, 0.95, 1.0, 1.05, 1.2]):
        for momentum in recipe.BEST_HEAVY_BALL_MOMENTUM + np.array([-0.1, -0.02, 0, 0.02, 0.1]):
            assert worst(rate, momentum) >= best - 1e-9


def test_trained_paths_take_as_many_steps_as_theory_says(quadratic):
    """Plain: ln(1e6) / -ln(99/101) = 690.8. The momentum methods are simulated in NumPy."""
    rates = recipe.EXPERIMENTS["best_by_theory"]["learning_rates"]
    steps = {}
    for name, rate in rates.items():
        arguments = {"momentum": 0.0, "nesterov": False, **recipe.VARIANTS[name]}
        path = path_of(quadratic, 800, learning_rate=rate, **arguments)
        steps[name] = recipe.describe_path(path)["steps_to_minimum"]
        expected = reference(path[0], 800, rate, **arguments)
        assert abs(steps[name] - recipe.describe_path(expected)["steps_to_minimum"]) <= 1
    assert steps["plain"] == 691
    assert steps["best_heavy_ball"] < steps["best_nesterov"] < steps["plain"] / 4


@pytest.mark.parametrize(
    "arguments, limit",
    [
        ({}, 2.0),
        ({"momentum": 0.9}, 2 * 1.9),
        ({"momentum": 0.9, "nesterov": True}, 2 * 1.9 / 2.8),
        ({"momentum": 0.5, "nesterov": True}, 2 * 1.5 / 2.0),
    ],
)
def test_largest_stable_rate(arguments, limit):
    """By the recursions, to which an earlier test holds the trained paths."""
    settings = {"momentum": 0.0, "nesterov": False, **arguments}
    inside = reference(np.ones(2), 400, 0.97 * limit / recipe.STEEP, **settings)
    beyond = reference(np.ones(2), 400, 1.03 * limit / recipe.STEEP, **settings)
    assert np.abs(inside[-20:, 0]).max() < 0.1
    assert np.abs(beyond[-20:, 0]).max() > 10


def test_near_the_limit_of_plain_descent_nesterov_diverges_and_heavy_ball_does_not(quadratic):
    rate = recipe.EXPERIMENTS["near_the_limit"]["learning_rates"]["nesterov"]
    for name, diverges in {"nesterov": True, "heavy_ball": False}.items():
        path = path_of(quadratic, 50, learning_rate=rate, **recipe.VARIANTS[name])
        assert (np.abs(path[-1]).max() > 1e6) == diverges


def test_nesterov_has_less_room_than_plain_descent_and_heavy_ball_more():
    momentum = recipe.MOMENTUM
    assert (1 + momentum) / (1 + 2 * momentum) < 1 < 1 + momentum
    for factor in (0.999, 1.001):
        limits = {False: 2 * (1 + momentum), True: 2 * (1 + momentum) / (1 + 2 * momentum)}
        for nesterov, limit in limits.items():
            assert (spectral_radius(1.0, factor * limit, momentum, nesterov) < 1) == (factor < 1)


def test_plain_descent_at_half_the_limit_solves_the_steep_direction_in_one_step(quadratic):
    path = path_of(quadratic, 30, learning_rate=1 / recipe.STEEP)
    assert np.abs(path[1:, 0]).max() < 1e-6
    assert np.all(np.diff(path[:, 1]) < 0)


def test_description_of_a_path_worked_by_hand():
    path = np.array([[3.0, 4.0], [-3.0, 4.0], [3.0, 4.0], [3.0, 0.0], [0.0, 0.0]])
    found = recipe.describe_path(path)
    assert found == {"path_length": (6 + 6 + 4 + 3) / 5, "sign_changes": 2, "steps_to_minimum": 4}
    assert recipe.describe_path(path[:3])["steps_to_minimum"] == 2  # It never came close.


def test_following_starts_at_the_initial_weights_and_leaves_the_model_alone(quadratic):
    model = recipe.build_model((2,), linear=True, momentum=0.9, learning_rate=0.01, seed=5)
    start = model.get_weights()[0]
    model.set_weights([start + 1])
    path = recipe.follow(model, *quadratic.train, steps=3)
    np.testing.assert_array_equal(path[0], start[:, 0])
    np.testing.assert_array_equal(model.get_weights()[0], start + 1)
    assert path.shape == (4, 2)


def test_loss_is_the_quadratic(quadratic):
    model = recipe.build_model((2,), linear=True)
    weights = np.array([[0.3], [-1.2]], "float32")
    model.set_weights([weights])
    loss = float(model.loss(quadratic.train.y, model(quadratic.train.x)))
    expected = (recipe.STEEP * 0.3**2 + recipe.FLAT * 1.2**2) / 2
    assert loss == pytest.approx(expected, rel=1e-5)
