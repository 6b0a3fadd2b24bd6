"""Model capacity: too small to learn, large enough, and so large that random labels fit.

Problem:    You do not know whether the network is too small or too large: training and validation
            accuracy are both low, or far apart.
Technique:  Vary width and depth and look at training and test accuracy together. Both low: too
            small. Far apart: it fits what it should not, by its size or for want of data. To see
            what it can learn by heart, train it on labels that mean nothing.
Claim:      What grows with size is the ability to learn by heart: 512 units fit random labels
            completely, 8 do not, and 128 learn nearly all of 30% wrong labels. Test accuracy is
            robust to size, on clean data and with wrong labels alike: 512 units are not told apart
            from 32, nor four layers from one. Two hidden units are too few for ten digits: two
            thirds of the answers are lost in the mean, with too much spread over seeds for five to
            settle it.
Costs:      Width costs in proportion to its square between hidden layers; depth in proportion.
Start at:   Wide enough that the training data can be fitted; then restrain it with more data, early
            stopping, dropout or a penalty, and not by making it smaller.
Caveat:     Where each has the learning rate that is best on validation data, a small rate keeps a
            large network from fitting wrong labels: that is what `noisy` shows. In `to_the_end` and
            `random_labels` one rate that fits the training data is given and not searched, because
            validation would choose one that stops before the end. Elsewhere the rates come from
            `python -m recipes.model_capacity --tune --experiments clean noisy --learning-rates
            0.001:0.316:6`, those of clean from the same with `--experiments clean` and `0.003:3:7`.
            90% wrong labels of ten classes are random labels: each is as likely as any other,
            whatever the image.
Reference:  Zhang, Bengio, Hardt, Recht, Vinyals (2017), Understanding Deep Learning Requires
            Rethinking Generalization, arXiv:1611.03530, sections 2 and 4. Nakkiran, Kaplun, Bansal,
            Yang, Barak, Sutskever (2019), Deep Double Descent, arXiv:1912.02292, section 5.
Run:        python -m recipes.model_capacity, with --sweep for wrong labels at each one's own rate
Measured:   No clear difference: 32 hidden units fit the training data better than two (-68.0
              [-105.2, -30.8] points, p = .053).
            No clear difference: Two hidden units reach a lower test accuracy than 32 (-66.1
              [-101.6, -30.6] points, p = .053).
            No clear difference: On clean data, 512 units reach a lower test accuracy than 32 (+0.6
              [+0.1, +1.1] points, p = .120).
            No clear difference: On clean data, four hidden layers of 32 reach a lower test accuracy
              than one (-0.8 [-2.1, +0.6] points, p = .388).
            No clear difference: On clean data, one hidden layer of 32 reaches a higher test
              accuracy than none (+1.0 [+0.4, +1.6] points, p = .069).
            No clear difference: With 30% wrong labels, fitted to the end, 128 units reach a lower
              test accuracy than 8 (-0.8 [-9.8, +8.2] points, p = .816).
            Supported: There, 128 units learn more of the wrong labels by heart than 8 (+0.896
              [+0.875, +0.917], p < .001).
            No clear difference: There, 512 units reach a higher test accuracy than 128: double
              descent (+2.3 [-0.9, +5.5] points, p = .340).
            Supported: 512 units learn random labels by heart: training is at least 80 points above
              test (+90.8 [+88.7, +93.0] points, p < .001).
            Supported: 8 units fit random labels worse than 512 (-82.0 [-84.2, -79.8] points, p <
              .001).
            No clear difference: With 30% wrong labels, each at its own learning rate, 512 units
              reach a lower test accuracy than 32 (+2.0 [+0.0, +4.0] points, p = .186).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import keras
import numpy as np

UNITS = 32
HIDDEN_LAYERS = 1
MOMENTUM = 0.9


def build_model(
    input_shape=(64,),
    classes=10,
    units=UNITS,
    hidden_layers=HIDDEN_LAYERS,
    learning_rate=0.03,
    seed=0,
):
    """Build and compile a ReLU network of any width and depth.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        units: Int >= 1, the width of each hidden layer.
        hidden_layers: Int >= 0. With 0 the network is linear.
        learning_rate: Float or schedule, for SGD with momentum.
        seed: Int. Other seeds give other initial weights.

    Raises:
        ValueError: if `units` is below 1 or `hidden_layers` below 0.
    """
    if units < 1:
        raise ValueError(f"Argument `units` must be >= 1. Received: units={units}")
    if hidden_layers < 0:
        raise ValueError(
            f"Argument `hidden_layers` must be >= 0. Received: hidden_layers={hidden_layers}"
        )
    seeds = iter(np.random.SeedSequence(seed).generate_state(hidden_layers + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(hidden_layers):
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
    """Build the model that Keras Tuner asks for, with width, depth and learning rate."""
    return build_model(
        units=hp.Int("units", 8, 512, step=2, sampling="log"),
        hidden_layers=hp.Int("hidden_layers", 0, 4, default=HIDDEN_LAYERS),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


VARIANTS = {
    "width_32": {"units": 32},
    "width_2": {"units": 2},
    "width_8": {"units": 8},
    "width_128": {"units": 128},
    "width_512": {"units": 512},
    "linear": {"hidden_layers": 0},
    "depth_4": {"units": 32, "hidden_layers": 4},
}

EQUAL_START = []  # No two networks have weights of the same shapes.

DIGITS = {"data": "digits", "samples": 1000, "epochs": 30, "batch_size": 64}

SYMPTOMS = ["underfits", "overfits"]

EXPERIMENTS = {
    "clean": {
        **DIGITS,
        "learning_rates": {
            "width_32": 0.3,
            "width_2": 0.0949,
            "width_8": 0.0949,
            "width_512": 0.3,
            "linear": 0.949,
            "depth_4": 0.03,
        },
    },
    "to_the_end": {  # One rate, given: the subject is what is left when nothing stops the fit.
        **DIGITS,
        "label_noise": 0.3,
        "epochs": 100,
        "measure": True,
        "learning_rates": {"width_8": 0.1, "width_32": 0.1, "width_128": 0.1, "width_512": 0.1},
    },
    "random_labels": {  # The same rate: validation data know nothing about random labels.
        **DIGITS,
        "label_noise": 0.9,
        "epochs": 100,
        "learning_rates": {"width_8": 0.1, "width_512": 0.1},
    },
    "noisy": {
        **DIGITS,
        "label_noise": 0.3,
        "measure": True,
        "sweep": True,
        "learning_rates": {"width_8": 0.0316, "width_32": 0.0316, "width_512": 0.01},
    },
}

CLAIMS = [
    {
        "text": "32 hidden units fit the training data better than two",
        "experiment": "clean",
        "variant": "width_2",
        "against": "width_32",
        "metric": "train_accuracy",
        "direction": "lower",
        "at_least": 0.1,
    },
    {
        "text": "Two hidden units reach a lower test accuracy than 32",
        "experiment": "clean",
        "variant": "width_2",
        "against": "width_32",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.1,
    },
    {
        "text": "On clean data, 512 units reach a lower test accuracy than 32",
        "experiment": "clean",
        "variant": "width_512",
        "against": "width_32",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
        "textbook": "A network with many more weights than samples overfits.",
    },
    {
        "text": "On clean data, four hidden layers of 32 reach a lower test accuracy than one",
        "experiment": "clean",
        "variant": "depth_4",
        "against": "width_32",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
    },
    {
        "text": "On clean data, one hidden layer of 32 reaches a higher test accuracy than none",
        "experiment": "clean",
        "variant": "width_32",
        "against": "linear",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "With 30% wrong labels, fitted to the end, 128 units reach a lower test accuracy "
        "than 8",
        "experiment": "to_the_end",
        "variant": "width_128",
        "against": "width_8",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
        "textbook": "Beyond some size, a larger model does worse on new data.",
    },
    {
        "text": "There, 128 units learn more of the wrong labels by heart than 8",
        "experiment": "to_the_end",
        "variant": "width_128",
        "against": "width_8",
        "metric": "memorized",
        "direction": "higher",
        "at_least": 0.2,
    },
    {
        "text": "There, 512 units reach a higher test accuracy than 128: double descent",
        "experiment": "to_the_end",
        "variant": "width_512",
        "against": "width_128",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "512 units learn random labels by heart: training is at least 80 points above test",
        "experiment": "random_labels",
        "variant": "width_512",
        "against": "width_512",
        "metric": "train_accuracy",
        "against_metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.8,
    },
    {
        "text": "8 units fit random labels worse than 512",
        "experiment": "random_labels",
        "variant": "width_8",
        "against": "width_512",
        "metric": "train_accuracy",
        "direction": "lower",
        "at_least": 0.3,
    },
    {
        "text": "With 30% wrong labels, each at its own learning rate, 512 units reach a lower "
        "test accuracy than 32",
        "experiment": "noisy",
        "variant": "width_512",
        "against": "width_32",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
    },
]


def measure(model, split):
    """Return the fraction of the wrong training labels that the network gives back."""
    x, y = (values[split.wrong_labels.train] for values in split.train)
    return {"memorized": np.mean(np.argmax(model(x), axis=-1) == y)}


def illustrate(summary):
    """Draw training and test accuracy against the number of weights, an experiment a panel."""
    from matplotlib.figure import Figure

    from recipes._lab.picture import BASELINE_COLOR, COLORS

    experiments = summary["experiments"]
    figure = Figure(figsize=(5 * len(experiments), 4.5), layout="constrained")
    panels = figure.subplots(1, len(experiments), squeeze=False, sharey=True)[0]
    for axes, (name, experiment) in zip(panels, experiments.items(), strict=True):
        # A line joins networks of one hidden layer; the others stand beside it.
        by_width = [(n, v) for n, v in experiment["variants"].items() if n.startswith("width")]
        by_width.sort(key=lambda pair: pair[1]["parameters"])
        for metric, color in {"train_accuracy": BASELINE_COLOR, "test_accuracy": COLORS[0]}.items():
            points = [(v["parameters"], 100 * v["metrics"][metric]["mean"]) for _, v in by_width]
            label = metric.removesuffix("_accuracy").replace("train", "training")
            axes.plot(*zip(*points, strict=True), color=color, marker="o", label=label)
            for other, variant in experiment["variants"].items():
                if not other.startswith("width"):
                    accuracy = 100 * variant["metrics"][metric]["mean"]
                    axes.plot(variant["parameters"], accuracy, color=color, marker="s")
        accuracy = [100 * v["metrics"]["test_accuracy"]["mean"] for _, v in by_width]
        for (variant, entry), height in zip(by_width, accuracy, strict=True):
            place = (entry["parameters"], height)
            axes.annotate(variant, place, (0, -14), textcoords="offset points", ha="center")
        axes.set_xscale("log")
        axes.set(xlabel="weights and biases", title=name)
    panels[0].set_ylabel("accuracy (%)")
    panels[0].legend()
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
