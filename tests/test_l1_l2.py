"""L1, L2 and weight decay against closed forms, against scikit-learn, and against each other."""

import keras
import numpy as np
import pytest
import sklearn.linear_model
import tensorflow as tf

import data
from recipes import l1_l2 as recipe
from tests.conftest import assert_is_relu_network

generator = np.random.default_rng(5)


def normal(*shape):
    return generator.normal(size=shape).astype("float32")


def train_linear(x, y, rate, steps, **dense):
    """Return the weights after steps of plain gradient descent on all of `x`, from 0."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", **dense)
    model = keras.Sequential([keras.Input((x.shape[1],)), layer])
    model.compile(keras.optimizers.SGD(rate), "mse")
    every_step = np.tile(x, (steps, 1)), np.tile(y, steps)
    model.fit(*every_step, batch_size=len(x), shuffle=False, verbose=0)
    return model.get_weights()[0][:, 0]


def kernels_of(model):
    return [w for w in model.trainable_weights if w.path.endswith("kernel")]


def give_gradients(model, gradients):
    model.optimizer.apply(gradients, model.trainable_variables)


def test_network_without_penalties_starts_and_learns_as_written_out():
    model = recipe.build_model((8, 8), learning_rate=0.2, seed=3)
    assert_is_relu_network(model, [128, 128], 0.2)


def test_loss_is_written_out_right():
    model = recipe.build_model((6,), 3, l1=0.01, l2=0.02)
    model.set_weights([normal(*w.shape) for w in model.weights])  # The biases are not 0.
    x, y = normal(5, 6), np.array([0, 1, 2, 1, 0])
    logits = np.asarray(model(x), "float64")
    cross_entropy = np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(5), y])
    kernels = [w.numpy() for w in kernels_of(model)]
    assert len(kernels) == 3
    expected = cross_entropy + sum(0.01 * np.abs(k).sum() + 0.02 * (k**2).sum() for k in kernels)
    assert float(model.compute_loss(x, y, model(x))) == pytest.approx(expected, rel=1e-5)
    measured = recipe.measure(model, None)
    assert measured["penalty"] == pytest.approx(expected - cross_entropy, rel=1e-5)


@pytest.mark.parametrize("l2", [0.0, 0.05, 2.0])
def test_ridge_keeps_h_over_h_plus_2_l2(l2):
    """Keras's L2 has no factor 1/2: it adds 2 l2 to every curvature h."""
    curvatures = np.array([0.5, 1.0, 4.0])
    x = np.diag(np.sqrt(curvatures * len(curvatures) / 2))  # The loss has a mean and no 1/2.
    solution = np.array([1.0, -2.0, 3.0])
    regularizer = keras.regularizers.L2(l2)
    weights = train_linear(x, x @ solution, 0.2, 200, kernel_regularizer=regularizer)
    expected = solution * curvatures / (curvatures + 2 * l2)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def sparse_problem():
    x = generator.normal(size=(60, 12))
    true_weights = np.array([3.0, -2.0, 1.0] + 9 * [0.0])
    return x, x @ true_weights + 0.5 * generator.normal(size=60)


def test_soft_threshold_after_each_step_solves_the_lasso(sparse_problem):
    x, y = sparse_problem
    rate, l1 = 0.1, 0.6
    weights = train_linear(x, y, rate, 300, kernel_constraint=recipe.SoftThreshold(rate * l1))
    # Half of Keras's mean squared error, and so half of its penalty.
    lasso = sklearn.linear_model.Lasso(alpha=l1 / 2, fit_intercept=False, tol=1e-10).fit(x, y)
    np.testing.assert_allclose(weights, lasso.coef_, rtol=1e-4, atol=1e-6)
    assert 5 < (weights == 0).sum() < 12
    np.testing.assert_array_equal(weights == 0, lasso.coef_ == 0)


def test_l1_in_the_loss_comes_close_and_sets_nothing_to_zero(sparse_problem):
    x, y = sparse_problem
    rate, l1 = 0.01, 0.6
    weights = train_linear(x, y, rate, 600, kernel_regularizer=keras.regularizers.L1(l1))
    lasso = sklearn.linear_model.Lasso(alpha=l1 / 2, fit_intercept=False, tol=1e-10).fit(x, y)
    np.testing.assert_allclose(weights, lasso.coef_, atol=3 * rate * l1)
    assert (weights != 0).all()


def test_orthogonal_inputs_have_the_threshold_as_their_solution():
    """With h = 2 everywhere, the lasso shrinks the least-squares solution by l1 / 2."""
    inputs = 2 * np.eye(4)  # h = 2 * 4 / 4.
    solution = np.array([2.0, -0.31, 0.29, -0.1])
    constraint = recipe.SoftThreshold(0.25 * 0.6)
    weights = train_linear(inputs, inputs @ solution, 0.25, 60, kernel_constraint=constraint)
    np.testing.assert_allclose(weights, [1.7, -0.01, 0.0, 0.0], atol=1e-6)
    assert (weights[2:] == 0).all()


