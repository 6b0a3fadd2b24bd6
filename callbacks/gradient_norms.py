"""True gradient norms of every training step: `model.fit(..., callbacks=[GradientNorms()])`.

This file stands alone: copy it into a project. It needs Keras on TensorFlow, and NumPy.
"""

import contextlib
import csv as csv_module
import functools
import itertools
import pathlib
import warnings
from typing import NamedTuple

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


# --- Recording a step from inside the graph -------------------------------------------------------
# From here to the end of this section gradient_norms.py and update_ratios.py hold the same text, so
# that each of them can be copied alone. TensorFlow is spoken here and nowhere else.


class _StepRecorder(keras.callbacks.Callback):
    """Keeps one row per training step, written inside the graph; a subclass says what a row holds.

    A subclass has `_quantity`, the name of what it records, and these methods:

    - `_measure(optimizer, gradients, variables, apply)` runs inside the graph. It calls `apply()`,
      which updates the weights, and returns a dict of measurements, each a float64 tensor
      `(variables,)` of values >= 0, or of -1 for "nothing in this step".
    - `_values(first_step)` returns what is shown of the steps from `first_step` on: a dict of
      arrays `(steps,)`, an array `(steps, layers)` and an array `(steps, variables)`.
    - `_summarize(first_step)` returns the summary of these steps, a dict for the epoch's logs.
    """

    def __init__(self, per_layer, csv, tensorboard):
        super().__init__()
        if not isinstance(per_layer, bool):
            raise ValueError(
                f"Argument `per_layer` must be True or False. Received: per_layer={per_layer!r}"
            )
        for name, path in (("csv", csv), ("tensorboard", tensorboard)):
            if path is not None and not (isinstance(path, str | pathlib.PurePath) and str(path)):
                raise ValueError(f"Argument `{name}` must be a path. Received: {name}={path!r}")
        self.per_layer = per_layer
        self.csv = csv
        self.tensorboard = tensorboard
        self._stand_in = None
        self._forget()

    def _forget(self):
        self._tape = None
        self._writer = None
        self._unread_steps = 0
        self._epoch = 0
        self._first_step = 0
        self._epochs = []
        self._paths = []  # Of every channel of the tape, the paths of its variables.
        self._chunks = []  # Of every channel of the tape, measurement -> list of arrays.
        self._variable_names = []
        self._layer_names = []
        self._layer_of_variable = np.zeros(0, int)

    def __getstate__(self):
        # A copy (Keras Tuner makes one for every trial) has the settings and the records, and
        # neither the model nor anything of TensorFlow's.
        self._collect()
        return {**vars(self), "_model": None, "_stand_in": None, "_tape": None, "_writer": None}

    @property
    def epochs(self):
        """The epoch of every step, an int array `(steps,)`."""
        self._collect()
        return np.array(self._epochs, int)

    @property
    def variable_names(self):
        """The names of the columns of `history`, such as "dense/kernel"."""
        self._collect()
        return list(self._variable_names)

    @property
    def layer_names(self):
        """The names of the columns of `layers`, such as "dense"."""
        self._collect()
        return list(self._layer_names)

    def on_train_begin(self, logs=None):
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"{type(self).__name__} records inside TensorFlow's training graph and needs Keras "
                f"with the TensorFlow backend. Received: backend={keras.backend.backend()}"
            )
        self._close()
        self._forget()
        if self._stand_in is None or self._stand_in.model is not self.model:
            self._stand_in = _TrainFunctionStandIn(self.model)
        if self.csv is not None:
            path = pathlib.Path(self.csv)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    def on_epoch_begin(self, epoch, logs=None):
        self._collect()
        self._epoch = epoch
        self._first_step = len(self._epochs)

    def on_train_batch_begin(self, batch, logs=None):
        # An upper bound, kept on the host: to ask the graph for its counter is to wait for it.
        steps = self.model.steps_per_execution
        if self._unread_steps + steps > _capacity(self.model):
            self._collect()
        self._unread_steps += steps
        self._stand_in.take_the_next_call(self)

    def on_epoch_end(self, epoch, logs=None):
        self._collect()
        if not self._variable_names:
            warnings.warn(
                f"{type(self).__name__} recorded nothing in epoch {epoch}: the training step of "
                "`fit` called no Keras optimizer that is an attribute of the model.",
                stacklevel=2,
            )
        if logs is not None:
            logs.update(self._summarize(self._first_step))

    def on_train_end(self, logs=None):
        self._collect()
        self._close()

    def _close(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _recorded_apply(self, tape, optimizer, apply, grads, trainable_variables=None):
        """Stands in for `optimizer.apply`, inside the graph."""
        variables = trainable_variables
        if variables is None:
            variables = optimizer._trainable_variables
        grads = list(grads)
        # The "gradient" of the variables left out is their next value (the scales of float8).
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(grads, variables, strict=True)
            if not getattr(variable, "overwrite_with_gradient", False)
        ]
        gradients = [gradient for gradient, _ in pairs]
        variables = [variable for _, variable in pairs]
        returned = []
        measurements = self._measure(
            optimizer,
            gradients,
            variables,
            lambda: returned.append(apply(grads, trainable_variables)),
        )
        tape.write(variables, measurements)
        return returned[0]

    def _collect(self):
        """Reads the rows that the graph has written since the last time."""
        self._unread_steps = 0
        steps, channels = self._tape.read() if self._tape is not None else (0, [])
        if not steps:
            return
        first_step = len(self._epochs)
        self._epochs += [self._epoch] * steps
        for index, (paths, measurements) in enumerate(channels):
            if index == len(self._chunks):
                # An optimizer that comes in later was silent until now.
                silent = np.full((first_step, len(paths)), -1.0)
                self._chunks.append({name: [silent] for name in measurements})
                self._paths.append(paths)
                self._name_columns()
            for name, rows in measurements.items():
                self._chunks[index][name].append(rows)
        self._export(first_step)

    def _name_columns(self):
        self._variable_names, self._layer_names, owners = [], [], []
        for path in itertools.chain(*self._paths):
            layer, _, weight = path.removeprefix(f"{self.model.name}/").rpartition("/")
            layer = unique = layer or self.model.name  # The model itself can own weights.
            copies = 0
            # Two inner models can each have a layer of the same name.
            while f"{unique}/{weight}" in self._variable_names:
                copies += 1
                unique = f"{layer}_{copies}"
            if unique not in self._layer_names:
                self._layer_names.append(unique)
            self._variable_names.append(f"{unique}/{weight}")
            owners.append(self._layer_names.index(unique))
        self._layer_of_variable = np.array(owners, int)

    def _measurement(self, *names, first_step=0):
        """Returns `(steps, variables)`, of every optimizer the first of `names` that it has."""
        steps = len(self._epochs) - first_step
        columns = [np.zeros((steps, 0))]
        for chunks in self._chunks:
            arrays = chunks[next(name for name in names if name in chunks)]
            latest, missing = [], steps
            while missing > 0:
                latest.append(arrays[-1 - len(latest)][-missing:])
                missing -= len(latest[-1])
            latest = np.concatenate([arrays[0][:0], *reversed(latest)])
            columns.append(latest)
            if first_step == 0:
                arrays[:] = [latest]
        return np.concatenate(columns, axis=1)

    def _sum_by_layer(self, values):
        """Sums `(steps, variables)` to `(steps, layers)`."""
        layers = range(len(self._layer_names))
        sums = [_sum_of_recorded(values[:, self._layer_of_variable == layer]) for layer in layers]
        return np.stack(sums, axis=1) if sums else np.zeros((len(values), 0))

    def _export(self, first_step):
        if self.csv is None and self.tensorboard is None:
            return
        scalars, layers, variables = self._values(first_step)
        if self.csv is not None:
            # Opened anew for every chunk: what is in the file is whole rows, whatever comes next.
            with open(self.csv, "a", newline="") as file:
                writer = csv_module.writer(file)
                if first_step == 0:
                    writer.writerow(["epoch", "step", *scalars, *self._variable_names])
                rows = np.column_stack([*scalars.values(), variables])
                for step, row in enumerate(rows.tolist(), first_step):
                    writer.writerow([self._epochs[step], step, *row])
        if self.tensorboard is not None:
            if self._writer is None:
                self._writer = tf.summary.create_file_writer(str(self.tensorboard))
            names = [f"{self._quantity}/{name}" for name in self._layer_names]
            rows = np.column_stack([*scalars.values(), layers])
            _write_scalars(self._writer, [*scalars, *names], rows.tolist(), first_step)


