"""One cycle: one rise to a very large rate and one long fall to almost none, momentum against it.

Problem:    Training takes too long, and a larger constant rate makes it worse instead of faster.
Technique:  Over the whole training the rate rises to several times what a constant could be, and
            falls to almost 0; momentum falls while the rate rises, and rises while it falls.
Claim:      What one cycle gains over the best constant rate, three points in the mean, is not clear
            from five seeds; nor is it told apart from cosine decay, or, with a rate of its own for
            each, from a cycle that leaves the momentum alone. Its large rate needs the cycle: held
            constant, it ruins the training. A third of the epochs is not enough to do as well as
            the constant.
Costs:      Nothing in time. The length has to be fixed beforehand: there is no stopping early, and
            no going on.
Start at:   A maximum of two to three times the best constant rate, or where the range test turns;
            30% of the steps for the rise.
Caveat:     This is the form of fastai and PyTorch: two halves of a cosine, reaching the end at the
            last step. The paper's has straight lines and a third phase. In graph mode, a callback
            that sets `optimizer.momentum` does nothing, because the number is part of the traced
            step: hence the optimizer below. Keras keeps the rate inside the velocity, PyTorch
            outside: the paths differ where the rate moves. The learning rates are the maxima, from
            `python -m recipes.one_cycle --tune --learning-rates 0.0316:1:7`.
Reference:  Smith, Topin (2017), Super-Convergence: Very Fast Training of Neural Networks Using
            Large Learning Rates, arXiv:1708.07120. Smith (2018), A Disciplined
            Approach to Neural Network Hyper-Parameters, arXiv:1803.09820, sections 4.1 and 4.3.
Run:        python -m recipes.one_cycle
Measured:   No clear difference: One cycle reaches a higher test accuracy than the best constant
              rate (+2.7 [+0.5, +4.9] points, p = .082).
            No clear difference: One cycle reaches the same test accuracy as cosine decay (+0.5
              [-2.4, +3.4] points, p = .223).
            No clear difference: The cycle of the momentum leaves test accuracy as it is (-1.1
              [-3.8, +1.6] points, p = .223).
            Supported: One cycle of a third of the epochs is less accurate than a constant rate in
              all (-21.5 [-29.2, -13.8] points, p = .006).
            Supported: At three times the best constant rate for both, one cycle raises test
              accuracy by five points or more (+59.3 [+49.1, +69.6] points, p < .001).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import math

import keras
import numpy as np
from keras import ops

CONVOLUTIONS = (16, 32)  # Filters.
HIDDEN_UNITS = 64
MOMENTUM = 0.9  # Where it does not follow a schedule.


@keras.saving.register_keras_serializable(package="training_recipes")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Rises along half a cosine to the maximum, and falls along another half to almost nothing.

    ```python
    def rate(step):
        last, top = total_steps - 1, rise_fraction * total_steps - 1
        step = min(step, last)
        initial_rate = max_learning_rate / initial_divisor
        final_rate = initial_rate / final_divisor
        if step <= top:
            return cosine_from(initial_rate, max_learning_rate, part_done=step / top)
        return cosine_from(max_learning_rate, final_rate, part_done=(step - top) / (last - top))

    def cosine_from(start, end, part_done):
        return end + (start - end) / 2 * (1 + cos(pi * part_done))
    ```

    The defaults are those of PyTorch's `OneCycleLR`, step for step: the top is reached at step
    `rise_fraction * total_steps - 1` and the end at the last step that is used.

    To load a saved model, import this class first.

    Args:
        max_learning_rate: Float > 0.
        total_steps: Int >= 2, the number of all steps, those of the rise included.
        rise_fraction: Float < 1, the part of all steps that rises. It has to hold more than one.
        initial_divisor: Float >= 1. The first rate is the maximum divided by it.
        final_divisor: Float >= 1. The last rate is the first divided by it.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        max_learning_rate,
        total_steps,
        rise_fraction=0.3,
        initial_divisor=25.0,
        final_divisor=1e4,
    ):
        super().__init__()
        if not 0 < max_learning_rate < math.inf:
            raise ValueError(
                "Argument `max_learning_rate` must be > 0 and finite. "
                f"Received: max_learning_rate={max_learning_rate}"
            )
        _check_lengths(total_steps, rise_fraction)
        if not (1 <= initial_divisor < math.inf and 1 <= final_divisor < math.inf):
            raise ValueError(
                "Arguments `initial_divisor` and `final_divisor` must be >= 1 and finite. "
                f"Received: initial_divisor={initial_divisor}, final_divisor={final_divisor}"
            )
        self.max_learning_rate = float(max_learning_rate)
        self.total_steps = int(total_steps)
        self.rise_fraction = float(rise_fraction)
        self.initial_divisor = float(initial_divisor)
        self.final_divisor = float(final_divisor)

    def __call__(self, step):
        initial_rate = self.max_learning_rate / self.initial_divisor
        final_rate = initial_rate / self.final_divisor
        values = initial_rate, self.max_learning_rate, final_rate
        return _there_and_back(step, self.total_steps, self.rise_fraction, *values)

    def get_config(self):
        return {
            "max_learning_rate": self.max_learning_rate,
            "total_steps": self.total_steps,
            "rise_fraction": self.rise_fraction,
            "initial_divisor": self.initial_divisor,
            "final_divisor": self.final_divisor,
        }


@keras.saving.register_keras_serializable(package="training_recipes")
class OneCycleMomentum(keras.optimizers.schedules.LearningRateSchedule):
    """The momentum that belongs to `OneCycle`: lowest where the rate is highest.

    To load a saved model, import this class first.

    Args:
        total_steps: Int >= 2, as in `OneCycle`.
        rise_fraction: Float < 1, as in `OneCycle`.
        max_momentum: Float < 1, of the first step and the last.
        min_momentum: Float >= 0, of the step with the largest rate.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, total_steps, rise_fraction=0.3, max_momentum=0.95, min_momentum=0.85):
        super().__init__()
        _check_lengths(total_steps, rise_fraction)
        if not 0 <= min_momentum <= max_momentum < 1:
            raise ValueError(
                "Arguments `min_momentum` and `max_momentum` must be >= 0, < 1 and in this order. "
                f"Received: min_momentum={min_momentum}, max_momentum={max_momentum}"
            )
        self.total_steps = int(total_steps)
        self.rise_fraction = float(rise_fraction)
        self.max_momentum = float(max_momentum)
        self.min_momentum = float(min_momentum)

    def __call__(self, step):
        values = self.max_momentum, self.min_momentum, self.max_momentum
        return _there_and_back(step, self.total_steps, self.rise_fraction, *values)

    def get_config(self):
        return {
            "total_steps": self.total_steps,
            "rise_fraction": self.rise_fraction,
            "max_momentum": self.max_momentum,
            "min_momentum": self.min_momentum,
        }


