"""Training set size: the same network on 25 to 4,000 samples, with the same number of updates.

Problem:    Training accuracy is near 100%, validation accuracy is far below, and you wonder whether
            to collect more data or to change the model.
Technique:  Train on growing parts of the data and watch the gap between training and test. Where it
            still shrinks with every part, more data help; where both curves have met, they do not,
            and the model is what holds you back. Each size gets the same number of updates, or
            the larger ones would win by training longer.
Claim:      More samples narrow the gap and raise test accuracy at every step from 50 to 4,000. It
            is no law: a linear model fitted exactly, by least squares, does far worse with 50
            samples than with 25, because it has about as many weights for each class as samples.
Costs:      Collecting and labelling; the training costs the same here, since updates are equal.
Start at:   Halves: train on 1/8, 1/4, 1/2 and all, and draw the two curves before collecting.
Caveat:     All validation samples are used at every size, and a learning rate found with 25 to
            train and 400 to validate is better known than yours would be. Least squares is shown
            at its worst, without the penalty or the early stopping that would take its peak away.
            The learning rates come from `python -m recipes.training_set_size --sweep --tune
            --learning-rates 0.001:0.316:6`.
Reference:  Cortes, Jackel, Solla, Vapnik, Denker (1994), Learning Curves: Asymptotic Values and
            Rate of Convergence, NIPS 6. Nakkiran (2019), More Data Can Hurt for Linear Regression:
            Sample-wise Double Descent, arXiv:1912.07242, sections 1 and 2.
Run:        python -m recipes.training_set_size, with --sweep for up to 4,000 samples of MNIST-1D
Measured:   Supported: On digits, 1,000 samples leave a smaller gap between training and test than
              50 (-14.0 [-16.8, -11.2] points, p = .001).
            Supported: 100 samples leave a smaller gap than 50 (-4.8 [-7.4, -2.3] points, p = .020).
            Supported: 250 samples leave a smaller gap than 100 (-5.1 [-8.2, -2.1] points, p =
              .020).
            Supported: 1,000 samples leave a smaller gap than 250 (-4.1 [-5.5, -2.6] points, p =
              .006).
            Supported: With as many updates, 1,000 samples give a higher test accuracy than 50
              (+14.0 [+11.2, +16.8] points, p = .001).
            Contradicted: Least squares reaches a higher test accuracy with 50 samples than with 25
              (-32.5 [-42.4, -22.7] points).
            Supported: The network reaches a higher test accuracy with 50 samples than with 25 (+8.8
              [+2.6, +14.9] points, p = .020).
            Supported: On MNIST-1D, 4,000 samples leave a smaller gap than 1,000 (-29.0 [-31.3,
              -26.8] points, p < .001).
            Supported: There, 4,000 samples give a higher test accuracy than 1,000 (+17.4 [+14.5,
              +20.2] points, p < .001).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

from dataclasses import replace

import keras
import numpy as np

HIDDEN_UNITS = 128
HIDDEN_LAYERS = 2
MOMENTUM = 0.9


def build_model(input_shape=(64,), classes=10, units=HIDDEN_UNITS, learning_rate=0.1, seed=0):
    """Build and compile the ReLU network that all sizes share.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        units: Int, the width of both hidden layers.
        learning_rate: Float or schedule, for SGD with momentum.
        seed: Int. Equal seeds give equal initial weights.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(HIDDEN_LAYERS):
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = keras.layers.Dense(units, "relu", kernel_initializer=initializer)(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with its width and the learning rate.

    The size of the training set is chosen by what is given to the tuner's `search`.
    """
    return build_model(
        units=hp.Int("units", 32, 512, step=2, sampling="log"),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


def repeat_rows(x, y, rows):
    """Return `rows` rows, those of `x` and `y` over and over: an epoch of `rows` for any size.

    Nothing is added, and what is measured on the training part stays the same where `rows` is a
    multiple of its size. Networks with few samples get as many updates as those with many.

    Raises:
        ValueError: if `rows` is smaller than the number of samples, which would leave some out.
    """
    if rows < len(x):
        raise ValueError(f"Argument `rows` must be >= {len(x)} samples. Received: rows={rows}")
    index = np.arange(rows) % len(x)
    return x[index], y[index]


def fit_least_squares(x, y, classes):
    """Return the linear classifier that least squares finds, weights `(features + 1, classes)`.

    It fits targets of 0 and 1 for each class. Where there are fewer samples than weights for each
    class, it is the exact fit with the smallest weights, which gradient descent from 0 ends at.

    Args:
        x: Array of shape `(samples, ...)`.
        y: Int array of shape `(samples,)`.
        classes: Int, the number of classes.
    """
    return np.linalg.lstsq(_with_ones(x), np.eye(classes)[y], rcond=None)[0]


def predict_least_squares(weights, x):
    """Return the scores `(samples, classes)` of weights from `fit_least_squares`."""
    return _with_ones(x) @ weights


def _with_ones(x):
    x = np.asarray(x, "float64").reshape(len(x), -1)
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


VARIANTS = {
    f"samples_{samples}": {"samples": samples} for samples in (25, 50, 100, 250, 1000, 4000)
}

EQUAL_START = [list(VARIANTS)]

SYMPTOMS = ["overfits", "underfits"]

EXPERIMENTS = {
    "digits": {  # 480 updates for each size.
        "data": "digits",
        "epochs": 30,
        "batch_size": 64,
        "measure": True,
        "arguments": {"rows_per_epoch": 1000},
        "learning_rates": {
            "samples_25": 0.0316,
            "samples_50": 0.01,
            "samples_100": 0.00316,
            "samples_250": 0.0999,
            "samples_1000": 0.0316,
        },
    },
    "mnist1d": {  # 945 updates for each size.
        "data": "mnist1d",
        "epochs": 15,
        "batch_size": 64,
        "sweep": True,
        "arguments": {"rows_per_epoch": 4000},
        "learning_rates": {"samples_250": 0.0999, "samples_1000": 0.0999, "samples_4000": 0.0999},
    },
}

CLAIMS = [
    {
        "text": "On digits, 1,000 samples leave a smaller gap between training and test than 50",
        "experiment": "digits",
        "variant": "samples_1000",
        "against": "samples_50",
        "metric": "generalization_gap",
        "direction": "lower",
        "at_least": 0.1,
        "textbook": "More data reduce overfitting.",
    },
    {
        "text": "100 samples leave a smaller gap than 50",
        "experiment": "digits",
        "variant": "samples_100",
        "against": "samples_50",
        "metric": "generalization_gap",
        "direction": "lower",
        "at_least": 0.01,
    },
    {
        "text": "250 samples leave a smaller gap than 100",
        "experiment": "digits",
        "variant": "samples_250",
        "against": "samples_100",
        "metric": "generalization_gap",
        "direction": "lower",
        "at_least": 0.01,
    },
    {
        "text": "1,000 samples leave a smaller gap than 250",
        "experiment": "digits",
        "variant": "samples_1000",
        "against": "samples_250",
        "metric": "generalization_gap",
        "direction": "lower",
        "at_least": 0.01,
    },
    {
        "text": "With as many updates, 1,000 samples give a higher test accuracy than 50",
        "experiment": "digits",
        "variant": "samples_1000",
        "against": "samples_50",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.1,
    },
    {
        "text": "Least squares reaches a higher test accuracy with 50 samples than with 25",
        "experiment": "digits",
        "variant": "samples_50",
        "against": "samples_25",
        "metric": "least_squares_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "More data never hurt.",
    },
    {
        "text": "The network reaches a higher test accuracy with 50 samples than with 25",
        "experiment": "digits",
        "variant": "samples_50",
        "against": "samples_25",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "On MNIST-1D, 4,000 samples leave a smaller gap than 1,000",
        "experiment": "mnist1d",
        "variant": "samples_4000",
        "against": "samples_1000",
        "metric": "generalization_gap",
        "direction": "lower",
        "at_least": 0.01,
    },
    {
        "text": "There, 4,000 samples give a higher test accuracy than 1,000",
        "experiment": "mnist1d",
        "variant": "samples_4000",
        "against": "samples_1000",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
]


def prepare(split, rows_per_epoch=None):
    """Return the data with the training part repeated until it has `rows_per_epoch` rows."""
    if rows_per_epoch is None:
        return split
    x, y = repeat_rows(*split.train, rows_per_epoch)
    return replace(split, train=split.train._replace(x=x, y=y))


def measure(model, split):
    """Return the accuracies of least squares on the same samples, beside those of the network."""
    weights = fit_least_squares(*split.train, split.classes)
    accuracy = {
        part: np.mean(predict_least_squares(weights, x).argmax(-1) == y)
        for part, (x, y) in {"train": split.train, "test": split.test}.items()
    }
    return {
        "least_squares_accuracy": accuracy["test"],
        "least_squares_gap": accuracy["train"] - accuracy["test"],
    }


def illustrate(summary):
    """Draw accuracy against the number of samples: training and test of both models."""
    from matplotlib.figure import Figure

    from recipes._lab.picture import BASELINE_COLOR, COLORS

    lines = {
        "train_accuracy": (BASELINE_COLOR, "network, training"),
        "test_accuracy": (COLORS[0], "network, test"),
        "least_squares_accuracy": (COLORS[1], "least squares, test"),
    }
    figure = Figure(figsize=(6 * len(summary["experiments"]), 4.5), layout="constrained")
    panels = figure.subplots(1, len(summary["experiments"]), squeeze=False, sharey=True)[0]
    for axes, (name, experiment) in zip(panels, summary["experiments"].items(), strict=True):
        variants = experiment["variants"].values()
        samples = [variant["arguments"]["samples"] for variant in variants]
        for metric, (color, label) in lines.items():
            intervals = [v["metrics"][metric] for v in variants if metric in v["metrics"]]
            if intervals:
                means = [100 * interval["mean"] for interval in intervals]
                # A single seed has no interval.
                low, high = (
                    [100 * (i["mean"] if i[end] is None else i[end]) for i in intervals]
                    for end in ("low", "high")
                )
                axes.fill_between(samples, low, high, color=color, alpha=0.15, linewidth=0)
                axes.plot(samples, means, color=color, marker="o", label=label)
        axes.set_xscale("log")
        axes.set_xticks(samples, [f"{number:,}" for number in samples])
        axes.minorticks_off()
        axes.set(xlabel="training samples", title=name)
        axes.legend()
    panels[0].set_ylabel("accuracy (%)")
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