def _sum_of_recorded(values):
    """Sums every row of `values`, where -1 stands for "nothing in this step"."""
    recorded = ~(values < 0)
    return np.where(recorded.any(axis=1), np.where(recorded, values, 0).sum(axis=1), -1.0)


def _mean_of_finite(values):
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


class _TrainFunctionStandIn:
    """Takes the place of `model.train_function` for one call, and records the steps of that call.

    `fit` looks the train function up at every batch. Between two calls the model has its own again,
    with its trace, and `optimizer.apply` is replaced only while the training step is traced (or
    runs eagerly). An exception leaves nothing behind.

    All recorders of a fit share the stand-in of the first of them.
    """

    def __init__(self, model):
        self.model = model
        self.recorders = []
        self._traced_for = []
        self._function = None
        self._tapes = []
        self._replicas_inside = 0
        self._replacements = contextlib.ExitStack()

    def take_the_next_call(self, recorder):
        # `fit` makes a History of its own, which tells one fit from another.
        fit = getattr(self.model, "history", None)
        current = self.model.train_function
        if hasattr(current, "recorders"):
            if current is not self and current.fit is fit:
                if recorder not in current.recorders:
                    current.recorders.append(recorder)
                return
            # Left over from a batch that began and never ran.
            current = current.original
        self.fit, self.original, self.recorders = fit, current, [recorder]
        # Past `Model.__setattr__`, which costs more than all the rest of this class.
        vars(self.model)["train_function"] = self

    def __call__(self, iterator):
        vars(self.model)["train_function"] = self.original
        if self.fit is not getattr(self.model, "history", None):
            return self.original(iterator)
        # `compile` makes a new original.
        traced_for = [self.original, *self.recorders]
        if self._traced_for != traced_for:
            self._function = self._make_function()
            self._traced_for = traced_for
        for recorder, tape in zip(self.recorders, self._tapes, strict=True):
            if recorder._tape is not tape:  # The first call of this fit.
                tape.clear()
                recorder._tape = tape
        return self._function(iterator)

    def _make_function(self):
        """Returns a train function for the model that records, not traced yet."""
        model = self.model
        train_step = model.train_step
        tapes = self._tapes = [_Tape(_capacity(model)) for _ in self.recorders]
        listeners = list(zip(self.recorders, tapes, strict=True))
        optimizers = _optimizers(model)

        def recorded_train_step(data):
            with self._listening(optimizers, listeners):
                logs = train_step(data)
            for tape in tapes:
                tape.advance()
            return logs

        with _replaced(model, "train_step", recorded_train_step):
            model.make_train_function(force=True)
        function = model.train_function
        vars(model)["train_function"] = self.original
        return function

    @contextlib.contextmanager
    def _listening(self, optimizers, listeners):
        # Under MirroredStrategy the replicas are traced by threads that take turns.
        self._replicas_inside += 1
        try:
            if self._replicas_inside == 1:
                for optimizer in optimizers:
                    apply = optimizer.apply
                    for recorder, tape in listeners:
                        apply = functools.partial(recorder._recorded_apply, tape, optimizer, apply)
                    self._replacements.enter_context(_replaced(optimizer, "apply", apply))
            yield
        finally:
            self._replicas_inside -= 1
            if self._replicas_inside == 0:
                self._replacements.close()


