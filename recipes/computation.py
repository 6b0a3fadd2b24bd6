"""Computation: what makes an epoch faster on this machine, at the same accuracy.

Problem:    Training takes all night, and it is not clear what the time is spent on.
Technique:  A small network is trained by `fit` in several ways, each with one thing changed: more
            steps for each call from Python (`steps_per_execution`), larger batches, compilation
            by XLA (`jit_compile`), half precision, batch normalization, and inputs that a
            `tf.data` pipeline prepares anew in every epoch or keeps (`cache`). All ways take turns
            in one process; what is reported is the time of an epoch as a ratio to the plain way,
            and the accuracy after as many epochs.
Claim:      On a small network the calls from Python cost much: one call an epoch takes two fifths
            less time and changes nothing else. Batches of 256 halve an epoch. Inputs that a
            `tf.data` pipeline keeps make it faster than plain arrays do. What XLA, half precision,
            batch normalization, and preparing inputs anew cost on this CPU is not clear from five
            runs. Batch normalization makes a sigmoid network learn where it did not, but no clear
            difference is left to a ReLU network without it, and without a GPU.
Costs:      `steps_per_execution`: callbacks see every n-th step only. XLA: seconds of compilation,
            again for every new shape. `cache`: memory for all inputs; what comes after it, such as
            random augmentation, is not kept.
Start at:   steps_per_execution=32 for small networks; cache before and prefetch after batching;
            jit_compile and mixed_float16 on a GPU, where the network is large.
Caveat:     Ratios hold for this network, this machine and one thread, and move with its load: the
            spread is that over seeds, and the margins of the claims are wide. A large network
            spends its time on arithmetic, and calls from Python do not matter there. Where there
            is a GPU, `gpu_time_ratio` is measured as well; no claim rests on it.
            XLA is timed without deterministic operations, because with them Keras leaves it out;
            so are all ways beside it. Precision by layer, as below, does not scale the loss by
            itself, as Keras does for a global policy: LossScaleOptimizer has to be asked for.
            The learning rates of 80_steps come from `python -m recipes.computation --tune
            --experiments 80_steps --learning-rates 0.01:10:7`. In one_epoch_of it is 0.05 for all.
Reference:  Abadi and others (2016), TensorFlow: A System for Large-Scale Machine Learning, section
            3. Micikevicius and others (2018), Mixed Precision Training, section 3. Ioffe, Szegedy
            (2015), Batch Normalization, section 4.1.
Run:        python -m recipes.computation
Measured:   Supported: An epoch in one call from Python takes less time than a call a step (-0.427
              [-0.504, -0.351], p = .001).
            Supported: It leaves the accuracy as it is (0.0 points in every run).
            Supported: Batches of 256 instead of 32 make an epoch faster (-0.5 [-0.596, -0.403], p =
              .001).
            No clear difference: After as many epochs, test accuracy is lower with them (-1.5 [-4.4,
              +1.4] points, p = 1.000).
            No clear difference: XLA makes an epoch of this small network faster on a CPU (-0.0136
              [-0.196, +0.169], p = 1.000).
            No clear difference: XLA leaves the accuracy as it is, within a point (-0.2 [-2.6, +2.2]
              points, p = 1.000).
            No clear difference: On a CPU, half precision makes an epoch slower (+0.0891 [-0.201,
              +0.379], p = 1.000).
            No clear difference: Half precision leaves the accuracy as it is, within two points
              (+1.2 [-2.9, +5.3] points, p = 1.000).
            No clear difference: Preparing every image anew in each epoch makes it slower (+0.268
              [-0.17, +0.707], p = 1.000).
            Contradicted: Keeping the prepared images makes it as fast as without preparation,
              within 30% (-0.422 [-0.581, -0.262]).
            No clear difference: Batch normalization makes an epoch slower (+0.129 [-0.16, +0.419],
              p = 1.000).
            Supported: After 80 steps, each at its best rate, normalization raises the test accuracy
              of a sigmoid network (+84.6 [+84.2, +85.1] points, p < .001).
            No clear difference: On one core of a CPU, a sigmoid network with normalization has a
              higher test accuracy after 80 steps than a ReLU network without (+1.5 [-0.4, +3.5]
              points, p = .870).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import contextlib
import fcntl
import pathlib
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

HIDDEN_UNITS = 100
HIDDEN_LAYERS = 3  # As the network of Ioffe and Szegedy on MNIST.
MOMENTUM = 0.9
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
BATCH_SIZE = 32
ROUNDS = 3  # Each way is timed as often, in turns, so that a busy moment hits all of them.
EPOCHS_PER_ROUND = 2  # `fit` starts the input pipeline before the first: the last one is timed.


def build_model(
    input_shape=(64,),
    classes=10,
    activation="relu",
    batch_normalization=False,
    precision="float32",
    steps_per_execution=1,
    jit_compile=False,
    learning_rate=0.05,
    seed=0,
):
    """Build and compile a small network, and say how Keras shall compute it.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        activation: Activation of the hidden layers. Kernels start with He's variance for "relu"
            and with Glorot's for any other.
        batch_normalization: Whether to normalize each hidden layer before its activation.
        precision: "float32", "mixed_float16" (float16 with a scaled loss) or "mixed_bfloat16".
            Weights and outputs are float32 with each of them.
        steps_per_execution: Int, the number of steps in one call from Python.
        jit_compile: Whether XLA compiles the training step.
        learning_rate: Float or schedule, for SGD with momentum.
        seed: Int. Equal seeds give equal initial weights.

    Raises:
        ValueError: if `precision` is not one of the three.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"Argument `precision` must be one of {', '.join(PRECISIONS)}. "
            f"Received: precision={precision!r}"
        )
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    initializer_of = (
        keras.initializers.HeNormal if activation == "relu" else keras.initializers.GlorotUniform
    )
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten(dtype=precision)(inputs)
    for _ in range(HIDDEN_LAYERS):
        initializer = initializer_of(seed=next(seeds))
        x = keras.layers.Dense(HIDDEN_UNITS, kernel_initializer=initializer, dtype=precision)(x)
        if batch_normalization:
            x = keras.layers.BatchNormalization(momentum=0.9, dtype=precision)(x)
        x = keras.layers.Activation(activation, dtype=precision)(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer, dtype="float32")(x)
    model = keras.Model(inputs, outputs)
    optimizer = keras.optimizers.SGD(learning_rate, momentum=MOMENTUM)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
        jit_compile=jit_compile,
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with its activation and the learning rate.

    What only changes the time is no hyperparameter: measure it instead.
    """
    return build_model(
        activation=hp.Choice("activation", ["relu", "tanh", "sigmoid"]),
        batch_normalization=hp.Boolean("batch_normalization"),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


def make_dataset(x, y, batch_size=BATCH_SIZE, prepare=None, cache=True):
    """Return a `tf.data.Dataset` of batches in the order of the arrays, ready before it is asked.

    Args:
        x: Array of shape `(samples, ...)`.
        y: Array of shape `(samples,)`.
        batch_size: Int >= 1. The last batch may be smaller.
        prepare: Function from one sample `(x, y)` to another, or None.
        cache: Whether to keep in memory what `prepare` returned, after the first epoch.

    Raises:
        ValueError: if `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"Argument `batch_size` must be >= 1. Received: batch_size={batch_size}")
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    if prepare:
        dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    if cache:
        dataset = dataset.cache()
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def enlarge_and_shrink(x, y):
    """Prepare an image at some cost, as decoding would: resize it to 64 x 64 and back."""
    image = tf.image.resize(x[..., tf.newaxis], (64, 64), method="bicubic")
    return tf.image.resize(image, x.shape, method="area")[..., 0], y


class EpochSeconds(keras.callbacks.Callback):
    """Measures the time of every epoch; `seconds` is a list of floats.

    An epoch ends when its last step has been computed. The first one includes tracing and XLA's
    compilation. Validation in `fit` would be part of the time.
    """

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._start)


@contextlib.contextmanager
def without_determinism():
    """Allow XLA, which Keras leaves out while TensorFlow's operations are deterministic."""
    from tensorflow.python.framework import config  # There is no public way to switch it off.

    was_enabled = config.is_op_determinism_enabled()
    if was_enabled:
        config.disable_op_determinism()
    try:
        yield
    finally:
        if was_enabled:
            config.enable_op_determinism()


# Each way to train: `model` are arguments of build_model, `dataset` of make_dataset. Without
# `dataset`, `fit` gets the arrays.
WAYS = {
    "plain": {},
    "one_call": {"model": {"steps_per_execution": 32}},
    "batch_256": {"batch_size": 256},
    "xla": {"model": {"jit_compile": True}},
    "half_precision": {"model": {"precision": "mixed_float16"}},
    "normalized": {"model": {"batch_normalization": True}},
    "prepared": {"dataset": {"prepare": enlarge_and_shrink, "cache": False}},
    "prepared_once": {"dataset": {"prepare": enlarge_and_shrink, "cache": True}},
}

VARIANTS = {
    "relu": {"activation": "relu"},
    "sigmoid": {"activation": "sigmoid"},
    "sigmoid_norm": {"activation": "sigmoid", "batch_normalization": True},
}

EQUAL_START = []  # Another initializer for each activation, and gamma and beta with one of them.

EXPERIMENTS = {
    "80_steps": {
        "data": "digits",
        "samples": 1000,
        "epochs": 5,
        "batch_size": 64,
        "learning_rates": {"sigmoid": 0.1, "sigmoid_norm": 0.0316, "relu": 0.1},
    },
    "one_epoch_of": {
        "data": "digits",
        "samples": 1000,
        "epochs": 5,
        "batch_size": 32,
        "measure": True,
        "learning_rates": {"relu": 0.05},
    },
}

CLAIMS = [
    {
        "text": "An epoch in one call from Python takes less time than a call a step",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "one_call_time_ratio",
        "against_metric": "plain_time_ratio",
        "direction": "lower",
        "at_least": 0.2,
    },
    {
        "text": "It leaves the accuracy as it is",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "one_call_accuracy",
        "against_metric": "plain_accuracy",
        "direction": "equal",
        "at_least": 0.005,
    },
    {
        "text": "Batches of 256 instead of 32 make an epoch faster",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "batch_256_time_ratio",
        "against_metric": "plain_time_ratio",
        "direction": "lower",
        "at_least": 0.3,
    },
    {
        "text": "After as many epochs, test accuracy is lower with them",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "batch_256_accuracy",
        "against_metric": "plain_accuracy",
        "direction": "lower",
        "at_least": 0.01,
    },
    {
        "text": "XLA makes an epoch of this small network faster on a CPU",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "xla_time_ratio",
        "against_metric": "plain_time_ratio",
        "direction": "lower",
        "at_least": 0.1,
    },
    {
        "text": "XLA leaves the accuracy as it is, within a point",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "xla_accuracy",
        "against_metric": "plain_accuracy",
        "direction": "equal",
        "at_least": 0.01,
    },
    {
        "text": "On a CPU, half precision makes an epoch slower",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "half_precision_time_ratio",
        "against_metric": "plain_time_ratio",
        "direction": "higher",
        "at_least": 0.1,
    },
    {
        "text": "Half precision leaves the accuracy as it is, within two points",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "half_precision_accuracy",
        "against_metric": "plain_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "Preparing every image anew in each epoch makes it slower",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "prepared_time_ratio",
        "against_metric": "plain_time_ratio",
        "direction": "higher",
        "at_least": 0.3,
    },
    {
        "text": "Keeping the prepared images makes it as fast as without preparation, within 30%",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "prepared_once_time_ratio",
        "against_metric": "plain_time_ratio",
        "direction": "equal",
        "at_least": 0.3,
    },
    {
        "text": "Batch normalization makes an epoch slower",
        "experiment": "one_epoch_of",
        "variant": "relu",
        "against": "relu",
        "metric": "normalized_time_ratio",
        "against_metric": "plain_time_ratio",
        "direction": "higher",
        "at_least": 0.1,
    },
    {
        "text": "After 80 steps, each at its best rate, normalization raises the test accuracy of "
        "a sigmoid network",
        "experiment": "80_steps",
        "variant": "sigmoid_norm",
        "against": "sigmoid",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.1,
    },
    {
        "text": "On one core of a CPU, a sigmoid network with normalization has a higher test "
        "accuracy after 80 steps than a ReLU network without",
        "experiment": "80_steps",
        "variant": "sigmoid_norm",
        "against": "relu",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.02,
        "textbook": "GPUs and batch normalization solved the problem of training time.",
    },
]

SYMPTOMS = ["slow"]


def measure(model, split):
    """Time an epoch in each of `WAYS`, in turns, as a ratio to the plain one of the same round.

    `..._time_ratio` is the median over the rounds, `..._accuracy` that on test data after all,
    and `..._start_milliseconds` the time of the first epoch, with tracing and compilation.
    """
    settings = dict(WAYS)
    if tf.config.list_physical_devices("GPU"):
        settings["gpu"] = {"device": "/GPU:0"}
    learning_rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
    metrics = {}
    with alone_on_this_machine(), without_determinism():
        ways = {name: _Way(split, learning_rate, **of_way) for name, of_way in settings.items()}
        for name, way in ways.items():
            metrics[f"{name}_start_milliseconds"] = 1000 * way.train(epochs=1)
        seconds = [
            {name: way.train(EPOCHS_PER_ROUND) for name, way in ways.items()} for _ in range(ROUNDS)
        ]
    for name, way in ways.items():
        ratios = [of_round[name] / of_round["plain"] for of_round in seconds]
        metrics[f"{name}_time_ratio"] = np.median(ratios)
        metrics[f"{name}_accuracy"] = way.accuracy(*split.test)
    return metrics


@contextlib.contextmanager
def alone_on_this_machine():
    """Wait until no other process measures: two at once would time each other."""
    with open(pathlib.Path(tempfile.gettempdir()) / "recipes.computation.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Closing the file, or the end of the process, frees it.
        yield


class _Way:
    """One of `WAYS`: a network of its own, and how it is trained."""

    def __init__(
        self, split, learning_rate, model=None, dataset=None, batch_size=BATCH_SIZE, device="/CPU:0"
    ):
        self.device = device
        with tf.device(device):
            self.model = build_model(
                split.input_shape, split.classes, learning_rate=learning_rate, **(model or {})
            )
            self.data = {"x": split.train.x, "y": split.train.y, "batch_size": batch_size}
            if dataset:
                self.data = {"x": make_dataset(*split.train, batch_size, **dataset)}

    def train(self, epochs):
        """Go on training for some epochs; return the seconds of the last one."""
        clock = EpochSeconds()
        with tf.device(self.device):
            self.model.fit(**self.data, epochs=epochs, shuffle=False, callbacks=[clock], verbose=0)
        return clock.seconds[-1]

    def accuracy(self, x, y):
        return np.mean(np.argmax(self.model(x, training=False), axis=-1) == y)


def illustrate(summary):
    """Draw the time of an epoch in each way, as a ratio to the plain one, a point for each seed."""
    from matplotlib.figure import Figure

    from recipes._lab.picture import BASELINE_COLOR, COLORS

    if "one_epoch_of" not in summary["experiments"]:
        return None
    metrics = summary["experiments"]["one_epoch_of"]["variants"]["relu"]["metrics"]
    names = [name.removesuffix("_time_ratio") for name in metrics if name.endswith("_time_ratio")]
    figure = Figure(figsize=(8, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        interval = metrics[f"{name}_time_ratio"]
        color = BASELINE_COLOR if name == "plain" else COLORS[0]
        axes.barh(row, interval["mean"], color=color, alpha=0.35)
        axes.plot(interval["values"], [row] * len(interval["values"]), "o", color=color, ms=4)
    axes.axvline(1.0, color=BASELINE_COLOR, lw=1)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("time of an epoch, as a ratio to the plain way (a point for each seed)")
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
