"""Data augmentation: what the changes do to a sample, and that inference sees none of them."""

import keras
import numpy as np
import pytest

from recipes import data_augmentation as recipe
from tests.conftest import assert_is_relu_network

EVERY_CHANGE = {"shift": 0.1, "rotation": 0.05, "flip": "horizontal"}


def changed(model, x):
    """Return `x` as the first dense layer of the model sees it in training."""
    dense = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    return np.asarray(keras.Model(model.input, dense.input)(x, training=True))


def test_network_starts_and_learns_as_written_out():
    model = recipe.build_model((8, 8), learning_rate=0.2, seed=3)
    assert_is_relu_network(model, [128, 128], 0.2, momentum=0.9)


@pytest.mark.parametrize("positions", [0, 1, 3])
def test_every_roll_within_the_limit_occurs_equally_often(positions):
    signal = np.arange(12, dtype="float32")
    layer = recipe.RandomRoll(positions, seed=1)
    rolled = np.asarray(layer(np.tile(signal, (7000, 1)), training=True))
    shifts = rolled.argmin(axis=1)  # Where the first value went.
    for row, shift in list(zip(rolled, shifts, strict=True))[:50]:
        np.testing.assert_array_equal(row, np.roll(signal, shift))
    shifts = np.where(shifts > 6, shifts - 12, shifts)
    values, counts = np.unique(shifts, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(-positions, positions + 1))
    expected = 7000 / len(values)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_samples_of_a_batch_and_calls_are_rolled_independently():
    layer = recipe.RandomRoll(3, seed=2)
    batch = np.tile(np.arange(40, dtype="float32"), (100, 1))
    first, second = (np.asarray(layer(batch, training=True)).argmin(axis=1) for _ in range(2))
    assert len(set(first)) == len(set(second)) == 7
    assert abs(np.corrcoef((first + 20) % 40, (second + 20) % 40)[0, 1]) < 0.4


def test_model_rolls_its_signals_as_far_as_it_is_told_to():
    signals = np.tile(np.arange(40, dtype="float32"), (200, 1))
    shifts = changed(recipe.build_model((40,), roll=2, seed=1), signals).argmin(axis=1)
    assert set((shifts + 20) % 40 - 20) == {-2, -1, 0, 1, 2}


def test_equal_seeds_roll_alike_and_the_layer_survives_saving():
    layer = recipe.RandomRoll(5, seed=3)
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    batch = np.random.default_rng(0).normal(size=(20, 10)).astype("float32")
    np.testing.assert_array_equal(layer(batch, training=True), copy(batch, training=True))


@pytest.mark.parametrize("positions", [-1, 1.5])
def test_positions_have_to_be_a_count(positions):
    with pytest.raises(ValueError, match=rf"integer >= 0\. Received: positions={positions}"):
        recipe.RandomRoll(positions)


@pytest.mark.parametrize(
    ("shape", "changes"), [((40,), {"roll": 3}), ((8, 8), EVERY_CHANGE), ((8, 8, 3), EVERY_CHANGE)]
)
def test_inference_equals_the_network_without_changes_to_the_last_bit(shape, changes):
    x = np.random.default_rng(1).random((6, *shape)).astype("float32")
    augmented, plain = (recipe.build_model(shape, seed=4, **c) for c in (changes, {}))
    np.testing.assert_array_equal(augmented(x, training=False), plain(x))
    assert np.abs(augmented(x, training=True) - plain(x)).max() > 1e-3


def test_shifted_pixels_stay_within_the_limit_and_leave_zeros_behind():
    """One bright pixel in the middle: its centre of mass is where it went."""
    x = np.zeros((200, 21, 21), "float32")
    x[:, 10, 10] = 1.0
    model = recipe.build_model((21, 21), shift=0.2, seed=5)
    shifted = changed(model, x).reshape(200, 21, 21).astype("float64")
    np.testing.assert_allclose(shifted.sum(axis=(1, 2)), 1.0, rtol=1e-4)
    for axis in (1, 2):
        centres = (shifted.sum(axis=3 - axis) * np.arange(21)).sum(axis=1) - 10
        limit = 0.2 * 21
        assert np.abs(centres).max() <= limit + 1e-3
        assert centres.min() < -0.8 * limit and centres.max() > 0.8 * limit
        # Uniform from -limit to limit, not whole pixels.
        assert centres.std() == pytest.approx(limit / np.sqrt(3), rel=0.15)


