"""Keras Tuner's Oracle for a search that survives kills: it keeps finished trials, nothing else."""

import json
import threading
import time
import warnings

import keras_tuner
from keras_tuner.src.engine.metrics_tracking import MetricsTracker
from keras_tuner.src.engine.trial import Trial, TrialStatus
from sklearn.exceptions import ConvergenceWarning

from recipes._lab.runs import write_text
from recipes._lab.tuning.search import finished_trial, rounded

# A trial that is out for so many times the longest one yet, and at least so many seconds, is
# handed out a second time to a worker that has nothing else to do. Its result is the same.
LATE_FACTOR = 10
LATE_SECONDS = 120

# Bayesian search draws so many rates at random before it looks at scores: Keras Tuner's default.
INITIAL_RATES = 3

# `update_trial` takes one number a name: "validation_accuracy@12" is that of epoch 12.
EPOCH_SEPARATOR = "@"


class SearchOracle(keras_tuner.Oracle):
    """Hands out the trials of one `Search`, and stores them as a project of Keras Tuner.

    What a trial is depends on the search and on finished trials alone, never on what happened on
    the way. So only finished trials are stored, each in one step, and reading them back is all
    that it takes to go on after a kill. `oracle.json` is made from them, for Keras Tuner's own
    classes, and never read here.

    Args:
        search: A `Search`. Trials of it that are finished on disk are not handed out again.
    """

    def __init__(self, search):
        space = declare_hyperparameters(search, keras_tuner.HyperParameters())
        super().__init__(
            objective=keras_tuner.Objective(search.metric, search.direction),
            max_trials=search.total,
            hyperparameters=space,
            seed=1,
        )
        self.search = search
        self.verbose = 0
        self.finished = {}  # Index to `FinishedTrial`.
        self._handed_out = {}  # Index to the time.
        self._proposed = {}  # Number of the rate to the rate; only Bayesian search takes long.
        self.longest_trial = 0.0  # Seconds from handing it out to its end.
        self._set_project_dir(str(search.parent), search.name)
        for index, state in search.read_states().items():
            self._keep(index, Trial.from_state(state))
        if self.finished:
            self.save()  # A kill may have come between a trial and this file, or damaged it.

    @property
    def is_finished(self):
        return len(self.finished) == self.search.total

    def create_trial(self, tuner_id):
        """Return the next trial for a worker.

        A worker that was killed and comes back under its name gets the trial that it had.
        """
        trial = self.ongoing_trials.get(tuner_id)
        if trial is None:
            index = self._next_index()
            if index is None:
                return self._no_trial(TrialStatus.STOPPED if self.is_finished else TrialStatus.IDLE)
            trial = self._trial(index)
            self.trials[trial.trial_id] = trial
            self.ongoing_trials[tuner_id] = trial
            self._handed_out[index] = time.monotonic()
        trial.metrics = MetricsTracker()
        return trial

    def update_trial(self, trial_id, metrics, step=0):
        """Take all that a trial measured, in one message.

        Args:
            trial_id: String.
            metrics: Dictionary from "name@epoch" to float.
            step: Not used.
        """
        trial = self._unfinished(trial_id)
        if trial is None:
            return self._no_trial(TrialStatus.STOPPED)
        trial.metrics = MetricsTracker()
        for name_and_epoch, value in metrics.items():
            name, _, epoch = name_and_epoch.partition(EPOCH_SEPARATOR)
            if not trial.metrics.exists(name):
                trial.metrics.register(name, "max" if name.endswith("accuracy") else "min")
            trial.metrics.update(name, value, step=int(epoch))
        return trial

    def end_trial(self, trial):
        """Store a finished trial; what a worker reports of any other one is not needed."""
        trial = self._unfinished(trial.trial_id)
        if trial is None or not trial.metrics.exists(self.objective.name):
            return
        trial.status = TrialStatus.COMPLETED
        self.score_trial(trial)
        index = self._index(trial)
        self.longest_trial = max(self.longest_trial, time.monotonic() - self._handed_out[index])
        self._save_trial(trial)
        self._keep(index, trial)
        self.save()

    def score_trial(self, trial):
        """Score a trial by its last epoch: the best one would be chosen with hindsight."""
        last = trial.metrics.get_history(self.objective.name)[-1]
        trial.score, trial.best_step = float(last.mean()), int(last.step)

    def save(self):
        """Write what Keras Tuner's own classes need to open the project."""
        write_text(self.search.oracle_file, json.dumps(self.get_state()))
        tuner_file = self.search.folder / "tuner0.json"
        if not tuner_file.exists():
            write_text(tuner_file, json.dumps({}))

    def reload(self):
        """Do nothing: the finished trials were read in the beginning."""

    def get_state(self):
        """Return a state that depends on the finished trials alone, not on their order."""
        ids = [self.search.trial_id(index) for index in sorted(self.finished)]
        hashes = {
            trial_id: self._compute_values_hash(self.trials[trial_id].hyperparameters.values)
            for trial_id in ids
        }
        return {
            **super().get_state(),
            "ongoing_trials": {},
            "start_order": ids,
            "end_order": ids,
            "run_times": dict.fromkeys(ids, 1),
            "tried_so_far": list(hashes.values()),
            "id_to_hash": hashes,
        }

    def _save_trial(self, trial):
        path = self.search.trial_file(self._index(trial))
        write_text(path, json.dumps(trial.get_state()))

    def _keep(self, index, trial):
        self.trials[trial.trial_id] = trial
        self.finished[index] = finished_trial(self.search, index, trial.get_state())
        self._handed_out.pop(index, None)
        for tuner_id, ongoing in list(self.ongoing_trials.items()):
            if ongoing.trial_id == trial.trial_id:
                del self.ongoing_trials[tuner_id]

    def _index(self, trial):
        return int(trial.trial_id.rpartition("-")[2])

    def _unfinished(self, trial_id):
        """Return a trial that is out, or None: after a chief was killed, others may come in."""
        trial = self.trials.get(trial_id)
        return trial if trial and self._index(trial) in self._handed_out else None

    def _no_trial(self, status):
        return Trial(self.hyperparameters.copy(), trial_id="none", status=status)

    def _next_index(self):
        for index in range(self.search.total):
            if index in self.finished or index in self._handed_out:
                continue
            # None: Bayesian search waits for all scores of the rates before this one.
            return index if self._learning_rate(index) is not None else None
        allowance = max(LATE_SECONDS, LATE_FACTOR * self.longest_trial)
        late = time.monotonic() - allowance
        return next((i for i, since in self._handed_out.items() if since < late), None)

    def _trial(self, index):
        space = self.hyperparameters.copy()
        space.values = {
            "search": self.search.name,
            "learning_rate": self._learning_rate(index),
            "seed": self.search.seed_of(index),
        }
        return Trial(space, trial_id=self.search.trial_id(index))

    def _learning_rate(self, index):
        """Return the learning rate of a trial, or None where it is not known yet."""
        seeds = len(self.search.seeds)
        number = index // seeds
        if self.search.tuner == "grid":
            return self.search.learning_rates.grid()[number]
        same_rate = range(number * seeds, (number + 1) * seeds)
        for other in same_rate:
            if other in self.finished:
                return self.finished[other].learning_rate
            if other in self._handed_out:
                trial = self.trials[self.search.trial_id(other)]
                return trial.hyperparameters.values["learning_rate"]
        if self.search.tuner == "random" or number < INITIAL_RATES:
            return draw_rates(self.search.learning_rates)[number]
        earlier = [self.finished.get(other) for other in range(number * seeds)]
        if None in earlier:
            return None
        by_rate = [earlier[start : start + seeds] for start in range(0, len(earlier), seeds)]
        if number not in self._proposed:
            self._proposed[number] = propose_rate(self.search, by_rate)
        return self._proposed[number]


