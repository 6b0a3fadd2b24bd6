"""Learning-rate search: which strategy finds a good rate, at what cost, and what fools it.

Problem:    The network learns slowly or diverges, and nobody knows which rate would suit it.
Technique:  Keras Tuner trains the network at several rates and keeps the one with the best
            validation loss. The strategies differ in the rates they try: a grid, rates drawn at
            random, rates where a model of the scores so far expects the best (Bayesian), or many
            rates for an epoch or two of which a third goes on (Hyperband). The range test trains
            once, raises the rate at every step, and reads the rate off the falling loss.
Claim:      With 72 epochs each, from a range of six decades, random search finds a rate with a
            higher test accuracy than Keras's default; grid, Bayesian search and Hyperband are not
            told apart from it. Nor is the range test, which trains for 63 epochs less. A loss that
            is not finite fools the tuner's bookkeeping: NaN is a failed trial, and three in a row
            end the search; infinity is taken for a perfect score by the Bayesian strategy. A cap on
            the loss mends both.
Costs:      The epochs of all trials together: here eight trainings, or one for the range test.
Start at:   The range test, to find the decade; then a grid of five or six rates a factor of two or
            three apart around it, three seeds each, and the last epoch's score.
Caveat:     One hyperparameter: with several, grids become expensive, and the Bayesian strategy has
            more to gain. Keras Tuner scores a trial by its best epoch. Its seed 0 means no seed;
            neighbouring seeds draw the same rates but one, so that a search has to be repeated with
            seeds far apart. It seeds no trial, and it sets the dtype policy back before each one. A
            stopped search still names a best rate. Hyperband starts the count of steps again for
            trials that go on, so that no schedule fits it.
            Every trial starts here from the same weights; the rate that was chosen is then trained
            from others. The default rate, 0.01, is the baseline: no rate here was tuned.
Reference:  Bergstra, Bengio (2012), Random Search for Hyper-Parameter Optimization, JMLR 13. Snoek,
            Larochelle, Adams (2012), Practical Bayesian Optimization. Li, Jamieson, DeSalvo,
            Rostamizadeh, Talwalkar (2018), Hyperband, JMLR 18. Smith (2017), Cyclical Learning
            Rates for Training Neural Networks, section 3.3.
Run:        python -m recipes.learning_rate_search
Measured:   Supported: Random search finds a rate with a higher test accuracy than Keras's default
              rate (+9.7 [+6.4, +13.0] points, p = .008).
            No clear difference: A grid finds a rate as good as random search does, within three
              points (-0.8 [-5.9, +4.4] points, p = .741).
            No clear difference: With a capped loss, Bayesian search finds a better rate than random
              search (+1.4 [-2.5, +5.3] points, p = .752).
            No clear difference: Hyperband finds a better rate than random search (+0.7 [-4.0, +5.4]
              points, p = .752).
            No clear difference: The range test finds a rate as good as random search does, within
              three points (-1.4 [-6.0, +3.2] points, p = .741).
            Supported: The range test trains for fewer epochs than random search (-62.6 [-62.9,
              -62.4], p < .001).
            No clear difference: With a capped loss, a smaller share of the trials of Bayesian
              search diverges (+0.05 [-0.035, +0.135], p = .741).
            Mean difference [95% interval] over 5 paired seeds, p after Holm. Keras 3.15.1,
              TensorFlow 2.21.0, Linux x86_64, 2 cores.
"""

import contextlib
import gc
import math
import tempfile
import warnings

import keras
import numpy as np

HIDDEN_UNITS = 64
MOMENTUM = 0.9
LOWEST_RATE, HIGHEST_RATE = 1e-4, 100.0  # Wide on purpose: the upper third diverges.
EPOCHS = 9  # Of a training whose rate is sought.
TRIALS = 8  # 8 trainings of 9 epochs are 72; Hyperband's plan for 9 epochs comes to 75.
RANGE_TEST_STEPS = 100
DRAWS = 1000  # More than any search here makes.
LOSS_CAP = 10.0  # Far above log(10) = 2.3, the loss of a guess among 10 classes.
STRATEGIES = ("grid", "random", "bayesian", "bayesian_capped", "hyperband")


class CappedLoss(keras.callbacks.Callback):
    """Reports a loss of at most `cap`, also where it is not finite, and then ends the training.

    For the callbacks of a `keras_tuner` search: it keeps trials that diverge in the books as bad
    ones. Keras Tuner copies callbacks for each trial; this one has nothing to lose by it.

    Args:
        cap: Float, above any loss that a useful trial has.
        monitor: String, the key in the logs.
    """

    def __init__(self, cap=LOSS_CAP, monitor="val_loss"):
        super().__init__()
        self.cap = cap
        self.monitor = monitor

    def on_epoch_end(self, epoch, logs=None):
        if not logs[self.monitor] <= self.cap:  # Also true of nan.
            logs[self.monitor] = self.cap
            self.model.stop_training = True