def _check_lengths(total_steps, rise_fraction):
    if not (total_steps >= 2 and total_steps % 1 == 0):
        raise ValueError(
            "Argument `total_steps` must be a whole number >= 2. "
            f"Received: total_steps={total_steps}"
        )
    if not 1 / total_steps < rise_fraction < 1:
        raise ValueError(
            "Argument `rise_fraction` must be > 1 / total_steps and < 1. "
            f"Received: rise_fraction={rise_fraction}, total_steps={total_steps}"
        )


def _there_and_back(step, total_steps, rise_fraction, start, middle, end):
    """Go from `start` to `middle` and on to `end`, each along half a cosine."""
    last, top = total_steps - 1, rise_fraction * total_steps - 1
    step = ops.cast(ops.minimum(ops.convert_to_tensor(step), last), "float32")
    nearness = ops.where(step <= top, step / top, (last - step) / (last - top))
    outer = ops.where(step <= top, start, end)
    # sin(pi x / 2)^2 is (1 - cos(pi x)) / 2 without its rounding near 0, where it would drown the
    # last rates: they are a 250,000th of the maximum.
    curve = outer + (middle - outer) * ops.sin(math.pi / 2 * nearness) ** 2
    return ops.where(step == top, middle, curve)  # The curve's own top is rounded.


