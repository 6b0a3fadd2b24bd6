"""The learning rate that every step used: `model.fit(..., callbacks=[LearningRateLogger()])`.

This file stands alone: copy it into a project. It needs Keras and NumPy.
"""

import csv as csv_format
import itertools
import os
import pathlib

import keras
import numpy as np
from keras import ops

# Rates wait on the device and are read together, at the end of an epoch or after this many
# executions, whichever comes first: a killed run then loses at most that many.
MAXIMUM_PENDING = 1000

COLUMNS = ("epoch", "step", "learning_rate")


class LearningRateLogger(keras.callbacks.Callback):
    """Logs the learning rate that each step of the optimizer used.

    | logged | quantity |
    |---|---|
    | `learning_rate` in the epoch logs, so in `History` | rate of the last step of the epoch |
    | `steps` | array `(steps,)`: number of batches the optimizer had seen before the step |
    | `learning_rates` | array `(steps,)`, float32: rate that the step used |
    | `csv` | the columns `epoch`, `step`, `learning_rate`, one row a step |
    | `tensorboard` | scalar `learning_rate` at every step |

    A step is an update of the weights. With `gradient_accumulation_steps=4` that is every fourth
    batch, numbered 3, 7, 11, ...; under mixed_float16, a batch whose gradients were not finite is
    skipped by Keras and has no row. A schedule is evaluated at the number of each step, so the
    steps inside one execution are there too when `steps_per_execution` is above 1. An epoch
    without any update logs `nan`.

    The rate is read when every callback had its turn and the step is about to start, so the place
    of this callback in the list does not matter. `ReduceLROnPlateau` and
    `LearningRateScheduler` write the same value under the same key.

    What is kept belongs to the optimizer's count: a `fit` that begins at step n keeps the rows
    before n, in the arrays as in the file, and drops the others. So a second `fit`, or a run
    resumed by `BackupAndRestore` in a new process, goes on where the rows end, and a model that is
    new or compiled again starts anew.

    Two things it does not see: a schedule that is put into the optimizer after the training
    step was traced (Keras keeps using the old one until `compile` is called again, while
    this callback shows the new one), and the optimizers of a custom `train_step` other than
    `model.optimizer`.

    Example:

    ```python
    logger = LearningRateLogger(csv="learning_rate.csv")
    history = model.fit(x, y, epochs=5, callbacks=[logger])
    history.history["learning_rate"]  # five values
    plt.plot(logger.steps, logger.learning_rates)
    ```

    Args:
        csv: Path of a file for one row a step.
        tensorboard: Directory for TensorBoard's events (needs TensorFlow).

    Raises:
        ValueError: If `csv` or `tensorboard` is not a path, or, when training begins, if the
            model's optimizer has no single learning rate (`MultiOptimizer`).
    """

    def __init__(self, csv=None, tensorboard=None):
        super().__init__()
        for name, value in (("csv", csv), ("tensorboard", tensorboard)):
            if value is not None and (not isinstance(value, (str, os.PathLike)) or not str(value)):
                raise ValueError(f"Argument `{name}` must be a path. Received: {name}={value!r}")
        self.csv = csv
        self.tensorboard = tensorboard
        self._optimizer = None
        self._longest_execution = 1
        self._eager = False
        self._epoch = 0
        self._steps_before_epoch = 0
        self._starts_fit = True
        self._follows_history = False
        self._pending = []  # (iterations before the execution, rate or schedule), on the device
        self._steps = []
        self._learning_rates = []
        self._writer = None
        self._compiled_schedule = None

    def __getstate__(self):
        # A copy (Keras Tuner makes one for each trial) takes the settings and the records along,
        # and neither the model nor anything of TensorFlow's.
        self._flush()
        without = ("_model", "_optimizer", "_writer", "_compiled_schedule")
        return {**vars(self), **dict.fromkeys(without)}

    @property
    def steps(self):
        """Array `(steps,)`, int64: the optimizer's count of batches before each step."""
        self._flush()
        return np.array(self._steps, dtype="int64")

    @property
    def learning_rates(self):
        """Array `(steps,)`, float32: the rate that each step used."""
        self._flush()
        return np.array(self._learning_rates, dtype="float32")

    def on_train_begin(self, logs=None):
        self._flush()  # What an interrupted fit left.
        self._optimizer = _innermost_optimizer(self.model)
        self._longest_execution = self.model.steps_per_execution
        self._eager = self.model.run_eagerly
        self._starts_fit = True
        # Callbacks further down the list may still set the rate in `on_train_batch_begin`. `fit`
        # adds a new History after all of them: what is called in its place sees their last word.
        history = getattr(self.model, "history", None)
        self._follows_history = history is not None and history.params is self.params
        if self._follows_history:
            others = history.on_train_batch_begin  # Its own, or another logger's.

            def record(batch, logs=None):
                others(batch, logs)
                self._record()

            history.on_train_batch_begin = record

    def on_epoch_begin(self, epoch, logs=None):
        self._flush()
        self._epoch = epoch
        self._steps_before_epoch = len(self._steps)

    def on_train_batch_begin(self, batch, logs=None):
        if not self._follows_history:
            self._record()

    def on_epoch_end(self, epoch, logs=None):
        self._flush()
        if logs is not None:
            used = self._learning_rates[self._steps_before_epoch :]
            logs["learning_rate"] = float(used[-1]) if used else float("nan")

    def on_train_end(self, logs=None):
        if self._follows_history:
            vars(self.model.history).pop("on_train_batch_begin", None)
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _record(self):
        if len(self._pending) >= MAXIMUM_PENDING:
            self._flush()
        optimizer = _innermost_optimizer(self.model)
        # Private attributes, because the public ones evaluate the schedule at once and divide
        # the count by `gradient_accumulation_steps`.
        rate = optimizer._learning_rate
        if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = _copy_on_device(optimizer.learning_rate)
        self._pending.append((_copy_on_device(optimizer._iterations), rate))

    def _flush(self):
        """Reads what has been recorded, and writes it where it was asked for."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        starts = [int(ops.convert_to_numpy(start)) for start, _ in pending]
        ends = [*starts[1:], int(self._optimizer._iterations.numpy())]
        accumulated = self._optimizer.gradient_accumulation_steps or 1
        starts_fit, self._starts_fit = self._starts_fit, False
        if starts_fit:
            kept = [step < starts[0] for step in self._steps]
            self._steps = list(itertools.compress(self._steps, kept))
            self._learning_rates = list(itertools.compress(self._learning_rates, kept))
            self._steps_before_epoch = len(self._steps)
        first = len(self._steps)
        places_of_schedule = {}
        for start, end, (_, rate) in zip(starts, ends, pending, strict=True):
            if not 0 <= end - start <= self._longest_execution:
                end = start + self._longest_execution  # Something else set the count: a restore.
            steps = [step for step in range(start, end) if (step + 1) % accumulated == 0]
            if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
                places = range(len(self._steps), len(self._steps) + len(steps))
                places_of_schedule.setdefault(id(rate), (rate, []))[1].extend(places)
                self._learning_rates += [None] * len(steps)
            else:
                self._learning_rates += [np.float32(ops.convert_to_numpy(rate))] * len(steps)
            self._steps += steps
        for schedule, places in places_of_schedule.values():
            values = self._evaluate(schedule, [self._steps[place] for place in places])
            for place, value in zip(places, values, strict=True):
                self._learning_rates[place] = np.float32(value)
        self._write(first, starts[0] if starts_fit else None)

    def _evaluate(self, schedule, steps):
        """Returns the schedule's rate at each of the steps."""
        if not steps:
            return []
        dtype = keras.backend.standardize_dtype(self._optimizer._iterations.dtype)
        if keras.backend.backend() == "tensorflow" and not self._eager:
            if self._compiled_schedule is None or self._compiled_schedule[0] is not schedule:
                self._compiled_schedule = (schedule, _compile_over_steps(schedule))
            steps = ops.convert_to_tensor(steps, dtype=dtype)
            return ops.convert_to_numpy(self._compiled_schedule[1](steps))
        return [
            float(ops.convert_to_numpy(schedule(ops.convert_to_tensor(step, dtype=dtype))))
            for step in steps
        ]

    def _write(self, first, starting_step):
        """Writes the rows from place `first` on; a fit's first time gives its starting step."""
        steps, rates = self._steps[first:], self._learning_rates[first:]
        if self.csv is not None:
            path = pathlib.Path(self.csv)
            rows = [[self._epoch, step, rate] for step, rate in zip(steps, rates, strict=True)]
            if starting_step is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = [COLUMNS, *_rows_before(path, starting_step), *rows]
            # Opened and closed at every write, so that a run that is killed keeps its rows.
            with open(path, "w" if starting_step is not None else "a", newline="") as file:
                csv_format.writer(file).writerows(rows)
        if self.tensorboard is not None:
            if self._writer is None:
                self._writer = _open_summary_writer(self.tensorboard)
            _write_summary(self._writer, steps, rates)


