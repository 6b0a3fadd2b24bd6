"""Learning rate: the length of a step, the setting to get right before any other.

Problem:    The loss barely moves from epoch to epoch, or it explodes, or it jumps about: the same
            model learns at one rate and not at another.
Technique:  Gradient descent subtracts learning_rate * gradient. Along a direction of curvature h
            the distance to the minimum shrinks by the factor 1 - learning_rate * h at each step,
            so it grows as soon as learning_rate > 2 / h. With gradient noise of variance s^2 the
            rate also sets how close SGD settles: at variance learning_rate * s^2 / (h * (2 -
            learning_rate * h)). Search on a logarithmic grid, on validation data, or raise the
            rate from step to step and watch the loss (range test).
Claim:      A rate a hundred times too low, or a hundred times too high, costs 20 points of test
            accuracy and more, the latter without a loss of nan. With ten times the updates, a rate
            ten times too low makes no clear difference. A quadratic converges just below 2 /
            curvature and diverges just above. Training at the range test's rate is not told apart
            from a searched one.
Costs:      A search trains once for each rate and seed; the range test takes 100 updates.
Start at:   SGD 0.1, SGD with momentum 0.9 0.01, Adam 0.001; then factors of 3 up and down. Keras's
            default for SGD is 0.01.
Caveat:     The best rate moves with everything: optimizer, momentum, batch size, depth,
            normalization, number of updates. Networks have no one curvature: it changes on the
            way, and training often survives a rate above 2 / curvature for a while. Here the rate
            is the subject, so those of `rates`, `more_updates` and `quadratic` are set, not
            searched; that of `range_test` comes from
            `python -m recipes.learning_rate --tune --experiments range_test
            --learning-rates 0.001:1:7`.
Reference:  LeCun, Bottou, Orr, Müller (1998), Efficient BackProp, sections 5.1 and 5.2. Smith
            (2017), Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section
            3.3. Cohen, Kaur, Li, Kolter, Talwalkar (2021), Gradient Descent on Neural Networks
            Typically Occurs at the Edge of Stability, arXiv:2103.00065.
Run:        python -m recipes.learning_rate
Measured:   Supported: A rate a hundred times too low lowers test accuracy by 20 points or more
              (-74.8 [-82.5, -67.0] points, p < .001).
            Supported: A rate a hundred times too high lowers it by 20 points or more (-84.8 [-86.2,
              -83.4] points, p < .001).
            No clear difference: A rate a hundred times too high ends in a loss that is infinite or
              nan (0 in every run).
            No clear difference: With ten times the updates, a rate ten times too low gives the same
              test accuracy (+0.6 [-0.4, +1.6] points, p = .503).
            No clear difference: The valley of the range test gives the test accuracy of the
              searched rate (-2.3 [-5.3, +0.7] points, p = 1.000).
            Supported: On a quadratic, 1.01 times 2 / curvature diverges and 0.99 times converges:
              the loss after 100 steps is higher by 100 or more (+262 [+262, +262], p < .001).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

from dataclasses import replace

import keras
import numpy as np

HIDDEN_UNITS = 64
HIDDEN_LAYERS = 2
BATCH_SIZE = 64
EPOCHS = 20
# Curvatures of the quadratic, the eigenvalues of its Hessian: the limit is 2 / 10.
CURVATURES = (10.0, 1.0)
ROWS = 20  # Of the regression whose loss is the quadratic.


def build_model(
    input_shape=(64,), classes=10, linear=False, momentum=0.0, learning_rate=0.1, seed=0
):
    """Build and compile a ReLU network, or the linear regression whose loss is a quadratic.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
            The regression, which has one output, does not use it.
        linear: Whether to build the regression: weights that start at one, no bias, squared error.
        momentum: Float in [0, 1), for SGD.
        learning_rate: Float or schedule, for SGD.
        seed: Int. Equal seeds give equal initial weights.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    if linear:
        outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")(x)
    else:
        for _ in range(HIDDEN_LAYERS):
            initializer = keras.initializers.HeNormal(seed=next(seeds))
            x = keras.layers.Dense(HIDDEN_UNITS, "relu", kernel_initializer=initializer)(x)
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=momentum),
        loss=keras.losses.MeanSquaredError()
        if linear
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[] if linear else ["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with momentum, on which the best rate depends.

    `keras_tuner.RandomSearch(tunable_model, objective="val_loss", max_trials=30)`, and likewise
    `BayesianOptimization` and `Hyperband`. `sampling="log"` gives each decade the same chance:
    without it nine of ten trials between 0.001 and 1 would lie above 0.1.
    """
    return build_model(
        momentum=hp.Choice("momentum", [0.0, 0.9]),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


def inputs_with_curvatures(curvatures, rows, seed=0):
    """Return random inputs for which squared error has these curvatures, exactly.

    With inputs X of shape `(rows, n)` and targets of zero, the mean squared error of a linear
    model with weights w is `sum(curvatures * w**2) / 2`: its Hessian is 2 XᵀX / rows, and X has
    orthogonal columns of the right length.

    Raises:
        ValueError: if there are fewer rows than curvatures.
    """
    curvatures = np.asarray(curvatures)
    if rows < len(curvatures):
        raise ValueError(
            f"Argument `rows` must be >= {len(curvatures)}, the number of curvatures. "
            f"Received: rows={rows}"
        )
    normal = np.random.default_rng(seed).standard_normal((rows, len(curvatures)))
    orthonormal, _ = np.linalg.qr(normal)
    return (orthonormal * np.sqrt(rows * curvatures / 2)).astype("float32")


def prepare(split, linear=False):
    """Return the data, or those of the quadratic: one batch of which each step sees all."""
    if not linear:
        return split
    x = inputs_with_curvatures(CURVATURES, ROWS, split.seed)
    part = split.train._replace(x=x, y=np.zeros(ROWS, "float32"))
    return replace(split, train=part, validation=part, test=part, target_scale=1.0)


SYMPTOMS = ["slow", "explodes", "choosing a rate"]

VARIANTS = {
    "rate_0.1": {},
    "rate_0.001": {},
    "rate_0.01": {},
    "rate_1": {},
    "rate_10": {},
    "0.01_for_longer": {"epochs": 10 * EPOCHS},
    "searched": {},
    "below_limit": {"linear": True},
    "above_limit": {"linear": True},
}

EQUAL_START = [
    ["rate_0.1", "rate_0.001", "rate_0.01", "rate_1", "rate_10", "0.01_for_longer"],
    ["below_limit", "above_limit"],
]

EXPERIMENTS = {
    "rates": {
        "data": "digits",
        "samples": 1000,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "learning_rates": {
            "rate_0.1": 0.1,
            "rate_0.001": 0.001,
            "rate_0.01": 0.01,
            "rate_1": 1.0,
            "rate_10": 10.0,
        },
    },
    "more_updates": {
        "data": "digits",
        "samples": 1000,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "learning_rates": {"rate_0.1": 0.1, "rate_0.01": 0.01, "0.01_for_longer": 0.01},
    },
    "range_test": {
        "data": "digits",
        "samples": 1000,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "measure": True,
        "learning_rates": {"searched": 0.316},
    },
    "quadratic": {  # The limit is 0.2. The data are replaced, so only the number of epochs counts.
        "data": "diabetes",
        "samples": ROWS,
        "epochs": 100,
        "batch_size": ROWS,
        "learning_rates": {"below_limit": 0.198, "above_limit": 0.202},
    },
}

CLAIMS = [
    {
        "text": "A rate a hundred times too low lowers test accuracy by 20 points or more",
        "experiment": "rates",
        "variant": "rate_0.001",
        "against": "rate_0.1",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.2,
    },
    {
        "text": "A rate a hundred times too high lowers it by 20 points or more",
        "experiment": "rates",
        "variant": "rate_10",
        "against": "rate_0.1",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.2,
    },
    {
        "text": "A rate a hundred times too high ends in a loss that is infinite or nan",
        "experiment": "rates",
        "variant": "rate_10",
        "against": "rate_0.1",
        "metric": "diverged",
        "direction": "higher",
        "at_least": 0.5,
        "textbook": "A rate that is too high diverges.",
    },
    {
        "text": "With ten times the updates, a rate ten times too low gives the same test accuracy",
        "experiment": "more_updates",
        "variant": "0.01_for_longer",
        "against": "rate_0.1",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.01,
        "against_textbook": "A rate that is too low sticks in a local minimum.",
    },
    {
        "text": "The valley of the range test gives the test accuracy of the searched rate",
        "experiment": "range_test",
        "variant": "searched",
        "against": "searched",
        "metric": "valley_accuracy",
        "against_metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "On a quadratic, 1.01 times 2 / curvature diverges and 0.99 times converges: "
        "the loss after 100 steps is higher by 100 or more",
        "experiment": "quadratic",
        "variant": "above_limit",
        "against": "below_limit",
        "metric": "train_loss",
        "direction": "higher",
        "at_least": 100.0,
        "textbook": "A rate that is too high diverges.",
    },
]


def measure(model, split):
    """Find a rate by the range test, train as long with it, and return rate and test accuracy."""
    from callbacks import LearningRateFinder

    x, y = split.train
    tested = build_model(split.input_shape, split.classes, seed=split.seed)
    finder = LearningRateFinder(minimum=1e-4, maximum=10.0, steps=100)
    rate = finder.find(tested, x, y, batch_size=BATCH_SIZE)["valley"]
    if rate is None:
        return {"valley_rate": np.nan, "valley_accuracy": np.nan}
    trained = build_model(split.input_shape, split.classes, learning_rate=rate, seed=split.seed)
    generator = np.random.default_rng(split.seed)
    updates = int(model.optimizer.iterations)
    rounds = -(-updates * BATCH_SIZE // len(x))
    order = np.concatenate([generator.permutation(len(x)) for _ in range(rounds)])
    order = order[: updates * BATCH_SIZE]
    trained.fit(x[order], y[order], batch_size=BATCH_SIZE, shuffle=False, verbose=0)
    logits = keras.ops.convert_to_numpy(trained(split.test.x, training=False))
    return {"valley_rate": rate, "valley_accuracy": np.mean(logits.argmax(-1) == split.test.y)}


def illustrate(summary):
    """Draw what each rate led to, and where the range test put its own."""
    from matplotlib.figure import Figure

    from recipes._lab.picture import BASELINE_COLOR, COLORS

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    experiments = summary["experiments"]
    if "rates" in experiments:
        entries = experiments["rates"]["variants"].values()
        entries = sorted(entries, key=lambda entry: entry["learning_rate"])
        rates = [entry["learning_rate"] for entry in entries]
        for part, style in (("train", "--"), ("test", "-")):
            means = [100 * entry["metrics"][f"{part}_accuracy"]["mean"] for entry in entries]
            axes.plot(rates, means, style, color=COLORS[0], marker="o", label=f"{part} accuracy")
    if "range_test" in experiments:
        entry = experiments["range_test"]["variants"]["searched"]
        found = entry["metrics"]["valley_rate"]["values"]
        for index, rate in enumerate(rate for rate in found if rate is not None):
            label = "range test, a line for each seed" if not index else None
            axes.axvline(rate, color=COLORS[1], alpha=0.5, label=label)
        axes.axvline(entry["learning_rate"], color=BASELINE_COLOR, label="searched")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("accuracy (%)")
    axes.set_title("What each rate reaches in the same number of updates", fontsize=11)
    axes.legend()
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