@pytest.mark.parametrize("amount", [0.0, 0.25, 10.0])
def test_soft_threshold_follows_its_formula(amount):
    w = np.array([-3.0, -0.25, -0.125, 0.0, 0.125, 0.25, 0.5, 4.0], "float32")
    expected = np.sign(w) * np.maximum(np.abs(w) - amount, 0)
    np.testing.assert_array_equal(recipe.SoftThreshold(amount)(w), expected)


def test_soft_threshold_survives_saving():
    config = keras.constraints.serialize(recipe.SoftThreshold(0.5))
    assert keras.constraints.deserialize(config).amount == 0.5


def test_decay_without_gradients_is_a_power():
    rate, decay, steps = 0.1, 0.5, 6
    for optimizer in ("adam", "sgd"):
        model = recipe.build_model(
            (6,), 3, weight_decay=decay, optimizer=optimizer, learning_rate=rate
        )
        before = [w.numpy() for w in kernels_of(model)]
        gradients = [tf.zeros(w.shape) for w in model.trainable_variables]
        for _ in range(steps):
            give_gradients(model, gradients)
        for kernel, start in zip(kernels_of(model), before, strict=True):
            np.testing.assert_allclose(kernel, start * (1 - rate * decay) ** steps, rtol=1e-5)


def test_decay_leaves_biases_gamma_and_beta_alone():
    model = recipe.build_model((6,), 3, weight_decay=1.0, batch_normalization=True)
    model.set_weights([np.ones(w.shape) for w in model.weights])
    give_gradients(model, [tf.zeros(w.shape) for w in model.trainable_variables])
    for weight in model.trainable_variables:
        expected = 0.9 if weight.path.endswith("kernel") else 1.0
        np.testing.assert_allclose(weight, expected, rtol=1e-6, err_msg=weight.path)


