"""What the layers put out, and which units are dead: `callbacks=[ActivationStatistics(x)]`.

This file stands alone: copy it into a project. It needs Keras and NumPy.
"""

import collections
import contextlib
import csv as csv_format
import functools
import os
import pathlib

import keras
import numpy as np
from keras import activations, ops

BINS = 50
STATISTICS = ("mean", "standard_deviation", "saturated", "dead")
COLUMNS = ("epoch", "layer", *STATISTICS)

# Activation -> which of its outputs lie on a flat end. Where the slope fades instead of ending, an
# output counts from the point where the slope is below about 6% of its greatest value: for tanh
# that is |output| > 0.97. Activations without a flat end, or with one in the middle, are not here.
SATURATED = {
    activations.relu: lambda output: output == 0,
    activations.relu6: lambda output: (output == 0) | (output == 6),
    activations.sigmoid: lambda output: (output < 0.015) | (output > 0.985),
    activations.tanh: lambda output: np.abs(output) > 0.97,
    activations.hard_sigmoid: lambda output: (output == 0) | (output == 1),
    activations.hard_tanh: lambda output: np.abs(output) == 1,
    activations.softplus: lambda output: output < 0.06,
    activations.elu: lambda output: output < -0.94,
}
ACTIVATION_LAYERS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)


