"""The ensemble: each network trains as alone, the average obeys its inequalities, by hand."""

import keras
import numpy as np
import pytest

import data
from recipes import ensemble as recipe

generator = np.random.default_rng(21)
LOGITS = generator.normal(0.0, 3.0, (30, 4, 5)).astype("float32")
LABELS = generator.integers(0, 5, 30)


def softmax(logits):
    exponentials = np.exp(logits.astype("float64"))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def likelihood_losses(probabilities, labels):
    return np.array([-np.log(p[label]) for p, label in zip(probabilities, labels, strict=True)])


def weights_of(model, network):
    """Return the variables of one network, counted from 1, in the order of its layers."""
    layers = [layer for layer in model.layers if layer.name.startswith(f"network_{network}_")]
    return [variable for layer in layers for variable in layer.weights]


@pytest.fixture(scope="module")
def trained():
    """Three networks as one model, and each of them alone, after the same six steps."""
    x = generator.normal(size=(24, 6)).astype("float32")
    y = generator.integers(0, 3, 24)

    def fit(model):
        model.run_eagerly = True  # Six steps take less time than tracing.
        history = model.fit(
            x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_data=(x, y)
        )
        return model, history.history

    build = {"input_shape": (6,), "classes": 3, "units": 8, "seed": 4}
    together = recipe.build_model(members=3, **build)
    alone = []
    for network in (1, 2, 3):
        model = recipe.build_model(members=1, **build)
        pairs = zip(weights_of(model, 1), weights_of(together, network), strict=True)
        for variable, start in pairs:
            variable.assign(start)
        alone.append(fit(model))
    return *fit(together), alone, x, y


def test_each_network_trains_exactly_as_alone(trained):
    together, _, alone, _, _ = trained
    for network, (model, _) in enumerate(alone, start=1):
        pairs = zip(weights_of(together, network), weights_of(model, 1), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
            assert np.abs(one).max() > 0


def test_training_loss_is_the_sum_and_accuracy_the_mean(trained):
    _, history, alone, _, _ = trained
    losses = [of_one["loss"] for _, of_one in alone]
    np.testing.assert_allclose(history["loss"], np.sum(losses, axis=0), rtol=1e-5)
    accuracies = [of_one["accuracy"] for _, of_one in alone]
    np.testing.assert_allclose(history["accuracy"], np.mean(accuracies, axis=0), rtol=1e-5)


def test_validation_is_of_the_average(trained):
    together, history, alone, x, y = trained
    average = np.mean([softmax(np.array(model(x))) for model, _ in alone], axis=0)
    expected = likelihood_losses(average, y).mean()
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-5)
    assert history["val_accuracy"][-1] == pytest.approx(np.mean(average.argmax(axis=1) == y))
    np.testing.assert_allclose(np.exp(together.predict(x, verbose=0)), average, atol=1e-6)


