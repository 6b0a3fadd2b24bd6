"""Model capacity: counts of weights, what a size can represent, and labels that mean nothing."""

import numpy as np
import pytest

import data
from recipes import model_capacity as recipe
from tests.conftest import assert_is_relu_network


@pytest.mark.parametrize(
    ("units", "hidden_layers", "expected"),
    [
        (5, 0, 65 * 10),
        (2, 1, 65 * 2 + 3 * 10),
        (32, 1, 65 * 32 + 33 * 10),
        (32, 4, 65 * 32 + 3 * 33 * 32 + 33 * 10),
    ],
)
def test_weights_are_as_many_as_width_and_depth_say(units, hidden_layers, expected):
    model = recipe.build_model(units=units, hidden_layers=hidden_layers)
    assert model.count_params() == expected


def test_network_starts_and_learns_as_written_out():
    model = recipe.build_model((8, 8), units=48, hidden_layers=2, learning_rate=0.2, seed=3)
    assert_is_relu_network(model, [48, 48], 0.2, momentum=0.9)


def test_as_many_units_as_samples_can_give_any_output_exactly():
    """Theorem 1 of Zhang et al.: weights for n samples, written down instead of trained.

    One direction tells all samples apart. Each unit has a threshold of its own between two samples,
    so that the matrix of hidden outputs is triangular, and can be solved for any targets.
    """
    samples, features, classes = 20, 6, 3
    generator = np.random.default_rng(0)
    x = generator.normal(size=(samples, features))
    targets = generator.normal(size=(samples, classes))
    direction = generator.normal(size=features)
    place = np.sort(x @ direction)
    thresholds = np.concatenate([[place[0] - 1], (place[:-1] + place[1:]) / 2])
    hidden = np.maximum((x @ direction)[:, np.newaxis] - thresholds, 0)
    model = recipe.build_model((features,), classes, units=samples)
    model.set_weights(
        [
            np.tile(direction[:, np.newaxis], samples),
            -thresholds,
            np.linalg.solve(hidden, targets),
            np.zeros(classes),
        ]
    )
    np.testing.assert_allclose(model(x.astype("float32")), targets, atol=2e-3)


def test_two_hidden_units_pass_on_two_numbers():
    """Whatever the weights, the logits of all samples lie in a plane: rank 2 about the bias."""
    generator = np.random.default_rng(1)
    model = recipe.build_model(units=2)
    model.set_weights([generator.normal(size=w.shape) for w in model.weights])
    x = generator.normal(size=(50, 64)).astype("float32")
    logits = np.asarray(model(x)) - model.get_weights()[-1]
    assert np.linalg.matrix_rank(logits, tol=1e-3) == 2


def test_without_hidden_layers_the_network_is_linear():
    model = recipe.build_model(hidden_layers=0)
    x = np.random.default_rng(2).normal(size=(2, 64)).astype("float32")
    one, other, mean = np.asarray(model(np.stack([*x, x.mean(axis=0)])))
    np.testing.assert_allclose((one + other) / 2, mean, atol=1e-5)


def test_ninety_percent_wrong_labels_of_ten_classes_say_nothing():
    """Each label, the true one included, is as likely as any other: chi-squared with 9 degrees."""
    noise = recipe.EXPERIMENTS["random_labels"]["label_noise"]
    split = data.load("digits", label_noise=noise)
    clean = data.load("digits")
    shift = (split.train.y - clean.train.y) % 10
    counts = np.bincount(shift, minlength=10)
    assert counts[0] == 100  # Exactly a tenth keep their label.
    assert np.sum((counts - 100) ** 2 / 100) < 27.9  # Passed by one draw in a thousand.


def test_memorized_counts_the_wrong_labels_that_come_back():
    split = data.load("digits", samples=100, label_noise=0.3)
    wrong = split.wrong_labels.train
    one_hot = np.eye(10, dtype="float32")
    looked_up = {x.tobytes(): one_hot[y] for x, y in zip(*split.train, strict=True)}

    def learned_by_heart(x):
        return np.stack([looked_up[np.asarray(row).tobytes()] for row in x])

    def always_seven(x):
        return np.tile(one_hot[7], (len(x), 1))

    assert recipe.measure(learned_by_heart, split) == {"memorized": 1.0}
    assert recipe.measure(always_seven, split)["memorized"] == np.mean(split.train.y[wrong] == 7)


@pytest.mark.parametrize(("name", "value"), [("units", 0), ("hidden_layers", -1)])
def test_impossible_sizes_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be >= .*Received: {name}={value}"):
        recipe.build_model(**{name: value})


def test_picture_joins_the_widths_in_order_of_their_size():
    def variant(parameters, train, test):
        means = {"train_accuracy": {"mean": train}, "test_accuracy": {"mean": test}}
        return {"parameters": parameters, "metrics": means}

    summary = {
        "experiments": {
            "clean": {
                "variants": {
                    "width_32": variant(2410, 1.0, 0.9),
                    "width_2": variant(160, 0.3, 0.25),
                    "linear": variant(650, 0.9, 0.85),
                }
            }
        }
    }
    (axes,) = recipe.illustrate(summary).axes
    training, other_training, test, other_test = (line.get_xydata().tolist() for line in axes.lines)
    assert training == [[160, 30.0], [2410, 100.0]]
    assert test == [[160, 25.0], [2410, 90.0]]
    assert (other_training, other_test) == ([[650, 90.0]], [[650, 85.0]])