def test_keras_decays_biases_unless_told_not_to():
    """The trap that the recipe avoids."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, bias_initializer="ones")])
    model.compile(keras.optimizers.AdamW(0.1, weight_decay=1.0), "mse")
    give_gradients(model, [tf.zeros(w.shape) for w in model.trainable_variables])
    assert float(model.trainable_variables[1][0]) == pytest.approx(0.9)


def adam_with_l2_alone(l2, rate=0.01, steps=20):
    """Adam (Kingma and Ba 2015, the end of section 2) on l2 * w^2, from w = 1."""
    w, first, second = 1.0, 0.0, 0.0
    for step in range(1, steps + 1):
        gradient = 2 * l2 * w
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate_now = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        w -= rate_now * first / (np.sqrt(second) + 1e-7)
    return w


@pytest.mark.parametrize("l2", [1e-4, 1e-1])
def test_adam_with_l2_is_blind_to_its_size_where_data_give_no_gradient(l2):
    model = recipe.build_model((6,), 3, optimizer="adam", l2=l2, learning_rate=0.01)
    model.set_weights([np.ones(w.shape) for w in model.weights])
    for _ in range(20):
        with tf.GradientTape() as tape:
            penalty = tf.add_n(model.losses)
        kernels = kernels_of(model)
        of_kernel = dict(
            zip(map(id, kernels), tape.gradient(penalty, [k.value for k in kernels]), strict=True)
        )
        give_gradients(
            model, [of_kernel.get(id(w), tf.zeros(w.shape)) for w in model.trainable_variables]
        )
    weights = kernels_of(model)[0].numpy()
    np.testing.assert_allclose(weights, adam_with_l2_alone(l2), rtol=1e-4)
    assert abs(weights - adam_with_l2_alone(1.0)).max() < 0.005  # Ten thousand times the size.


def train_few_steps(**arguments):
    model = recipe.build_model((6,), 3, learning_rate=0.1, seed=2, **arguments)
    batches = np.random.default_rng(0).normal(size=(5, 8, 6)).astype("float32")
    for x in batches:
        y = np.arange(8) % 3
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        give_gradients(model, tape.gradient(loss, [w.value for w in model.trainable_variables]))
    return np.concatenate([k.numpy().ravel() for k in kernels_of(model)])


def test_in_plain_sgd_decay_of_twice_l2_is_l2():
    difference = train_few_steps(l2=0.05) - train_few_steps(weight_decay=0.1)
    assert np.abs(difference).max() < 1e-6
    assert np.abs(train_few_steps(l2=0.05) - train_few_steps()).max() > 1e-3


def test_proximal_step_follows_the_gradient_step():
    x, y = normal(8, 6), np.arange(8) % 3
    model = recipe.build_model((6,), 3, proximal_l1=0.05, learning_rate=0.2)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    weights = model.trainable_variables
    gradients = tape.gradient(loss, [w.value for w in weights])
    before = [w.numpy() for w in weights]
    give_gradients(model, gradients)
    for weight, start, gradient in zip(weights, before, gradients, strict=True):
        expected = start - 0.2 * gradient.numpy()
        if weight.path.endswith("kernel"):
            expected = np.sign(expected) * np.maximum(np.abs(expected) - 0.2 * 0.05, 0)
        np.testing.assert_allclose(weight, expected, atol=1e-6)


def test_under_normalization_size_means_nothing_to_the_data_and_all_to_the_penalty():
    """Section 2 of van Laarhoven: L(c w) = L(w), so the gradient is at right angles to w."""
    model = recipe.build_model((6,), 3, batch_normalization=True, l2=0.01)
    hidden = kernels_of(model)[:-1]
    assert len(model.losses) == len(hidden) == 2  # The kernel of the outputs has no penalty.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = 0.0  # The equality holds up to epsilon.
    x, y = normal(32, 6), np.arange(32) % 3
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        loss = model.loss(y, logits)
    penalty = sum(map(float, model.losses))
    for kernel, gradient in zip(
        hidden, tape.gradient(loss, [k.value for k in hidden]), strict=True
    ):
        size = np.linalg.norm(kernel) * np.linalg.norm(gradient)
        assert abs(np.sum(kernel * gradient)) < 1e-5 * size
    for kernel in hidden:
        kernel.assign(0.5 * kernel)
    np.testing.assert_allclose(model(x, training=True), logits, rtol=1e-4, atol=1e-5)
    assert sum(map(float, model.losses)) == pytest.approx(penalty / 4, rel=1e-5)


def test_normalization_stands_before_each_relu_and_keeps_nine_tenths_of_its_statistics():
    model = recipe.build_model((6,), 3, batch_normalization=True)
    x = normal(20, 6)
    *kernels, last = (k.numpy() for k in kernels_of(model))
    expected = x
    for kernel in kernels:
        z = expected @ kernel
        expected = np.maximum((z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-3), 0)
    np.testing.assert_allclose(model(x, training=True), expected @ last, rtol=1e-3, atol=1e-4)
    first = next(n for n in model.layers if isinstance(n, keras.layers.BatchNormalization))
    np.testing.assert_allclose(first.moving_mean, 0.1 * (x @ kernels[0]).mean(axis=0), atol=1e-5)


def test_factors_of_zero_leave_nothing_behind():
    model = recipe.build_model()
    assert model.losses == []
    assert model.optimizer.weight_decay is None
    assert all(layer.kernel_constraint is None for layer in model.layers[2::2])


def test_measure_counts_norm_and_zeros_over_the_kernels():
    model = recipe.build_model((2,), 2)
    model.set_weights([np.full(w.shape, 3.0) for w in model.weights])
    first = kernels_of(model)[0]
    first.assign(np.vstack([np.zeros(128), np.full(128, 1e-30)]))
    others = 128 * 128 + 128 * 2
    measured = recipe.measure(model, None)
    assert measured["weight_norm"] == pytest.approx(3 * np.sqrt(others))
    assert measured["zero_weights"] == pytest.approx(128 / (others + 256))
    assert measured["penalty"] == 0


def test_blank_inputs_are_those_without_a_single_value():
    split = data.load("digits", samples=1000)
    flat = split.train.x.reshape(1000, 64)
    blank = flat.max(axis=0) == 0
    assert 3 <= blank.sum() < 10  # Three corners of the digits are blank in every sample.
    model = recipe.build_model((8, 8), seed=4)
    kernel = kernels_of(model)[0]
    assert recipe.measure_blank_inputs(model, split)["blank_weights"] == 1.0
    kernel.assign(kernel.numpy() * np.where(blank, 0.25, 7.0)[:, np.newaxis])
    measured = recipe.measure_blank_inputs(model, split)
    assert measured.pop("blank_weights") == pytest.approx(0.25)
    assert measured == recipe.measure(model, split)


@pytest.mark.parametrize("name", ["l1", "l2", "proximal_l1", "weight_decay"])
def test_negative_factors_are_refused(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be >= 0\. Received: {name}=-0\.1"):
        recipe.build_model(**{name: -0.1})


def test_other_misuse_is_refused():
    with pytest.raises(ValueError, match=r"`amount` must be >= 0\. Received: amount=-1"):
        recipe.SoftThreshold(-1)
    with pytest.raises(ValueError, match=r"must be \"sgd\" or \"adam\"\. Received: 'lion'"):
        recipe.build_model(optimizer="lion")
    with pytest.raises(ValueError, match=r"`proximal_l1` needs SGD.*Received: optimizer='adam'"):
        recipe.build_model(proximal_l1=0.1, optimizer="adam")
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    with pytest.raises(ValueError, match="`proximal_l1` needs SGD and a number"):
        recipe.build_model(proximal_l1=0.1, learning_rate=schedule)
