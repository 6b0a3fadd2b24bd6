"""Trains one variant with one seed, and measures it in inference mode.

All runs use one thread and deterministic operations, so that a run gives the same digits whoever
trains it: this process, one of several side by side, or another one tomorrow.
"""

import functools
import inspect
import math
import time

import keras
import numpy as np
import tensorflow as tf

import data
from callbacks import GradientNorms, LearningRateLogger
from recipes._lab.recipe import load_module

# A forward pass of the curves' evaluation holds at most this many samples in memory.
EVALUATION_BATCH = 2048


def train(run):
    """Train one `Run`; return its metrics, curves and seconds as plain numbers."""
    recipe = load_module(run.recipe_path)
    start_afresh(run.seed)
    split = load(run)
    model = build(recipe, split, run)
    traced = traced_like(model)
    norms, rates = _recorders(traced)
    evaluation, curves, seconds = fit(traced, split, run, callbacks=[norms, rates])
    copy_state(traced, model)
    metrics = {"epochs": len(curves["fit_loss"]) - 1}
    for part in ("train", "validation", "test"):
        metrics.update(evaluation.measure(part))
    metrics["diverged"] = diverged(curves, metrics)
    metrics["generalization_gap"] = generalization_gap(metrics)
    if run.measure:
        measure = getattr(recipe, "measure" if run.measure is True else run.measure)
        metrics.update(measure(model, split, **_named_by(measure, {"epochs": run.epochs})))
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "curves": curves,
        "steps": {
            "epoch": (norms.epochs + 1).tolist(),
            "learning_rate": rates.learning_rates.tolist(),
            "gradient_norm": norms.global_norm.tolist(),
        },
        "gradient_norm_of_layer": dict(
            zip(norms.layer_names, norms.layers.T.tolist(), strict=True)
        ),
        "parameters": model.count_params(),
        "seconds": seconds,
    }


def start_afresh(seed):
    """Forget earlier models and seed every generator; the memory is Python's to free."""
    _prepare_tensorflow()
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)


def load(run):
    """Return the data of a `Run`, a `data.Split`, as the recipe's `prepare` makes it ready."""
    split = data.load(run.data, seed=run.seed, samples=run.samples, label_noise=run.label_noise)
    prepare = getattr(load_module(run.recipe_path), "prepare", None)
    return prepare(split, **_named_by(prepare, run.arguments)) if prepare else split


def fit(model, split, run, callbacks=()):
    """Train `model` on the batches of `run`; nothing here reads the test part.

    Returns:
        The model's `Evaluation`, the history of its `Curves`, and the seconds that `fit` took.
    """
    evaluation = Evaluation(model, split)
    curves = Curves(evaluation)
    of_recipe = make_callbacks(load_module(run.recipe_path), split, run)
    start = time.perf_counter()
    model.fit(
        training_batches(split.train, run),
        epochs=run.epochs,
        steps_per_epoch=steps_per_epoch(split.train, run.batch_size),
        shuffle=False,  # The batches come in the order that all variants share.
        # What the recipe's own callbacks monitor is in the logs before they look.
        callbacks=[*callbacks, curves, *of_recipe],
        verbose=0,
    )
    return evaluation, curves.history, time.perf_counter() - start


def diverged(curves, metrics):
    """Return whether the loss of any epoch, or that of the trained model, was not finite."""
    losses = [*curves["fit_loss"][1:], metrics["train_loss"]]
    return not np.isfinite(losses).all()


def generalization_gap(metrics):
    """Return how much better the training part does than the test part."""
    if "test_accuracy" in metrics:
        return metrics["train_accuracy"] - metrics["test_accuracy"]
    return metrics["test_rmse"] - metrics["train_rmse"]


