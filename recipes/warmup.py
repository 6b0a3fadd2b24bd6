"""Warm-up: start with small steps and lengthen them, until the rate is the one that training needs.

Problem:    At the learning rate that would train fast, the first steps ruin the network.
Technique:  The rate rises in a straight line over the first steps, and then follows whatever would
            have been there without: a constant, or any schedule.
Claim:      With Adam, a network of ten tanh layers learns at a rate with warm-up that ruins it
            without. Where each has its best rate, warm-up changes nothing with Adam, and with SGD
            or before a cosine decay nothing that is clear.
Costs:      Nothing in time. The steps of the warm-up make less progress; too many of them are lost.
Start at:   5 to 10% of all steps, linear, from 0. Try it where a larger rate would be welcome and
            the loss jumps or stands still in the first epoch.
Caveat:     It protects the beginning, nothing else: a rate that is too high later stays too high.
            `WarmUp` counts every step, its own included: a schedule of 1,000 steps inside it ends
            at step 1,000. Keras's `CosineDecay` counts `decay_steps` from the end of its warm-up,
            and fails with `initial_learning_rate=0` in place of 0.0. The learning rates come from
            `python -m recipes.warmup --tune --experiments own_rate sgd with_decay --learning-rates
            0.000316:0.1:6`; in large_rate the rate is the subject.
Reference:  Goyal et al. (2017), Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour,
            arXiv:1706.02677, section 2.2. Vaswani et al. (2017), Attention Is All You Need,
            arXiv:1706.03762, section 5.3, equation 3.
Run:        python -m recipes.warmup, with --sweep for warm-up together with a decay
Measured:   Supported: With Adam at a rate of 0.02, warm-up raises test accuracy (+42.0 [+20.3,
              +63.7] points, p = .026).
            Supported: With Adam, each at its best rate, warm-up leaves test accuracy as it is (-0.4
              [-1.4, +0.7] points, p = .026).
            No clear difference: With SGD, each at its best rate, warm-up leaves test accuracy as it
              is (-0.4 [-3.9, +3.2] points, p = .160).
            No clear difference: Warm-up and cosine decay reach a higher test accuracy than the
              decay alone (+0.4 [-0.1, +0.8] points, p = .160).
            Supported: After equal warm-ups, the inverse square root does as well as the cosine
              (-0.5 [-1.4, +0.4] points, p = .026).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import math

import keras
import numpy as np
from keras import ops

HIDDEN_LAYERS = 10
HIDDEN_UNITS = 64
MOMENTUM = 0.9
WARMUP_FRACTION = 0.3  # Of a short training; 5 to 10% of a long one.


@keras.saving.register_keras_serializable(package="training_recipes")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises in a straight line to a learning rate or to any schedule, and then follows it.

    ```python
    def rate(step):
        if step >= warmup_steps:
            return learning_rate(step)
        rise = learning_rate(warmup_steps) - initial_learning_rate
        return initial_learning_rate + step / warmup_steps * rise
    ```

    The schedule inside counts all steps, those of the warm-up included:
    `WarmUp(CosineDecay(0.1, 1000), 100)` ends at step 1,000, and starts to decay at step 100 from
    the 0.0976 that the cosine has there. Keras's own `CosineDecay(0.0, 900, warmup_target=0.1,
    warmup_steps=100)` counts its 900 steps from the end of the warm-up.

    To load a saved model, import this class first.

    Args:
        learning_rate: Float > 0 or `LearningRateSchedule`, what the warm-up leads to.
        warmup_steps: Int >= 0, the first step that has its full rate. 0 changes nothing.
        initial_learning_rate: Float >= 0, the rate of step 0. With 0 the first step of the
            optimizer moves nothing.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, learning_rate, warmup_steps, initial_learning_rate=0.0):
        super().__init__()
        if not isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            learning_rate = float(learning_rate)
            if not 0 < learning_rate < math.inf:
                raise ValueError(
                    "Argument `learning_rate` must be > 0 and finite, or a schedule. "
                    f"Received: learning_rate={learning_rate}"
                )
        if not 0 <= initial_learning_rate < math.inf:
            raise ValueError(
                "Argument `initial_learning_rate` must be >= 0 and finite. "
                f"Received: initial_learning_rate={initial_learning_rate}"
            )
        if not (warmup_steps >= 0 and warmup_steps % 1 == 0):
            raise ValueError(
                "Argument `warmup_steps` must be a whole number >= 0. "
                f"Received: warmup_steps={warmup_steps}"
            )
        self.learning_rate = learning_rate
        self.warmup_steps = int(warmup_steps)
        self.initial_learning_rate = float(initial_learning_rate)

    def __call__(self, step):
        step = ops.convert_to_tensor(step)
        rate = self.learning_rate
        if callable(rate):
            rate = rate(ops.maximum(step, self.warmup_steps))
        rate = ops.cast(rate, "float32")
        if self.warmup_steps == 0:
            return rate
        fraction = ops.cast(ops.minimum(step, self.warmup_steps), "float32") / self.warmup_steps
        line = self.initial_learning_rate + fraction * (rate - self.initial_learning_rate)
        # The line's own end is rounded, and so is `fraction` there: XLA multiplies with 1 / steps.
        return ops.where(step < self.warmup_steps, line, rate)

    def get_config(self):
        rate = self.learning_rate
        return {
            "learning_rate": keras.optimizers.schedules.serialize(rate) if callable(rate) else rate,
            "warmup_steps": self.warmup_steps,
            "initial_learning_rate": self.initial_learning_rate,
        }

    @classmethod
    def from_config(cls, config):
        rate = config["learning_rate"]
        if isinstance(rate, dict):
            rate = keras.optimizers.schedules.deserialize(rate)
        return cls(**{**config, "learning_rate": rate})


@keras.saving.register_keras_serializable(package="training_recipes")
class InverseSquareRootDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises in a straight line, then falls with the inverse square root of the step (Vaswani 2017).

    ```python
    def rate(step):
        t = step + 1  # The paper counts from one.
        return learning_rate * min(t / warmup_steps, sqrt(warmup_steps / t))
    ```

    The paper's rate for a model of width `d` is `InverseSquareRootDecay((d * warmup_steps) ** -0.5,
    warmup_steps)`. It needs no total: training can stop at any step.

    To load a saved model, import this class first.

    Args:
        learning_rate: Float > 0, the largest rate, that of step `warmup_steps - 1`.
        warmup_steps: Int >= 1, the number of steps that rise. 1 only falls.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, learning_rate, warmup_steps):
        super().__init__()
        if not 0 < learning_rate < math.inf:
            raise ValueError(
                "Argument `learning_rate` must be > 0 and finite. "
                f"Received: learning_rate={learning_rate}"
            )
        if not (warmup_steps >= 1 and warmup_steps % 1 == 0):
            raise ValueError(
                "Argument `warmup_steps` must be a whole number >= 1. "
                f"Received: warmup_steps={warmup_steps}"
            )
        self.learning_rate = float(learning_rate)
        self.warmup_steps = int(warmup_steps)

    def __call__(self, step):
        t = ops.cast(ops.convert_to_tensor(step) + 1, "float32")
        factor = ops.minimum(t / self.warmup_steps, ops.sqrt(self.warmup_steps / t))
        # In a graph a reciprocal may take the place of a quotient, and the top would be rounded.
        return self.learning_rate * ops.where(t == self.warmup_steps, 1.0, factor)

    def get_config(self):
        return {"learning_rate": self.learning_rate, "warmup_steps": self.warmup_steps}


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


def make_schedule(learning_rate, total_steps, warmup_steps=0, decay=None):
    """Return the learning rate of a whole training: with or without warm-up, with or without decay.

    Args:
        learning_rate: Float, the largest rate.
        total_steps: Int, the number of all steps, those of the warm-up included.
        warmup_steps: Int in [0, total_steps). 0 for no warm-up.
        decay: None, "cosine" or "inverse_square_root", what follows the warm-up.

    Returns:
        A float where there is neither, or a schedule.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "Argument `warmup_steps` must be >= 0 and less than `total_steps`. "
            f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    learning_rate = float(learning_rate)  # Keras would compute its cosine in whole numbers.
    if decay == "inverse_square_root":
        return InverseSquareRootDecay(learning_rate, max(warmup_steps, 1))
    if decay == "cosine":
        # Keras has this one: the difference is that its `decay_steps` exclude the warm-up.
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup_steps else learning_rate,
            decay_steps=total_steps - warmup_steps,
            warmup_target=learning_rate if warmup_steps else None,
            warmup_steps=warmup_steps,
        )
    if decay is not None:
        raise ValueError(
            'Argument `decay` must be None, "cosine" or "inverse_square_root". '
            f"Received: decay={decay!r}"
        )
    return WarmUp(learning_rate, warmup_steps) if warmup_steps else learning_rate