@keras.saving.register_keras_serializable(package="training_recipes")
class SGDWithMomentumSchedule(keras.optimizers.SGD):
    """Keras's SGD, whose momentum may follow a schedule of the step, as its learning rate may.

    ```python
    velocity = momentum(step) * velocity - learning_rate(step) * gradient
    weights = weights + velocity
    ```

    With `nesterov=True` the weights move by `momentum(step) * velocity - learning_rate(step) *
    gradient` instead. A float momentum trains exactly as in `keras.optimizers.SGD`.

    To load a saved model, import this class first.

    Args:
        learning_rate: Float or `LearningRateSchedule`.
        momentum: Float in [0, 1] or `LearningRateSchedule`.
        nesterov: Bool.
        **options: What every Keras optimizer takes, such as `global_clipnorm`.
    """

    def __init__(self, learning_rate=0.01, momentum=0.9, nesterov=False, **options):
        is_schedule = callable(momentum)
        super().__init__(
            learning_rate, momentum=0.9 if is_schedule else momentum, nesterov=nesterov, **options
        )
        if is_schedule:
            self.momentum = momentum  # Not 0, so that `build` makes the velocities.

    def update_step(self, gradient, variable, learning_rate):
        if not callable(self.momentum):
            super().update_step(gradient, variable, learning_rate)
            return
        # Keras evaluates the schedule of the learning rate at the same number.
        momentum = ops.cast(self.momentum(self._iterations), variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        step = ops.multiply(gradient, ops.cast(learning_rate, variable.dtype))
        velocity = self.momentums[self._get_variable_index(variable)]
        self.assign(velocity, ops.subtract(ops.multiply(velocity, momentum), step))
        if self.nesterov:
            self.assign_add(variable, ops.subtract(ops.multiply(velocity, momentum), step))
        else:
            self.assign_add(variable, velocity)

    def get_config(self):
        momentum = self.momentum
        if callable(momentum):
            momentum = keras.optimizers.schedules.serialize(momentum)
        return {**super().get_config(), "momentum": momentum}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        momentum = config["momentum"]
        if isinstance(momentum, dict):
            momentum = keras.optimizers.schedules.deserialize(momentum, custom_objects)
        return super().from_config({**config, "momentum": momentum}, custom_objects)


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


def make_schedule(learning_rate, total_steps, schedule=None):
    """Return the learning rate of a whole training.

    Args:
        learning_rate: Float, the largest rate.
        total_steps: Int, the number of all steps.
        schedule: "one_cycle"; "cosine" for a decay from the largest rate; None for a constant.
    """
    learning_rate = float(learning_rate)  # Keras would compute its cosine in whole numbers.
    if schedule is None:
        return learning_rate
    if schedule == "one_cycle":
        return OneCycle(learning_rate, total_steps)
    if schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, total_steps)
    raise ValueError(
        'Argument `schedule` must be None, "one_cycle" or "cosine". '
        f"Received: schedule={schedule!r}"
    )


def build_model(
    input_shape=(40,),
    classes=10,
    schedule=None,
    cycle_momentum=False,
    total_steps=384,
    learning_rate=0.1,
    seed=0,
):
    """Build and compile a small convolutional network for signals.

    Args:
        input_shape: Shape of one sample: `(steps,)`, or `(steps, channels)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        schedule: None, "one_cycle" or "cosine", as in `make_schedule`.
        cycle_momentum: Bool, whether momentum goes from 0.95 to 0.85 and back, or stays at 0.9.
        total_steps: Int, the number of all steps: `count_steps(samples, batch_size, epochs)`.
        learning_rate: Float, the largest rate, for SGD with momentum.
        seed: Int. Equal seeds give equal initial weights.
    """
    rate = make_schedule(learning_rate, total_steps, schedule)
    momentum = OneCycleMomentum(total_steps) if cycle_momentum else MOMENTUM
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
        optimizer=SGDWithMomentumSchedule(rate, momentum),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with the momentum's cycle and the largest rate."""
    return build_model(
        schedule="one_cycle",
        cycle_momentum=hp.Boolean("cycle_momentum", default=True),
        learning_rate=hp.Float("learning_rate", 1e-2, 1.0, sampling="log"),
    )


