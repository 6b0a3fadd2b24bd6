"""Holds gradient clipping to its formula, and the recurrent network to its exploding gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes import gradient_clipping as recipe


def step(gradients, **clipping):
    """Return what SGD at rate 1 subtracts from each variable; the optimizer is the recipe's."""
    optimizer = recipe.build_model((2,), 2, learning_rate=1.0, **clipping).optimizer
    variables = [keras.Variable(np.zeros_like(gradient)) for gradient in gradients]
    optimizer.build(variables)
    optimizer.apply([tf.constant(gradient) for gradient in gradients], variables)
    return [-variable.numpy() for variable in variables]


def vector(*values):
    return np.array(values, "float32")


def clip(gradient, threshold):
    """The formula: g min(1, c / |g|)."""
    return gradient * min(1.0, threshold / np.linalg.norm(gradient))


@pytest.mark.parametrize("how", ["clipnorm", "global_clipnorm"])
@pytest.mark.parametrize("threshold", [0.5, 1.0, 5.0, 100.0])
def test_norm_clipping_follows_its_formula(how, threshold):
    gradient = vector(3, 4)
    (clipped,) = step([gradient], **{how: threshold})
    np.testing.assert_allclose(clipped, clip(gradient, threshold), rtol=1e-6)


def test_3_4_clipped_at_1_is_0_6_0_8():
    np.testing.assert_allclose(step([vector(3, 4)], global_clipnorm=1.0), [[0.6, 0.8]], rtol=1e-6)


def test_clipnorm_is_per_variable_and_global_clipnorm_is_not():
    gradients = [vector(3, 4), vector(0, 0.5)]
    whole = np.concatenate(gradients)
    np.testing.assert_allclose(step(gradients, clipnorm=1.0), [[0.6, 0.8], [0, 0.5]], rtol=1e-6)
    together = np.concatenate(step(gradients, global_clipnorm=1.0))
    np.testing.assert_allclose(together, clip(whole, 1.0), rtol=1e-6)


def cosine(one, other):
    return one @ other / (np.linalg.norm(one) * np.linalg.norm(other))


def test_value_clipping_changes_the_direction():
    gradient = vector(3, 4)
    (clipped,) = step([gradient], clipvalue=1.0)
    np.testing.assert_array_equal(clipped, [1, 1])
    assert cosine(clipped, gradient) == pytest.approx(7 / (5 * 2**0.5))
    (kept,) = step([gradient], global_clipnorm=1.0)
    assert cosine(kept, gradient) == pytest.approx(1)


@pytest.mark.parametrize("how", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_a_gradient_within_the_threshold_and_one_of_zero_are_left_alone(how):
    np.testing.assert_allclose(step([vector(0.3, -0.4)], **{how: 1.0}), [[0.3, -0.4]], rtol=1e-6)
    np.testing.assert_array_equal(step([vector(0, 0)], **{how: 1.0}), [[0, 0]])


def test_an_infinite_gradient_is_beyond_clipping_by_norm():
    gradient = vector(np.inf, 1)
    assert np.isnan(step([gradient], clipnorm=1.0)[0]).any()
    assert np.isnan(step([gradient], global_clipnorm=1.0)[0]).any()
    np.testing.assert_array_equal(step([gradient], clipvalue=1.0)[0], [1, 1])


def test_momentum_comes_after_clipping():
    """A constant gradient above the threshold moves by rate * threshold / (1 - momentum)."""
    optimizer = recipe.build_model((2,), 2, global_clipnorm=0.5, learning_rate=0.1).optimizer
    variable = keras.Variable(vector(0, 0))
    optimizer.build([variable])
    step = tf.function(lambda: optimizer.apply([tf.constant(vector(300, 400))], [variable]))
    for _ in range(150):
        before = variable.numpy()
        step()
    length = np.linalg.norm(variable.numpy() - before)
    assert length == pytest.approx(0.1 * 0.5 / (1 - recipe.MOMENTUM), rel=1e-4)


def descend(steps, **clipping):
    """Minimize (w^50 - 0.7)^2, a recurrence of 50 steps with one weight, from w = 1.15."""
    optimizer = keras.optimizers.SGD(1e-3, **clipping)
    w = keras.Variable(1.15)
    optimizer.build([w])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = (w.value**50 - 0.7) ** 2
        optimizer.apply([tape.gradient(loss, w.value)], [w])
        return w.value

    return np.array([step() for _ in range(steps)])


def test_a_recurrence_of_50_steps_diverges_at_step_1_without_clipping():
    path = descend(2)
    assert path[0] < -1e4
    assert not np.isfinite(path[1])


def test_it_reaches_the_optimum_with_clipping():
    optimum = 0.7 ** (1 / 50)
    assert optimum == pytest.approx(0.9929, abs=5e-5)
    path = descend(200, global_clipnorm=1.0)
    # Outside the valley every step is as long as the rate times the threshold.
    np.testing.assert_allclose(np.diff(path[:150]), -1e-3, rtol=1e-3)
    # In the valley it goes to and fro by less than that.
    np.testing.assert_allclose(sorted(path[-2:]), [0.9924, 0.9934], atol=5e-5)


@pytest.mark.parametrize("weight", [0.85, 1.0, 1.15])
def test_gradient_through_a_recurrence_is_a_power_of_its_weight(weight):
    layer = keras.layers.SimpleRNN(
        1,
        activation="linear",
        kernel_initializer="ones",
        recurrent_initializer=keras.initializers.Constant(weight),
        unroll=True,
    )
    x = tf.ones((1, 40, 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = layer(x)
    gradient = tape.gradient(output, x)[0, :, 0]
    np.testing.assert_allclose(gradient, weight ** np.arange(39, -1, -1), rtol=1e-4)


def test_recurrent_kernel_starts_as_the_identity():
    model = recipe.build_model()
    kernel = next(w for w in model.weights if "recurrent_kernel" in w.path)
    np.testing.assert_array_equal(kernel, np.eye(recipe.HIDDEN_UNITS))


def test_value_allows_gradients_about_as_long_as_the_norms_do():
    longest = recipe.CLIPVALUE * recipe.build_model().count_params() ** 0.5
    assert longest == pytest.approx(recipe.CLIPNORM, rel=0.2)


def test_rows_of_an_image_are_steps():
    model = recipe.build_model((8, 8), 10)
    assert model.layers[1].output.shape == (None, 8, 8)


def test_keras_takes_one_way_to_clip():
    with pytest.raises(ValueError, match="Only one of"):
        recipe.build_model(clipnorm=1.0, clipvalue=1.0)
