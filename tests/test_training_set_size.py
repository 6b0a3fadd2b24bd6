"""Training set size: repeated rows change nothing but the updates; least squares has its peak."""

import numpy as np
import pytest

import data
from recipes import training_set_size as recipe
from tests.conftest import assert_is_relu_network


def test_network_starts_and_learns_as_written_out():
    model = recipe.build_model((8, 8), units=48, learning_rate=0.2, seed=3)
    assert_is_relu_network(model, [48, 48], 0.2, momentum=0.9)


def test_repeated_rows_hold_every_sample_equally_often():
    split = data.load("digits", samples=25)
    repeated = recipe.prepare(split, rows_per_epoch=1000)
    assert repeated.train.x.shape == (1000, 8, 8)
    for start in range(0, 1000, 25):
        np.testing.assert_array_equal(repeated.train.x[start : start + 25], split.train.x)
        np.testing.assert_array_equal(repeated.train.y[start : start + 25], split.train.y)
    assert repeated.test is split.test and repeated.validation is split.validation
    assert recipe.prepare(split) is split


def test_as_many_rows_as_samples_are_the_samples():
    x, y = np.arange(7.0), np.arange(7)
    rows_x, rows_y = recipe.repeat_rows(x, y, 7)
    np.testing.assert_array_equal(rows_x, x)
    np.testing.assert_array_equal(rows_y, y)


def test_no_sample_may_be_left_out():
    with pytest.raises(ValueError, match=r"`rows` must be >= 7 samples\. Received: rows=6"):
        recipe.repeat_rows(np.arange(7.0), np.arange(7), 6)


def test_every_size_gets_the_same_number_of_updates():
    for experiment in recipe.EXPERIMENTS.values():
        rows = experiment["arguments"]["rows_per_epoch"]
        for variant in experiment["learning_rates"]:
            samples = recipe.VARIANTS[variant]["samples"]
            # A remainder would count some samples once more than others in the training metrics.
            assert rows % samples == 0


@pytest.mark.parametrize("repeats", [1, 40])
def test_least_squares_fits_few_samples_exactly_with_the_smallest_weights(repeats):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(6, 10)), np.array([0, 1, 2, 0, 1, 2])
    weights = recipe.fit_least_squares(np.tile(x, (repeats, 1)), np.tile(y, repeats), 3)
    np.testing.assert_allclose(recipe.predict_least_squares(weights, x), np.eye(3)[y], atol=1e-10)
    with_ones = np.hstack([x, np.ones((6, 1))])
    np.testing.assert_allclose(weights, np.linalg.pinv(with_ones) @ np.eye(3)[y], atol=1e-10)


def test_least_squares_is_where_gradient_descent_from_zero_ends():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(4, 8)), np.array([0, 1, 1, 0])
    inputs, targets = np.hstack([x, np.ones((4, 1))]), np.eye(2)[y]
    weights = np.zeros((9, 2))
    for _ in range(20_000):
        weights -= 0.02 * inputs.T @ (inputs @ weights - targets)
    np.testing.assert_allclose(recipe.fit_least_squares(x, y, 2), weights, atol=1e-8)


def test_many_samples_get_the_solution_of_the_normal_equations():
    split = data.load("wine")
    x = np.hstack([split.train.x.astype("float64"), np.ones((98, 1))])
    expected = np.linalg.solve(x.T @ x, x.T @ np.eye(3)[split.train.y])
    np.testing.assert_allclose(recipe.fit_least_squares(*split.train, 3), expected, atol=1e-8)


def excess_risk(samples, features, repeats, generator):
    """The mean squared error above that of the true weights, for independent normal inputs."""
    noise = generator.normal(size=(repeats, samples))
    x = generator.normal(size=(repeats, samples, features))
    # With true weights of 0 the fit is the fit to the noise, and its squared norm the excess.
    weights = np.linalg.pinv(x) @ noise[..., np.newaxis]
    return np.mean(np.sum(weights**2, axis=(1, 2)))


@pytest.mark.parametrize(
    ("samples", "expected"),
    # Above the number of features d: d / (n - d - 1). Below, by the symmetry of the
    # pseudo-inverse: n / (d - n - 1).
    [(8, 8 / 11), (15, 15 / 4), (26, 20 / 5), (40, 20 / 19)],
)
def test_fitted_noise_peaks_where_samples_are_as_many_as_weights(samples, expected):
    generator = np.random.default_rng(samples)
    assert excess_risk(samples, 20, 3000, generator) == pytest.approx(expected, rel=0.1)


def test_measure_compares_both_models_on_the_same_samples():
    split = data.load("digits", samples=50)
    measured = recipe.measure(None, split)
    weights = recipe.fit_least_squares(*split.train, 10)
    scores = recipe.predict_least_squares(weights, split.test.x)
    assert measured["least_squares_accuracy"] == np.mean(scores.argmax(1) == split.test.y)
    # 50 samples and 65 weights a class: the training part is fitted exactly.
    gap = 1 - measured["least_squares_accuracy"]
    assert measured["least_squares_gap"] == pytest.approx(gap)
    assert recipe.measure(None, recipe.prepare(split, 1000)) == pytest.approx(measured)


def test_picture_has_a_line_for_each_accuracy_that_was_measured():
    def interval(mean):
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}

    metrics = {"train_accuracy": interval(1.0), "test_accuracy": interval(0.8)}
    with_both = {**metrics, "least_squares_accuracy": interval(0.5)}
    summary = {
        "experiments": {
            "digits": {
                "variants": {
                    name: {"arguments": {"samples": samples}, "metrics": with_both}
                    for name, samples in {"samples_25": 25, "samples_50": 50}.items()
                }
            },
            "mnist1d": {
                "variants": {"samples_250": {"arguments": {"samples": 250}, "metrics": metrics}}
            },
        }
    }
    first, second = recipe.illustrate(summary).axes
    assert [len(axes.lines) for axes in (first, second)] == [3, 2]
    np.testing.assert_allclose(first.lines[2].get_xydata(), [[25, 50.0], [50, 50.0]])
    heights = first.collections[2].get_paths()[0].vertices[:, 1]  # Of the band around the line.
    assert (heights.min(), heights.max()) == pytest.approx((49.0, 51.0))


def test_picture_of_a_single_seed_has_no_bands():
    accuracy = {"mean": 0.8, "low": None, "high": None}
    variant = {"arguments": {"samples": 25}, "metrics": {"test_accuracy": accuracy}}
    (axes,) = recipe.illustrate({"experiments": {"digits": {"variants": {"one": variant}}}}).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[25, 80.0]])
    np.testing.assert_allclose(axes.collections[0].get_paths()[0].vertices[:, 1], 80.0)