class ActivationStatistics(keras.callbacks.Callback):
    """Measures the outputs of the layers on a probe batch, in inference mode.

    | statistic | quantity, per layer |
    |---|---|
    | `mean`, `standard_deviation` | over every output of the layer |
    | `saturated` | fraction of the outputs on a flat end of the activation |
    | `dead` | fraction of the units that are exactly zero for every sample of the probe batch |
    | `histogram_counts`, `histogram_edges` | 50 equal bins from lowest to highest finite output |

    A unit is a place on the last axis: a neuron of `Dense`, a channel of a convolution (axis 1 if
    the layer's `data_format` is `"channels_first"`). It is dead if it is zero for every sample and
    at every position, so that no gradient reaches it; a ReLU that is zero now and then is healthy.
    The probe batch must be large enough for that: a few hundred samples.

    Saturated are: for ReLU the outputs that are zero (and, if it has a maximum, equal to it), dead
    or not; for sigmoid those below 0.015 or above 0.985; for tanh those beyond -0.97 or 0.97,
    where the slope is below about 6% of its greatest value; for hard sigmoid and hard tanh
    those at their ends; below 0.06 for softplus and below -0.94 for ELU with alpha 1. For every
    other activation, and for LSTM and GRU, whose output is not the activation's, it is `nan`.

    Measured are all layers with an `activation`, `Dense` and convolutions without one included, and
    the activation layers, also in nested models and in layers of your own; or those named by
    `layers`. The output of a layer is taken for its activation's. A layer that is called several
    times has a row for every call: `name`, `name (call 2)`. A layer inside another of Keras's
    layers (an LSTM's cell, the layer in `TimeDistributed`) is part of that one. Of a layer with
    several outputs the first counts.

    The model is called eagerly, outside its compiled training step, and nothing of it changes: not
    its weights, nor moving statistics, nor seeds. A model that has no weights yet is built. Not
    seen are activations that are no layer's output: `ops.relu(x)` or `keras.activations.relu(x)`
    in a `call`, and layers that are called within a `tf.function` of your own.

    The statistics are computed from float32 values, also under mixed precision. The epoch logs
    stay as they are.

    Example:

    ```python
    statistics = ActivationStatistics(x_train[:512])
    model.fit(x_train, y_train, epochs=5, callbacks=[statistics])
    statistics.layer_names           # ["dense", "dense_1", "dense_2"]
    statistics.history["dead"][-1]   # after the last epoch, one value a layer
    ActivationStatistics(x_train[:512]).measure(model)["dense"]["dead"]  # without training
    ```

    Args:
        x: Probe batch, as the model takes it: an array, or a list or dict of arrays.
        layers: List of names of layers, or of layers, which stand for their names. A name matches
            at any depth; `"encoder/dense"` means the one in the layer or model `encoder`. `None`
            measures the layers said above.
        epochs: List of epochs after which to measure, counted from 0; -1 or `"begin"` stands for
            before the training. `None` measures before the training and after every epoch.
        histogram: Bool. Whether to keep histograms.
        csv: Path of a file for one row a measurement and layer.
        tensorboard: Directory for TensorBoard's events (needs TensorFlow): scalars
            `<layer>/<statistic>`, and histograms if `histogram` is set.

    Attributes:
        history: Dict of arrays: `epoch` `(measurements,)`, where what was measured before epoch n
            has the number n - 1; the statistics `(measurements, layers)`; the histograms
            `(measurements, layers, 50)` and, for the edges, `(measurements, layers, 51)`. It goes
            on over several fits of a model and starts anew with another one.
        layer_names: List of names, `(layers,)`.

    Raises:
        ValueError: If an argument is out of its range, or, when training begins, if the model has
            no layer of a given name or none to measure.
    """

    def __init__(self, x, layers=None, epochs=None, histogram=False, csv=None, tensorboard=None):
        super().__init__()
        arrays = keras.tree.flatten(x)
        if not arrays or any(array is None or 0 in np.shape(array)[:1] for array in arrays):
            raise ValueError(f"Argument `x` must hold at least one sample. Received: x={x!r}")
        if layers is not None and (isinstance(layers, str) or not list(layers)):
            raise ValueError(
                f"Argument `layers` must be a list of layers or names. Received: layers={layers!r}"
            )
        if not isinstance(histogram, bool):
            raise ValueError(
                f"Argument `histogram` must be True or False. Received: histogram={histogram!r}"
            )
        for name, value in (("csv", csv), ("tensorboard", tensorboard)):
            if value is not None and (not isinstance(value, (str, os.PathLike)) or not str(value)):
                raise ValueError(f"Argument `{name}` must be a path. Received: {name}={value!r}")
        self.x = x
        self.layers = layers and [getattr(layer, "name", layer) for layer in layers]
        self.epochs = _check_epochs(epochs)
        self.histogram = histogram
        self.csv = csv
        self.tensorboard = tensorboard
        self.layer_names = []
        self._measurements = []  # (epoch, {layer: {statistic: value}})
        self._measured_model = None
        self._starts_fit = True
        self._written_to_csv = False
        self._writer = None

    def __getstate__(self):
        # A copy (Keras Tuner makes one for each trial) takes the settings and the records along,
        # and neither the model nor anything of TensorFlow's.
        return {**vars(self), **dict.fromkeys(("_model", "_measured_model", "_writer"))}

    @property
    def history(self):
        """Dict of arrays, as in the description of the class."""
        history = {"epoch": np.array([epoch for epoch, _ in self._measurements], dtype=int)}
        shapes = dict.fromkeys(STATISTICS, ())
        if self.histogram:
            shapes |= {"histogram_counts": (BINS,), "histogram_edges": (BINS + 1,)}
        for name, shape in shapes.items():
            # A layer that a measurement did not reach (calls can depend on weights) has `nan`.
            values = np.full((len(self._measurements), len(self.layer_names), *shape), np.nan)
            for row, (_, measured) in enumerate(self._measurements):
                for layer, statistics in measured.items():
                    values[row, self.layer_names.index(layer)] = statistics[name]
            history[name] = values
        return history

    def on_train_begin(self, logs=None):
        if self.model is not self._measured_model:
            self.layer_names, self._measurements = [], []
            self._measured_model = self.model
            self._written_to_csv = False
        if _is_built(self.model):
            _select_layers(self.model, self.layers)  # A wrong name raises now, not epochs later.
        self._starts_fit = True

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `on_train_begin`, where `BackupAndRestore` may be yet to load the weights.
        if self._starts_fit:
            self._starts_fit = False
            if self.epochs is None or -1 in self.epochs:
                self._keep(epoch - 1)

    def on_epoch_end(self, epoch, logs=None):
        if self.epochs is None or epoch in self.epochs:
            self._keep(epoch)

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def measure(self, model):
        """Measures a model now.

        Args:
            model: A `keras.Model`, compiled or not.

        Returns:
            Dict of layer name -> dict of statistic -> float, with arrays `histogram_counts` `(50,)`
            and `histogram_edges` `(51,)` if `histogram` is set.

        Raises:
            ValueError: If the model has no layer of a given name, or none to measure.
        """
        if not _is_built(model):
            # On symbols, so that nothing is drawn from a seed, and for a batch of any size.
            model(keras.tree.map_structure(_as_symbol, self.x), training=False)
        selected = _select_layers(model, self.layers)
        measured = {}
        calls = collections.Counter()

        def keep(name, layer, output):
            output = keras.tree.flatten(output)[0]
            if _is_symbolic(output):
                return
            calls[name] += 1
            unique = name if calls[name] == 1 else f"{name} (call {calls[name]})"
            measured[unique] = self._describe(layer, output)

        # In a stateless scope no variable can change: what the call assigns is thrown away.
        with keras.StatelessScope(), contextlib.ExitStack() as stack:
            for name, layer in selected.items():
                stack.enter_context(_listening(layer, functools.partial(keep, name, layer)))
            model(self.x, training=False)
        if not measured:
            raise ValueError(
                "A layer must be called eagerly to be measured, not in a function compiled by the "
                f"model itself. Received: layers {sorted(selected)}, none of which was"
            )
        return measured

    def _describe(self, layer, output):
        output = ops.convert_to_numpy(ops.cast(output, "float32"))
        channels_first = getattr(layer, "data_format", None) == "channels_first" and output.ndim > 2
        units = np.moveaxis(output, 1 if channels_first else -1, 0)
        dead = (units == 0).reshape(len(units), -1).all(axis=1)
        is_saturated = _saturation_rule(layer)
        statistics = {
            "mean": float(np.mean(output, dtype="float64")),
            "standard_deviation": float(np.std(output, dtype="float64")),
            "saturated": float(np.mean(is_saturated(output))) if is_saturated else float("nan"),
            "dead": float(np.mean(dead)),
        }
        if self.histogram:
            counts, edges = np.histogram(output[np.isfinite(output)], bins=BINS)
            statistics |= {"histogram_counts": counts, "histogram_edges": edges}
        return statistics

    def _keep(self, epoch):
        """Measures, and writes where it was asked for."""
        measured = self.measure(self.model)
        self._measurements.append((epoch, measured))
        self.layer_names += [layer for layer in measured if layer not in self.layer_names]
        if self.csv is not None:
            path = pathlib.Path(self.csv)
            rows = [
                [epoch, layer, *(statistics[name] for name in STATISTICS)]
                for layer, statistics in measured.items()
            ]
            if not self._written_to_csv:
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = [COLUMNS, *_rows_before(path, epoch), *rows]
            # Opened and closed at every write, so that a run that is killed keeps its rows.
            with open(path, "a" if self._written_to_csv else "w", newline="") as file:
                csv_format.writer(file).writerows(rows)
            self._written_to_csv = True
        if self.tensorboard is not None:
            if self._writer is None:
                self._writer = _open_summary_writer(self.tensorboard)
            _write_summary(self._writer, epoch, measured)


