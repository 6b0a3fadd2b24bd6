"""Saddle points and local minima: which steps leave them, and how soon.

Problem:    The loss stands still on a plateau and falls much later, or never; or training ends at a
            loss that another start or another rate goes below.
Technique:  Near a saddle the distance to it grows by the factor 1 + learning_rate * curvature at
            each step, so that escape takes a sum of rates of about ln(size / distance) /
            curvature. Anything that spends the rates too early stays; momentum and noise are
            faster. A minimum is left only by steps that carry over its rim.
Claim:      Near a saddle a fast decay of the rate gets stuck, and a slow one escapes. Warm restarts
            escape when a constant rate equal to their mean does. Momentum and gradient noise escape
            sooner. In a double well, rates from 0.01 to 0.5 all end in the minimum nearby.
            Momentum, restarts and a rate nearly too high carry some points to the better one; a
            rate too high for it does not settle. In a network that starts near a saddle, momentum
            ends at a lower training loss, and neither restarts nor the noise of mini-batches are
            needed; that a fast decay gets stuck there is not clear.
Costs:      None: these are choices of the rate.
Start at:   A constant rate until the loss falls, and momentum 0.9; decay later. Initial weights of
            the usual size: He or Glorot.
Caveat:     A surface with two dimensions says what can happen, not what does: networks have many
            directions, and mini-batches bring noise of their own. Exactly on the ridge there is no
            gradient, and only noise helps. The minimum that a large rate leaves is the one that is
            too sharp for it, be it good or bad. The rates are the subject of this recipe: all are
            set, none is searched.
Reference:  Dauphin et al. (2014), Identifying and Attacking the Saddle Point Problem,
            arXiv:1406.2572. Lee, Simchowitz, Jordan, Recht (2016), Gradient Descent Only Converges
            to Minimizers, arXiv:1602.04915. Du et al. (2017), Gradient Descent Can Take Exponential
            Time to Escape Saddle Points, arXiv:1705.10412. Loshchilov, Hutter (2016), SGDR,
            arXiv:1608.03983.
Run:        python -m recipes.saddle_points
Measured:   Supported: Near a saddle fewer points escape under a decay by 1% a step than at a
              constant rate (-1 in every run).
            Supported: Under a decay by 0.1% a step as many escape (0 in every run).
            Supported: Restarts escape when a constant rate equal to their mean does, by 20 steps
              (-9.8 [-9.91, -9.68], p < .001).
            Supported: Momentum escapes sooner, by 50 steps or more (-125 [-126, -125], p < .001).
            Supported: Noise in the gradient escapes sooner, by 50 steps or more (-129 [-130, -128],
              p < .001).
            Supported: In a double well as many points reach the better minimum at rate 0.1 as at
              0.01 (0 in every run).
            Supported: The rate 0.7, nearly too high for it, brings more points there than 0.1
              (+0.0492 [+0.0375, +0.0609], p < .001).
            Supported: Restarts with a mean rate of 0.5 bring more of them there than the rate 0.5
              (+0.164 [+0.14, +0.188], p < .001).
            Supported: Momentum at the rate 0.1 brings more of them there than the rate 0.1 alone
              (+0.148 [+0.125, +0.17], p < .001).
            Supported: At the rate 1 fewer points settle at either minimum than at 0.1 (-0.164
              [-0.188, -0.14], p < .001).
            No clear difference: In a network near a saddle, the decay by 1% a step ends at a higher
              training loss (+0.123 [+0.075, +0.171], p = .002).
            Supported: Restarts with the constant rate as their mean end at the same training loss
              (-0.0407 [-0.0501, -0.0313], p < .001).
            Supported: Momentum ends at a lower training loss (-2.14 [-2.18, -2.1], p < .001).
            Supported: The noise of mini-batches is not needed: the full batch ends at the same loss
              (-0.00494 [-0.00631, -0.00358], p < .001).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

POINTS = 500  # They descend side by side, each on its own.
DISTANCE = 1e-8  # Of the points from the saddle's ridge at the start, as standard deviation.
NOISE = 0.01  # Standard deviation of the noise in each entry of the gradient.
TILT = 0.2  # Of the double well: the left minimum is the lower one.
BARRIER = 0.21  # Just right of the maximum between them, at 0.2091.
STEPS = 400
STEPS_PER_EPOCH = 20
HIDDEN_UNITS = 64
SMALL = 1e-4  # Standard deviation of the network's first weights: all close to zero, a saddle.


def saddle(points):
    """x^2 / 2 - y^2 / 2 + y^4 / 4: a saddle at the origin, minima at y = 1 and y = -1."""
    x, y = points[:, 0], points[:, 1]
    return x**2 / 2 - y**2 / 2 + y**4 / 4


def double_well(points):
    """x^4 / 4 - x^2 / 2 + 0.2 x: a minimum at x = 0.88, and a lower one at x = -1.09."""
    x = points[:, 0]
    return x**4 / 4 - x**2 / 2 + TILT * x


SURFACES = {"saddle": saddle, "double_well": double_well}


@keras.saving.register_keras_serializable(package="recipes")
class Points(keras.layers.Layer):
    """Owns points on a surface; returns the sum of their heights, whatever its inputs.

    The gradient of the sum is for each point that of its own height, so that an optimizer that
    works entry by entry moves them independently.

    Args:
        surface: "saddle" or "double_well".
        noise: Float, standard deviation of what each entry of the gradient is off in training.
        seed: Int, for the start and the noise.
    """

    def __init__(self, surface, noise=0.0, seed=0, **kwargs):
        super().__init__(**kwargs)
        if surface not in SURFACES:
            raise ValueError(
                f"Argument `surface` must be one of {', '.join(SURFACES)}. "
                f"Received: surface={surface!r}"
            )
        self.surface, self.noise, self.seed = surface, noise, seed
        self.random = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        self.points = self.add_weight(
            shape=(POINTS, 2), initializer=self._start, name="points", trainable=True
        )

    def _start(self, shape, dtype=None):
        """On the saddle (1, about 0); in the double well evenly right of the barrier."""
        generator = np.random.default_rng(self.seed)
        start = np.zeros(shape, dtype)
        if self.surface == "saddle":
            start[:, 0] = 1.0
            start[:, 1] = DISTANCE * generator.standard_normal(shape[0])
        else:
            start[:, 0] = generator.uniform(BARRIER, 1.5, shape[0])
        return keras.ops.convert_to_tensor(start)

    def call(self, inputs, training=False):
        total = keras.ops.sum(SURFACES[self.surface](self.points))
        if training and self.noise:
            # The gradient of this term is the noise itself.
            noise = keras.random.normal((POINTS, 2), stddev=self.noise, seed=self.random)
            total = total + keras.ops.sum(noise * self.points)
        return total + 0.0 * keras.ops.sum(inputs, axis=-1, keepdims=True)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 1)

    def get_config(self):
        return {
            **super().get_config(),
            "surface": self.surface,
            "noise": self.noise,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="recipes")
class OutputAsLoss(keras.losses.Loss):
    """The model's output is what to minimize; targets do not count."""

    def call(self, y_true, y_pred):
        return y_pred