def build(recipe, split, run):
    """Build and compile the recipe's model for the data of `split`."""
    hooks = [
        getattr(recipe, name) for name in ("prepare", "make_callbacks") if hasattr(recipe, name)
    ]
    of_hooks = {name for hook in hooks for name in _named_by(hook, run.arguments)}
    arguments = _named_by(recipe.build_model, {**_lengths(split, run), **run.arguments})
    # What nobody names goes to the model as well, which complains about it.
    arguments |= {k: v for k, v in run.arguments.items() if k not in of_hooks}
    if split.classes:
        arguments["classes"] = split.classes
    model = recipe.build_model(
        input_shape=split.input_shape, **arguments, learning_rate=run.learning_rate, seed=run.seed
    )
    # Slots that the first training step had to create would make TensorFlow trace it twice.
    model.optimizer.build(model.trainable_variables)
    # One call for a whole epoch: on small models the calls from Python cost more than the steps.
    model.steps_per_execution = steps_per_epoch(split.train, run.batch_size)
    return model


_last_traced = None


def traced_like(model):
    """Return the last model that trained, in the state of `model`, where both have one graph.

    To trace a small model takes longer than to train it, and models of one variant differ in how
    they start alone. Where the graphs differ it is `model` itself that is returned, and kept for
    the next one. A recipe's random numbers have to come from seeds that Keras keeps in variables,
    as its layers do.
    """
    global _last_traced
    if _last_traced is not None and _graph(_last_traced) == _graph(model):
        copy_state(model, _last_traced)
    else:
        _last_traced = model
    return _last_traced


def copy_state(source, target):
    """Give `target` the weights, the random state and the optimizer's state of `source`."""
    if source is not target:
        for new, variable in zip(_variables(source), _variables(target), strict=True):
            variable.assign(new)


def _graph(model):
    """Return what the traced graph follows from: all settings but the start and a plain rate."""
    settings = model.get_compile_config()
    optimizer = settings["optimizer"]["config"]
    if not isinstance(optimizer["learning_rate"], dict):
        optimizer["learning_rate"] = None  # A variable, unlike a schedule.
    return [_without_start(model.get_config()), settings, model.steps_per_execution]


def _without_start(config):
    """Return a config without seeds and initializers: a graph takes what they made as it is."""
    if isinstance(config, dict):
        return {
            key: _without_start(value)
            for key, value in config.items()
            if key != "seed" and not key.endswith("_initializer")
        }
    if isinstance(config, list | tuple):
        return [_without_start(value) for value in config]
    return config


def _variables(model):
    return [*model.variables, *model.optimizer.variables]


@functools.lru_cache(maxsize=1)
def _recorders(model):
    """Return the callbacks of a model, whose hooks are part of its traced training step."""
    return GradientNorms(), LearningRateLogger()


def make_callbacks(recipe, split, run):
    """Return the callbacks of a recipe that has `make_callbacks`, new ones for every run."""
    if not hasattr(recipe, "make_callbacks"):
        return []
    settings = {**_lengths(split, run), **run.arguments}
    return recipe.make_callbacks(**_named_by(recipe.make_callbacks, settings))


def _lengths(split, run):
    """Return what a schedule may need to know, for the functions of a recipe that name it."""
    steps = steps_per_epoch(split.train, run.batch_size)
    return {"steps_per_epoch": steps, "total_steps": run.epochs * steps}


def _named_by(function, arguments):
    """Return those of the keyword arguments that `function` names."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def steps_per_epoch(train, batch_size):
    """Return the number of batches an epoch, a smaller last one included."""
    return -(-len(train.x) // batch_size)


def batch_order(samples, epochs, seed):
    """Return the order of the training samples, shape `(epochs, samples)`.

    It depends on the seed alone, so that every variant sees the same batches.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    return np.stack([generator.permutation(samples) for _ in range(epochs)])