def build_model(
    input_shape=(64,),
    classes=10,
    optimizer="adam",
    warmup_fraction=0.0,
    decay=None,
    total_steps=320,
    learning_rate=0.003,
    seed=0,
):
    """Build and compile a network of ten tanh layers.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        optimizer: "adam", or "sgd" for SGD with momentum.
        warmup_fraction: Float in [0, 1), the part of all steps that warms up. 0 for none.
        decay: None, "cosine" or "inverse_square_root", as in `make_schedule`.
        total_steps: Int, the number of all steps: `count_steps(samples, batch_size, epochs)`.
        learning_rate: Float, the largest rate.
        seed: Int. Equal seeds give equal initial weights.

    Raises:
        ValueError: an argument is out of its range.
    """
    if optimizer not in ("adam", "sgd"):
        raise ValueError(
            f'Argument `optimizer` must be "adam" or "sgd". Received: optimizer={optimizer!r}'
        )
    warmup_steps = round(warmup_fraction * total_steps)
    schedule = make_schedule(learning_rate, total_steps, warmup_steps, decay)
    seeds = iter(np.random.SeedSequence(seed).generate_state(HIDDEN_LAYERS + 1).tolist())
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(HIDDEN_LAYERS):
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        x = keras.layers.Dense(HIDDEN_UNITS, "tanh", kernel_initializer=initializer)(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule)
        if optimizer == "adam"
        else keras.optimizers.SGD(schedule, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with the warm-up and the learning rate."""
    return build_model(
        warmup_fraction=hp.Float("warmup_fraction", 0.0, 0.5, step=0.1),
        learning_rate=hp.Float("learning_rate", 1e-4, 1e-1, sampling="log"),
    )


SYMPTOMS = ["explodes", "unstable"]

VARIANTS = {
    "none": {"warmup_fraction": 0.0},
    "warmup": {"warmup_fraction": WARMUP_FRACTION},
    "cosine": {"warmup_fraction": 0.0, "decay": "cosine"},
    "warmup_cosine": {"warmup_fraction": WARMUP_FRACTION, "decay": "cosine"},
    "warmup_inv_sqrt": {"warmup_fraction": WARMUP_FRACTION, "decay": "inverse_square_root"},
}

EQUAL_START = [list(VARIANTS)]

DIGITS = {"data": "digits", "samples": 1000, "epochs": 20, "batch_size": 64}

EXPERIMENTS = {
    # Here the rate is the subject: twenty times Keras's default for Adam.
    "large_rate": {
        **DIGITS,
        "arguments": {"optimizer": "adam"},
        "learning_rates": {"none": 0.02, "warmup": 0.02},
    },
    "own_rate": {
        **DIGITS,
        "arguments": {"optimizer": "adam"},
        "learning_rates": {"none": 0.001, "warmup": 0.001},
    },
    "sgd": {
        **DIGITS,
        "arguments": {"optimizer": "sgd"},
        "learning_rates": {"none": 0.0316, "warmup": 0.01},
    },
    "with_decay": {
        **DIGITS,
        "arguments": {"optimizer": "adam"},
        "sweep": True,
        "learning_rates": {"cosine": 0.00316, "warmup_cosine": 0.00316, "warmup_inv_sqrt": 0.001},
    },
}

CLAIMS = [
    {
        "text": "With Adam at a rate of 0.02, warm-up raises test accuracy",
        "experiment": "large_rate",
        "variant": "warmup",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.05,
        "textbook": "Warm-up makes a large learning rate usable.",
    },
    {
        "text": "With Adam, each at its best rate, warm-up leaves test accuracy as it is",
        "experiment": "own_rate",
        "variant": "warmup",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "With SGD, each at its best rate, warm-up leaves test accuracy as it is",
        "experiment": "sgd",
        "variant": "warmup",
        "against": "none",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "Warm-up and cosine decay reach a higher test accuracy than the decay alone",
        "experiment": "with_decay",
        "variant": "warmup_cosine",
        "against": "cosine",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Warm-up followed by decay makes training converge.",
    },
    {
        "text": "After equal warm-ups, the inverse square root does as well as the cosine",
        "experiment": "with_decay",
        "variant": "warmup_inv_sqrt",
        "against": "warmup_cosine",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
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
            warmup_steps = round(entry["arguments"]["warmup_fraction"] * total)
            decay = entry["arguments"].get("decay")
            schedule = make_schedule(entry["learning_rate"], total, warmup_steps, decay)
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