def build_model(input_shape=(64,), classes=10, units=HIDDEN_UNITS, learning_rate=0.01, seed=0):
    """Build and compile a small ReLU network.

    Args:
        input_shape: Shape of one sample; `(8, 8)` is flattened to `(64,)`.
        classes: Int, the number of outputs. The outputs are logits of shape `(batch, classes)`.
        units: Int, the width of the hidden layer.
        learning_rate: Float or schedule, for SGD with momentum. Keras's default is 0.01.
        seed: Int. Equal seeds give equal initial weights.
    """
    seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    initializer = keras.initializers.HeNormal(seed=seeds[0])
    x = keras.layers.Dense(units, "relu", kernel_initializer=initializer)(x)
    initializer = keras.initializers.GlorotUniform(seed=seeds[1])
    outputs = keras.layers.Dense(classes, kernel_initializer=initializer)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tunable_model(hp):
    """Build the model that Keras Tuner asks for, with its width and the learning rate."""
    return build_model(
        units=hp.Int("units", 16, 256, step=2, sampling="log"),
        learning_rate=hp.Float("learning_rate", 1e-4, 1.0, sampling="log"),
    )


def make_tuner(strategy, hypermodel, directory, seed=1, epochs=EPOCHS, trials=TRIALS):
    """Return a tuner of Keras Tuner that searches the learning rate, each strategy as dearly.

    The range of the rate is set here and wins over that of `hypermodel`; everything else in
    `hypermodel` keeps its default.

    ```python
    tuner = make_tuner("random", tunable_model, "searches")
    tuner.search(x, y, validation_data=..., epochs=EPOCHS, callbacks=[CappedLoss()])
    rate = tuner.get_best_hyperparameters()[0].get("learning_rate")
    ```

    Args:
        strategy: One of `STRATEGIES`. "bayesian_capped" is "bayesian": the cap is a callback.
        hypermodel: Function from `keras_tuner.HyperParameters` to a compiled model, that names
            its learning rate "learning_rate".
        directory: Folder for what Keras Tuner writes. A search that is there already is thrown
            away, because its results may be those of other settings.
        seed: Int >= 1: Keras Tuner takes 0 for no seed. Its draw number i with seed s is draw i - 1
            with seed s + 1, so seeds of repeated searches have to be farther apart than draws.
        epochs: Int >= 1, of a whole training, and the most that Hyperband gives a trial.
        trials: Int >= 1, the number of trainings; Hyperband makes its own plan.

    Raises:
        ValueError: if `strategy` is unknown, or `seed` below 1.
    """
    import keras_tuner

    if strategy not in STRATEGIES:
        raise ValueError(
            f"Argument `strategy` must be one of {', '.join(STRATEGIES)}. "
            f"Received: strategy={strategy!r}"
        )
    if seed < 1:
        raise ValueError(f"Argument `seed` must be >= 1. Received: seed={seed}")
    space = keras_tuner.HyperParameters()
    # The grid has as many rates as the others have trials, at equal ratios.
    ratio = (HIGHEST_RATE / LOWEST_RATE) ** (1 / max(1, trials - 1)) if strategy == "grid" else None
    space.Float("learning_rate", LOWEST_RATE, HIGHEST_RATE, sampling="log", step=ratio)
    settings = {
        "objective": "val_loss",
        "hyperparameters": space,
        "tune_new_entries": False,
        "directory": directory,
        "project_name": strategy,
        "overwrite": True,
        "seed": seed,
    }
    if strategy == "hyperband":
        return keras_tuner.Hyperband(hypermodel, max_epochs=epochs, factor=3, **settings)
    if strategy == "grid":
        return keras_tuner.GridSearch(hypermodel, max_trials=trials, **settings)
    if strategy == "random":
        return keras_tuner.RandomSearch(hypermodel, max_trials=trials, **settings)
    return keras_tuner.BayesianOptimization(hypermodel, max_trials=trials, **settings)


VARIANTS = {"default_rate": {}}

EQUAL_START = []

EXPERIMENTS = {
    "digits": {
        "data": "digits",
        "samples": 500,
        "epochs": EPOCHS,
        "batch_size": 64,
        "measure": True,
        "learning_rates": {"default_rate": 0.01},
    },
}