def test_networks_of_an_ensemble_of_any_size_start_alike():
    small, large = (recipe.build_model(members=members, seed=3) for members in (2, 4))
    for network in (1, 2):
        pairs = zip(weights_of(small, network), weights_of(large, network), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


def test_networks_start_from_different_weights():
    model = recipe.build_model(members=3)
    first, second, third = (np.array(weights_of(model, network)[0]) for network in (1, 2, 3))
    assert (first != second).any() and (second != third).any() and (first != third).any()


def test_one_network_has_the_loss_of_a_plain_one():
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = float(recipe.SumOfCrossentropies()(LABELS, LOGITS[:, 0]))
    assert loss == pytest.approx(float(plain(LABELS, LOGITS[:, 0])), rel=1e-6)


def test_sum_of_crossentropies_by_hand():
    expected = sum(likelihood_losses(softmax(LOGITS[:, m]), LABELS).mean() for m in range(4))
    assert float(recipe.SumOfCrossentropies()(LABELS, LOGITS)) == pytest.approx(expected, rel=1e-5)
    column = recipe.SumOfCrossentropies()(LABELS[:, np.newaxis], LOGITS)
    assert float(column) == pytest.approx(expected, rel=1e-5)


def test_average_in_inference_mode_and_all_logits_in_training_mode():
    layer = recipe.LogMeanProbability()
    averaged = np.exp(layer(LOGITS, training=False))
    np.testing.assert_allclose(averaged, softmax(LOGITS).mean(axis=1), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(averaged.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(layer(LOGITS, training=True), LOGITS)
    np.testing.assert_allclose(
        recipe.mean_probabilities(LOGITS), softmax(LOGITS).mean(axis=1), rtol=1e-5
    )


def test_loss_of_the_average_is_at_most_the_mean_loss_of_every_sample():
    """Jensen's inequality, -log being convex."""
    average = np.exp(recipe.LogMeanProbability()(LOGITS, training=False))
    of_average = likelihood_losses(average, LABELS)
    mean = np.mean([likelihood_losses(softmax(LOGITS[:, m]), LABELS) for m in range(4)], axis=0)
    assert (of_average < mean).all()


def test_equal_networks_gain_nothing():
    equal = np.repeat(LOGITS[:, :1], 3, axis=1)
    average = np.exp(recipe.LogMeanProbability()(equal, training=False))
    np.testing.assert_allclose(average, softmax(LOGITS[:, 0]), rtol=1e-4, atol=1e-7)


def test_two_that_disagree_by_hand():
    """(.9, .1) and (.3, .7) average to (.6, .4): loss of class 0 .511 against a mean of .655."""
    logits = np.log([[[0.9, 0.1], [0.3, 0.7]]]).astype("float32")
    np.testing.assert_allclose(
        np.exp(recipe.LogMeanProbability()(logits))[0], [0.6, 0.4], rtol=1e-5
    )
    assert -np.log(0.6) == pytest.approx(0.511, abs=1e-3)
    assert -np.log([0.9, 0.3]).mean() == pytest.approx(0.655, abs=1e-3)


def test_averaged_logits_are_another_method():
    logits = np.log([[[0.9, 0.1], [0.3, 0.7]]])
    geometric = softmax(logits.mean(axis=1))[0]
    assert geometric[0] == pytest.approx(np.sqrt(0.27) / (np.sqrt(0.27) + np.sqrt(0.07)))
    assert abs(geometric[0] - 0.6) > 0.05


def test_squared_error_of_the_average_is_mean_error_minus_diversity():
    """Krogh and Vedelsby (1995), an identity: here with probabilities against one-hot labels."""
    probabilities = softmax(LOGITS)
    average = recipe.mean_probabilities(LOGITS.astype("float64"))
    targets = np.eye(5)[LABELS]
    error = np.mean((average - targets) ** 2)
    mean_error = np.mean((probabilities - targets[:, np.newaxis]) ** 2)
    diversity = np.mean((probabilities - average[:, np.newaxis]) ** 2)
    assert error == pytest.approx(mean_error - diversity, rel=1e-9)


def test_certain_networks_do_not_overflow():
    logits = np.array([[[1e4, 0.0], [0.0, 1e4]]], "float32")
    averaged = np.array(recipe.LogMeanProbability()(logits))
    np.testing.assert_allclose(averaged, np.log([[0.5, 0.5]]), rtol=1e-5)
    assert recipe.likelihood_loss(np.array([[1.0, 0.0]]), np.array([1])) < 1e3


@pytest.mark.parametrize("members", [0, -1])
def test_fewer_than_one_network_is_refused(members):
    with pytest.raises(ValueError, match=f"must be >= 1. Received: members={members}"):
        recipe.build_model(members=members)


def test_saved_model_predicts_the_average(tmp_path, trained):
    together, _, _, x, _ = trained
    together.save(tmp_path / "ensemble.keras")
    loaded = keras.saving.load_model(tmp_path / "ensemble.keras")
    np.testing.assert_array_equal(loaded(x), together(x))
    np.testing.assert_array_equal(recipe.members_of(loaded)(x), recipe.members_of(together)(x))


def test_measures_agree_with_a_slow_count(trained):
    together, _, alone, x, y = trained
    part = data.Part(x, y)

    class Split:
        validation, test = part, part

    metrics = recipe.measure(together, Split)
    probabilities = [softmax(np.array(model(x))) for model, _ in alone]
    accuracies = [np.mean(p.argmax(axis=1) == y) for p in probabilities]
    losses = [likelihood_losses(p, y).mean() for p in probabilities]
    assert metrics["mean_network_accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics["mean_network_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["best_network_accuracy"] == pytest.approx(max(accuracies))
    pair = likelihood_losses(np.mean(probabilities[:2], axis=0), y).mean()
    assert metrics["up_to_2_loss"] == pytest.approx(pair, rel=1e-5)
    everyone = likelihood_losses(np.mean(probabilities, axis=0), y).mean()
    assert metrics["up_to_5_loss"] == pytest.approx(everyone, rel=1e-5)
    assert metrics["sampled_loss"] == pytest.approx(everyone, rel=1e-5)  # There is no dropout.


def test_dropout_differs_between_passes_and_not_at_inference():
    model = recipe.build_model((6,), 3, dropout_rate=0.5)
    networks = recipe.members_of(model)
    x = generator.normal(size=(5, 6)).astype("float32")
    assert np.abs(networks(x, training=True) - networks(x, training=True)).max() > 0
    np.testing.assert_array_equal(networks(x, training=False), networks(x, training=False))


def test_calibration_error_of_a_table_worked_by_hand():
    """Two bins: (0, .5] has .5 wrong: gap .5; (.5, 1] has .6 right, .8 wrong, 1 right: gap .1333.

    (1 * .5 + 3 * .1333) / 4 = 0.225
    """
    confidence = np.array([0.5, 0.6, 0.8, 1.0])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([1, 0, 1, 0])
    error = recipe.calibration_error(probabilities, labels, bins=2)
    assert error == pytest.approx((0.5 + abs(2 - 2.4)) / 4)
