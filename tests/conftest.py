"""Settings and helpers that all tests share."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

# TensorFlow reads these once, when it starts: one thread, as the bench trains.
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["TF_NUM_INTEROP_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "Agg")

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _determinism_ends_with_the_test():
    """Undo what the bench switches on: Keras leaves out XLA where operations are deterministic."""
    yield
    config = sys.modules.get("tensorflow.python.framework.config")
    if config is not None and config.is_op_determinism_enabled():
        config.disable_op_determinism()


def start_python(*arguments, cwd=PROJECT, **options):
    """Start Python with the project on its path, in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def run_python(*arguments, cwd=PROJECT, timeout=240):
    """Run Python to its end; return exit code, standard output and standard error."""
    process = start_python(*arguments, cwd=cwd)
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def assert_is_relu_network(model, widths, learning_rate, momentum=0.0):
    """Compare a classifier with one written out: its size, its start, and two steps of training.

    The hidden kernels start with He's variance, 2 / fan_in, that of the outputs with Glorot's,
    2 / (fan_in + fan_out), and the biases with 0.
    """
    kernels, biases = model.get_weights()[::2], model.get_weights()[1::2]
    sizes = [np.prod(model.input_shape[1:]), *widths, model.output_shape[-1]]
    assert [kernel.shape for kernel in kernels] == list(pairwise(sizes))
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)  # No seed twice.
    assert not any(bias.any() for bias in biases)
    variances = [2 / len(kernel) for kernel in kernels[:-1]] + [2 / sum(kernels[-1].shape)]
    for kernel, variance in zip(kernels, variances, strict=True):
        assert kernel.var() == pytest.approx(variance, rel=0.15)  # Of some 600 draws at least.
    assert_steps_as_written_out(model, learning_rate, momentum)


def assert_steps_as_written_out(model, learning_rate, momentum=0.0):
    """Compare two steps of a ReLU classifier with backpropagation in NumPy.

    The loss is the cross-entropy of a softmax. What is added to a weight is `momentum` times what
    was added before, less `learning_rate` times the gradient.
    """
    generator = np.random.default_rng(0)
    x = generator.normal(size=(12, *model.input_shape[1:]))
    y = generator.integers(0, model.output_shape[-1], 12)
    weights = [w.astype("float64") for w in model.get_weights()]
    added = [np.zeros_like(w) for w in weights]
    for _ in range(2):
        kernels, biases = weights[::2], weights[1::2]
        inputs = [x.reshape(12, -1)]
        for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
            inputs.append(np.maximum(inputs[-1] @ kernel + bias, 0))
        exponentials = np.exp(inputs[-1] @ kernels[-1] + biases[-1])
        errors = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(len(biases[-1]))[y]
        gradients = []
        for kernel, before in zip(kernels[::-1], inputs[::-1], strict=True):
            gradients = [before.T @ errors / 12, errors.mean(axis=0), *gradients]
            errors = errors @ kernel.T * (before > 0)
        added = [momentum * a - learning_rate * g for a, g in zip(added, gradients, strict=True)]
        weights = [w + a for w, a in zip(weights, added, strict=True)]
    model.run_eagerly = True  # To trace a step would take longer than to make two.
    for _ in range(2):
        model.train_on_batch(x.astype("float32"), y)
    for found, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