CLAIMS = [
    {
        "text": "Random search finds a rate with a higher test accuracy than Keras's default rate",
        "experiment": "digits",
        "variant": "default_rate",
        "against": "default_rate",
        "metric": "random_accuracy",
        "against_metric": "test_accuracy",
        "direction": "higher",
        "at_least": 0.01,
    },
    {
        "text": "A grid finds a rate as good as random search does, within three points",
        "experiment": "digits",
        "variant": "default_rate",
        "against": "default_rate",
        "metric": "grid_accuracy",
        "against_metric": "random_accuracy",
        "direction": "equal",
        "at_least": 0.03,
    },
    {
        "text": "With a capped loss, Bayesian search finds a better rate than random search",
        "experiment": "digits",
        "variant": "default_rate",
        "against": "default_rate",
        "metric": "bayesian_capped_accuracy",
        "against_metric": "random_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Bayesian search of hyperparameters does better than random search.",
    },
    {
        "text": "Hyperband finds a better rate than random search",
        "experiment": "digits",
        "variant": "default_rate",
        "against": "default_rate",
        "metric": "hyperband_accuracy",
        "against_metric": "random_accuracy",
        "direction": "higher",
        "at_least": 0.01,
        "textbook": "Hyperband finds more with the same budget, because bad trials end early.",
    },
    {
        "text": "The range test finds a rate as good as random search does, within three points",
        "experiment": "digits",
        "variant": "default_rate",
        "against": "default_rate",
        "metric": "range_test_accuracy",
        "against_metric": "random_accuracy",
        "direction": "equal",
        "at_least": 0.03,
    },
    {
        "text": "The range test trains for fewer epochs than random search",
        "experiment": "digits",
        "variant": "default_rate",
        "against": "default_rate",
        "metric": "range_test_epochs",
        "against_metric": "random_epochs",
        "direction": "lower",
        "at_least": 30.0,
    },
    {
        "text": "With a capped loss, a smaller share of the trials of Bayesian search diverges",
        "experiment": "digits",
        "variant": "default_rate",
        "against": "default_rate",
        "metric": "bayesian_capped_diverged",
        "against_metric": "bayesian_diverged",
        "direction": "lower",
        "at_least": 0.1,
    },
]

SYMPTOMS = ["choosing a rate"]


def measure(model, split, epochs=EPOCHS):
    """Search the rate with every strategy, and train at what each has chosen.

    For each strategy: `..._accuracy` on test data and `..._validation_accuracy` after a training
    with the chosen rate, from other weights than those of the search; `..._rate_exponent`, the
    logarithm of that rate to base 10; `..._epochs` of the whole search; `..._diverged`, the share
    of trials that end with a loss that is not finite or above that of the untrained network;
    `..._stopped`, 1 where the search ended in an error; and `..._fooled`, 1 where it chose no rate,
    or one with which half of the validation samples and more are wrong.

    All trainings share one network, whose weights are set back: tracing takes longer than training.
    """
    network = _Network(split, epochs)
    metrics = {}
    for strategy in STRATEGIES:
        with tempfile.TemporaryDirectory() as folder:
            found = _search(network, strategy, folder, seed=1 + DRAWS * split.seed)
        metrics |= {f"{strategy}_{name}": value for name, value in found.items()}
    found = _range_test(network)
    return metrics | {f"range_test_{name}": value for name, value in found.items()}


