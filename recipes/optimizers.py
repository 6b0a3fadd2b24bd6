"""Optimizers: from SGD to Muon, at Keras's default rates and each at its own.

Problem:    Training is slow or ends at a poor loss, and another optimizer is said to do better.
Technique:  SGD steps along the gradient, with momentum along past ones too. Adagrad, RMSprop, Adam
            and Nadam divide each weight's step by the size of its past gradients; AdamW adds
            weight decay outside that division. Lion steps by the sign alone. Muon makes the step
            of each hidden matrix nearly orthogonal, and leaves the other weights to AdamW.
Claim:      At Keras's default rates the optimizers lie far apart, because those rates suit some and
            not others. With a rate searched for each, Adam still reaches a higher test accuracy
            than SGD without momentum; against Nesterov's momentum no clear difference is left, and
            AdamW, Nadam, Lion and Muon are not told apart from Adam. There are data on which SGD
            makes no error and Adam errs on every sample of the rarer class.
Costs:      Numbers kept for each weight: SGD 0; momentum, Adagrad, RMSprop, Lion 1; Adam, AdamW,
            Nadam 2; Muon 1 for hidden matrices, 2 elsewhere, and 15 matrix products a step.
Start at:   Adam or AdamW 0.001, SGD with momentum 0.9 at 0.01 to 0.1, Lion a third to a tenth of
            Adam's rate; then search the rate. Search longer before you change the optimizer.
Caveat:     Keras's Adagrad starts its sum at 0.1 where the paper has 0: with small gradients it is
            SGD at about three times the rate. The epsilon of Keras's Adam comes before the
            correction of the bias, so that at a gradient of 1e-8 a first step is 29 times shorter
            than by the paper's algorithm. AdamW and Muon bring a weight decay of 0.004. The rates
            of `searched` and `newer_searched` come from `python -m recipes.optimizers --tune
            --experiments searched newer_searched --learning-rates 0.0001:1:9`; the other settings
            stay at their defaults. In `wilson` theory says that the rate does not matter, but for
            Adagrad with Keras's sum, where it decides.
Reference:  Kingma, Ba (2014), Adam, arXiv:1412.6980, section 2. Loshchilov, Hutter (2017),
            Decoupled Weight Decay Regularization, arXiv:1711.05101. Chen et al. (2023), Symbolic
            Discovery of Optimization Algorithms, arXiv:2302.06675. Jordan et al. (2024), Muon,
            kellerjordan.github.io/posts/muon. Wilson, Roelofs, Stern, Srebro, Recht (2017), The
            Marginal Value of Adaptive Gradient Methods, arXiv:1705.08292, section 3.3. Choi et al.
            (2019), On Empirical Comparisons of Optimizers, arXiv:1910.05446.
Run:        python -m recipes.optimizers, with --sweep for AdamW, Nadam, Lion and Muon
Measured:   Supported: At Keras's default rates, Adam reaches a higher test accuracy than SGD by
              five points or more (+12.7 [+10.8, +14.6] points, p < .001).
            Supported: At Keras's default rates, Adagrad reaches a lower one than SGD, which is
              older (-9.6 [-11.8, -7.4] points, p = .002).
            Supported: Each at its own rate, Adam reaches a higher test accuracy than SGD (+6.5
              [+4.3, +8.8] points, p = .009).
            No clear difference: Each at its own rate, Adam reaches a higher one than Nesterov's
              momentum (+2.9 [+0.5, +5.3] points, p = .139).
            Supported: Each at its own rate, Adam reaches a lower training loss than SGD (-0.467
              [-0.648, -0.286], p = .012).
            Supported: On Wilson's data, Adam's test accuracy is lower than SGD's by 30 points or
              more (-40.0 points in every run).
            Supported: So is Adagrad's, its sum started at 0 (-40.0 points in every run).
            No clear difference: Each at its own rate, AdamW reaches a higher test accuracy than
              Adam (-0.6 [-5.0, +3.8] points, p = 1.000).
            No clear difference: Each at its own rate, Nadam reaches a higher test accuracy than
              Adam (-0.7 [-4.2, +2.8] points, p = 1.000).
            No clear difference: Each at its own rate, Lion reaches a higher test accuracy than Adam
              (-2.2 [-6.1, +1.7] points, p = .589).
            No clear difference: Each at its own rate, Muon reaches a higher test accuracy than Adam
              (-3.0 [-5.9, -0.1] points, p = .179).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

from dataclasses import replace

import keras
import numpy as np

HIDDEN_UNITS = 64
HIDDEN_LAYERS = 3  # The first and last matrix are not Muon's: two are left for it.
MOMENTUM = 0.9
POSITIVE_SHARE = 0.6  # Of Wilson's samples; any share above one half will do.
EPOCHS, BATCH_SIZE, SAMPLES = 12, 64, 2000


def make_optimizer(name, learning_rate):
    """Return a new Keras optimizer, at Keras's defaults but for the rate.

    Raises:
        ValueError: if `name` is none of those below.
    """
    optimizers = keras.optimizers
    makers = {
        "sgd": lambda: optimizers.SGD(learning_rate),
        "momentum": lambda: optimizers.SGD(learning_rate, momentum=MOMENTUM),
        "nesterov": lambda: optimizers.SGD(learning_rate, momentum=MOMENTUM, nesterov=True),
        "adagrad": lambda: optimizers.Adagrad(learning_rate),
        # As in the paper, whose sum of squared gradients starts at zero.
        "adagrad_from_0": lambda: optimizers.Adagrad(learning_rate, initial_accumulator_value=0.0),
        "rmsprop": lambda: optimizers.RMSprop(learning_rate),
        "adam": lambda: optimizers.Adam(learning_rate),
        "adamw": lambda: optimizers.AdamW(learning_rate),
        "nadam": lambda: optimizers.Nadam(learning_rate),
        "lion": lambda: optimizers.Lion(learning_rate),
        # By its authors' advice for hidden layers only; Keras sends biases to AdamW by itself.
        "muon": lambda: optimizers.Muon(learning_rate, exclude_layers=["^first/", "^output/"]),
    }
    if name not in makers:
        raise ValueError(
            f"Argument `optimizer` must be one of {', '.join(makers)}. Received: optimizer={name!r}"
        )
    return makers[name]()


def build_model(
    input_shape=(64,), classes=10, optimizer="adam", linear=False, learning_rate=0.001, seed=0
):
    """Build and compile a ReLU network, or a linear classifier of two classes.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
            The linear classifier, which has one output, does not use it.
        optimizer: String, a name that `make_optimizer` knows.
        linear: Whether to build the linear classifier: weights that start at zero, no bias.
        learning_rate: Float or schedule.
        seed: Int. Equal seeds give equal initial weights.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    losses = keras.losses
    if linear:
        loss = losses.BinaryCrossentropy(from_logits=True)
        output = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="output")
    else:
        loss = losses.SparseCategoricalCrossentropy(from_logits=True)
        for name in ("first", *(f"hidden_{i}" for i in range(2, HIDDEN_LAYERS + 1))):
            initializer = keras.initializers.HeNormal(seed=next(seeds))
            layer = keras.layers.Dense(
                HIDDEN_UNITS, "relu", kernel_initializer=initializer, name=name
            )
            x = layer(x)
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        output = keras.layers.Dense(classes, kernel_initializer=initializer, name="output")
    model = keras.Model(inputs, output(x))
    model.compile(make_optimizer(optimizer, learning_rate), loss, metrics=["accuracy"])
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with the optimizer and its learning rate.

    `keras_tuner.RandomSearch(tunable_model, objective="val_loss", max_trials=30)`, and likewise
    `BayesianOptimization` and `Hyperband`.
    """
    return build_model(
        optimizer=hp.Choice("optimizer", ["momentum", "adam", "adamw", "lion", "muon"]),
        learning_rate=hp.Float("learning_rate", 1e-4, 1.0, sampling="log"),
    )


def wilson_inputs(y, blocks):
    """Return inputs of which only the first column tells about classes in general.

    Columns: the class as -1 or 1; twice the constant 1; then five for each block. A sample of
    class 1 has a 1 in the first column of its block, one of class 0 has ones in all five. A block
    of its own for each training sample tells that sample's class, and nothing about others.

    Args:
        y: Integer array `(samples,)` of 0 and 1.
        blocks: Integer array `(samples,)`, the block of each sample.

    Returns:
        float32 array `(samples, 3 + 5 * (samples + 1))`.
    """
    x = np.zeros((len(y), 3 + 5 * (int(max(blocks)) + 1)), "float32")
    x[:, 0] = 2 * y - 1
    x[:, 1:3] = 1
    for row, (label, block) in enumerate(zip(y, blocks, strict=True)):
        first = 3 + 5 * block
        x[row, first : first + (1 if label else 5)] = 1
    return x


def prepare(split, linear=False):
    """Return the data, or those of Wilson et al. with as many samples, 60% of class 1.

    All samples of validation and test share one block, which no training sample has.
    """
    if not linear:
        return split
    generator = np.random.default_rng(split.seed)
    rows = split.samples

    def part_with(blocks):
        y = np.zeros(len(blocks), "int32")
        y[: round(POSITIVE_SHARE * len(y))] = 1
        y = generator.permutation(y)
        x = wilson_inputs(y, blocks)
        return split.train._replace(x=np.pad(x, [(0, 0), (0, columns - x.shape[1])]), y=y)

    columns = 3 + 5 * (rows + 1)
    train = part_with(np.arange(rows))
    validation, test = (
        part_with(np.full(len(part.y), rows)) for part in (split.validation, split.test)
    )
    return replace(split, train=train, validation=validation, test=test)


OLDER = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam")
NEWER = ("adam", "adamw", "nadam", "lion", "muon")

SYMPTOMS = ["slow"]

VARIANTS = {
    **{name: {"optimizer": name} for name in dict.fromkeys((*OLDER, *NEWER))},
    "adagrad_from_0": {"optimizer": "adagrad_from_0"},
}

EQUAL_START = [list(VARIANTS)]

NETWORK = {"data": "mnist1d", "samples": SAMPLES, "epochs": EPOCHS, "batch_size": BATCH_SIZE}
EXPERIMENTS = {
    "searched": {
        **NETWORK,
        "learning_rates": {
            "sgd": 0.316,
            "momentum": 0.0316,
            "nesterov": 0.1,
            "adagrad": 0.1,
            "rmsprop": 0.01,
            "adam": 0.01,
        },
    },
    "default_rates": {
        **NETWORK,
        "learning_rates": {
            "sgd": 0.01,
            "momentum": 0.01,
            "nesterov": 0.01,
            "adagrad": 0.001,
            "rmsprop": 0.001,
            "adam": 0.001,
        },
    },
    "wilson": {  # The data are replaced; all of them make one batch.
        "data": "xor",
        "samples": 100,
        "epochs": 40,
        "batch_size": 100,
        "arguments": {"linear": True},
        "learning_rates": {
            "sgd": 1.0,
            "adagrad": 0.1,
            "adagrad_from_0": 0.1,
            "rmsprop": 0.1,
            "adam": 0.1,
        },
    },
    "newer_searched": {
        **NETWORK,
        "sweep": True,
        "learning_rates": {
            "adam": 0.01,
            "adamw": 0.01,
            "nadam": 0.01,
            "lion": 0.00316,
            "muon": 0.01,
        },
    },
    "newer_defaults": {
        **NETWORK,
        "sweep": True,
        "learning_rates": dict.fromkeys(NEWER, 0.001),
    },
}

CLAIMS = [
    {
        "text": "At Keras's default rates, Adam reaches a higher test accuracy than SGD by five "
        "points or more",
        "experiment": "default_rates",
        "variant": "adam",
        "against": "sgd",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.05,
        "textbook": "Later optimizers do better than earlier ones.",
    },
    {
        "text": "At Keras's default rates, Adagrad reaches a lower one than SGD, which is older",
        "experiment": "default_rates",
        "variant": "adagrad",
        "against": "sgd",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.01,
        "against_textbook": "Later optimizers do better than earlier ones.",
    },
    {
        "text": "Each at its own rate, Adam reaches a higher test accuracy than SGD",
        "experiment": "searched",
        "variant": "adam",
        "against": "sgd",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Later optimizers do better than earlier ones.",
    },
    {
        "text": "Each at its own rate, Adam reaches a higher one than Nesterov's momentum",
        "experiment": "searched",
        "variant": "adam",
        "against": "nesterov",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Later optimizers do better than earlier ones.",
    },
    {
        "text": "Each at its own rate, Adam reaches a lower training loss than SGD",
        "experiment": "searched",
        "variant": "adam",
        "against": "sgd",
        "metric": "train_loss",
        "direction": "lower",
        "at_least": 0.05,
    },
    {
        "text": "On Wilson's data, Adam's test accuracy is lower than SGD's by 30 points or more",
        "experiment": "wilson",
        "variant": "adam",
        "against": "sgd",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.3,
        "against_textbook": "Later optimizers do better than earlier ones.",
    },
    {
        "text": "So is Adagrad's, its sum started at 0",
        "experiment": "wilson",
        "variant": "adagrad_from_0",
        "against": "sgd",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.3,
    },
    *(
        {
            "text": f"Each at its own rate, {title} reaches a higher test accuracy than Adam",
            "experiment": "newer_searched",
            "variant": name,
            "against": "adam",
            "metric": "test_accuracy",
            "direction": "higher",
            "at_least": 0.01,
            "textbook": "Later optimizers do better than earlier ones.",
        }
        for name, title in (
            ("adamw", "AdamW"),
            ("nadam", "Nadam"),
            ("lion", "Lion"),
            ("muon", "Muon"),
        )
    ),
]


def illustrate(summary):
    """Draw test accuracy at the default rate and at the searched one, a row each optimizer."""
    from matplotlib.figure import Figure

    from recipes._lab.picture import BASELINE_COLOR, COLORS

    kinds = {
        "Keras's default rate": (("default_rates", "newer_defaults"), BASELINE_COLOR, -0.12),
        "searched rate": (("searched", "newer_searched"), COLORS[0], 0.12),
    }
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    rows = {name: row for row, name in enumerate(dict.fromkeys((*OLDER, *NEWER)))}
    for label, (names, color, offset) in kinds.items():
        for name in names:
            entries = summary["experiments"].get(name, {"variants": {}})["variants"]
            for variant, entry in entries.items():
                accuracy = entry["metrics"]["test_accuracy"]
                at = rows[variant] + offset
                if accuracy["low"] is not None:
                    interval = [100 * accuracy["low"], 100 * accuracy["high"]]
                    axes.plot(interval, [at, at], color=color, linewidth=3, alpha=0.4)
                axes.plot(100 * accuracy["mean"], at, "o", color=color, label=label)
                label = None
                axes.annotate(
                    f"{entry['learning_rate']:g}",
                    (100 * accuracy["mean"], at),
                    (0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=color,
                )
    axes.set_yticks(list(rows.values()), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy (%), mean and 95% interval; above each point its rate")
    axes.set_title("Each optimizer at Keras's default rate and at its own", fontsize=11)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