def declare_hyperparameters(search, space):
    """Declare what a trial of `search` is made of in `space`, a `HyperParameters`; return it."""
    rates = search.learning_rates
    space.Fixed("search", search.name)
    if search.tuner == "grid":
        space.Choice("learning_rate", list(rates.grid()))
    else:
        space.Float("learning_rate", rates.low, rates.high, sampling="log")
    space.Choice("seed", list(search.seeds))
    return space


def draw_rates(rates):
    """Return `rates.count` learning rates, drawn by Keras Tuner's random search."""
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective="val_loss", hyperparameters=_rate_alone(rates), seed=1
    )
    drawn = []
    while len(drawn) < rates.count:
        values = oracle.populate_space(str(len(drawn)))["values"]
        rate = rounded(values["learning_rate"])
        if rate not in drawn:
            drawn.append(rate)
    return drawn


def propose_rate(search, by_rate):
    """Return the learning rate that Keras Tuner's Bayesian search tries next.

    Args:
        search: A `Search`.
        by_rate: A list of lists of `FinishedTrial`: all trials of each rate tried so far, at least
            three. The proposal depends on them alone, whoever trained them and in whatever order.
    """
    oracle = keras_tuner.oracles.BayesianOptimizationOracle(
        objective=keras_tuner.Objective(search.metric, search.direction),
        hyperparameters=_rate_alone(search.learning_rates),
        num_initial_points=INITIAL_RATES,
        seed=1 + len(by_rate),
    )
    tried = set()
    for number, trials in enumerate(by_rate):
        tried.add(trials[0].learning_rate)
        space = oracle.get_space()
        space.values = {"learning_rate": trials[0].learning_rate}
        trial = Trial(space, trial_id=str(number), status=TrialStatus.COMPLETED)
        trial.score = sum(trial.score for trial in trials) / len(trials)
        oracle.trials[trial.trial_id] = trial
    with warnings.catch_warnings():
        # A handful of scores says little about how smooth they are, and the fit complains.
        warnings.simplefilter("ignore", ConvergenceWarning)
        values = oracle.populate_space(str(len(by_rate)))["values"]
    rate = rounded(values["learning_rate"])
    while rate in tried:
        # The same seeds would give the same scores again.
        rate = rounded(oracle._random_values()["learning_rate"])
    return rate


