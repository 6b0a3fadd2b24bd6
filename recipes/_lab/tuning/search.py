"""What is searched: one variant's learning rates, with which seeds, and where its trials are kept.

Nothing here imports Keras Tuner: a finished search is read and shown without waiting for it.
"""

import functools
import hashlib
import json
import math
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np

import data
from recipes._lab import bench
from recipes._lab.errors import UserError
from recipes._lab.recipe import code_fingerprint
from recipes._lab.runs import Run

# Oracle and Tuner reach into Keras Tuner where it has no public hook. A version stands here after
# the tests of the search have passed with it.
CHECKED_KERAS_TUNER = ("1.4.8",)
TUNERS = ("grid", "random", "bayesian")


@dataclass(frozen=True)
class LearningRates:
    """`count` learning rates from `low` to `high`, equally spaced on a logarithmic axis."""

    low: float
    high: float
    count: int

    def grid(self):
        """Return the rates, rounded to three digits, as one would write them into a recipe."""
        return tuple(rounded(rate) for rate in np.geomspace(self.low, self.high, self.count))

    def __str__(self):
        return f"{self.low:g}:{self.high:g}:{self.count}"


def rounded(rate):
    """Return a learning rate with three significant digits."""
    return float(f"{rate:.3g}")


@dataclass(frozen=True)
class Search:
    """The search for the learning rate of one variant in one experiment.

    A trial is one training with one learning rate and one seed. Trial `i` trains rate
    `i // len(seeds)` with seed `i % len(seeds)`.

    Attributes:
        run: A `Run` that stands for all trials: its learning rate and seed are not used.
        tuner: "grid", "random" or "bayesian".
        learning_rates: The grid, or the range to draw from and the number of draws.
        seeds: Tuple of int.
        parent: Folder of all searches of a recipe.
    """

    run: Run
    tuner: str
    learning_rates: LearningRates
    seeds: tuple
    parent: Path

    @functools.cached_property
    def key(self):
        """A hash that changes with anything that could change a score."""
        facts = {
            "run": replace(self.run, learning_rate=0.0, seed=0, measure=False).key,
            "tuner": self.tuner,
            "learning_rates": str(self.learning_rates),
            "seeds": self.seeds,
            "keras-tuner": metadata.version("keras-tuner"),
            "code": _code_of_the_search(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self):
        """The name of the search's folder, which is a project of Keras Tuner."""
        return f"{self.run.variant}-{self.key}"

    @property
    def folder(self):
        return Path(self.parent) / self.name

    @property
    def metric(self):
        """What a trial is scored by: what the claims are about, on validation data."""
        task = data.DATASETS[self.run.data].task
        return "validation_rmse" if task == "regression" else "validation_accuracy"

    @property
    def direction(self):
        return "min" if self.metric.endswith("rmse") else "max"

    @property
    def total(self):
        """The number of trials."""
        return self.learning_rates.count * len(self.seeds)

    def seed_of(self, index):
        return self.seeds[index % len(self.seeds)]

    def trial_id(self, index):
        """The name of a trial, unique among all searches that one chief hands out."""
        return f"{self.key[:8]}-{index:0{len(str(self.total - 1))}d}"

    def trial_file(self, index):
        """Where Keras Tuner keeps a trial."""
        return self.folder / f"trial_{self.trial_id(index)}" / "trial.json"

    @property
    def oracle_file(self):
        """What Keras Tuner's own classes read, beside the trials."""
        return self.folder / "oracle.json"

    def is_finished(self):
        """Return whether every trial is finished, and Keras Tuner's own classes can see it."""
        try:
            listed = json.loads(self.oracle_file.read_bytes())["end_order"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return len(listed) == len(self.read_states(report=False)) == self.total

    def run_of(self, learning_rate, seed):
        """Return the `Run` that a trial trains."""
        return replace(self.run, learning_rate=learning_rate, seed=seed, measure=False)

    def read_states(self, report=True):
        """Return the states of the finished trials, as Keras Tuner stores them, by index.

        A file that does not hold a whole, finished trial is left out, and reported.
        """
        states = {}
        for index in range(self.total):
            path = self.trial_file(index)
            try:
                state = json.loads(path.read_text(encoding="utf-8"))
                finished_trial(self, index, state)
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                if report:
                    print(f"{path} is damaged; training it again.", file=sys.stderr)
                continue
            states[index] = state
        return states


@dataclass(frozen=True)
class FinishedTrial:
    """One learning rate trained with one seed. A diverged trial has the worst score there is."""

    learning_rate: float
    seed: int
    score: float
    diverged: bool


def finished_trial(search, index, state):
    """Read a trial's stored state.

    Raises:
        ValueError, KeyError, TypeError, IndexError or AttributeError: where it is not that of a
            finished trial of this place in the search.
    """
    values = state["hyperparameters"]["values"]
    metrics = state["metrics"]["metrics"]
    score = metrics[search.metric]["observations"][-1]["value"]
    (diverged,) = metrics["diverged"]["observations"][-1]["value"]
    trial = FinishedTrial(values["learning_rate"], values["seed"], state["score"], bool(diverged))
    belongs_here = (
        state["trial_id"] == search.trial_id(index)
        and state["status"] == "COMPLETED"
        and values["search"] == search.name
        and trial.seed == search.seed_of(index)
        and trial.learning_rate > 0
        and math.isfinite(trial.score)
        and [trial.score] == score
    )
    if search.tuner == "grid":
        rate = search.learning_rates.grid()[index // len(search.seeds)]
        belongs_here = belongs_here and trial.learning_rate == rate
    if not belongs_here:
        raise ValueError(f"not trial {index} of {search.name}")
    return trial


def read_trials(search):
    """Return the finished trials of a search: a dictionary from index to `FinishedTrial`."""
    return {
        index: finished_trial(search, index, state) for index, state in search.read_states().items()
    }


def plan(recipe, experiments, tuner, learning_rates, seeds, parent):
    """Return the search of every variant: a dictionary from (experiment, variant) to `Search`.

    Experiments that train a variant in the same way share one search.
    """
    seeds = tuple(range(bench.FIRST_TUNING_SEED, bench.FIRST_TUNING_SEED + seeds))
    return {
        (run.experiment, run.variant): Search(run, tuner, learning_rates, seeds, parent)
        for run in bench.plan(recipe, experiments, seeds=1)
    }


def check_keras_tuner():
    """Raise `UserError` where the installed Keras Tuner is not one that was checked."""
    installed = metadata.version("keras-tuner")
    if installed not in CHECKED_KERAS_TUNER:
        checked = ", ".join(CHECKED_KERAS_TUNER)
        raise UserError(
            f"--tune uses parts of Keras Tuner that are not public and were checked in {checked} "
            f"only. Installed: keras-tuner {installed}. Install keras-tuner=={checked}."
        )


@functools.cache
def _code_of_the_search():
    files = [Path(__file__).with_name(name) for name in ("search.py", "oracle.py", "tuner.py")]
    hashes = [code_fingerprint(file.read_text(encoding="utf-8"), without=()) for file in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