def _optimizers(model):
    """Returns the optimizers that are attributes of the model (a GAN has two)."""
    found = [model.optimizer, *vars(model).values()]
    found = {id(each): each for each in found if isinstance(each, keras.optimizers.Optimizer)}
    for optimizer in list(found.values()):
        # LossScaleOptimizer hands the same gradients on to its inner optimizer.
        found.pop(id(getattr(optimizer, "inner_optimizer", None)), None)
    return list(found.values())


@contextlib.contextmanager
def _replaced(instance, name, value):
    attributes, missing = vars(instance), object()
    previous = attributes.get(name, missing)
    attributes[name] = value
    try:
        yield
    finally:
        if previous is missing:
            del attributes[name]
        else:
            attributes[name] = previous


def _capacity(model):
    # XLA copies the buffer at every step, which asks for a small one; to read it every 256 steps
    # costs nothing that could be measured.
    return max(256, model.steps_per_execution)


class _Tape:
    """The rows of the latest steps, in variables that the graph writes and the host reads.

    There is one channel, a buffer of its own, for each list of variables that an optimizer updates.
    """

    def __init__(self, capacity):
        self._capacity = capacity
        self._step = _untracked_variable(np.int64(0))
        self._channels = {}

    def write(self, variables, measurements):
        """Writes a row, inside the graph."""
        if not _is_first_replica():
            return
        key = tuple(id(variable) for variable in variables)
        if key not in self._channels:
            empty = np.full((self._capacity, len(measurements) * len(variables)), -1.0)
            self._channels[key] = (variables, list(measurements), _untracked_variable(empty))
        _, names, buffer = self._channels[key]
        rows = [measurements[name] for name in names]
        row = tf.concat(rows, axis=0) if len(rows) > 1 else rows[0]
        buffer.scatter_update(tf.IndexedSlices(row, self._step.value()))

    def advance(self):
        """Ends the step, inside the graph."""
        if _is_first_replica():
            self._step.assign_add(1)

    def read(self):
        """Returns the number of steps and, of every channel, the paths and the measurements."""
        steps = int(self._step.numpy())
        if not steps:
            return 0, []
        channels = []
        for variables, names, buffer in self._channels.values():
            paths = [getattr(variable, "path", variable.name) for variable in variables]
            rows = buffer.numpy()[:steps].reshape(steps, len(names), len(variables))
            channels.append((paths, {name: rows[:, i] for i, name in enumerate(names)}))
        self.clear()
        return steps, channels

    def clear(self):
        self._step.assign(0)
        for _, _, buffer in self._channels.values():
            buffer.assign(tf.fill(buffer.shape, tf.constant(-1, buffer.dtype)))