def _rate_alone(rates):
    space = keras_tuner.HyperParameters()
    space.Float("learning_rate", rates.low, rates.high, sampling="log")
    return space


class OracleQueue(keras_tuner.Oracle):
    """Several searches as one Oracle: a worker gets a trial of the first search that has one.

    Args:
        oracles: List of `SearchOracle`.
    """

    def __init__(self, oracles):
        super().__init__(objective="val_loss")  # Each search has its own; this one is not used.
        self.oracles = oracles
        self.verbose = 0
        self.last_heard = time.monotonic()
        self._lock = threading.RLock()

    @property
    def finished(self):
        """The number of finished trials."""
        return sum(len(oracle.finished) for oracle in self.oracles)

    @property
    def total(self):
        return sum(oracle.search.total for oracle in self.oracles)

    @property
    def longest_trial(self):
        """Seconds from handing out a trial to its end, the longest so far."""
        return max((oracle.longest_trial for oracle in self.oracles), default=0.0)

    def create_trial(self, tuner_id):
        with self._lock:
            self.last_heard = time.monotonic()
            self.tuner_ids.add(tuner_id)
            # The worker's own unfinished trial comes first, of whatever search it is.
            oracles = sorted(self.oracles, key=lambda o: tuner_id not in o.ongoing_trials)
            trials = []
            for oracle in oracles:
                trials.append(oracle.create_trial(tuner_id))
                if trials[-1].status == TrialStatus.RUNNING:
                    return trials[-1]
            for trial in trials:
                if trial.status == TrialStatus.IDLE:
                    return trial
            self.tuner_ids.discard(tuner_id)
            return trials[0]

    def update_trial(self, trial_id, metrics, step=0):
        with self._lock:
            self.last_heard = time.monotonic()
            oracle = self._oracle_of(trial_id)
            if oracle is None:
                return Trial(self.hyperparameters.copy(), trial_id, TrialStatus.STOPPED)
            return oracle.update_trial(trial_id, metrics, step)

    def end_trial(self, trial):
        with self._lock:
            self.last_heard = time.monotonic()
            oracle = self._oracle_of(trial.trial_id)
            if oracle is not None:
                oracle.end_trial(trial)

    def get_trial(self, trial_id):
        return self._oracle_of(trial_id).get_trial(trial_id)

    def save(self):
        """Do nothing: every search stores itself."""

    def reload(self):
        """Do nothing: every search was read in the beginning."""

    def _oracle_of(self, trial_id):
        return next((oracle for oracle in self.oracles if trial_id in oracle.trials), None)
