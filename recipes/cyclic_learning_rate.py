"""Cyclic learning rate: let the rate rise and fall between two bounds, over and over.

Problem:    No constant rate is right from the first step to the last.
Technique:  The rate climbs in a straight line from a lower bound to an upper one and back. In
            `triangular2` each cycle is half as high as the last; in `exp_range` both bounds shrink
            with every step, as in the paper. (The widespread callback shrinks only their distance.)
Claim:      Cycles are not seen to reach a higher test accuracy than the best constant rate. At
            three times that rate for both, cycles that shrink learn well where the constant rate
            does not. Linear decay, which is the second half of one cycle, reaches a higher accuracy
            than cycles whose height is halved each time. The paper needed a third of the
            iterations; here a third of the epochs is not enough.
Costs:      Nothing in time. Two bounds and a length to choose, where a constant has one number.
Start at:   max_learning_rate where the range test still falls, base_learning_rate a quarter to a
            sixth of that, step_size two to ten epochs. Stop at the end of a cycle, where the rate
            is low.
Caveat:     A cycle ends low, and so does a decay: compare with one before crediting the cycles.
            The learning rates are those of the upper bound, and come from `python -m
            recipes.cyclic_learning_rate --tune --learning-rates 0.0316:1:7`.
Reference:  Smith (2015), Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186,
            sections 3.1 to 3.3 and 4.1.
Run:        python -m recipes.cyclic_learning_rate
Measured:   No clear difference: Triangular cycles reach a higher test accuracy than the best
              constant rate (-0.9 [-1.4, -0.4] points, p = .029).
            No clear difference: Cycles of half the height each (triangular2) do so too (-0.7 [-3.0,
              +1.6] points, p = .439).
            No clear difference: Cycles whose bounds shrink (exp_range) do so too (+1.3 [-1.2, +3.7]
              points, p = .439).
            Supported: Linear decay reaches a higher test accuracy than triangular2 (+2.6 [+1.0,
              +4.3] points, p = .035).
            Supported: A cycle of a third of the epochs is less accurate than a constant rate in all
              (-11.5 [-17.2, -5.8] points, p = .024).
            Supported: At three times the best constant rate for both, cycles of half the height
              each raise test accuracy by five points or more (+57.0 [+46.5, +67.4] points, p <
              .001).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import math

import keras
import numpy as np
from keras import ops

CONVOLUTIONS = (16, 32)  # Filters.
HIDDEN_UNITS = 64
MOMENTUM = 0.9
CYCLES = 3
BASE_FRACTION = 1 / 6  # Of the upper bound: the paper's 0.001 to 0.006 on CIFAR-10.
FINAL_FRACTION = 0.08  # Where `exp_range` ends: the paper's 0.99994 ** 42000.


@keras.saving.register_keras_serializable(package="training_recipes")
class CyclicLearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Rises and falls in straight lines between two rates (Smith 2015, section 3.1).

    ```python
    def rate(step):
        cycle = floor(1 + step / (2 * step_size))
        height = 1 - abs(step / step_size - 2 * cycle + 1)  # 0 at the base, 1 at the maximum.
        if mode == "triangular2":
            height = height / 2 ** (cycle - 1)
        shrink = gamma**step if mode == "exp_range" else 1
        return shrink * (base_learning_rate + height * (max_learning_rate - base_learning_rate))
    ```

    The place in the cycle is computed in whole numbers, so that it is exact at any step.

    To load a saved model, import this class first.

    Args:
        base_learning_rate: Float >= 0 or `LearningRateSchedule`, the lower bound.
        max_learning_rate: Float or `LearningRateSchedule`, the upper bound. Equal to
            `base_learning_rate`, there are no cycles.
        step_size: Int >= 1, the steps of half a cycle.
        mode: "triangular" keeps the bounds; "triangular2" halves the distance after each cycle;
            "exp_range" multiplies both bounds with `gamma` at each step.
        gamma: Float in (0, 1], for "exp_range". 1 shrinks nothing.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, base_learning_rate, max_learning_rate, step_size, mode="triangular", gamma=1.0
    ):
        super().__init__()
        base, maximum = (
            rate if callable(rate) else float(rate)
            for rate in (base_learning_rate, max_learning_rate)
        )
        if not callable(base) and not 0 <= base < math.inf:
            raise ValueError(
                "Argument `base_learning_rate` must be >= 0 and finite, or a schedule. "
                f"Received: base_learning_rate={base}"
            )
        if not callable(maximum) and not (0 if callable(base) else base) <= maximum < math.inf:
            raise ValueError(
                "Argument `max_learning_rate` must be finite and not below `base_learning_rate`, "
                f"or a schedule. Received: max_learning_rate={maximum}, base_learning_rate={base}"
            )
        if not (step_size >= 1 and step_size % 1 == 0):
            raise ValueError(
                f"Argument `step_size` must be a whole number >= 1. Received: step_size={step_size}"
            )
        if mode not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(
                'Argument `mode` must be "triangular", "triangular2" or "exp_range". '
                f"Received: mode={mode!r}"
            )
        if not 0 < gamma <= 1 or (gamma != 1 and mode != "exp_range"):
            raise ValueError(
                'Argument `gamma` must be > 0 and <= 1, and 1 unless `mode` is "exp_range". '
                f"Received: gamma={gamma}, mode={mode!r}"
            )
        self.base_learning_rate = base
        self.max_learning_rate = maximum
        self.step_size = int(step_size)
        self.mode = mode
        self.gamma = float(gamma)

    def __call__(self, step):
        step = ops.convert_to_tensor(step)
        position = ops.mod(step, 2 * self.step_size)
        distance = ops.minimum(position, 2 * self.step_size - position)
        height = ops.cast(distance, "float32") / self.step_size
        # XLA multiplies with 1 / step_size, which need not give 1.
        height = ops.where(distance == self.step_size, 1.0, height)
        if self.mode == "triangular2":
            cycles = ops.floor_divide(step, 2 * self.step_size)
            height = height * ops.power(2.0, -ops.cast(cycles, "float32"))
        base, maximum = (
            ops.cast(rate(step) if callable(rate) else rate, "float32")
            for rate in (self.base_learning_rate, self.max_learning_rate)
        )
        # What the line has at its upper end is rounded.
        rate = ops.where(height < 1, base + height * (maximum - base), maximum)
        if self.mode == "exp_range":
            # A power of a rounded gamma would be far off after millions of steps.
            rate = rate * ops.exp(ops.cast(step, "float32") * math.log(self.gamma))
        return rate

    def get_config(self):
        return {
            "base_learning_rate": _serialized(self.base_learning_rate),
            "max_learning_rate": _serialized(self.max_learning_rate),
            "step_size": self.step_size,
            "mode": self.mode,
            "gamma": self.gamma,
        }

    @classmethod
    def from_config(cls, config):
        deserialize = keras.optimizers.schedules.deserialize
        return cls(**{k: deserialize(v) if isinstance(v, dict) else v for k, v in config.items()})


def _serialized(rate):
    return keras.optimizers.schedules.serialize(rate) if callable(rate) else rate


def count_steps(samples, batch_size, epochs=1):
    """Return how many steps the optimizer makes in `epochs`, which may be a fraction of one.

    The smaller last batch of an epoch is a step too: 1,000 samples in batches of 64 are 16 steps.

    Args:
        samples: Int >= 1, in the training set.
        batch_size: Int >= 1.
        epochs: Number >= 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (samples >= 1 and batch_size >= 1 and epochs >= 0):
        raise ValueError(
            "Arguments `samples` and `batch_size` must be >= 1, and `epochs` >= 0. "
            f"Received: samples={samples}, batch_size={batch_size}, epochs={epochs}"
        )
    return round(epochs * -(-samples // batch_size))


def draw_schedules(schedules, total_steps, axes=None):
    """Draw learning rates over the steps, at 1,000 of them if there are more. Needs matplotlib.

    `draw_schedules({"cosine": CosineDecay(0.1, 5000)}, 5000).savefig("schedule.png")`

    Args:
        schedules: Dictionary from name to schedule or float.
        total_steps: Int >= 1, the number of steps to draw.
        axes: The matplotlib `Axes` to draw on. None for a new `Figure`.

    Returns:
        The `Figure`.
    """
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(6, 3), layout="constrained").subplots()
    steps = np.unique(np.linspace(0, total_steps - 1, 1000).round().astype(int))
    for name, schedule in schedules.items():
        rates = [float(schedule(step) if callable(schedule) else schedule) for step in steps]
        axes.plot(steps, rates, label=name)
    axes.set(xlabel="step", ylabel="learning rate")
    axes.legend()
    return axes.figure


def make_schedule(learning_rate, total_steps, schedule=None, cycles=CYCLES):
    """Return the learning rate of a whole training that ends with the last cycle.

    Args:
        learning_rate: Float, the largest rate.
        total_steps: Int, the number of all steps, at least `2 * cycles`.
        schedule: "triangular", "triangular2" or "exp_range"; "linear" for a decay to 0 without
            cycles; None for a constant.
        cycles: Int >= 1.
    """
    learning_rate = float(learning_rate)
    if schedule is None:
        return learning_rate
    if schedule == "linear":
        return keras.optimizers.schedules.PolynomialDecay(
            learning_rate, decay_steps=total_steps, end_learning_rate=0.0
        )
    return CyclicLearningRate(
        base_learning_rate=BASE_FRACTION * learning_rate,
        max_learning_rate=learning_rate,
        step_size=total_steps // (2 * cycles),
        mode=schedule,
        gamma=FINAL_FRACTION ** (1 / total_steps) if schedule == "exp_range" else 1.0,
    )


def build_model(
    input_shape=(40,),
    classes=10,
    schedule=None,
    cycles=CYCLES,
    total_steps=384,
    learning_rate=0.1,
    seed=0,
):
    """Build and compile a small convolutional network for signals.

    Args:
        input_shape: Shape of one sample: `(steps,)`, or `(steps, channels)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        schedule: None, or the name of a schedule, as in `make_schedule`.
        cycles: Int >= 1, the number of cycles.
        total_steps: Int, the number of all steps: `count_steps(samples, batch_size, epochs)`.
        learning_rate: Float, the largest rate, for SGD with momentum.
        seed: Int. Equal seeds give equal initial weights.
    """
    rate = make_schedule(learning_rate, total_steps, schedule, cycles)
    seeds = iter(np.random.SeedSequence(seed).generate_state(4).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Reshape((input_shape[0], -1))(inputs)
    for filters in CONVOLUTIONS:
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = keras.layers.Conv1D(
            filters, 5, 2, "same", activation="relu", kernel_initializer=initializer
        )(x)
    x = keras.layers.Flatten()(x)
    initializer = keras.initializers.HeNormal(seed=next(seeds))
    x = keras.layers.Dense(HIDDEN_UNITS, "relu", kernel_initializer=initializer)(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with the mode, the cycles and the upper bound."""
    return build_model(
        schedule=hp.Choice("schedule", ["triangular", "triangular2", "exp_range"]),
        cycles=hp.Int("cycles", 1, 6),
        learning_rate=hp.Float("learning_rate", 1e-2, 1.0, sampling="log"),
    )


SYMPTOMS = ["choosing a rate", "underfits"]

VARIANTS = {
    "constant": {},
    "triangular": {"schedule": "triangular"},
    "triangular2": {"schedule": "triangular2"},
    "exp_range": {"schedule": "exp_range"},
    "linear": {"schedule": "linear"},
    # A third of the epochs.
    "triangular2_4": {"schedule": "triangular2", "cycles": 1, "epochs": 4},
}

EQUAL_START = [list(VARIANTS)]

SIGNALS = {"data": "mnist1d", "samples": 2000, "epochs": 12, "batch_size": 64}

EXPERIMENTS = {
    "mnist1d": {
        **SIGNALS,
        "learning_rates": {
            "constant": 0.1,
            "triangular": 0.178,
            "triangular2": 0.178,
            "exp_range": 0.316,
            "linear": 0.178,
            "triangular2_4": 0.178,
        },
    },
    # The comparison to beware of: a half-decade above the best constant rate, for both.
    "one_rate": {
        **SIGNALS,
        "learning_rates": {"constant": 0.316, "triangular2": 0.316},
    },
}

CLAIMS = [
    {
        "text": "Triangular cycles reach a higher test accuracy than the best constant rate",
        "experiment": "mnist1d",
        "variant": "triangular",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "Cycles of half the height each (triangular2) do so too",
        "experiment": "mnist1d",
        "variant": "triangular2",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "Cycles whose bounds shrink (exp_range) do so too",
        "experiment": "mnist1d",
        "variant": "exp_range",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "Linear decay reaches a higher test accuracy than triangular2",
        "experiment": "mnist1d",
        "variant": "linear",
        "against": "triangular2",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "against_textbook": "Cyclic learning rates do better than decay.",
    },
    {
        "text": "A cycle of a third of the epochs is less accurate than a constant rate in all",
        "experiment": "mnist1d",
        "variant": "triangular2_4",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.03,
        "against_textbook": "With cycles a third of the iterations is enough.",
    },
    {
        "text": "At three times the best constant rate for both, cycles of half the height "
        "each raise test accuracy by five points or more",
        "experiment": "one_rate",
        "variant": "triangular2",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.05,
    },
]


def illustrate(summary):
    """Draw the learning rate of every variant over the steps of its training."""
    from matplotlib.figure import Figure

    from recipes._lab import picture

    experiments = summary["experiments"]
    colors = picture.variant_colors(experiments)
    figure = Figure(figsize=(5 * len(experiments), 3.5), layout="constrained")
    panels = figure.subplots(1, len(experiments), squeeze=False)[0]
    for axes, (name, experiment) in zip(panels, experiments.items(), strict=True):
        for variant, entry in experiment["variants"].items():
            settings = {**experiment, **entry["arguments"]}
            total = count_steps(settings["samples"], settings["batch_size"], settings["epochs"])
            arguments = entry["arguments"]
            schedule = make_schedule(
                entry["learning_rate"],
                total,
                arguments.get("schedule"),
                arguments.get("cycles", CYCLES),
            )
            draw_schedules({variant: schedule}, total, axes)
            axes.lines[-1].set_color(colors[name][variant])
        axes.legend()  # Again, for the colors.
        axes.set_title(name)
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
