"""Ways to compute: which of them change the numbers, and the limits of half precision."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config

import data
from recipes import computation as recipe

generator = np.random.default_rng(31)
X = generator.random((40, 4, 4), dtype="float32")
Y = generator.integers(0, 3, 40).astype("int32")


def trained(x=X, y=Y, epochs=2, **arguments):
    """Return the weights after two epochs of five steps, in the order of the samples."""
    model = recipe.build_model((4, 4), 3, **arguments)
    given = {"x": x} if y is None else {"x": x, "y": y, "batch_size": 8}
    model.fit(**given, epochs=epochs, shuffle=False, verbose=0)
    return model


@pytest.fixture(scope="module")
def plain():
    return trained()


def weights_differ(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)


def test_steps_in_one_call_are_the_same_steps(plain):
    # Four, then the rest: an epoch need not be a multiple of the steps in a call.
    assert weights_differ(plain, trained(steps_per_execution=4)) < 1e-6


def test_dataset_trains_as_the_arrays_do(plain):
    dataset = recipe.make_dataset(X, Y, batch_size=8)
    assert weights_differ(plain, trained(dataset, None)) < 1e-6


def test_xla_compiles_and_computes_the_same_up_to_rounding(plain):
    model = trained(jit_compile=True)
    assert model.jit_compile is True
    assert weights_differ(plain, model) < 1e-5


def test_keras_leaves_xla_out_while_operations_are_deterministic():
    tf.config.experimental.enable_op_determinism()
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model = recipe.build_model((4, 4), 3, jit_compile=True)
    assert model.jit_compile is False
    with recipe.without_determinism():
        assert recipe.build_model((4, 4), 3, jit_compile=True).jit_compile is True
    assert config.is_op_determinism_enabled()


def test_determinism_stays_off_where_it_was_off_and_comes_back_after_an_error():
    with recipe.without_determinism():
        pass
    assert not config.is_op_determinism_enabled()
    tf.config.experimental.enable_op_determinism()
    with pytest.raises(KeyError), recipe.without_determinism():
        raise KeyError
    assert config.is_op_determinism_enabled()


def test_half_precision_holds_what_it_holds():
    """float16: smallest number 2^-24, largest 65504, 11 bits of a number."""
    half = np.float16
    assert half(2.0**-24) > 0 and half(2.0**-26) == 0
    assert half(65504.0) == 65504.0 and np.isinf(half(65536.0))
    assert half(1 + 2.0**-11) == 1 and half(1 + 2.0**-10) > 1


def test_scaled_loss_saves_a_gradient_that_float16_loses():
    """Micikevicius et al., section 3.2: 2^-27 is lost, and kept if the loss is scaled by 2^15."""
    optimizer = recipe.build_model(precision="mixed_float16").optimizer
    optimizer.build([])
    scale = float(optimizer.scale_loss(tf.constant(1.0)))
    assert scale == 2.0**15 and optimizer.dynamic_growth_steps == 2000
    assert np.float16(2.0**-27) == 0
    assert float(np.float16(2.0**-27 * scale)) / scale == 2.0**-27


@pytest.mark.parametrize(
    ("precision", "compute"), [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")]
)
def test_mixed_precision_keeps_weights_and_outputs_in_float32(precision, compute):
    model = recipe.build_model((4, 4), 3, precision=precision, batch_normalization=True)
    assert {w.dtype for w in model.trainable_variables} == {"float32"}
    hidden = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][:-1]
    assert {layer.compute_dtype for layer in hidden} == {compute}
    assert model(X).dtype == tf.float32


def test_only_float16_scales_the_loss():
    scaled = {
        precision: isinstance(
            recipe.build_model(precision=precision).optimizer, keras.optimizers.LossScaleOptimizer
        )
        for precision in recipe.PRECISIONS
    }
    assert scaled == {"float32": False, "mixed_float16": True, "mixed_bfloat16": False}


def test_every_precision_starts_from_the_same_weights():
    models = [recipe.build_model(precision=precision, seed=2) for precision in recipe.PRECISIONS]
    assert weights_differ(models[0], models[1]) == weights_differ(models[0], models[2]) == 0


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"must be one of .* Received: precision='float8'"):
        recipe.build_model(precision="float8")


@pytest.mark.parametrize(("cache", "calls"), [(True, 40), (False, 120)])
def test_cached_samples_are_prepared_once_and_others_in_every_epoch(cache, calls):
    counter = tf.Variable(0)

    def prepare(x, y):
        counter.assign_add(1)
        return 2 * x, y

    dataset = recipe.make_dataset(X, Y, 16, prepare, cache)
    for _ in range(3):
        batches = list(dataset)
    assert counter.numpy() == calls
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), 2 * X)
    assert [len(y) for _, y in batches] == [16, 16, 8]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"must be >= 1. Received: batch_size={batch_size}"):
        recipe.make_dataset(X, Y, batch_size)


def test_preparation_costs_time_and_leaves_the_shape():
    x, y = recipe.enlarge_and_shrink(tf.constant(X[0]), Y[0])
    assert x.shape == X[0].shape and y == Y[0]
    flat, _ = recipe.enlarge_and_shrink(tf.fill((4, 4), 0.5), 0)
    np.testing.assert_allclose(flat, 0.5, atol=1e-5)


def test_clock_counts_every_epoch_of_every_fit():
    clock = recipe.EpochSeconds()
    clock.set_model(None)
    for epoch in range(3):
        clock.on_epoch_begin(epoch)
        clock.on_epoch_end(epoch)
    assert len(clock.seconds) == 3 and min(clock.seconds) > 0


def test_measures_are_ratios_to_the_plain_way(monkeypatch):
    ways = {name: recipe.WAYS[name] for name in ("plain", "batch_256")}
    monkeypatch.setattr(recipe, "WAYS", ways)
    monkeypatch.setattr(recipe, "ROUNDS", 2)
    split = types.SimpleNamespace(
        input_shape=(4, 4), classes=3, train=data.Part(X, Y), test=data.Part(X, Y)
    )
    metrics = recipe.measure(recipe.build_model((4, 4), 3), split)
    assert metrics["plain_time_ratio"] == 1.0
    assert metrics["batch_256_time_ratio"] > 0
    assert set(metrics) == {
        f"{name}_{what}"
        for name in ways
        for what in ("start_milliseconds", "time_ratio", "accuracy")
    }
    assert 0 <= metrics["plain_accuracy"] <= 1