def _check_epochs(epochs):
    """Returns the epochs as a set of integers, `None` for all of them."""
    if epochs is None:
        return None
    message = (
        "Argument `epochs` must be a list of integers >= -1 and of 'begin', or None. "
        f"Received: epochs={epochs!r}"
    )
    if isinstance(epochs, str) or not np.iterable(epochs):
        raise ValueError(message)
    checked = {-1 if isinstance(epoch, str) and epoch == "begin" else epoch for epoch in epochs}
    if not all(isinstance(epoch, (int, np.integer)) and epoch >= -1 for epoch in checked):
        raise ValueError(message)
    return checked


def _is_built(model):
    return all(layer.built for layer in model._flatten_layers(include_self=False))


def _as_symbol(array):
    dtype = keras.backend.standardize_dtype(getattr(array, "dtype", "float32"))
    return keras.KerasTensor((None, *np.shape(array)[1:]), dtype=dtype)


def _walk(parent, prefix=""):
    """Yields path and layer, down into models and into layers that are not Keras's own."""
    for layer in parent._flatten_layers(include_self=False, recursive=False):
        path = f"{prefix}{layer.name}"
        yield path, layer
        if isinstance(layer, keras.Model) or not type(layer).__module__.startswith("keras."):
            yield from _walk(layer, f"{path}/")


