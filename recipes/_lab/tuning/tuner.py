"""Keras Tuner's HyperModel and Tuner for the trials of a search."""

import gc
import math
import time

import keras
import keras_tuner
import numpy as np
from keras_tuner.src.engine.trial import TrialStatus

from recipes._lab import training
from recipes._lab.errors import UserError
from recipes._lab.recipe import load_module
from recipes._lab.tuning.oracle import EPOCH_SEPARATOR, declare_hyperparameters

# An RMSE of 1 means predicting the mean of the targets, in their standard deviations. Beyond this,
# a model has diverged, finite or not.
WORST_RELATIVE_RMSE = 10.0
IDLE_SECONDS = 0.2


class VariantModel(keras_tuner.HyperModel):
    """One variant of a recipe, as every Tuner of Keras Tuner takes it.

    ```python
    tuner = keras_tuner.RandomSearch(
        VariantModel(search), objective=keras_tuner.Objective("validation_accuracy", "max")
    )
    tuner.search()
    ```

    Args:
        search: A `Search`: what is trained, and the learning rates and seeds to choose from.
    """

    def __init__(self, search):
        super().__init__(name=search.name)
        self.search = search
        self.recipe = load_module(search.run.recipe_path)
        self._seed, self._split = None, None

    def declare_hyperparameters(self, hp):
        declare_hyperparameters(self.search, hp)

    def build(self, hp):
        """Return the compiled model of a trial."""
        self.declare_hyperparameters(hp)
        run = self._run(hp)
        return training.build(self.recipe, self._data(run), run)

    def fit(self, hp, model, callbacks=(), **unused):
        """Train the model as the bench does, without its test data.

        Returns:
            A `History` of what Keras and `callbacks` logged and of the metrics in inference mode
            on training and validation data, one value an epoch. The last value of validation is
            that of the model as `fit` left it: with averaged weights, or those of its best epoch.
        """
        run = self._run(hp)
        traced = training.traced_like(model)
        evaluation, curves, _ = training.fit(traced, self._data(run), run, callbacks)
        training.copy_state(traced, model)
        # `fit_loss` is the loss that Keras logged, and the first value is that of no epoch.
        measured = {name: values[1:] for name, values in curves.items() if name != "fit_loss"}
        for name, value in evaluation.measure("validation").items():
            measured[name][-1] = value
        traced.history.history = {**traced.history.history, **measured}
        return traced.history

    def worst_score(self, hp):
        """Return the score of a trial that diverged: as bad as a score can be, and finite.

        NaN or infinity would end a search, or pass for a perfect score in Bayesian search.
        """
        if self.search.metric == "validation_rmse":
            return WORST_RELATIVE_RMSE * self._data(self._run(hp)).target_scale
        return 0.0

    def _data(self, run):
        if self._seed != run.seed:
            self._seed, self._split = run.seed, training.load(run)
        return self._split

    def _run(self, hp):
        return self.search.run_of(hp.get("learning_rate"), hp.get("seed"))


class SearchTuner(keras_tuner.Tuner):
    """Trains the trials that an `OracleQueue` hands out, in this process or for a chief.

    Every trial starts from its own seed and with the dtype policy that was set when the search
    began, and is scored as `fit` leaves the model.

    Args:
        oracle: An `OracleQueue`. Where the environment names a chief, trials come from there.
        searches: List of `Search`.
        on_trial_end: Function without arguments, called after each trial.
        directory: Folder of the searches.
    """

    def __init__(self, oracle, searches, directory, on_trial_end=None):
        super().__init__(oracle, directory=str(directory.parent), project_name=directory.name)
        self._searches = {search.name: search for search in searches}
        self._model = None
        self._report_end = on_trial_end
        self._waiting = False

    def search(self, callbacks=()):
        """Train trials until there are no more.

        Args:
            callbacks: List of Keras callbacks. Each trial gets a deep copy of them, and keeps what
                they log in its record.
        """
        self._dtype_policy = keras.config.dtype_policy()
        # Most of what a collection looks at is TensorFlow itself. Set aside, it costs a tenth, and
        # each trial's model can be freed as soon as it is done.
        gc.freeze()
        try:
            super().search(callbacks=list(callbacks))
        finally:
            gc.unfreeze()
            keras.config.set_dtype_policy(self._dtype_policy)

    def pre_create_trial(self):
        # Keras Tuner asks again at once when a chief has nothing yet.
        if self._waiting:
            time.sleep(IDLE_SECONDS)
        self._waiting = True

    def on_trial_begin(self, trial):
        self._waiting = False

    def on_trial_end(self, trial):
        self.oracle.end_trial(trial)
        if self._report_end:
            self._report_end()

    def run_trial(self, trial, callbacks=()):
        """Train one trial.

        Returns:
            A dictionary from "name@epoch" to float. Values that are not finite are left out;
            "diverged" is 0 or 1, and the metric of the search is finite in the last epoch.
        """
        hp = trial.hyperparameters
        model = self._variant_model(hp)
        gc.collect()  # The last trial's model.
        training.start_afresh(hp.get("seed"))
        keras.config.set_dtype_policy(self._dtype_policy)
        history = model.fit(
            hp, model.build(hp), callbacks=self._deepcopy_callbacks(list(callbacks))
        ).history
        return _record(history, model.search, model.worst_score(hp))

    def save(self):
        """Do nothing: the Oracle stores each trial when it ends."""

    def _variant_model(self, hp):
        name = hp.get("search")
        if name not in self._searches:
            raise UserError(
                f"The chief searches {name}, which is not part of this command: a worker needs the "
                "chief's arguments, and the same versions of the recipe and of its packages."
            )
        if self._model is None or self._model.name != name:
            self._model = VariantModel(self._searches[name])  # The last one's data can go.
        return self._model

    def _try_run_and_update_trial(self, trial, **arguments):
        # A recipe that raises has a fault to mend: its trial gets no score, and the search ends.
        self.oracle.update_trial(trial.trial_id, self.run_trial(trial, **arguments))
        trial.status = TrialStatus.COMPLETED


def _record(history, search, worst_score):
    values = {
        f"{name}{EPOCH_SEPARATOR}{epoch}": float(value)
        for name, values in history.items()
        for epoch, value in enumerate(values, start=1)
        if np.ndim(value) == 0 and math.isfinite(value)
    }
    score = history[search.metric][-1]
    finite = np.isfinite(history["loss"]).all() and math.isfinite(score)
    diverged = not finite or (search.direction == "min" and score >= worst_score)
    epochs = len(history[search.metric])
    values[f"{search.metric}{EPOCH_SEPARATOR}{epochs}"] = worst_score if diverged else score
    values[f"diverged{EPOCH_SEPARATOR}{epochs}"] = float(diverged)
    return values
