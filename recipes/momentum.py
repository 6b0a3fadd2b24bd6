"""Momentum: add up past gradients, so that the steps that agree grow and the others cancel.

Problem:    The loss falls fast at first and then creeps: the rate that the steepest direction of
            the loss allows is too small for its flat ones.
Technique:  Keep a velocity and step by it: velocity = momentum * velocity - learning_rate *
            gradient (heavy ball). Nesterov takes the gradient where the velocity leads. Along a
            constant gradient the step grows to learning_rate * gradient / (1 - momentum).
Claim:      On a narrow quadratic, the best momentum takes a fifth of the steps of plain gradient
            descent and less, and close to the largest stable rate it halves the path; Nesterov
            diverges there, at a rate that plain descent survives. At half that rate no change in
            the number of turns is clear. On a network at one rate, momentum raises test accuracy by
            five points and more; each at its own rate no clear difference is left.
Costs:      One more number for each weight.
Start at:   momentum 0.9, and a tenth of the rate that suits plain SGD; then 0.95 and 0.99, with the
            rate searched anew. Keras's SGD has none by default.
Caveat:     Largest stable rate at curvature h: 2 / h for plain descent, (1 + momentum) times that
            for heavy ball, (1 + momentum) / (1 + 2 * momentum) times that for Nesterov, which is
            less than plain. Keras keeps the rate inside the velocity, so that a lower rate brakes
            only gradually. The rates of `network` come from `python -m recipes.momentum --tune
            --experiments network --learning-rates 0.01:10:7`; in the quadratics and in
            `one_rate` they are the subject, and set by theory.
Reference:  Polyak (1964), Some Methods of Speeding Up the Convergence of Iteration Methods.
            Sutskever, Martens, Dahl, Hinton (2013), On the Importance of Initialization and
            Momentum in Deep Learning, ICML, section 2. Goh (2017), Why Momentum Really Works,
            distill.pub/2017/momentum.
Run:        python -m recipes.momentum
Measured:   Supported: Near the largest stable rate, momentum shortens the path over a quadratic by
              half of a plain one's length and more (in distances from start to minimum) (-59.9
              [-73.4, -46.4], p = .001).
            No clear difference: At half that rate momentum adds changes of direction: ten and more
              in 100 steps (+0.6 [-6.51, +7.71], p = 1.000).
            Supported: With the best settings, heavy ball saves 500 steps and more of the plain 691
              (-599 [-600, -597], p < .001).
            Supported: So does Nesterov (-536 [-537, -534], p < .001).
            Supported: In a network, at one rate, momentum raises test accuracy by five points and
              more (+16.2 [+14.1, +18.3] points, p < .001).
            No clear difference: There plain SGD at ten times the rate does as well as momentum 0.9
              (-1.9 [-4.7, +0.9] points, p = 1.000).
            No clear difference: Each at its own rate, heavy ball raises test accuracy over plain
              SGD (+6.7 [-0.2, +13.5] points, p = .215).
            No clear difference: Each at its own rate, Nesterov raises test accuracy over heavy ball
              (-0.9 [-4.0, +2.1] points, p = 1.000).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

HIDDEN_UNITS = 64
HIDDEN_LAYERS = 2
MOMENTUM = 0.9
# The quadratic: curvatures, and with them the best settings (Polyak; Sutskever's appendix).
STEEP, FLAT = 100.0, 1.0
CONDITION = STEEP / FLAT
BEST_PLAIN_RATE = 2 / (STEEP + FLAT)
BEST_HEAVY_BALL_RATE = 4 / (STEEP**0.5 + FLAT**0.5) ** 2
BEST_HEAVY_BALL_MOMENTUM = ((CONDITION**0.5 - 1) / (CONDITION**0.5 + 1)) ** 2
BEST_NESTEROV_RATE = 1 / STEEP
BEST_NESTEROV_MOMENTUM = (CONDITION**0.5 - 1) / (CONDITION**0.5 + 1)
ROWS = 20  # Of the regression whose loss is the quadratic.
ZIGZAG_STEPS = 100
LONGEST_PATH = 1500
CONVERGED = 1e-6  # Of the distance at the start.


def build_model(
    input_shape=(64,),
    classes=10,
    momentum=0.0,
    nesterov=False,
    linear=False,
    learning_rate=0.1,
    seed=0,
):
    """Build and compile a ReLU network, or the linear regression whose loss is a quadratic.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
            The regression, which has one output, does not use it.
        momentum: Float in [0, 1). 0 is plain SGD, with or without `nesterov`.
        nesterov: Whether the gradient is taken ahead.
        linear: Whether to build the regression: no hidden layer, no bias, squared error.
        learning_rate: Float or schedule, for SGD.
        seed: Int. Equal seeds give equal initial weights.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    if linear:
        initializer = keras.initializers.RandomUniform(0.5, 1.5, seed=next(seeds))
        outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer=initializer)(x)
    else:
        for _ in range(HIDDEN_LAYERS):
            initializer = keras.initializers.HeNormal(seed=next(seeds))
            x = keras.layers.Dense(HIDDEN_UNITS, "relu", kernel_initializer=initializer)(x)
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=nesterov),
        loss=keras.losses.MeanSquaredError()
        if linear
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[] if linear else ["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with momentum and the learning rate.

    `keras_tuner.RandomSearch(tunable_model, objective="val_loss", max_trials=30)`, and likewise
    `BayesianOptimization` and `Hyperband`.
    """
    return build_model(
        momentum=hp.Choice("momentum", [0.0, 0.5, 0.9, 0.95, 0.99]),
        nesterov=hp.Boolean("nesterov"),
        learning_rate=hp.Float("learning_rate", 1e-4, 1.0, sampling="log"),
    )


def follow(model, x, y, steps):
    """Train a copy of a model from its initial weights on all data at once; return its path.

    The initializers need seeds, or the copy starts elsewhere.

    Returns:
        Array `(steps + 1, weights)`: all trainable weights before the first step and after each.
    """
    copy = keras.models.clone_model(model)
    optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    weights = copy.trainable_variables
    optimizer.build(weights)

    def position():
        return tf.concat([tf.reshape(weight.value, [-1]) for weight in weights], axis=0)

    @tf.function
    def descend():
        path = tf.TensorArray("float32", size=steps)
        for step in tf.range(steps):
            with tf.GradientTape() as tape:
                loss = model.loss(y, copy(x, training=True))
            gradients = tape.gradient(loss, [weight.value for weight in weights])
            optimizer.apply(gradients, weights)
            path = path.write(step, position())
        return path.stack()

    start = position().numpy()
    return np.vstack([start, descend().numpy()])


def prepare(split, linear=False):
    """Return the data, or those of the quadratic (STEEP w1^2 + FLAT w2^2) / 2.

    The squared error of a linear model on inputs X and targets of zero has the Hessian
    2 X'X / rows: orthogonal columns of the right length make it diagonal.
    """
    if not linear:
        return split
    normal = np.random.default_rng(split.seed).standard_normal((ROWS, 2))
    orthonormal, _ = np.linalg.qr(normal)
    x = (orthonormal * np.sqrt(ROWS * np.array([STEEP, FLAT]) / 2)).astype("float32")
    part = split.train._replace(x=x, y=np.zeros(ROWS, "float32"))
    return replace(split, train=part, validation=part, test=part, target_scale=1.0)


SYMPTOMS = ["slow"]

VARIANTS = {
    "plain": {},
    "heavy_ball": {"momentum": MOMENTUM},
    "nesterov": {"momentum": MOMENTUM, "nesterov": True},
    "plain_x10": {},
    "best_heavy_ball": {"momentum": BEST_HEAVY_BALL_MOMENTUM},
    "best_nesterov": {"momentum": BEST_NESTEROV_MOMENTUM, "nesterov": True},
}

EQUAL_START = [list(VARIANTS)]

QUADRATIC = {  # The data are replaced: one batch, so as many steps as epochs.
    "data": "diabetes",
    "samples": ROWS,
    "epochs": 50,
    "batch_size": ROWS,
    "measure": True,
    "arguments": {"linear": True},
}
EXPERIMENTS = {
    "network": {
        "data": "mnist1d",
        "samples": 2000,
        "epochs": 12,
        "batch_size": 64,
        "learning_rates": {"plain": 1.0, "heavy_ball": 0.1, "nesterov": 0.1},
    },
    "one_rate": {
        "data": "mnist1d",
        "samples": 2000,
        "epochs": 12,
        "batch_size": 64,
        "learning_rates": {"plain": 0.01, "heavy_ball": 0.01, "plain_x10": 0.1},
    },
    "near_the_limit": {  # 0.995 times the largest stable rate of plain descent.
        **QUADRATIC,
        "learning_rates": dict.fromkeys(("plain", "heavy_ball", "nesterov"), 1.99 / STEEP),
    },
    "half_the_limit": {
        **QUADRATIC,
        "learning_rates": dict.fromkeys(("plain", "heavy_ball", "nesterov"), 1 / STEEP),
    },
    "best_by_theory": {
        **QUADRATIC,
        "learning_rates": {
            "plain": BEST_PLAIN_RATE,
            "best_heavy_ball": BEST_HEAVY_BALL_RATE,
            "best_nesterov": BEST_NESTEROV_RATE,
        },
    },
}

CLAIMS = [
    {
        "text": "Near the largest stable rate, momentum shortens the path over a quadratic by half "
        "of a plain one's length and more (in distances from start to minimum)",
        "experiment": "near_the_limit",
        "variant": "heavy_ball",
        "against": "plain",
        "metric": "path_length",
        "direction": "lower",
        "at_least": 20.0,
        "textbook": "Momentum removes the zigzag.",
    },
    {
        "text": "At half that rate momentum adds changes of direction: ten and more in 100 steps",
        "experiment": "half_the_limit",
        "variant": "heavy_ball",
        "against": "plain",
        "metric": "sign_changes",
        "direction": "higher",
        "at_least": 10.0,
        "against_textbook": "Momentum removes the zigzag.",
    },
    {
        "text": "With the best settings, heavy ball saves 500 steps and more of the plain 691",
        "experiment": "best_by_theory",
        "variant": "best_heavy_ball",
        "against": "plain",
        "metric": "steps_to_minimum",
        "direction": "lower",
        "at_least": 500.0,
    },
    {
        "text": "So does Nesterov",
        "experiment": "best_by_theory",
        "variant": "best_nesterov",
        "against": "plain",
        "metric": "steps_to_minimum",
        "direction": "lower",
        "at_least": 500.0,
    },
    {
        "text": "In a network, at one rate, momentum raises test accuracy by five points and more",
        "experiment": "one_rate",
        "variant": "heavy_ball",
        "against": "plain",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.05,
    },
    {
        "text": "There plain SGD at ten times the rate does as well as momentum 0.9",
        "experiment": "one_rate",
        "variant": "plain_x10",
        "against": "heavy_ball",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "Each at its own rate, heavy ball raises test accuracy over plain SGD",
        "experiment": "network",
        "variant": "heavy_ball",
        "against": "plain",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "Each at its own rate, Nesterov raises test accuracy over heavy ball",
        "experiment": "network",
        "variant": "nesterov",
        "against": "heavy_ball",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
]


def describe_path(path):
    """Say how a path over the quadratic came to the minimum at zero.

    Args:
        path: Array `(steps + 1, 2)`, the steep direction first.

    Returns:
        Dictionary: `path_length` over the first 100 steps, in distances between start and
        minimum; `sign_changes` of the steep weight over as many; `steps_to_minimum`, the first
        step at 1e-6 of the distance, or all steps where none came so close.
    """
    path = path.astype("float64")
    distance = np.linalg.norm(path, axis=1)
    first = path[: ZIGZAG_STEPS + 1]
    near = np.flatnonzero(distance <= CONVERGED * distance[0])
    return {
        "path_length": np.linalg.norm(np.diff(first, axis=0), axis=1).sum() / distance[0],
        "sign_changes": np.count_nonzero(first[1:, 0] * first[:-1, 0] < 0),
        "steps_to_minimum": near[0] if near.size else len(path) - 1,
    }


def measure(model, split):
    """Follow the path of the model from its start, step by step, and describe it."""
    return describe_path(follow(model, *split.train, steps=LONGEST_PATH))


def illustrate(summary):
    """Draw the paths of every variant over the quadratic, one panel for each experiment."""
    from matplotlib.figure import Figure

    import data
    from recipes._lab.picture import variant_colors

    experiments = {
        name: experiment
        for name, experiment in summary["experiments"].items()
        if all(entry["arguments"].get("linear") for entry in experiment["variants"].values())
    }
    if not experiments:
        return None
    figure = Figure(figsize=(16, 4.6), layout="constrained")
    split = prepare(data.load("diabetes", samples=ROWS), linear=True)
    across, along = np.meshgrid(np.linspace(-2, 2, 201), np.linspace(-0.6, 1.6, 201))
    surface = np.log10((STEEP * across**2 + FLAT * along**2) / 2 + 1e-3)
    colors = variant_colors(summary["experiments"])
    panels = figure.subplots(1, len(experiments), squeeze=False)[0]
    for axes, (name, experiment) in zip(panels, experiments.items(), strict=True):
        axes.contour(across, along, surface, levels=12, colors="#d0d0d0", linewidths=0.7)
        for variant, entry in experiment["variants"].items():
            model = build_model(
                (2,), **entry["arguments"], learning_rate=entry["learning_rate"], seed=0
            )
            path = follow(model, *split.train, steps=40)
            rate, momentum = entry["learning_rate"], entry["arguments"].get("momentum", 0)
            label = f"{variant}: rate {rate:.3g}, momentum {momentum:.2g}"
            axes.plot(*path.T, ".-", color=colors[name][variant], linewidth=1.2, label=label)
        axes.set_xlim(-2, 2)
        axes.set_ylim(-0.6, 1.6)
        axes.set_title(f"{name}: 40 steps", fontsize=10)
        axes.set_xlabel(f"steep direction, curvature {STEEP:g}")
        axes.set_ylabel(f"flat direction, curvature {FLAT:g}")
        axes.legend(fontsize=8, loc="upper right")
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
