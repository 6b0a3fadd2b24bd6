"""Label smoothing: its target and optimum in closed form, calibration against worked tables."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes import label_smoothing as recipe

generator = np.random.default_rng(11)
LOGITS = generator.normal(0.0, 3.0, (6, 4)).astype("float32")
LABELS = np.array([0, 1, 2, 3, 3, 0])


def smoothed_targets(labels, classes, amount):
    """Write the targets out, one by one."""
    targets = np.full((len(labels), classes), amount / classes)
    for row, label in enumerate(labels):
        targets[row, label] += 1.0 - amount
    return targets


def loss_by_hand(logits, labels, amount):
    logits = logits.astype("float64")
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = smoothed_targets(labels, logits.shape[1], amount)
    return -(targets * log_probabilities).sum(axis=1).mean()


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5, 1.0])
def test_loss_is_the_cross_entropy_with_the_smoothed_target(amount):
    loss = recipe.SmoothedCrossentropy(amount)(LABELS, LOGITS)
    assert float(loss) == pytest.approx(loss_by_hand(LOGITS, LABELS, amount), rel=1e-5)


@pytest.mark.parametrize("amount", [0.0, 0.1, 1.0])
def test_integer_labels_give_what_keras_gives_for_one_hot_labels(amount):
    peer = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=amount)
    expected = peer(keras.ops.one_hot(LABELS, 4), LOGITS)
    assert float(recipe.SmoothedCrossentropy(amount)(LABELS, LOGITS)) == float(expected)
    column = recipe.SmoothedCrossentropy(amount)(LABELS[:, np.newaxis], LOGITS)
    assert float(column) == float(expected)


def test_target_of_a_tenth_among_ten_classes():
    """Szegedy et al. (2016), section 7, with K = 10: .91 for the label, .01 for each other."""
    logits = tf.Variable(np.zeros((1, 10), "float32"))
    with tf.GradientTape() as tape:
        loss = recipe.SmoothedCrossentropy(0.1)(np.array([3]), logits)
    targets = 0.1 - tape.gradient(loss, logits).numpy()[0]  # The gradient is p - target.
    np.testing.assert_allclose(targets, np.where(np.arange(10) == 3, 0.91, 0.01), atol=1e-7)


def test_gradient_by_the_logits_is_probability_minus_target():
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        loss = recipe.SmoothedCrossentropy(0.2)(LABELS, logits)
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = (probabilities - smoothed_targets(LABELS, 4, 0.2)) / len(LABELS)
    np.testing.assert_allclose(tape.gradient(loss, logits), expected, atol=1e-6)


@pytest.mark.parametrize("amount", [0.1, 0.4])
def test_loss_is_lowest_at_a_finite_distance_of_the_logits(amount):
    """There it is the entropy of the target: the smoothed loss never comes near 0."""
    classes = 10
    high, low = 1 - amount + amount / classes, amount / classes
    gap = np.log(high / low)
    label = np.array([0])
    loss = recipe.SmoothedCrossentropy(amount)

    def at(distance):
        return float(loss(label, np.array([[distance] + [0.0] * (classes - 1)], "float32")))

    entropy = -high * np.log(high) - (classes - 1) * low * np.log(low)
    assert at(gap) == pytest.approx(entropy, rel=1e-5)
    assert at(gap - 0.5) > at(gap) < at(gap + 0.5)
    assert at(gap + 20.0) > at(gap) + 1.0  # The plain loss would go on falling.


def test_smoothing_is_the_mean_over_wrong_labels():
    """A fraction r wrong, evenly over the other classes, is smoothing by r K / (K - 1)."""
    wrong = 0.3
    amount = wrong * 4 / 3
    plain = recipe.SmoothedCrossentropy(0.0)
    logits, label = LOGITS[:1], LABELS[0]
    of_class = [float(plain(np.array([k]), logits)) for k in range(4)]
    others = sum(of_class) - of_class[label]
    expected = (1 - wrong) * of_class[label] + wrong * others / 3
    smoothed = float(recipe.SmoothedCrossentropy(amount)(LABELS[:1], logits))
    assert smoothed == pytest.approx(expected, rel=1e-5)


def test_full_smoothing_forgets_the_labels():
    loss = recipe.SmoothedCrossentropy(1.0)
    assert float(loss(LABELS, LOGITS)) == pytest.approx(float(loss(LABELS[::-1], LOGITS)), rel=1e-6)


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_smoothing_out_of_range_is_refused(amount):
    with pytest.raises(ValueError, match=f"Received: label_smoothing={amount}"):
        recipe.SmoothedCrossentropy(amount)


def test_loss_survives_serialization():
    loss = recipe.SmoothedCrossentropy(0.25, name="smooth", reduction="sum")
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(copy) is type(loss) and copy.get_config() == loss.get_config()
    assert float(copy(LABELS, LOGITS)) == float(loss(LABELS, LOGITS))


def probabilities_of(confidences, right):
    """Return two-class predictions and labels with these confidences, right or wrong."""
    predictions = np.stack([confidences, 1 - np.array(confidences)], axis=1)
    return predictions, np.where(right, 0, 1)


def test_calibration_error_of_a_table_worked_by_hand():
    """Five bins; only the last three can be reached with two classes.

    (.4, .6]: .52 wrong, .58 right         accuracy .50, confidence .55, 2 samples, gap .05
    (.6, .8]: .62, .70, .78, .70, 2 right  accuracy .50, confidence .70, 4 samples, gap .20
    (.8, 1.]: .90 right, 1.0 right         accuracy 1.0, confidence .95, 2 samples, gap .05
    Expected calibration error: (2 * .05 + 4 * .20 + 2 * .05) / 8 = 0.125
    """
    predictions, labels = probabilities_of(
        [0.52, 0.58, 0.62, 0.70, 0.78, 0.70, 0.90, 1.0], [0, 1, 1, 0, 0, 1, 1, 1]
    )
    assert recipe.calibration_error(predictions, labels, bins=5) == pytest.approx(0.125)


def test_gaps_of_one_bin_cancel_and_of_two_bins_do_not():
    predictions, labels = probabilities_of([0.9, 0.7], [0, 1])
    assert recipe.calibration_error(predictions, labels, bins=1) == pytest.approx(0.3)
    assert recipe.calibration_error(predictions, labels, bins=5) == pytest.approx((0.9 + 0.3) / 2)


def test_upper_edge_belongs_to_the_bin():
    predictions, labels = probabilities_of([0.75, 0.7], [1, 0])
    # (.5, .75] holds both: |1 - .75 + 0 - .7| / 2.
    assert recipe.calibration_error(predictions, labels, bins=4) == pytest.approx(0.225)


@pytest.mark.parametrize(("right", "expected"), [(True, 0.0), (False, 1.0)])
def test_certainty_is_calibrated_only_where_it_is_right(right, expected):
    predictions, labels = probabilities_of([1.0] * 3, [right] * 3)
    assert recipe.calibration_error(predictions, labels) == expected


@pytest.mark.parametrize("temperature", [0.25, 1.0, 8.0])
def test_temperature_is_found_again(temperature):
    """Labels that occur as often as their probability says are calibrated at temperature 1."""
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    logits = np.repeat(np.log(probabilities), 10, axis=0)
    labels = np.concatenate(
        [np.repeat(range(3), np.rint(10 * p).astype(int)) for p in probabilities]
    )
    found = recipe.fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.01)


def test_temperature_changes_no_prediction_and_no_likelihood_at_one():
    logits = LOGITS.astype("float64")
    np.testing.assert_array_equal(
        recipe.softmax(logits / 7.0).argmax(axis=1), recipe.softmax(logits).argmax(axis=1)
    )
    expected = loss_by_hand(LOGITS, LABELS, 0.0)
    assert recipe.likelihood_loss(logits, LABELS) == pytest.approx(expected, rel=1e-12)


def test_likelihood_of_large_logits_is_finite():
    assert recipe.likelihood_loss(np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)
