"""Holds the escape from a saddle and the double well to their closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
from recipes import saddle_points as recipe

RATE = 0.1


def points_model(surface="saddle", **arguments):
    return recipe.build_model((1,), surface=surface, **arguments)


@pytest.mark.parametrize("surface", recipe.SURFACES)
def test_loss_is_the_height_and_its_gradient_that_of_each_point_alone(surface):
    model = points_model(surface)
    points = np.random.default_rng(0).standard_normal((recipe.POINTS, 2)).astype("float32")
    model.set_weights([points])
    x, y = points.T.astype("float64")
    if surface == "saddle":
        heights, slopes = x**2 / 2 - y**2 / 2 + y**4 / 4, np.stack([x, y**3 - y], axis=1)
    else:
        heights, slopes = x**4 / 4 - x**2 / 2 + 0.2 * x, np.stack([x**3 - x + 0.2, 0 * y], axis=1)
    inputs, targets = np.zeros((3, 1), "float32"), np.full(3, 7.0, "float32")
    with tf.GradientTape() as tape:
        loss = model.loss(targets, model(inputs, training=True))
    gradient = tape.gradient(loss, [model.trainable_variables[0].value])[0]
    assert float(loss) == pytest.approx(heights.sum(), rel=1e-4)
    np.testing.assert_allclose(gradient, slopes, atol=1e-5)


def test_distance_grows_by_one_plus_rate_a_step_near_the_saddle():
    y = recipe.follow(points_model(learning_rate=RATE), 60)[:, :, 1].astype("float64")
    np.testing.assert_allclose(y[60] / y[0], (1 + RATE) ** 60, rtol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_escape_takes_the_steps_of_the_closed_form(momentum):
    """ln(0.5 / distance) / ln(z), z the largest root of z² - (1 + m + rate) z + m = 0."""
    model = points_model(learning_rate=RATE, momentum=momentum)
    path = recipe.follow(model, recipe.STEPS)
    distance = np.abs(path[0, :, 1].astype("float64"))
    growth = np.roots([1, -(1 + momentum + RATE), momentum]).max()
    # From rest, momentum has to build up: that is the factor in front.
    other = momentum / growth
    amplitude = (1 + RATE - other) / (growth - other) if momentum else 1.0
    expected = np.log(0.5 / (amplitude * distance)) / np.log(growth)
    result = recipe.measure_saddle(model, None)
    assert result["escaped"] == 1
    # The quartic slows the last steps, and steps are whole.
    assert result["escape_steps"] == pytest.approx(expected.mean(), abs=3)


def test_sum_of_the_rates_decides_on_escape():
    """Decay by 1% sums to 10 and does not escape from 1e-8, which needs about ln(5e7) = 17.7."""
    needed = np.log(0.5 / recipe.DISTANCE)
    assert needed == pytest.approx(17.7, abs=0.05)
    for kind, escaped in {"fast_decay": 0.0, "slow_decay": 1.0}.items():
        schedule = recipe.make_schedule(kind, RATE, recipe.STEPS)
        total = float(np.sum(schedule(np.arange(recipe.STEPS))))
        assert (total > needed) == bool(escaped)
        model = points_model(schedule=kind, learning_rate=RATE)
        assert recipe.measure_saddle(model, None)["escaped"] == escaped


def test_schedules_worked_by_hand():
    fast = recipe.make_schedule("fast_decay", 0.1, 400)
    slow = recipe.make_schedule("slow_decay", 0.1, 400)
    for step in (0, 1, 100):
        assert float(fast(step)) == pytest.approx(0.1 * 0.99**step, rel=1e-5)
        assert float(slow(step)) == pytest.approx(0.1 * 0.999**step, rel=1e-5)
    assert recipe.make_schedule("constant", 0.1, 400) == 0.1
    restarts = recipe.make_schedule("restarts", 0.1, 400)
    expected = {0: 0.2, 10: 0.1 * (1 + np.cos(np.pi / 4)), 20: 0.1, 40: 0.2, 60: 0.1}
    for step, rate in expected.items():
        assert float(restarts(step)) == pytest.approx(rate, rel=1e-3)
    mean = np.mean([float(restarts(step)) for step in range(40)])  # Every cycle is the same.
    assert mean == pytest.approx(0.1, rel=0.03)


def test_a_point_exactly_on_the_ridge_stays_without_noise_and_leaves_with_it():
    for noise, escapes in ((0.0, False), (recipe.NOISE, True)):
        layer = recipe.Points("saddle", noise, seed=1)
        layer.build((None, 1))
        layer.points.assign(np.tile(np.array([[1.0, 0.0]], "float32"), (recipe.POINTS, 1)))
        optimizer = keras.optimizers.SGD(RATE)
        optimizer.build([layer.points])

        @tf.function
        def descend(layer=layer, optimizer=optimizer):
            for _ in tf.range(200):
                with tf.GradientTape() as tape:
                    total = tf.reduce_sum(layer(tf.zeros((1, 1)), training=True))
                gradient = tape.gradient(total, layer.points.value)
                optimizer.apply([gradient], [layer.points])

        descend()
        y = layer.points.numpy()[:, 1]
        assert np.all(np.abs(y) > 0.5) if escapes else np.all(y == 0)


def test_noise_has_the_standard_deviation_asked_for_and_none_at_inference():
    layer = recipe.Points("double_well", noise=0.3, seed=2)
    layer.build((None, 1))
    gradients = {}
    for training in (False, True):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(tf.zeros((1, 1)), training=training))
        gradients[training] = tape.gradient(total, layer.points.value).numpy()
    noise = gradients[True] - gradients[False]
    assert noise.std() == pytest.approx(0.3, rel=0.1)
    assert abs(noise.mean()) < 0.05
    x = layer.points.numpy()[:, 0]
    np.testing.assert_allclose(gradients[False][:, 0], x**3 - x + recipe.TILT, atol=1e-6)


def test_minima_and_barrier_of_the_double_well():
    roots = np.sort(np.roots([1, 0, -1, recipe.TILT]).real)
    assert roots == pytest.approx([-1.09, recipe.BARRIER, 0.88], abs=5e-3)
    heights = recipe.double_well(np.stack([roots, roots], axis=1))
    assert heights[0] < heights[2] < heights[1]
    assert roots[1] < recipe.BARRIER
    start = points_model("double_well").get_weights()[0][:, 0]
    assert recipe.BARRIER <= start.min() and start.max() <= 1.5


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_small_steps_end_in_the_minimum_of_the_side_they_start_on(rate):
    """Below 1 / curvature no step crosses: on this side of the barrier all points stay."""
    path = recipe.follow(points_model("double_well", learning_rate=rate), 400)[:, :, 0]
    assert path.min() > recipe.BARRIER - 1e-3


def test_the_better_minimum_is_too_sharp_for_the_rate_1():
    """Stable below 2 / curvature, 3 x² - 1: up to 0.79 at the better one, 1.5 at the other."""
    roots = np.sort(np.roots([1, 0, -1, recipe.TILT]).real)
    limits = 2 / (3 * roots**2 - 1)
    assert limits[0] < 1.0 < limits[2]
    for place, stays in ((roots[0], False), (roots[2], True)):
        near = place + 0.01
        for _ in range(50):
            near -= near**3 - near + recipe.TILT
        assert (abs(near - place) < 0.05) == stays


def test_seeds_start_elsewhere_and_settings_do_not_change_the_start():
    start = points_model(seed=3).get_weights()[0]
    same = points_model(seed=3, momentum=0.9, noise=0.1, schedule="restarts").get_weights()[0]
    np.testing.assert_array_equal(start, same)
    assert (points_model(seed=4).get_weights()[0] != start).any()


def test_following_starts_at_the_start_and_repeats():
    model = points_model(noise=recipe.NOISE, seed=6)
    start = model.get_weights()[0]
    first, second = recipe.follow(model, 5), recipe.follow(model, 5)
    np.testing.assert_array_equal(first[0], start)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(model.get_weights()[0], start)


def test_network_starts_near_a_saddle():
    """All weights close to zero: so are all gradients but that of the output's bias."""
    split = data.load("digits", samples=100)
    model = recipe.build_model(split.input_shape, 10)
    with tf.GradientTape() as tape:
        loss = model.loss(split.train.y, model(split.train.x))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
    assert float(loss) == pytest.approx(np.log(10), abs=1e-3)
    assert max(float(tf.norm(g)) for g in gradients[:-1]) < 0.02


def test_saved_model_of_points_loads(tmp_path):
    model = points_model("double_well", noise=0.2, seed=8)
    model.save(tmp_path / "points.keras")
    loaded = keras.models.load_model(tmp_path / "points.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize(
    "arguments, message",
    [({"surface": "hill"}, "surface='hill'"), ({"schedule": "cyclic"}, "schedule='cyclic'")],
)
def test_names_that_are_not_known(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.build_model(**arguments)


def test_an_epoch_has_the_steps_that_the_experiments_say():
    for name in ("saddle", "double_well"):
        experiment = recipe.EXPERIMENTS[name]
        split = recipe.prepare(data.load(experiment["data"], samples=20), surface=name)
        steps = split.samples // experiment["batch_size"]
        assert steps * experiment["epochs"] == recipe.STEPS
    split = data.load("digits", samples=20)
    assert recipe.prepare(split) is split