SYMPTOMS = ["slow", "choosing a rate"]

VARIANTS = {
    "constant": {},
    "cosine": {"schedule": "cosine"},
    "fixed_momentum": {"schedule": "one_cycle"},
    "one_cycle": {"schedule": "one_cycle", "cycle_momentum": True},
    # A third of the epochs.
    "one_cycle_4": {"schedule": "one_cycle", "cycle_momentum": True, "epochs": 4},
}

EQUAL_START = [list(VARIANTS)]

SIGNALS = {"data": "mnist1d", "samples": 2000, "epochs": 12, "batch_size": 64}

EXPERIMENTS = {
    "mnist1d": {
        **SIGNALS,
        "learning_rates": {
            "constant": 0.1,
            "cosine": 0.178,
            "fixed_momentum": 0.178,
            "one_cycle": 0.316,
            "one_cycle_4": 0.178,
        },
    },
    # The comparison to beware of: a half-decade above the best constant rate, for both.
    "one_rate": {
        **SIGNALS,
        "learning_rates": {"constant": 0.316, "one_cycle": 0.316},
    },
}

CLAIMS = [
    {
        "text": "One cycle reaches a higher test accuracy than the best constant rate",
        "experiment": "mnist1d",
        "variant": "one_cycle",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "One cycle reaches the same test accuracy as cosine decay",
        "experiment": "mnist1d",
        "variant": "one_cycle",
        "against": "cosine",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
    },
    {
        "text": "The cycle of the momentum leaves test accuracy as it is",
        "experiment": "mnist1d",
        "variant": "one_cycle",
        "against": "fixed_momentum",
        "metric": "test_accuracy",
        "direction": "equal",
        "at_least": 0.02,
        "against_textbook": "Momentum has to be cycled against the learning rate.",
    },
    {
        "text": "One cycle of a third of the epochs is less accurate than a constant rate in all",
        "experiment": "mnist1d",
        "variant": "one_cycle_4",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "lower",
        "at_least": 0.03,
        "against_textbook": "One cycle trains several times faster than a constant rate.",
    },
    {
        "text": "At three times the best constant rate for both, one cycle raises test "
        "accuracy by five points or more",
        "experiment": "one_rate",
        "variant": "one_cycle",
        "against": "constant",
        "metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.05,
    },
]


def illustrate(summary):
    """Draw the learning rate and the momentum of every variant over the steps of its training."""
    from matplotlib.figure import Figure

    from recipes._lab import picture

    name, experiment = next(iter(summary["experiments"].items()))
    colors = picture.variant_colors(summary["experiments"])[name]
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for variant, entry in experiment["variants"].items():
        arguments = entry["arguments"]
        settings = {**experiment, **arguments}
        total = count_steps(settings["samples"], settings["batch_size"], settings["epochs"])
        rate = make_schedule(entry["learning_rate"], total, arguments.get("schedule"))
        momentum = OneCycleMomentum(total) if arguments.get("cycle_momentum") else MOMENTUM
        for axes, schedule in zip(panels, (rate, momentum), strict=True):
            draw_schedules({variant: schedule}, total, axes)
            axes.lines[-1].set_color(colors[variant])
    for axes, name in zip(panels, ("learning rate", "momentum"), strict=True):
        axes.set_ylabel(name)
        axes.legend()  # Again, for the colors.
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
