"""The range test: raise the learning rate from step to step and see where the loss falls.

This file stands alone: copy it into a project. It needs Keras and NumPy, and matplotlib for `plot`.
"""

import inspect
import math
import random
import warnings

import keras
import numpy as np

# With fewer points than this, the slope of the smoothed loss says nothing.
MINIMUM_POINTS = 10


class LearningRateFinder(keras.callbacks.Callback):
    """Trains for some steps with a rising learning rate, and puts everything back.

    Step i = 0 ... steps - 1 trains with the rate

    ```
    minimum * (maximum / minimum) ** (i / (steps - 1))          (spacing="exponential")
    minimum + (maximum - minimum) * i / (steps - 1)             (spacing="linear")
    ```

    and records the loss that it minimizes: of its own batch alone, before the update, with the
    weights of samples and classes and with the penalties. (What Keras logs is a running mean over
    the epoch.) The losses are smoothed by an exponential moving average whose bias towards zero is
    corrected,

    ```
    average = smoothing * average + (1 - smoothing) * loss      (from 0)
    smoothed_loss = average / (1 - smoothing ** (i + 1))
    ```

    and the test stops when the loss is not finite, or when the smoothed loss exceeds
    `best + (divergence_factor - 1) * abs(best)`, `best` being the lowest smoothed loss so far:
    `divergence_factor` times the best one, for a loss above zero.

    Afterwards, whether the test came to its end, stopped early or raised an exception, the model
    is as before: weights (moving statistics too), the state of its seed generators, the optimizer's
    variables with the count of its steps, its learning rate or schedule, the compiled training
    function, `model.history`, Python's and NumPy's global random state and Keras's global seed
    generator. What cannot be put back is the state of the data: a `tf.data` pipeline that shuffles
    goes on with its next order. A model without weights is built first, and stays built.

    `suggestions` holds three readings of the curve, each a float or `None`, with the reason for a
    `None` in `reasons`. They look at the smoothed loss without the first tenth of `steps` and
    without the last five recorded:

    | key | learning rate |
    |---|---|
    | `"valley"` | halfway through the longest falling stretch |
    | `"steepest"` | where, before it is lowest, the smoothed loss falls fastest from step to step |
    | `"minimum_over_10"` | a tenth of the rate at which the smoothed loss is lowest |

    The longest falling stretch is the longest strictly falling subsequence, gaps allowed; of
    several, the one that ends first. If it has L points and ends at index e, the suggestion is at
    index `e - L + L // 3 + L // 6`. That is the rule of fastai's code, which stands halfway,
    although fastai's text says "roughly 2/3". A suggestion is where to start searching, not the
    result of a search.

    The rate of a step shows in the loss of the next one; that shift of one point is kept, as in
    the other implementations. With `gradient_accumulation_steps=k` one step of the test is one
    update, so k batches, and its loss is their mean. `steps_per_execution` is 1 during the test.

    Example:

    ```python
    finder = LearningRateFinder(minimum=1e-6, maximum=10.0, steps=100)
    suggestions = finder.find(model, x_train, y_train, batch_size=32)
    finder.plot("range_test.png")
    model.optimizer.learning_rate = suggestions["valley"]
    ```

    It is a callback that `find` hands to `model.fit`; it cannot be handed to `fit` by others,
    because a callback is not told of exceptions and so could not put the model back.

    References: Smith 2017, section 3.3 (https://arxiv.org/abs/1506.01186), who raises the rate
    linearly and looks at the accuracy; `Learner.lr_find` of fastai.

    Args:
        minimum: Float > 0. Rate of the first step.
        maximum: Float > `minimum`. Rate of the last step.
        steps: Int >= 2. Number of updates, if the loss does not diverge before.
        spacing: `"exponential"` or `"linear"`.
        smoothing: Float in [0, 1). 0 smooths nothing; the average spans about
            `1 / (1 - smoothing)` steps.
        divergence_factor: Float > 1, or `None` to stop only at a loss that is not finite.

    Attributes:
        learning_rates: Array `(recorded steps,)`, float64.
        losses: Array `(recorded steps,)`, float64. Only the last one can be non-finite.
        smoothed_losses: Array `(recorded steps,)`, float64.
        diverged: Bool. Whether the loss diverged.
        suggestions: Dict of three rates, as above.
        reasons: Dict with the reason for every suggestion that is `None`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        minimum=1e-6,
        maximum=10.0,
        steps=100,
        spacing="exponential",
        smoothing=0.9,
        divergence_factor=4.0,
    ):
        super().__init__()
        if not 0 < minimum < math.inf:
            raise ValueError(f"Argument `minimum` must be > 0. Received: minimum={minimum}")
        if not minimum < maximum < math.inf:
            raise ValueError(
                "Argument `maximum` must be finite and > `minimum`. "
                f"Received: maximum={maximum}, minimum={minimum}"
            )
        if not isinstance(steps, (int, np.integer)) or steps < 2:
            raise ValueError(f"Argument `steps` must be an integer >= 2. Received: steps={steps}")
        if spacing not in ("exponential", "linear"):
            raise ValueError(
                "Argument `spacing` must be 'exponential' or 'linear'. "
                f"Received: spacing={spacing!r}"
            )
        if not 0 <= smoothing < 1:
            raise ValueError(
                f"Argument `smoothing` must be >= 0 and < 1. Received: smoothing={smoothing}"
            )
        if divergence_factor is not None and not divergence_factor > 1:
            raise ValueError(
                "Argument `divergence_factor` must be > 1, or None. "
                f"Received: divergence_factor={divergence_factor}"
            )
        self.minimum = float(minimum)
        self.maximum = float(maximum)
        self.steps = int(steps)
        self.spacing = spacing
        self.smoothing = float(smoothing)
        self.divergence_factor = divergence_factor
        self._optimizer = None
        self._set_rate = None
        self._forget()

    def _forget(self):
        self.learning_rates = np.zeros(0)
        self.losses = np.zeros(0)
        self.smoothed_losses = np.zeros(0)
        self.diverged = False
        self.suggestions = {}
        self.reasons = {}
        self._average = 0.0
        self._batch = 0
        self._batch_losses = []

    def __getstate__(self):
        # A copy takes the settings and the results along, not the model.
        return {**vars(self), "_model": None, "_optimizer": None, "_set_rate": None}

    def find(
        self,
        model,
        x,
        y=None,
        batch_size=None,
        sample_weight=None,
        class_weight=None,
        shuffle=True,
        steps_per_epoch=None,
    ):
        """Runs the test on a compiled model, with the data as `fit` takes it.

        A data set with fewer batches than steps is gone through several times.

        Args:
            model: A compiled `keras.Model`, new or trained.
            x: Arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`. Not a generator, whose
                batches would be missing afterwards.
            y: As in `fit`.
            batch_size: As in `fit`.
            sample_weight: As in `fit`.
            class_weight: As in `fit`.
            shuffle: As in `fit`.
            steps_per_epoch: As in `fit`.

        Returns:
            `suggestions`: a dict with the keys `"valley"`, `"steepest"` and `"minimum_over_10"`,
            each a float or `None`. A warning gives the reason for a `None`.

        Raises:
            ValueError: If the model is not compiled, if its optimizer has no single learning rate
                (`MultiOptimizer`), if `x` is a generator, or if the training step logs no `loss`.
        """
        optimizer = _innermost_optimizer(model)
        if inspect.isgenerator(x):
            raise ValueError(
                "Argument `x` must be data that can be read again: arrays, a tf.data.Dataset or a "
                f"keras.utils.PyDataset. Received: x={x}"
            )
        self._forget()
        if not all(layer.built for layer in model._flatten_layers(include_self=False)):
            # An evaluation builds whatever `fit` would build, and trains nothing.
            model.evaluate(
                x, y, batch_size=batch_size, sample_weight=sample_weight, steps=1, verbose=0
            )
        if not model.optimizer.built:
            with _scope(model):
                model.optimizer.build(model.trainable_variables)
        batches = self.steps * (optimizer.gradient_accumulation_steps or 1)
        first_epoch = getattr(model, "_initial_epoch", None) or 0  # Set by `BackupAndRestore`.
        put_back = _remember(model)
        self._optimizer = optimizer
        try:
            self._prepare(model)
            model.fit(
                x,
                y,
                batch_size=batch_size,
                sample_weight=sample_weight,
                class_weight=class_weight,
                shuffle=shuffle,
                steps_per_epoch=steps_per_epoch,
                epochs=first_epoch + batches,  # Enough even if an epoch has only one batch.
                callbacks=[self],
                verbose=0,
            )
        finally:
            put_back()
            self._optimizer = self._set_rate = None
        self._suggest()
        for reason in dict.fromkeys(self.reasons.values()):
            names = ", ".join(name for name, why in self.reasons.items() if why == reason)
            warnings.warn(f"No suggestion for {names}: {reason}", stacklevel=2)
        return self.suggestions

    def _prepare(self, model):
        """Makes the rate a variable that can be set at every step."""
        optimizer = self._optimizer
        # Private, because the public attribute is the value of a schedule and not the schedule.
        is_variable = isinstance(optimizer._learning_rate, keras.Variable)
        if not is_variable:
            with _scope(model):
                rate = keras.Variable(self.minimum, dtype="float32", trainable=False)
            # An optimizer with a schedule refuses a float, but takes a function.
            optimizer.learning_rate = lambda: rate
            self._set_rate = rate.assign
        else:
            self._set_rate = optimizer._learning_rate.assign
        if not is_variable or model.steps_per_execution != 1:
            # What has been traced goes on with the schedule and the executions of its trace.
            model.steps_per_execution = 1
            model.train_function = None

    def on_train_begin(self, logs=None):
        if self._optimizer is None:
            raise ValueError(
                "LearningRateFinder must be run by its method `find`, which calls `fit` and puts "
                "the model back. Received: a call of `fit` from elsewhere"
            )
        accumulated = self._optimizer.gradient_accumulation_steps or 1
        # Earlier training may have stopped between two updates; its batches count.
        self._batch = int(self._optimizer._iterations.numpy()) % accumulated

    def on_train_batch_begin(self, batch, logs=None):
        accumulated = self._optimizer.gradient_accumulation_steps or 1
        if not self._batch_losses:
            self._set_rate(self._rate(self._batch // accumulated))
        # With the metrics at zero, the mean over the epoch is the mean over this batch.
        self.model.reset_metrics()
        self._batch += 1

    def on_train_batch_end(self, batch, logs=None):
        if "loss" not in (logs or {}):
            raise ValueError(
                f"The training step must log a `loss`. Received: logs with {sorted(logs or {})}"
            )
        self._batch_losses.append(float(logs["loss"]))
        if self._batch % (self._optimizer.gradient_accumulation_steps or 1) == 0:
            self._record(float(np.mean(self._batch_losses)))
            self._batch_losses = []

    def _rate(self, step):
        position = step / (self.steps - 1)
        if self.spacing == "linear":
            return self.minimum + (self.maximum - self.minimum) * position
        return self.minimum * (self.maximum / self.minimum) ** position

    def _record(self, loss):
        step = len(self.losses)
        self._average = self.smoothing * self._average + (1 - self.smoothing) * loss
        smoothed = self._average / (1 - self.smoothing ** (step + 1))
        best = min(self.smoothed_losses, default=smoothed)
        self.learning_rates = np.append(self.learning_rates, self._rate(step))
        self.losses = np.append(self.losses, loss)
        self.smoothed_losses = np.append(self.smoothed_losses, smoothed)
        self.diverged = not math.isfinite(loss) or (
            self.divergence_factor is not None
            and smoothed > best + (self.divergence_factor - 1) * abs(best)
        )
        if self.diverged or step + 1 == self.steps:
            self.model.stop_training = True

    def _suggest(self):
        """Fills `suggestions` and `reasons` from the recorded curve."""
        names = ("valley", "steepest", "minimum_over_10")
        used = slice(self.steps // 10, max(len(self.losses) - 5, 0))
        rates, losses = self.learning_rates[used], self.smoothed_losses[used]
        if len(losses) < MINIMUM_POINTS:
            reason = (
                f"{len(self.losses)} steps were recorded"
                + (" before the loss diverged" if self.diverged else "")
                + f", which leaves {len(losses)} points without the first {self.steps // 10} and "
                f"the last 5; {MINIMUM_POINTS} are needed. Raise `steps`"
                + (" or lower `minimum`." if self.diverged else ".")
            )
            self.suggestions = dict.fromkeys(names)
            self.reasons = dict.fromkeys(names, reason)
            return
        falling = _longest_falling(losses)
        lowest = int(np.argmin(losses))
        # What falls after the lowest point is a spike coming down.
        slopes = np.gradient(losses)[: lowest + 1]
        self.suggestions = {
            "valley": float(rates[falling]) if falling is not None else None,
            "steepest": float(rates[np.argmin(slopes)]) if slopes.min() < 0 else None,
            "minimum_over_10": float(rates[lowest]) / 10,
        }
        never_fell = "the smoothed loss never fell. Lower `minimum`, or look at the model."
        if lowest == 0:
            self.suggestions["minimum_over_10"] = None
        self.reasons = {
            name: never_fell for name, value in self.suggestions.items() if value is None
        }
        if lowest == len(losses) - 1 and not self.diverged:
            self.suggestions["minimum_over_10"] = None
            self.reasons["minimum_over_10"] = (
                "the smoothed loss was still at its lowest at the end. Raise `maximum`."
            )

    def plot(self, path=None):
        """Draws the curve, with the suggestions marked.

        Args:
            path: File to write, `.png`, `.pdf` or `.svg`.

        Returns:
            The matplotlib `Figure`.

        Raises:
            ValueError: If nothing has been recorded yet.
        """
        if not len(self.losses):
            raise ValueError("`plot` needs a test to draw: call `find` first. Received: no losses")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        rates, losses, smoothed = self.learning_rates, self.losses, self.smoothed_losses
        axes.plot(rates, losses, ".", color="0.65", markersize=4, label="loss of the batch")
        axes.plot(rates, smoothed, color="tab:blue", linewidth=2, label="smoothed")
        styles = {
            "valley": ("tab:green", "o"),
            "steepest": ("tab:orange", "s"),
            "minimum_over_10": ("tab:purple", "^"),
        }
        for name, (color, marker) in styles.items():
            rate = self.suggestions.get(name)
            if rate is None:
                continue
            label = f"{name.replace('_', ' ')}: {rate:.2g}"
            axes.axvline(rate, color=color, linewidth=1, linestyle="--")
            # A tenth of the minimum can lie left of the curve; its line is drawn all the same.
            if rates[0] <= rate <= rates[-1]:
                height = np.interp(rate, rates, smoothed)
                axes.plot(rate, height, marker, color=color, markersize=8, label=label)
            else:
                axes.plot([], [], marker, color=color, markersize=8, label=label)
        if self.spacing == "exponential":
            axes.set_xscale("log")
        # The explosion at the end would press everything else flat.
        finite = smoothed[np.isfinite(smoothed)]
        if len(finite):
            low = min(finite.min(), np.min(losses[np.isfinite(losses)]))
            top = max(finite[: max(len(finite) - 5, 1)].max(), losses[0])
            margin = 0.08 * (top - low) or 1.0
            axes.set_ylim(low - margin, top + 2 * margin)
        axes.set_xlabel("learning rate" + (" (log scale)" if self.spacing == "exponential" else ""))
        axes.set_ylabel("training loss")
        ending = "diverged" if self.diverged else "did not diverge"
        axes.set_title(f"Learning-rate range test: {len(losses)} of {self.steps} steps, {ending}")
        axes.grid(alpha=0.25)
        axes.legend(loc="best", framealpha=0.9)
        if path is not None:
            figure.savefig(path)
        return figure


def _longest_falling(losses):
    """Returns the index halfway through the longest falling subsequence, or `None`."""
    lengths = np.ones(len(losses), dtype=int)
    for end in range(1, len(losses)):
        higher = losses[:end] > losses[end]
        if higher.any():
            lengths[end] += lengths[:end][higher].max()
    length, end = int(lengths.max()), int(lengths.argmax())
    if length < 2:
        return None
    return max(0, end - length + length // 3 + length // 6)


def _innermost_optimizer(model):
    """Returns the optimizer that does the update, below `LossScaleOptimizer`."""
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or hasattr(optimizer, "optimizers"):
        raise ValueError(
            "LearningRateFinder needs a compiled model whose optimizer has one learning rate. "
            f"Received: optimizer={optimizer}"
        )
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _remember(model):
    """Returns a function that puts model, optimizer and random state back as they are now."""
    optimizer = _innermost_optimizer(model)
    variables = [*model.variables, *model.optimizer.variables]
    global_seed = _global_seed_generator()
    if global_seed is not None:
        variables.append(global_seed.state)
    values = [np.array(variable.numpy()) for variable in variables]
    schedule = optimizer._learning_rate
    attributes = {
        name: getattr(model, name)
        for name in ("steps_per_execution", "train_function", "stop_training", "history")
        if hasattr(model, name)  # `history` comes with the first `fit`.
    }
    python_state, numpy_state = random.getstate(), np.random.get_state()

    def put_back():
        if not isinstance(schedule, keras.Variable):  # A variable is among `variables`.
            optimizer.learning_rate = schedule
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        model.reset_metrics()
        for name, value in attributes.items():
            setattr(model, name, value)
        if "history" not in attributes and hasattr(model, "history"):
            del model.history
        random.setstate(python_state)
        np.random.set_state(numpy_state)

    return put_back


def _global_seed_generator():
    """Returns the generator behind `seed=None`, if there is one yet. Keras has no public access."""
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

    return global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)


# --- TensorFlow, because Keras has no word for the scope of a distribution strategy --------------


def _scope(model):
    import contextlib

    strategy = getattr(model, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