class _Network:
    """One network that is trained again and again, from the same weights or from others."""

    def __init__(self, split, epochs=EPOCHS):
        import tensorflow as tf

        self.split = split
        self.epochs = epochs
        self.trials = TRIALS if epochs == EPOCHS else 4  # Few in a smoke run.
        self.batch_size = 64
        self.steps = -(-len(split.train.x) // self.batch_size)
        self.model = self._build(split.seed)
        self.model.steps_per_execution = self.steps
        self.model.optimizer.build(self.model.trainable_variables)
        self.start = self._state(self.model)
        # Keras Tuner has the model saved after every best epoch. In memory that takes no time, and
        # holds what Keras's files hold: the weights and the optimizer's state.
        saved = {}
        self.model.save_weights = lambda path: saved.update({path: self._state(self.model)})
        self.model.load_weights = lambda path: self.set_back(saved[path])
        train = tf.data.Dataset.from_tensor_slices(split.train).batch(self.batch_size)
        self.fit_arguments = {
            "x": train.cache().repeat(),
            "validation_data": tf.data.Dataset.from_tensors(split.validation),
            "steps_per_epoch": self.steps,
            "verbose": 0,
        }
        self.untrained_loss = self.evaluate("validation")[0]

    def _build(self, seed):
        return build_model(self.split.input_shape, self.split.classes, seed=seed)

    @staticmethod
    def _state(model):
        variables = [*model.variables, *model.optimizer.variables]
        return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]

    def set_back(self, state=None):
        variables = [*self.model.variables, *self.model.optimizer.variables]
        for variable, value in zip(variables, state or self.start, strict=True):
            variable.assign(value)
        return self.model

    def build_trial(self, hp):
        """Be the hypermodel of a search: return the network at the start, with the rate of `hp`."""
        self.set_back().optimizer.learning_rate = hp.Float(
            "learning_rate", LOWEST_RATE, HIGHEST_RATE, sampling="log"
        )
        return self.model

    def outcome(self, rate):
        """Train at the chosen rate from other weights; return what `measure` says of it."""
        other = self._build(self.split.seed + 1_000_000)
        other.optimizer.build(other.trainable_variables)
        self.set_back(self._state(other))
        if rate is not None:
            self.model.optimizer.learning_rate = rate
            self.model.fit(**self.fit_arguments, epochs=self.epochs)
        validation_accuracy = self.evaluate("validation")[1]
        return {
            "accuracy": self.evaluate("test")[1],
            "validation_accuracy": validation_accuracy,
            "rate_exponent": math.nan if rate is None else math.log10(rate),
            "fooled": validation_accuracy < 0.5,
        }

    def evaluate(self, part):
        """Return loss and accuracy on a part of the data."""
        x, y = getattr(self.split, part)
        logits = keras.ops.convert_to_numpy(self.model(x, training=False))
        return float(self.model.loss(y, logits)), np.mean(logits.argmax(axis=-1) == y)


def _search(network, strategy, folder, seed):
    settings = {"epochs": network.epochs, "trials": network.trials}
    tuner = make_tuner(strategy, network.build_trial, folder, seed, **settings)
    epochs = []
    # Copied with the callbacks, a function is the same one: the list stays ours.
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: epochs.append(epoch))]
    if strategy == "bayesian_capped":
        callbacks.append(CappedLoss())
    stopped = False
    network.set_back()
    with _quick_collection(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The Gaussian process complains about few scores.
        try:
            tuner.search(**network.fit_arguments, epochs=network.epochs, callbacks=callbacks)
        except RuntimeError:  # Too many failed trials in a row.
            stopped = True
    best = tuner.get_best_hyperparameters()
    trials = list(tuner.oracle.trials.values())
    scores = np.array([math.nan if trial.score is None else trial.score for trial in trials])
    return {
        **network.outcome(best[0].get("learning_rate") if best else None),
        "epochs": len(epochs),
        "trials": len(trials),
        "diverged": 1 - np.mean(scores <= network.untrained_loss),
        "stopped": stopped,
    }


def _range_test(network):
    from callbacks import LearningRateFinder

    x, y = network.split.train
    finder = LearningRateFinder(LOWEST_RATE, HIGHEST_RATE, RANGE_TEST_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Without a suggestion there is no rate, and that counts.
        suggestions = finder.find(network.set_back(), x, y, batch_size=network.batch_size)
    return {
        **network.outcome(suggestions["valley"]),
        "epochs": len(finder.losses) / network.steps,
        "diverged": finder.diverged,
    }


@contextlib.contextmanager
def _quick_collection():
    """Set aside all objects so far: Keras Tuner collects garbage before each trial."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def illustrate(summary):
    """Draw what each strategy's rate is worth, against the epochs that the search took."""
    from matplotlib.figure import Figure

    from recipes._lab.picture import BASELINE_COLOR, COLORS

    metrics = summary["experiments"]["digits"]["variants"]["default_rate"]["metrics"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for color, strategy in zip(COLORS, [*STRATEGIES, "range_test"], strict=False):
        epochs, accuracy = (
            metrics[f"{strategy}_{name}"]["values"] for name in ("epochs", "accuracy")
        )
        label = strategy.replace("_", " ")
        axes.plot(epochs, [100 * a for a in accuracy], "o", color=color, alpha=0.7, label=label)
    axes.axhline(
        100 * metrics["test_accuracy"]["mean"], color=BASELINE_COLOR, label="default rate, 0.01"
    )
    axes.set_xlabel("epochs of the search (a point for each seed)")
    axes.set_ylabel("test accuracy at the chosen rate, in %")
    axes.grid(alpha=0.25)
    axes.legend()
    return figure


def main(arguments=None):
    """Train all variants on the same seeds, print the verdicts, save tables and pictures."""
    from recipes._lab import run_recipe

    return run_recipe(__file__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
