"""Trains one variant with one seed, and measures it in inference mode.

All runs use one thread and deterministic operations, so that a run gives the same digits whoever
trains it: this process, one of several side by side, or another one tomorrow.
"""

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
    norms, rates = GradientNorms(), LearningRateLogger()
    evaluation, curves, seconds = fit(model, split, run, callbacks=[norms, rates])
    metrics = {"diverged": diverged(curves)}
    for part in ("train", "validation", "test"):
        metrics.update(evaluation.measure(part))
    metrics["generalization_gap"] = generalization_gap(metrics)
    if run.measure:
        function = "measure" if run.measure is True else run.measure
        metrics.update(getattr(recipe, function)(model, split))
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
    start = time.perf_counter()
    model.fit(
        training_batches(split.train, run),
        epochs=run.epochs,
        steps_per_epoch=steps_per_epoch(split.train, run.batch_size),
        shuffle=False,  # The batches come in the order that all variants share.
        callbacks=[*callbacks, curves],
        verbose=0,
    )
    return evaluation, curves.history, time.perf_counter() - start


def diverged(curves):
    """Return whether the loss of any epoch was not finite."""
    return not np.isfinite(curves["fit_loss"][1:]).all()


def generalization_gap(metrics):
    """Return how much better the training part does than the test part."""
    if "test_accuracy" in metrics:
        return metrics["train_accuracy"] - metrics["test_accuracy"]
    return metrics["test_rmse"] - metrics["train_rmse"]


def build(recipe, split, run):
    """Build and compile the recipe's model for the data of `split`."""
    outputs = {"classes": split.classes} if split.classes else {}
    arguments = run.arguments
    if hasattr(recipe, "prepare"):
        # What only `prepare` names was about the data.
        for_data = _named_by(recipe.prepare, arguments).keys()
        for_model = _named_by(recipe.build_model, arguments).keys()
        arguments = {k: v for k, v in arguments.items() if k in for_model or k not in for_data}
    model = recipe.build_model(
        input_shape=split.input_shape,
        **outputs,
        **arguments,
        learning_rate=run.learning_rate,
        seed=run.seed,
    )
    # Slots that the first training step had to create would make TensorFlow trace it twice.
    model.optimizer.build(model.trainable_variables)
    # One call for a whole epoch: on small models the calls from Python cost more than the steps.
    model.steps_per_execution = steps_per_epoch(split.train, run.batch_size)
    return model


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
        self._forward = tf.function(
            lambda x, y: self._outputs_and_loss(model, x, y),
            input_signature=[
                tf.TensorSpec((None, *split.input_shape), split.train.x.dtype),
                tf.TensorSpec((None, *split.train.y.shape[1:]), split.train.y.dtype),
            ],
            autograph=False,
        )

    def _outputs_and_loss(self, model, x, y):
        outputs = tf.cast(model(x, training=False), tf.float32)
        return outputs, self.loss(y, outputs)

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


class Curves(keras.callbacks.Callback):
    """Measures training and validation data before the first epoch and after each one.

    `history` is a dictionary of lists, each with one value for the untrained model and one for
    each epoch: the metrics of `Evaluation` in inference mode, and `fit_loss`, the loss that `fit`
    reports (with dropout active and penalties added; nan for the untrained model).
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