def training_batches(train, run):
    """Return a `tf.data.Dataset` of all batches of all epochs, in the order of `batch_order`."""
    samples = len(train.x)
    steps = steps_per_epoch(train, run.batch_size)
    order = tf.constant(batch_order(samples, run.epochs, run.seed))
    x, y = tf.constant(train.x), tf.constant(train.y)

    def batch(step):
        start = step % steps * run.batch_size
        indices = order[step // steps][start : start + run.batch_size]
        return tf.gather(x, indices), tf.gather(y, indices)

    return tf.data.Dataset.range(run.epochs * steps).map(batch).prefetch(8)


class Evaluation:
    """Measures a model in inference mode, without the penalties that its loss may carry."""

    def __init__(self, model, split):
        self.split = split
        self.loss = keras.losses.get(model.loss)
        self._forward = _forward(
            model,
            tf.TensorSpec((None, *split.input_shape), split.train.x.dtype),
            tf.TensorSpec((None, *split.train.y.shape[1:]), split.train.y.dtype),
        )

    def measure(self, part_name):
        """Return loss and accuracy, or loss and RMSE in the targets' original units.

        The names carry the part: `{"test_loss": ..., "test_accuracy": ...}`.
        """
        x, y = getattr(self.split, part_name)
        loss, score = 0.0, 0.0
        for start in range(0, len(x), EVALUATION_BATCH):
            batch = slice(start, start + EVALUATION_BATCH)
            share = len(y[batch]) / len(y)
            outputs, batch_loss = self._forward(x[batch], y[batch])
            loss += share * float(batch_loss)
            score += share * self._score(outputs.numpy(), y[batch])
        if self.split.task == "regression":
            return {
                f"{part_name}_loss": loss,
                f"{part_name}_rmse": math.sqrt(score) * self.split.target_scale,
            }
        return {f"{part_name}_loss": loss, f"{part_name}_accuracy": score}

    def _score(self, outputs, y):
        """Return the fraction predicted rightly, or the mean squared error."""
        if self.split.task == "regression":
            return float(np.mean((outputs.reshape(len(y)) - y) ** 2))
        classes = y.argmax(axis=-1) if y.ndim == 2 else y  # `prepare` may have made them one-hot.
        return float(np.mean(self._predicted_classes(outputs) == classes))

    def _predicted_classes(self, outputs):
        if outputs.shape[-1] > 1:
            return outputs.argmax(axis=-1)
        threshold = 0.0 if getattr(self.loss, "from_logits", False) else 0.5
        return outputs[:, 0] > threshold


@functools.lru_cache(maxsize=1)
def _forward(model, *signature):
    """Return a function from inputs and targets to the outputs and the mean loss."""
    loss_of = keras.losses.get(model.loss)

    @tf.function(input_signature=signature, autograph=False)
    def outputs_and_loss(x, y):
        outputs = tf.cast(model(x, training=False), tf.float32)
        return outputs, tf.reduce_mean(loss_of(y, outputs))

    return outputs_and_loss


class Curves(keras.callbacks.Callback):
    """Measures training and validation data before the first epoch and after each one.

    `history` is a dictionary of lists, each with one value for the untrained model and one for
    each epoch: the metrics of `Evaluation` in inference mode, and `fit_loss`, the loss that `fit`
    reports (with dropout active and penalties added; nan for the untrained model). Callbacks that
    come later find `val_loss` and `val_accuracy` or `val_rmse` in the epoch's logs.
    """

    def __init__(self, evaluation):
        super().__init__()
        self.evaluation = evaluation
        self.history = {"fit_loss": [math.nan]}

    def on_train_begin(self, logs=None):
        self._measure()

    def on_epoch_end(self, epoch, logs=None):
        self.history["fit_loss"].append(float(logs["loss"]))
        self._measure()
        for metric, values in self.history.items():
            if metric.startswith("validation_"):
                logs[f"val_{metric.removeprefix('validation_')}"] = values[-1]

    def _measure(self):
        for part in ("train", "validation"):
            for metric, value in self.evaluation.measure(part).items():
                self.history.setdefault(metric, []).append(value)


def _prepare_tensorflow():
    """Make this process train on one thread, deterministically; the first call decides."""
    if tf.config.threading.get_intra_op_parallelism_threads() != 1:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            # TensorFlow runs already, as in a notebook: last digits may differ from other runs.
            pass
    tf.config.experimental.enable_op_determinism()
    # Every run traces a model of its own, which TensorFlow would warn about.
    tf.get_logger().setLevel("ERROR")