def make_schedule(kind, learning_rate, total_steps):
    """Return a rate that begins at `learning_rate`, or keeps it as its mean in "restarts".

    "constant"; "fast_decay", by 1% a step, whose sum over all steps is a hundred times the first
    rate; "slow_decay", by 0.1% a step; "restarts", Keras's cosine from twice the rate to zero, ten
    times over.

    Raises:
        ValueError: if `kind` is none of these.
    """
    schedules = keras.optimizers.schedules
    if kind == "constant":
        return learning_rate
    if kind in ("fast_decay", "slow_decay"):
        rate = 0.99 if kind == "fast_decay" else 0.999
        return schedules.ExponentialDecay(learning_rate, decay_steps=1, decay_rate=rate)
    if kind == "restarts":
        cycle = max(1, total_steps // 10)
        return schedules.CosineDecayRestarts(2 * learning_rate, cycle, t_mul=1.0)
    raise ValueError(
        "Argument `schedule` must be constant, fast_decay, slow_decay or restarts. "
        f"Received: schedule={kind!r}"
    )


def build_model(
    input_shape=(64,),
    classes=10,
    surface=None,
    schedule="constant",
    momentum=0.0,
    noise=0.0,
    total_steps=STEPS,
    learning_rate=0.1,
    seed=0,
):
    """Build and compile a tanh network that starts near a saddle, or points on a surface.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`. Points do not use it.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
            Points do not use it.
        surface: "saddle" or "double_well" for points, None for the network.
        schedule: "constant", "fast_decay", "slow_decay" or "restarts".
        momentum: Float in [0, 1), for SGD.
        noise: Float >= 0, standard deviation of the noise of each point's gradient.
        total_steps: Int >= 10, the length of training, of which restarts take a tenth each.
        learning_rate: Float, the first rate, or in restarts the mean.
        seed: Int. Equal seeds give equal starts.
    """
    seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    if surface:
        outputs = Points(surface, noise, seeds[0])(x)
        loss = OutputAsLoss()
    else:
        initializers = [keras.initializers.RandomNormal(stddev=SMALL, seed=s) for s in seeds]
        x = keras.layers.Dense(HIDDEN_UNITS, "tanh", kernel_initializer=initializers[0])(x)
        outputs = keras.layers.Dense(classes, kernel_initializer=initializers[1])(x)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = keras.Model(inputs, outputs)
    rate = make_schedule(schedule, learning_rate, total_steps)
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=momentum),
        loss=loss,
        metrics=[] if surface else ["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the network that Keras Tuner asks for, with schedule, momentum and learning rate.

    `keras_tuner.RandomSearch(tunable_model, objective="val_loss", max_trials=30)`, and likewise
    `BayesianOptimization` and `Hyperband`.
    """
    return build_model(
        schedule=hp.Choice("schedule", ["constant", "fast_decay", "slow_decay", "restarts"]),
        momentum=hp.Choice("momentum", [0.0, 0.9]),
        learning_rate=hp.Float("learning_rate", 1e-3, 1.0, sampling="log"),
    )


def follow(model, steps):
    """Train a copy of a model of points from its start; return their path.

    Returns:
        Array `(steps + 1, points, 2)`: the start, and where the points are after each step.
    """
    copy = keras.models.clone_model(model)
    optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    (points,) = copy.trainable_variables
    optimizer.build([points])
    inputs = tf.zeros((1, *model.input_shape[1:]))

    @tf.function
    def descend():
        path = tf.TensorArray("float32", size=steps)
        for step in tf.range(steps):
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(copy(inputs, training=True))
            optimizer.apply([tape.gradient(total, points.value)], [points])
            path = path.write(step, points.value + 0.0)
        return path.stack()

    start = points.numpy()[np.newaxis]
    return np.concatenate([start, descend().numpy()])


def prepare(split, surface=None):
    """Return the data, or as many empty rows as an epoch has steps: points need no data."""
    if not surface:
        return split

    def rows(count):
        return split.train._replace(x=np.zeros((count, 1), "float32"), y=np.zeros(count, "float32"))

    return replace(
        split, train=rows(STEPS_PER_EPOCH), validation=rows(1), test=rows(1), target_scale=1.0
    )


SYMPTOMS = ["at chance"]

VARIANTS = {
    "constant": {},
    "fast_decay": {"schedule": "fast_decay"},
    "slow_decay": {"schedule": "slow_decay"},
    "restarts": {"schedule": "restarts"},
    "momentum": {"momentum": 0.9},
    "noise": {"noise": NOISE},
    "rate_0.01": {},
    "rate_0.5": {},
    "rate_0.7": {},
    "rate_1": {},
    "full_batch": {"batch_size": 500, "epochs": 300},
}

EQUAL_START = [list(VARIANTS)]

EXPERIMENTS = {
    "network": {
        "data": "digits",
        "samples": 500,
        "epochs": 30,
        "batch_size": 50,
        "learning_rates": dict.fromkeys(
            ("constant", "fast_decay", "slow_decay", "restarts", "momentum", "full_batch"), 0.1
        ),
    },
    "saddle": {  # The data are replaced: 20 steps an epoch, 400 in all.
        "data": "diabetes",
        "samples": STEPS_PER_EPOCH,
        "epochs": STEPS // STEPS_PER_EPOCH,
        "batch_size": 1,
        "measure": "measure_saddle",
        "arguments": {"surface": "saddle"},
        "learning_rates": dict.fromkeys(
            ("constant", "fast_decay", "slow_decay", "restarts", "momentum", "noise"), 0.1
        ),
    },
    "double_well": {
        "data": "diabetes",
        "samples": STEPS_PER_EPOCH,
        "epochs": STEPS // STEPS_PER_EPOCH,
        "batch_size": 1,
        "measure": "measure_double_well",
        "arguments": {"surface": "double_well"},
        "learning_rates": {
            "constant": 0.1,
            "rate_0.01": 0.01,
            "rate_0.5": 0.5,
            "rate_0.7": 0.7,
            "rate_1": 1.0,
            "restarts": 0.5,
            "momentum": 0.1,
            "noise": 0.1,
        },
    },
}

CLAIMS = [
    {
        "text": "Near a saddle fewer points escape under a decay by 1% a step than at a constant "
        "rate",
        "experiment": "saddle",
        "variant": "fast_decay",
        "against": "constant",
        "metric": "escaped",
        "direction": "lower",
        "at_least": 0.5,
        "textbook": "A decaying rate gets stuck at saddles; a cyclic one escapes.",
    },
    {
        "text": "Under a decay by 0.1% a step as many escape",
        "experiment": "saddle",
        "variant": "slow_decay",
        "against": "constant",
        "metric": "escaped",
        "direction": "equal",
        "at_least": 0.05,
        "against_textbook": "A decaying rate gets stuck at saddles; a cyclic one escapes.",
    },
    {
        "text": "Restarts escape when a constant rate equal to their mean does, by 20 steps",
        "experiment": "saddle",
        "variant": "restarts",
        "against": "constant",
        "metric": "escape_steps",
        "direction": "equal",
        "at_least": 20.0,
    },
    {
        "text": "Momentum escapes sooner, by 50 steps or more",
        "experiment": "saddle",
        "variant": "momentum",
        "against": "constant",
        "metric": "escape_steps",
        "direction": "lower",
        "at_least": 50.0,
    },
    {
        "text": "Noise in the gradient escapes sooner, by 50 steps or more",
        "experiment": "saddle",
        "variant": "noise",
        "against": "constant",
        "metric": "escape_steps",
        "direction": "lower",
        "at_least": 50.0,
        "textbook": "The noise of mini-batches is what escapes saddles.",
    },
    {
        "text": "In a double well as many points reach the better minimum at rate 0.1 as at 0.01",
        "experiment": "double_well",
        "variant": "constant",
        "against": "rate_0.01",
        "metric": "at_better_minimum",
        "direction": "equal",
        "at_least": 0.01,
        "against_textbook": "A rate that is too low sticks in a local minimum.",
    },
    {
        "text": "The rate 0.7, nearly too high for it, brings more points there than 0.1",
        "experiment": "double_well",
        "variant": "rate_0.7",
        "against": "constant",
        "metric": "at_better_minimum",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "A rate that is too low sticks in a local minimum.",
    },
    {
        "text": "Restarts with a mean rate of 0.5 bring more of them there than the rate 0.5",
        "experiment": "double_well",
        "variant": "restarts",
        "against": "rate_0.5",
        "metric": "at_better_minimum",
        "direction": "higher",
        "at_least": 0.05,
    },
    {
        "text": "Momentum at the rate 0.1 brings more of them there than the rate 0.1 alone",
        "experiment": "double_well",
        "variant": "momentum",
        "against": "constant",
        "metric": "at_better_minimum",
        "direction": "higher",
        "at_least": 0.05,
    },
    {
        "text": "At the rate 1 fewer points settle at either minimum than at 0.1",
        "experiment": "double_well",
        "variant": "rate_1",
        "against": "constant",
        "metric": "settled",
        "direction": "lower",
        "at_least": 0.05,
    },
    {
        "text": "In a network near a saddle, the decay by 1% a step ends at a higher training loss",
        "experiment": "network",
        "variant": "fast_decay",
        "against": "constant",
        "metric": "train_loss",
        "direction": "higher",
        "at_least": 0.3,
        "textbook": "A decaying rate gets stuck at saddles; a cyclic one escapes.",
    },
    {
        "text": "Restarts with the constant rate as their mean end at the same training loss",
        "experiment": "network",
        "variant": "restarts",
        "against": "constant",
        "metric": "train_loss",
        "direction": "equal",
        "at_least": 0.1,
        "against_textbook": "Cycles escape saddles, but reach the optimum later.",
    },
    {
        "text": "Momentum ends at a lower training loss",
        "experiment": "network",
        "variant": "momentum",
        "against": "constant",
        "metric": "train_loss",
        "direction": "lower",
        "at_least": 0.1,
    },
    {
        "text": "The noise of mini-batches is not needed: the full batch ends at the same loss",
        "experiment": "network",
        "variant": "full_batch",
        "against": "constant",
        "metric": "train_loss",
        "direction": "equal",
        "at_least": 0.1,
        "against_textbook": "The noise of mini-batches is what escapes saddles.",
    },
]


def measure_saddle(model, split):
    """Return the share of points that come to |y| > 1/2 in 400 steps, and the steps that it takes.

    `escape_steps` is the mean over the points; one that stays counts with all 400.
    """
    away = np.abs(follow(model, STEPS)[:, :, 1]) > 0.5
    first = np.where(away.any(axis=0), away.argmax(axis=0), STEPS)
    return {"escaped": away.any(axis=0).mean(), "escape_steps": first.mean()}


def measure_double_well(model, split):
    """Return the shares of points at the better minimum, and at either of the two, after training.

    At a minimum is what stands still there: closer than 0.1 in the last ten steps of 400. `noise`
    moves by less than that.
    """
    roots = np.sort(np.roots([1, 0, -1, TILT]).real)
    better, nearby = roots[0], roots[2]
    last = follow(model, STEPS)[-10:, :, 0]
    at = {
        name: np.all(np.abs(last - place) < 0.1, axis=0)
        for name, place in (("better", better), ("nearby", nearby))
    }
    return {
        "at_better_minimum": at["better"].mean(),
        "settled": (at["better"] | at["nearby"]).mean(),
    }


def illustrate(summary):
    """Draw the escape from the saddle over the steps, and where points of the double well go."""
    from matplotlib.figure import Figure

    from recipes._lab.picture import variant_colors

    figure = Figure(figsize=(14, 4.8), layout="constrained")
    panels = dict(zip(("saddle", "double_well"), figure.subplots(1, 2), strict=True))
    colors_of = variant_colors(summary["experiments"])
    for name, axes in panels.items():
        experiment = summary["experiments"].get(name, {"variants": {}})
        for row, (variant, entry) in enumerate(experiment["variants"].items()):
            model = build_model(
                (1,),
                **{**entry["arguments"], "total_steps": STEPS},
                learning_rate=entry["learning_rate"],
            )
            path = follow(model, STEPS)
            color = colors_of[name][variant]
            if name == "saddle":
                median = np.median(np.abs(path[:, :, 1]), axis=1)
                axes.plot(median, color=color, label=variant)
            else:
                last = path[-1, :, 0]
                height = row + np.random.default_rng(0).uniform(-0.3, 0.3, len(last))
                axes.plot(last, height, ".", color=color, markersize=2)
    panels["saddle"].set_yscale("log")
    panels["saddle"].set_xlabel("step")
    panels["saddle"].set_title("saddle: median distance from the ridge", fontsize=10)
    if panels["saddle"].lines:
        panels["saddle"].legend(fontsize=8)
    wells = summary["experiments"].get("double_well", {"variants": {}})["variants"]
    panels["double_well"].set_yticks(range(len(wells)), list(wells))
    panels["double_well"].axvspan(BARRIER, 1.5, color="#eeeeee", label="start")
    panels["double_well"].set_xlim(-2, 2)
    panels["double_well"].set_xlabel("x after 400 steps; grey: where the points start")
    panels["double_well"].set_title("double well: the better minimum is at -1.09", fontsize=10)
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