def _innermost_optimizer(model):
    """Returns the optimizer that does the update, below `LossScaleOptimizer`."""
    optimizer = model.optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer) or hasattr(optimizer, "optimizers"):
        raise ValueError(
            "LearningRateLogger needs a compiled model whose optimizer has one learning rate. "
            f"Received: optimizer={optimizer}"
        )
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _rows_before(path, step):
    """Returns the rows of an earlier run's file that lie before `step`; none from other files."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = csv_format.reader(file)
        if next(rows, None) != list(COLUMNS):
            return []
        # A run that was killed while it wrote can leave half a row at the end.
        return [row for row in rows if len(row) == len(COLUMNS) and int(row[1]) < step]


# --- TensorFlow, because Keras has no word for these, or a slower one ----------------------------


def _copy_on_device(value):
    """Returns what a variable holds now, without waiting for it."""
    if keras.backend.backend() == "tensorflow" and isinstance(value, keras.Variable):
        import tensorflow as tf

        variable = value.value
        if not isinstance(variable, tf.distribute.DistributedValues):
            # The same as `ops.copy` at a quarter of its cost, which counts at every step.
            return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
    return ops.copy(value)


def _compile_over_steps(schedule):
    import tensorflow as tf

    return tf.function(lambda steps: ops.map(schedule, steps), reduce_retracing=True)


def _open_summary_writer(directory):
    import tensorflow as tf

    return tf.summary.create_file_writer(os.fspath(directory))


def _write_summary(writer, steps, rates):
    import tensorflow as tf

    with writer.as_default():
        for step, rate in zip(steps, rates, strict=True):
            tf.summary.scalar("learning_rate", rate, step=step)
    writer.flush()