@pytest.mark.parametrize("change", [{"shift": 0.2}, {"rotation": 0.1}])
def test_what_enters_at_the_border_is_zero(change):
    """From a white image alone: whatever is not white has come in, mostly at the corners."""
    model = recipe.build_model((21, 21), seed=5, **change)
    seen = changed(model, np.ones((50, 21, 21), "float32"))
    assert np.mean(seen.min(axis=1) < 1e-3) > 0.8
    assert seen.max() < 1 + 1e-3


def test_rotation_is_a_fraction_of_a_full_turn():
    """A bright pixel on the axis to the right, 8 away: its angle is that of the rotation."""
    x = np.zeros((200, 21, 21), "float32")
    x[:, 10, 18] = 1.0
    model = recipe.build_model((21, 21), rotation=0.05, seed=6)
    rotated = changed(model, x).reshape(200, 21, 21).astype("float64")
    weight = rotated.sum(axis=(1, 2))
    down = (rotated.sum(axis=2) * np.arange(21)).sum(axis=1) / weight - 10
    right = (rotated.sum(axis=1) * np.arange(21)).sum(axis=1) / weight - 10
    degrees = np.degrees(np.arctan2(down, right))
    assert np.abs(degrees).max() <= 18 + 1  # A bent grid moves the centre a little.
    assert degrees.min() < -15 and degrees.max() > 15


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    image = np.random.default_rng(2).random((9, 9)).astype("float32")
    model = recipe.build_model((9, 9), flip="horizontal", seed=7)
    seen = changed(model, np.tile(image, (400, 1, 1))).reshape(400, 9, 9)
    mirrored = (seen == image[:, ::-1]).all(axis=(1, 2))
    assert (mirrored | (seen == image).all(axis=(1, 2))).all()
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "horizontal_and_vertical"])
def test_flip_mirrors_in_the_directions_of_its_name(flip):
    """In both by one draw: Keras turns half of the images around and mirrors none in one alone."""
    image = np.random.default_rng(2).random((5, 5)).astype("float32")
    model = recipe.build_model((5, 5), flip=flip, seed=7)
    seen = {row.tobytes() for row in changed(model, np.tile(image, (100, 1, 1)))}
    mirrored = {"horizontal": image[:, ::-1], "vertical": image[::-1]}.get(flip, image[::-1, ::-1])
    assert seen == {image.tobytes(), mirrored.tobytes()}


def test_keras_mirrors_up_and_down_as_well_unless_told_otherwise():
    """The trap that the card names."""
    assert keras.layers.RandomFlip().mode == "horizontal_and_vertical"


@pytest.mark.parametrize(
    ("shape", "changes"), [((8, 8), EVERY_CHANGE), ((40,), {"roll": 3})], ids=["images", "signals"]
)
def test_changes_come_from_the_seed_alone(shape, changes):
    x = np.random.default_rng(3).random((6, *shape)).astype("float32")
    one, same, other = (recipe.build_model(shape, seed=s, **changes) for s in (1, 1, 2))
    keras.utils.set_random_seed(99)
    np.testing.assert_array_equal(changed(one, x), changed(same, x))
    assert np.abs(changed(one, x) - changed(other, x)).max() > 0


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        ((28, 28), {"roll": 3}),
        ((40,), {"shift": 0.1}),
        ((40,), {"rotation": 0.1}),
        ((40,), {"flip": "vertical"}),
    ],
)
def test_changes_that_do_not_fit_the_samples_are_refused(shape, change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"`{name}` is for .*Received: {name}=.*input_shape="):
        recipe.build_model(shape, **change)