def _untracked_variable(value):
    # Under tf.distribute the first replica alone writes, to its own copy.
    # A `tf.function` that creates a variable is traced twice, unless lifting is off.
    with tf.init_scope():
        variable = tf.Variable(value, trainable=False, experimental_enable_variable_lifting=False)
    return tf.distribute.get_strategy().experimental_local_results(variable)[0]


def _is_first_replica():
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.get_static_value(replica) == 0


def _snapshot(variables):
    # keras.ops.convert_to_tensor returns the variable, whose value changes.
    return [tf.convert_to_tensor(variable) for variable in variables]


def _sum_over_replicas(gradients):
    replicas = tf.distribute.get_replica_context()
    if replicas.num_replicas_in_sync == 1:
        return gradients
    present = [gradient for gradient in gradients if gradient is not None]
    sums = iter(replicas.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if gradient is None else next(sums) for gradient in gradients]


def _sums_of_squares(tensors):
    """Returns the sum of squares of every tensor, float64 `(tensors,)`, with 0 for None.

    float16 and bfloat16 are summed as float32. Where a sum in float32 could overflow, or could lose
    digits to underflow (norms above 1e19 and below 1e-12, and 0), all are summed again as float64,
    which holds the square of every float32.
    """
    is_present = [tensor is not None for tensor in tensors]
    present = [_without_repeated_rows(tensor) for tensor in tensors if tensor is not None]
    if not present:
        return tf.zeros([len(tensors)], tf.float64)

    def as_float64(*tensors):
        # One kernel, without a temporary as large as the tensor. It halves the sum.
        return tf.stack([tf.nn.l2_loss(tf.cast(tensor, tf.float64)) for tensor in tensors])

    if tf.executing_eagerly() or any(tensor.dtype == tf.float64 for tensor in present):
        halves = as_float64(*present)
    else:
        present = [tf.cast(tensor, tf.float32) for tensor in present]
        halves = tf.stack([tf.nn.l2_loss(tensor) for tensor in present])
        # Not tf.cond: it would send every tensor through a Switch, at the cost of half of the rest.
        arguments = [halves, *present]
        signature = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in arguments]
        in_float32 = tf.function(lambda halves, *tensors: tf.cast(halves, tf.float64))
        in_float64 = tf.function(lambda halves, *tensors: as_float64(*tensors))
        (halves,) = tf.raw_ops.StatelessIf(
            cond=tf.reduce_all((halves > 1e-24) & (halves < 1e38)),
            input=arguments,
            Tout=[tf.float64],
            then_branch=in_float32.get_concrete_function(*signature),
            else_branch=in_float64.get_concrete_function(*signature),
            output_shapes=[halves.shape],
        )
    sums = 2 * halves
    if not all(is_present):
        position = np.where(is_present, np.cumsum(is_present), 0)
        sums = tf.gather(tf.concat([[0.0], sums], axis=0), position)
    return sums