def _select_layers(model, names):
    """Returns a dict of path -> layer, each layer once."""
    known = {}
    for path, layer in _walk(model):
        if any(layer is other for other in known.values()):
            continue
        copies = sum(other == path or other.startswith(f"{path}_copy") for other in known)
        known[f"{path}_copy{copies}" if copies else path] = layer
    if names is None:
        selected = {
            path: layer
            for path, layer in known.items()
            if isinstance(layer, ACTIVATION_LAYERS) or _activation(layer) is not None
        }
    else:
        for name in names:
            if not any(f"/{path}".endswith(f"/{name}") for path in known):
                raise ValueError(
                    "Argument `layers` must name layers of the model. "
                    f"Received: {name!r}. The model has: {', '.join(known)}"
                )
        selected = {
            path: layer
            for path, layer in known.items()
            if any(f"/{path}".endswith(f"/{name}") for name in names)
        }
    if not selected:
        raise ValueError(
            "The model must have a layer with an activation, or `layers` must name some. "
            f"Received: a model with the layers {', '.join(known) or 'none'}"
        )
    return selected


def _activation(layer):
    """Returns the activation of a layer or of the layer that it wraps: a function or a layer."""
    if isinstance(layer, keras.layers.Bidirectional):
        layer = layer.forward_layer
    elif isinstance(layer, keras.layers.Wrapper):
        layer = layer.layer
    activation = getattr(layer, "activation", None)
    return activations.get(activation) if isinstance(activation, str) else activation


def _saturation_rule(layer):
    """Returns which of a layer's outputs are saturated, as a function, or `None`."""
    if isinstance(layer, keras.layers.ReLU):
        if layer.negative_slope:
            return None
        return lambda output: (output == 0) | (output == layer.max_value)
    if isinstance(layer, keras.layers.ELU):
        return SATURATED[activations.elu] if layer.alpha == 1 else None
    # A gated recurrent layer puts out a product with its activation, both directions their sum.
    if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)) and not isinstance(
        layer, keras.layers.SimpleRNN
    ):
        return None
    activation = _activation(layer)
    if isinstance(activation, keras.layers.Layer):
        return _saturation_rule(activation)
    return next((rule for known, rule in SATURATED.items() if known is activation), None)


@contextlib.contextmanager
def _listening(layer, tell):
    """Calls `tell(output)` whenever the layer is called."""
    method = "call" if layer.quantization_mode is None else "quantized_call"
    original = getattr(layer, method)
    was_own = vars(layer).get(method)

    @functools.wraps(original)
    def call(*args, **kwargs):
        output = original(*args, **kwargs)
        tell(output)
        return output

    # Past the `__setattr__` of Keras and TensorFlow, which would keep track of it.
    object.__setattr__(layer, method, call)
    try:
        yield
    finally:
        if was_own is None:
            object.__delattr__(layer, method)
        else:
            object.__setattr__(layer, method, was_own)


def _rows_before(path, epoch):
    """Returns the rows of an earlier run's file that lie before `epoch`; none from other files."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = csv_format.reader(file)
        if next(rows, None) != list(COLUMNS):
            return []
        # A run that was killed while it wrote can leave half a row at the end.
        return [row for row in rows if len(row) == len(COLUMNS) and int(row[0]) < epoch]


# --- TensorFlow, because Keras has no word for these ---------------------------------------------


def _is_symbolic(output):
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.is_symbolic_tensor(output)


def _open_summary_writer(directory):
    import tensorflow as tf

    return tf.summary.create_file_writer(os.fspath(directory))


def _write_summary(writer, epoch, measured):
    import tensorflow as tf

    with writer.as_default():
        for layer, statistics in measured.items():
            for name in STATISTICS:
                tf.summary.scalar(f"{layer}/{name}", statistics[name], step=epoch)
            if "histogram_counts" in statistics:
                # One value for each bin, as often as it was counted.
                edges = statistics["histogram_edges"]
                centers = (edges[:-1] + edges[1:]) / 2
                values = np.repeat(centers, statistics["histogram_counts"])
                tf.summary.histogram(layer, values, step=epoch, buckets=BINS)
    writer.flush()
