"""Residual connections: the sum, and what it does to the signal, against theory."""

import math

import numpy as np
import pytest

import data
from recipes import residual_connections


def batch(features=64, samples=20):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((samples, features)).astype("float32")
    return x, generator.integers(0, 10, samples)


@pytest.mark.parametrize(
    ("arguments", "skip", "scale"),
    [
        ({"residual": True}, 1, math.sqrt(1 / 2)),
        ({"residual": True, "branch_scale": 0.3}, 1, 0.3),
        ({"residual": False}, 0, 1),
    ],
)
def test_logits_equal_the_sums_by_hand(arguments, skip, scale):
    model = residual_connections.build_model(depth=2, seed=4, **arguments)
    generator = np.random.default_rng(1)
    model.set_weights([generator.normal(0, 0.2, weight.shape) for weight in model.weights])
    x, _ = batch()
    kernels, biases = model.get_weights()[::2], model.get_weights()[1::2]
    signal = x.astype("float64") @ kernels[0] + biases[0]
    for kernel, bias in zip(kernels[1:3], biases[1:3], strict=True):
        branch = np.maximum(signal, 0) @ kernel + bias
        signal = skip * signal + scale * branch
    logits = np.maximum(signal, 0) @ kernels[3] + biases[3]
    np.testing.assert_allclose(model(x), logits, rtol=1e-4, atol=1e-5)


def test_connections_add_no_weights():
    counts = {
        residual_connections.build_model(depth=3, residual=residual).count_params()
        for residual in (True, False)
    }
    assert counts == {4 * (64 * 64 + 64) + 64 * 10 + 10}


def root_mean_squares(arrays):
    return np.array([np.sqrt(np.mean(np.square(array, dtype="float64"))) for array in arrays])


@pytest.mark.parametrize("branch_scale", [1.0, None, 0.0])
def test_signal_grows_by_one_plus_the_square_of_the_scale(branch_scale, monkeypatch):
    """Forward and backward, at He's variance: ReLU halves the mean square, the weights double it.

    With scale 1 that is a factor 2 a block; with 1/sqrt(depth), less than e over all of them.
    """
    monkeypatch.setattr(residual_connections, "UNITS", 256)
    depth = 16
    model = residual_connections.build_model((256,), depth=depth, branch_scale=branch_scale, seed=2)
    values, gradients = map(root_mean_squares, residual_connections.signals(model, *batch(256)))
    scale = 1 / math.sqrt(depth) if branch_scale is None else branch_scale
    growth = (1 + scale**2) ** (depth / 2)
    assert len(values) == len(gradients) == depth + 1
    # Weights are drawn anew in each block: chance adds up to a few percent a block.
    tolerance = 0 if scale == 0 else 0.3 if scale == 1 else 0.05
    assert values[-1] / values[0] == pytest.approx(growth, rel=tolerance + 1e-6)
    assert gradients[0] / gradients[-1] == pytest.approx(growth, rel=tolerance + 1e-6)
    if branch_scale is None:
        assert 1.5 < growth < math.sqrt(math.e)


def cosine_after_a_layer(cosine):
    """The cosine of two samples after ReLU and He's weights (Cho and Saul 2009, degree 1)."""
    cosine = min(cosine, 1.0)
    angle = math.acos(cosine)
    return (math.sin(angle) + (math.pi - angle) * cosine) / math.pi


@pytest.mark.parametrize(("residual", "expected"), [(True, 0.24), (False, 0.93)])
def test_samples_become_alike_without_connections(residual, expected, monkeypatch):
    monkeypatch.setattr(residual_connections, "UNITS", 256)
    depth = 16
    model = residual_connections.build_model((256,), depth=depth, residual=residual, seed=3)
    x, y = batch(256, samples=30)
    values, _ = residual_connections.signals(model, x, y)
    theory = 0.0  # Independent samples start at right angles.
    for _ in range(depth):
        mapped = cosine_after_a_layer(theory)
        theory = (theory + mapped / depth) / (1 + 1 / depth) if residual else mapped
    directions = values[-1] / np.linalg.norm(values[-1], axis=1, keepdims=True)
    cosines = (directions @ directions.T)[~np.eye(30, dtype=bool)]
    # Of 256 units; five draws of the weights lay within 0.05 of the limit of many units.
    assert cosines.mean() == pytest.approx(theory, abs=0.07)
    assert theory == pytest.approx(expected, abs=0.01)


def test_measure_looks_at_the_start_and_compares_every_pair():
    split = data.load("digits", samples=12)
    model = residual_connections.build_model((8, 8), depth=3, seed=1)
    values, gradients = residual_connections.signals(model, *split.train)
    found = residual_connections.measure(model, split)
    last = values[-1].astype("float64")
    pairs = [
        one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        for i, one in enumerate(last)
        for j, other in enumerate(last)
        if i != j
    ]
    assert found["cosine_of_samples"] == pytest.approx(np.mean(pairs), rel=1e-6)
    sizes = root_mean_squares(gradients)
    assert found["first_to_last"] == pytest.approx(sizes[0] / sizes[-1], rel=1e-6)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    assert residual_connections.measure(model, split) == found


def test_depth_below_one_is_named():
    with pytest.raises(ValueError, match=r"must be >= 1\. Received: depth=0"):
        residual_connections.build_model(depth=0)