def _without_repeated_rows(tensor):
    """Returns a tensor of the same norm for the IndexedSlices that an Embedding's gradient is."""
    if not isinstance(tensor, tf.IndexedSlices):
        return tf.convert_to_tensor(tensor)
    _, position = tf.unique(tensor.indices)
    return tf.math.unsorted_segment_sum(tensor.values, position, tf.size(tensor.indices))


def _write_scalars(writer, names, rows, first_step):
    for step, row in enumerate(rows, first_step):
        # One record for all scalars of a step; tf.summary.scalar would write one for each.
        summary = tf.compat.v1.Summary()
        for name, value in zip(names, row, strict=True):
            summary.value.add(tag=name, simple_value=value)
        with writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=step)
    writer.flush()


# --- End of the section that gradient_norms.py and update_ratios.py share -------------------------


class NormRecord(NamedTuple):
    """Gradient norms, one row per update of the weights.

    Attributes:
        steps: int array `(updates,)`. The training step of every row, counted from 0.
        history: float array `(updates, variables)`.
        layers: float array `(updates, layers)`.
        global_norm: float array `(updates,)`.
    """

    steps: np.ndarray
    history: np.ndarray
    layers: np.ndarray
    global_norm: np.ndarray


class NonFinite(NamedTuple):
    """Where gradients stopped being finite.

    Attributes:
        step: int. The training step, counted from 0.
        layer: str. Of the layers with such a gradient the last one, and so the first that
            backpropagation reached. Where it is the output layer, look at the forward pass and the
            loss.
        layers: list of str. All layers with such a gradient in that step.
    """

    step: int
    layer: str
    layers: list


class GradientNorms(_StepRecorder):
    """Records the Euclidean norm of the true training gradient of every step of `fit`.

    It is the gradient that the optimizer receives, read inside the training graph: nothing is
    computed twice, no batch is evaluated again, and the training is the same to the last bit. It is
    summed over all replicas of a `tf.distribute.MirroredStrategy`, over repeated rows of an
    `Embedding` and over all uses of a shared layer. Loss scaling (mixed_float16, or
    `loss_scale_factor`) is divided out. A variable that the loss does not depend on has norm 0.

    ```python
    norms = GradientNorms()
    model.fit(x, y, epochs=3, callbacks=[norms])
    norms.global_norm  # (steps,)
    norms.layers       # (steps, layers), the columns are norms.layer_names
    norms.history      # (steps, variables), the columns are norms.variable_names
    ```

    Each epoch adds these keys to its logs, and so to the history that `fit` returns:

    | key | quantity |
    | --- | --- |
    | `gradient_norm` | global norm, the mean over the epoch's steps with a finite gradient |
    | `gradient_norm_max` | the largest of these norms |
    | `gradient_norm_non_finite` | number of steps whose gradient holds an inf or a NaN |
    | `gradient_norm_update` | mean over updates, not clipped; with accumulation or a loss scaler |
    | `gradient_norm_clipped` | mean over updates, after clipping; with `after_clipping` |
    | `gradient_norm_<layer>` | mean of the layer's norm over its finite steps; with `per_layer` |

    A step is one training step: with `gradient_accumulation_steps=4` its gradient is that of one
    micro-batch. The gradients by which the weights move, the mean of four of these, are in
    `updates`. A step that a loss scaler skips has a norm of inf or NaN, and is not in `updates`.

    The records are those of the latest `fit`: each `fit` starts them afresh (give each its own
    callback to keep more), one that an exception ended keeps its steps up to there. They can be
    read at any time, from other callbacks too; within an epoch that waits for the running step.

    Where two optimizers train the model (a GAN), both must be attributes of the model. A step in
    which an optimizer does not run leaves NaN in the columns of its variables. An optimizer that
    runs several times in one step leaves the norms of the last time.

    A run of `fit` with this callback has a train function of its own, which is traced once and used
    again by later fits with the same callbacks. As in Keras, a change of `layer.trainable` takes
    effect after `compile`. Of the strategies of tf.distribute, MirroredStrategy is tested.

    Args:
        per_layer: bool. Whether the epoch logs have the norm of every layer too.
        after_clipping: bool. Whether to record `clipped` too: the norms after the optimizer's
            `clipnorm`, `global_clipnorm` or `clipvalue`.
        csv: path, or None. A file with one row per step: `epoch`, `step`, `gradient_norm`, with
            `after_clipping` also `gradient_norm_clipped`, then the norm of every variable. A `fit`
            overwrites it; rows are appended at least once an epoch.
        tensorboard: path, or None. A log directory for TensorBoard, with the global norm and that
            of every layer at every step.

    Attributes:
        history: float64 array `(steps, variables)`.
        layers: float64 array `(steps, layers)`.
        global_norm: float64 array `(steps,)`.
        epochs: int array `(steps,)`.
        variable_names: list of str.
        layer_names: list of str.
        updates: NormRecord. The gradients of the updates of the weights, before clipping.
        clipped: NormRecord. The same after clipping.
        non_finite_steps: int. Number of steps with an inf or a NaN in the gradient.
        first_non_finite: NonFinite, or None. The first such step and its layer.

    Raises:
        ValueError: if an argument has another type.
        RuntimeError: at the start of training, if the backend of Keras is not TensorFlow.
    """

    _quantity = "gradient_norm"

    def __init__(self, per_layer=False, after_clipping=False, csv=None, tensorboard=None):
        super().__init__(per_layer, csv, tensorboard)
        if not isinstance(after_clipping, bool):
            raise ValueError(
                "Argument `after_clipping` must be True or False. "
                f"Received: after_clipping={after_clipping!r}"
            )
        self.after_clipping = after_clipping

    @property
    def history(self):
        return self._record("gradient").history

    @property
    def layers(self):
        return self._record("gradient").layers

    @property
    def global_norm(self):
        return self._record("gradient").global_norm

    @property
    def updates(self):
        return self._record("update", "gradient", only_updates=True)

    @property
    def clipped(self):
        if not self.after_clipping:
            raise ValueError(
                "Norms after clipping are recorded with `after_clipping=True`. "
                f"Received: after_clipping={self.after_clipping}"
            )
        return self._record("clipped", "update", "gradient", only_updates=True)

    @property
    def non_finite_steps(self):
        self._collect()
        return self._count_non_finite(0)

    @property
    def first_non_finite(self):
        self._collect()
        non_finite = ~np.isfinite(self._sum_by_layer(self._measurement("gradient")))
        steps = non_finite.any(axis=1).nonzero()[0]
        if not steps.size:
            return None
        layers = [self._layer_names[layer] for layer in non_finite[steps[0]].nonzero()[0]]
        return NonFinite(int(steps[0]), layers[-1], layers)

    def _measure(self, optimizer, gradients, variables, apply):
        is_scaler = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        loss_scaler = optimizer if is_scaler else None
        inner = optimizer.inner_optimizer if is_scaler else optimizer
        accumulation_steps = inner.gradient_accumulation_steps
        if (loss_scaler or accumulation_steps) and not optimizer.built:
            # As `apply` does it, and before it: what it changes is read here.
            with keras.name_scope(optimizer.name, caller=optimizer):
                optimizer.build(variables)
        scale = loss_scaler.dynamic_scale if loss_scaler else inner.loss_scale_factor

        measurements = {"gradient": _sums_of_squares(_sum_over_replicas(gradients))}
        if scale is not None:
            measurements["gradient"] /= keras.ops.square(keras.ops.cast(scale, "float64"))
        update = gradients
        clips = inner.clipnorm or inner.global_clipnorm or inner.clipvalue
        clips = clips and self.after_clipping
        if accumulation_steps or clips:
            update = [
                gradient if gradient is None or scale is None else keras.ops.divide(gradient, scale)
                for gradient in gradients
            ]
        if accumulation_steps:
            update = [
                None
                if gradient is None
                else (gradient + inner._accumulated_gradients[inner._get_variable_index(variable)])
                / accumulation_steps
                for gradient, variable in zip(update, variables, strict=True)
            ]
            measurements["update"] = _sums_of_squares(_sum_over_replicas(update))
        elif loss_scaler:
            measurements["update"] = measurements["gradient"]
        if clips:
            # Each replica clips its own gradient, and Keras sums them afterwards.
            clipped = _sum_over_replicas(inner._clip_gradients(update))
            measurements["clipped"] = _sums_of_squares(clipped)

        is_update = None
        if accumulation_steps:
            is_update = keras.ops.equal((inner._iterations + 1) % accumulation_steps, 0)
        if loss_scaler:
            finite = keras.ops.all(keras.ops.isfinite(measurements["gradient"]))
            is_update = finite if is_update is None else keras.ops.logical_and(is_update, finite)
        if is_update is not None:
            for name in measurements.keys() - {"gradient"}:
                measurements[name] = keras.ops.where(is_update, measurements[name], -1.0)
        apply()
        return measurements

    def _record(self, *names, only_updates=False, first_step=0):
        self._collect()
        squares = self._measurement(*names, first_step=first_step)
        steps = np.arange(first_step, first_step + len(squares))
        if only_updates:
            rows = ~(squares < 0).all(axis=1)
            squares, steps = squares[rows], steps[rows]
        return NormRecord(
            steps,
            _root(squares),
            _root(self._sum_by_layer(squares)),
            _root(_sum_of_recorded(squares)),
        )

    def _count_non_finite(self, first_step):
        squares = self._measurement("gradient", first_step=first_step)
        return int((~np.isfinite(squares)).any(axis=1).sum())

    def _values(self, first_step):
        record = self._record("gradient", first_step=first_step)
        scalars = {"gradient_norm": record.global_norm}
        if self.after_clipping:
            squares = self._measurement("clipped", "update", "gradient", first_step=first_step)
            scalars["gradient_norm_clipped"] = _root(_sum_of_recorded(squares))
        return scalars, record.layers, record.history

    def _summarize(self, first_step):
        record = self._record("gradient", first_step=first_step)
        finite = record.global_norm[np.isfinite(record.global_norm)]
        summary = {}
        if self.per_layer:
            for layer, norms in zip(self._layer_names, record.layers.T, strict=True):
                summary[f"gradient_norm_{layer.replace('/', '_')}"] = _mean_of_finite(norms)
        summary["gradient_norm"] = _mean_of_finite(finite)
        summary["gradient_norm_max"] = float(finite.max()) if finite.size else float("nan")
        summary["gradient_norm_non_finite"] = self._count_non_finite(first_step)
        if any("update" in chunks for chunks in self._chunks):
            updates = self._record("update", "gradient", first_step=first_step)
            summary["gradient_norm_update"] = _mean_of_finite(updates.global_norm)
        if self.after_clipping:
            clipped = self._record("clipped", "update", "gradient", first_step=first_step)
            summary["gradient_norm_clipped"] = _mean_of_finite(clipped.global_norm)
        return summary


def _root(squares):
    return np.sqrt(np.where(squares < 0, np.nan, squares))
